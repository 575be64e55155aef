// The door of the neighbors family: schemas, checks, outputs. No arithmetic on elements.
#include "neighbors/cdist.h"
#include "neighbors/cdist_backward.h"
#include "neighbors/knn.h"
#include "neighbors/knn_backward.h"

#include "common/door.h"

namespace fastcv {
namespace {

using namespace door;

// One side of the pairs: [rows, D] or [B, rows, D], row-major; a batch that was expanded from one item is not copied.
struct Points {
  Tensor dense;
  int64_t batch, rows, depth, batch_stride;

  explicit Points(const Tensor& t) : dense(t) {
    const int last = static_cast<int>(t.dim()) - 1;
    batch = last == 2 ? t.size(0) : 1;
    rows = t.size(last - 1);
    depth = t.size(last);
    const bool inner = (rows <= 1 || t.stride(last - 1) == depth) && (depth <= 1 || t.stride(last) == 1);
    if (inner && last == 2 && t.stride(0) == 0) {
      batch_stride = 0;
      return;
    }
    dense = as_dense(t);
    batch_stride = rows * depth;
  }
};

void check_pair(const char* op, const Tensor& x1, const Tensor& x2) {
  const Ints a = sizes(x1), b = sizes(x2);
  check((a.size() == 2 || a.size() == 3) && a.size() == b.size(), op,
        ": expected points [M, D] and [N, D], or with a batch ", "dimension in front of both, got ", show(a), " and ",
        show(b));
  check(a.size() == 2 || a[0] == b[0], op, ": batches of ", a[0], " and ", b[0], " items");
  check(a.back() == b.back(), op, ": points of ", a.back(), " and ", b.back(), " coordinates");
  check(x1.scalar_type() == x2.scalar_type(), op, ": dtypes ", dtype_name(x1.scalar_type()), " and ",
        dtype_name(x2.scalar_type()));
  check_same_device(op, {&x1, &x2});
}

// The sizes of x1 with another last one: those of every result per pair.
Ints pair_sizes(const Tensor& x1, int64_t last) {
  Ints result = sizes(x1);
  result.back() = last;
  return result;
}

DType distance_dtype(const Tensor& t, const char* op) {
  const DType dtype = dtype_of(t, op);
  check(dtype <= DType::u8, op, ": dtype ", dtype_name(t.scalar_type()), " has no kernel");
  return dtype;
}
DType float_dtype(const Tensor& t, const char* op) {
  const DType dtype = dtype_of(t, op);
  check(dtype <= DType::f64, op, ": expected float32 or float64, got ", dtype_name(t.scalar_type()));
  return dtype;
}

Tensor cdist(const Tensor& x1, const Tensor& x2, double p) {
  check_pair("cdist", x1, x2);
  check(p >= 0, "cdist: p must be >= 0, got ", p);
  const DType dtype = distance_dtype(x1, "cdist"), out_dtype = dtype == DType::u8 ? DType::f32 : dtype;
  const Points a(x1), b(x2);
  Tensor out = empty(pair_sizes(x1, b.rows), scalar_type(out_dtype), x1);
  const CdistParams params{a.dense.data_ptr(),
                           b.dense.data_ptr(),
                           out.data_ptr(),
                           a.batch,
                           a.rows,
                           b.rows,
                           a.depth,
                           a.batch_stride,
                           b.batch_stride,
                           p,
                           dtype,
                           out_dtype};
  run_variant(cdist_table, params, x1);
  return out;
}

Tensor cdist_backward(const Tensor& grad, const Tensor& x1, const Tensor& x2, double p, const Tensor& distance) {
  check_pair("cdist_backward", x1, x2);
  check_same_device("cdist_backward", {&grad, &x1, &distance});
  check(p >= 0, "cdist_backward: p must be >= 0, got ", p);
  const DType dtype = float_dtype(x1, "cdist_backward");
  const Points a(x1), b(x2);
  const Ints expected = pair_sizes(x1, b.rows);
  check(sizes(grad) == expected && sizes(distance) == expected, "cdist_backward: expected gradient and distance of ",
        show(expected), ", got ", show(grad), " and ", show(distance));
  check(grad.scalar_type() == x1.scalar_type() && distance.scalar_type() == x1.scalar_type(),
        "cdist_backward: gradient and distance must have the points' dtype ", dtype_name(x1.scalar_type()));
  Tensor out = empty(sizes(x1), x1.scalar_type(), x1);
  CdistBackwardParams params{grad.data_ptr(),
                             a.dense.data_ptr(),
                             b.dense.data_ptr(),
                             distance.data_ptr(),
                             out.data_ptr(),
                             a.batch,
                             a.rows,
                             b.rows,
                             a.depth,
                             a.batch_stride,
                             b.batch_stride,
                             {},
                             {},
                             p,
                             dtype};
  const int dims = static_cast<int>(expected.size());
  for (int i = 0; i < dims; ++i) {
    params.grad_stride[i + 3 - dims] = grad.stride(i);
    params.distance_stride[i + 3 - dims] = distance.stride(i);
  }
  run_variant(cdist_backward_table, params, x1);
  return out;
}

std::tuple<Tensor, Tensor> knn(const Tensor& x, const Tensor& y, int64_t k, double p, bool squared) {
  check_pair("knn", x, y);
  check(k >= 1, "knn: k must be at least 1, got ", k);
  check(p >= 0, "knn: p must be >= 0, got ", p);
  check(!squared || p == 2, "knn: squared distances exist for p = 2 only, got p = ", p);
  const DType dtype = distance_dtype(x, "knn"), out_dtype = dtype == DType::u8 ? DType::f32 : dtype;
  const Points a(x), b(y);
  const Ints size = pair_sizes(x, k);
  Tensor distances = empty(size, scalar_type(out_dtype), x), indices = empty(size, ScalarType::Long, x);
  const KnnParams params{a.dense.data_ptr(),
                         b.dense.data_ptr(),
                         distances.data_ptr(),
                         static_cast<int64_t*>(indices.data_ptr()),
                         a.batch,
                         a.rows,
                         b.rows,
                         a.depth,
                         k < b.rows ? k : b.rows,
                         k,
                         a.batch_stride,
                         b.batch_stride,
                         p,
                         squared,
                         dtype,
                         out_dtype};
  run_variant(knn_table, params, x);
  return {distances, indices};
}

std::tuple<Tensor, Tensor> knn_backward(const Tensor& grad, const Tensor& x, const Tensor& y, const Tensor& distance,
                                        const Tensor& index, double p, bool squared, bool need_x, bool need_y) {
  const char* op = "knn_backward";
  check_pair(op, x, y);
  check_same_device(op, {&grad, &x, &distance, &index});
  const DType dtype = float_dtype(x, op);
  const int last = static_cast<int>(x.dim()) - 1;
  check(index.dim() == last + 1, op, ": index needs as many dimensions as the points, got ", show(index));
  const Ints expected = pair_sizes(x, index.size(last));
  check(sizes(index) == expected && sizes(grad) == expected && sizes(distance) == expected, op,
        ": expected gradient, distance and index of one shape ", show(expected), ", got ", show(grad), ", ",
        show(distance), " and ", show(index));
  check(grad.scalar_type() == x.scalar_type() && distance.scalar_type() == x.scalar_type() &&
            index.scalar_type() == ScalarType::Long,
        op, ": gradient and distance must have the points' dtype ", dtype_name(x.scalar_type()), ", index int64");
  check(p >= 0 && (!squared || p == 2), op, ": p must be >= 0, and 2 where squared, got ", p);
  const Points a(x), b(y);
  const Tensor g = as_dense(grad), d = as_dense(distance), i = as_dense(index);
  const int64_t* chosen = static_cast<const int64_t*>(i.data_ptr());
  for (int64_t j = 0; !i.is_cuda() && j < i.numel(); ++j)  // on a GPU the kernel looks
    if (chosen[j] < -1 || chosen[j] >= b.rows) [[unlikely]]
      check(false, op, ": index ", chosen[j], " is outside [-1, ", b.rows, ")");
  const Ints none{0};
  Tensor grad_x = empty(need_x ? sizes(x) : none, x.scalar_type(), x);
  Tensor grad_y = empty(need_y ? sizes(y) : none, x.scalar_type(), x);
  const KnnBackwardParams params{g.data_ptr(),
                                 a.dense.data_ptr(),
                                 b.dense.data_ptr(),
                                 d.data_ptr(),
                                 chosen,
                                 need_x ? grad_x.data_ptr() : nullptr,
                                 need_y ? grad_y.data_ptr() : nullptr,
                                 a.batch,
                                 a.rows,
                                 b.rows,
                                 a.depth,
                                 index.size(last),
                                 a.batch_stride,
                                 b.batch_stride,
                                 p,
                                 squared,
                                 dtype};
  run_variant(knn_backward_table, params, x);
  return {grad_x, grad_y};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastcv, m) {
  m.def("cdist(Tensor x1, Tensor x2, float p) -> Tensor");
  m.def("cdist_backward(Tensor grad, Tensor x1, Tensor x2, float p, Tensor distance) -> Tensor");
  m.def("knn(Tensor x, Tensor y, int k, float p, bool squared) -> (Tensor, Tensor)");
  m.def(
      "knn_backward(Tensor grad, Tensor x, Tensor y, Tensor distance, Tensor index, float p, bool squared, bool "
      "need_x, "
      "bool need_y) -> (Tensor, Tensor)");
}
FASTCV_IMPL(m) {
  m.impl("cdist", TORCH_BOX(&cdist));
  m.impl("cdist_backward", TORCH_BOX(&cdist_backward));
  m.impl("knn", TORCH_BOX(&knn));
  m.impl("knn_backward", TORCH_BOX(&knn_backward));
}

}  // namespace fastcv
