// The door of unpooling: max_unpool2d and bed of nails, both ways. No arithmetic on elements.
#include "pool/max_unpool2d.h"

#include "common/door.h"
#include "pool/upsample_bed_of_nails.h"

namespace fastcv {
namespace {

using namespace door;

constexpr int64_t kSizeLimit = int64_t{1} << 31;  // of sizes: products of two fit into 64 bits

struct Map {
  int64_t n, c, h, w;
};
Map read_map(const char* op, const Tensor& t) {
  check(t.dim() == 3 || t.dim() == 4, op, ": expected a 3-D or 4-D tensor, got ", show(t));
  const Ints size = sizes(t);
  const size_t first = size.size() - 3;
  check(size[first] > 0 && size[first + 1] > 0 && size[first + 2] > 0, op,
        ": expected non-zero sizes but for the batch, got ", show(size));
  return {first == 0 ? 1 : size[0], size[first], size[first + 1], size[first + 2]};
}
DType floating(const char* op, const Tensor& t) {
  const DType dtype = dtype_of(t, op);
  check(dtype <= DType::f16, op, ": expected a floating dtype, got ", dtype_name(t.scalar_type()));
  return dtype;
}
Tensor new_map(const Tensor& like, int64_t n, int64_t c, int64_t h, int64_t w, bool channels_last) {
  check(static_cast<double>(n) * static_cast<double>(c) * static_cast<double>(h) * static_cast<double>(w) < 0x1p60,
        "unpooling: a map of ", show({n, c, h, w}), " is too large");
  return empty(like.dim() == 4 ? Ints{n, c, h, w} : Ints{c, h, w}, like.scalar_type(), like, channels_last);
}
void check_indices(const char* op, const Tensor& indices) {
  check(indices.scalar_type() == ScalarType::Long, op, ": elements in indices should be of dtype int64, got ",
        dtype_name(indices.scalar_type()));
}

// Runs a table's row; throws if an index was out of range, naming the first in memory order.
void run_checked(const char* op, const VariantTable<MaxUnpool2dParams>& table, MaxUnpool2dParams& p, const Tensor& like,
                 int64_t height, int64_t width) {
  int64_t bad = INT64_MAX;
  p.bad = like.is_cuda() ? nullptr : &bad;
  run_variant(table, p, like);
  if (bad != INT64_MAX)
    check(false, op, ": found an invalid max index: ", p.index[bad], " (output volumes are of size ", height, "x",
          width, ")");
}

Tensor max_unpool2d(const Tensor& input, const Tensor& indices, Ints output_size, bool accumulate) {
  constexpr const char* op = "max_unpool2d";
  check_indices(op, indices);
  check(output_size.size() == 2, op, ": expected a height and a width in output_size, got ", show(output_size));
  for (const int64_t v : output_size)
    check(v >= 0 && v < kSizeLimit, op, ": output_size must not be negative, got ", show(output_size));
  const Map m = read_map(op, input);
  check(sizes(input) == sizes(indices), op, ": expected indices of the input's shape ", show(input), ", got ",
        show(indices));
  check_same_device(op, {&input, &indices});
  const bool channels_last = is_channels_last(input);
  Tensor result = new_map(input, m.n, m.c, output_size[0], output_size[1], channels_last);
  if (input.numel() == 0 || result.numel() == 0) return result;
  const Tensor x = as_dense(input, channels_last), index = as_dense(indices, channels_last);
  MaxUnpool2dParams p{x.data_ptr(),
                      static_cast<const int64_t*>(index.data_ptr()),
                      result.data_ptr(),
                      nullptr,
                      m.n,
                      m.c,
                      m.h * m.w,
                      output_size[0] * output_size[1],
                      floating(op, input),
                      accumulate,
                      channels_last};
  run_checked(op, max_unpool2d_table, p, input, output_size[0], output_size[1]);
  return result;
}

Tensor max_unpool2d_backward(const Tensor& grad, const Tensor& indices) {
  constexpr const char* op = "max_unpool2d_backward";
  check_indices(op, indices);
  const Map m = read_map(op, grad), small = read_map(op, indices);
  check(grad.dim() == indices.dim() && m.n == small.n && m.c == small.c, op,
        ": expected a gradient and indices of the same batch and channels, got ", show(grad), " and ", show(indices));
  check_same_device(op, {&grad, &indices});
  const bool channels_last = is_channels_last(indices);
  Tensor result = new_map(grad, m.n, m.c, small.h, small.w, channels_last);
  if (result.numel() == 0) return result;
  const Tensor x = as_dense(grad, channels_last), index = as_dense(indices, channels_last);
  MaxUnpool2dParams p{x.data_ptr(),
                      static_cast<const int64_t*>(index.data_ptr()),
                      result.data_ptr(),
                      nullptr,
                      m.n,
                      m.c,
                      small.h * small.w,
                      m.h * m.w,
                      floating(op, grad),
                      false,
                      channels_last};
  run_checked(op, max_unpool2d_backward_table, p, grad, m.h, m.w);
  return result;
}

void check_scale(const char* op, const Ints& scale) {
  check(scale.size() == 2 && scale[0] > 0 && scale[1] > 0 && scale[0] < kSizeLimit && scale[1] < kSizeLimit, op,
        ": scale_factor must be one or two positive ints, got ", show(scale));
}

Tensor upsample_bed_of_nails(const Tensor& input, Ints scale) {
  constexpr const char* op = "upsample_bed_of_nails";
  check_scale(op, scale);
  const Map m = read_map(op, input);
  const DType dtype = floating(op, input);
  const bool channels_last = is_channels_last(input);
  check(m.h < kSizeLimit && m.w < kSizeLimit, op, ": the input is too large: ", show(input));
  Tensor result = new_map(input, m.n, m.c, m.h * scale[0], m.w * scale[1], channels_last);
  if (result.numel() == 0) return result;
  const Tensor x = as_dense(input, channels_last);
  BedOfNailsParams p{x.data_ptr(), result.data_ptr(), m.n, m.c, m.h, m.w, scale[0], scale[1], dtype, channels_last};
  run_variant(upsample_bed_of_nails_table, p, input);
  return result;
}

Tensor upsample_bed_of_nails_backward(const Tensor& grad, Ints scale, bool channels_last) {
  constexpr const char* op = "upsample_bed_of_nails_backward";
  check_scale(op, scale);
  const Map m = read_map(op, grad);
  const DType dtype = floating(op, grad);
  check(m.h % scale[0] == 0 && m.w % scale[1] == 0, op,
        ": expected a gradient whose height and width are multiples of ", show(scale), ", got ", show(grad));
  channels_last = channels_last && grad.dim() == 4;
  const int64_t h = m.h / scale[0], w = m.w / scale[1];
  Tensor result = new_map(grad, m.n, m.c, h, w, channels_last);
  if (result.numel() == 0) return result;
  const Tensor x = as_dense(grad, channels_last);
  BedOfNailsParams p{x.data_ptr(), result.data_ptr(), m.n, m.c, h, w, scale[0], scale[1], dtype, channels_last};
  run_variant(upsample_bed_of_nails_backward_table, p, grad);
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastcv, m) {
  m.def("max_unpool2d(Tensor input, Tensor indices, SymInt[] output_size, bool accumulate) -> Tensor");
  m.def("max_unpool2d_backward(Tensor grad, Tensor indices) -> Tensor");
  m.def("upsample_bed_of_nails(Tensor input, SymInt[] scale_factor) -> Tensor");
  m.def("upsample_bed_of_nails_backward(Tensor grad, SymInt[] scale_factor, bool channels_last) -> Tensor");
}

FASTCV_IMPL(m) {
  m.impl("max_unpool2d", TORCH_BOX(&max_unpool2d));
  m.impl("max_unpool2d_backward", TORCH_BOX(&max_unpool2d_backward));
  m.impl("upsample_bed_of_nails", TORCH_BOX(&upsample_bed_of_nails));
  m.impl("upsample_bed_of_nails_backward", TORCH_BOX(&upsample_bed_of_nails_backward));
}

}  // namespace fastcv
