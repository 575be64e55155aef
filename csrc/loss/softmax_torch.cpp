// The door of softmax and log_softmax, forward and backward: schema, checks, output, device.
#include "loss/softmax.h"

#include "common/door.h"

namespace fastcv {
namespace {

using namespace door;

// Splits t's sizes at dim (a tensor of no dimensions counts as one of size 1).
void split(const char* op, const Tensor& t, int64_t dim, SoftmaxParams& p) {
  const Ints size = t.dim() == 0 ? Ints{1} : sizes(t);
  const int64_t n = static_cast<int64_t>(size.size());
  if (dim < -n || dim >= n) {
    throw std::out_of_range("Dimension out of range (expected to be in range of [" + std::to_string(-n) + ", " +
                            std::to_string(n - 1) + "], but got " + std::to_string(dim) + ")");
  }
  if (dim < 0) dim += n;
  p.outer = p.inner = 1;
  for (int64_t d = 0; d < dim; ++d) p.outer *= size[d];
  p.classes = size[dim];
  for (int64_t d = dim + 1; d < n; ++d) p.inner *= size[d];
  p.dtype = dtype_of(t, op);
  check(p.dtype <= DType::f16, op, ": expected a floating dtype, got ", dtype_name(t.scalar_type()));
}

Tensor prepare(const char* op, const Tensor& input, int64_t dim, bool log, SoftmaxParams& p, Tensor& dense) {
  split(op, input, dim, p);
  p.log = log;
  if (input.dim() >= 4 && input.numel() > 0 && !is_dense(input, false) && is_dense(input, true)) {
    if (dim < 0) dim += input.dim();
    p.input_rows = dim == 1;
    if (dim == input.dim() - 1)
      p.input_channels = input.size(1), p.input_positions = p.outer / (input.size(0) * input.size(1));
  }
  dense = p.input_rows || p.input_channels > 0 ? input : as_dense(input);
  Tensor output = empty(sizes(input), input.scalar_type(), input);
  p.x = dense.data_ptr();
  p.y = output.data_ptr();
  return output;
}

Tensor prepare_backward(const char* op, const Tensor& grad, const Tensor& output, int64_t dim, bool log,
                        SoftmaxParams& p, Tensor& y, Tensor& dy) {
  split(op, output, dim, p);
  check(sizes(grad) == sizes(output) && grad.scalar_type() == output.scalar_type(), op, ": grad ", show(grad), " ",
        dtype_name(grad.scalar_type()), " does not match output ", show(output), " ", dtype_name(output.scalar_type()));
  check_same_device(op, {&grad, &output});
  p.log = log;
  y = as_dense(output);
  dy = as_dense(grad);
  Tensor dx = empty(sizes(output), output.scalar_type(), output);
  p.x = y.data_ptr();
  p.dy = dy.data_ptr();
  p.y = dx.data_ptr();
  return dx;
}

Tensor forward(const VariantTable<SoftmaxParams>& table, const char* op, const Tensor& input, int64_t dim, bool log) {
  SoftmaxParams p{};
  Tensor dense;
  Tensor output = prepare(op, input, dim, log, p, dense);
  run_variant(table, p, input);
  return output;
}

Tensor backward(const VariantTable<SoftmaxParams>& table, const char* op, const Tensor& grad, const Tensor& output,
                int64_t dim, bool log) {
  SoftmaxParams p{};
  Tensor y, dy;
  Tensor dx = prepare_backward(op, grad, output, dim, log, p, y, dy);
  run_variant(table, p, output);
  return dx;
}

Tensor softmax(const Tensor& input, int64_t dim) { return forward(softmax_table, "softmax", input, dim, false); }
Tensor log_softmax(const Tensor& input, int64_t dim) {
  return forward(log_softmax_table, "log_softmax", input, dim, true);
}
Tensor softmax_backward(const Tensor& grad, const Tensor& output, int64_t dim) {
  return backward(softmax_backward_table, "softmax_backward", grad, output, dim, false);
}
Tensor log_softmax_backward(const Tensor& grad, const Tensor& output, int64_t dim) {
  return backward(log_softmax_backward_table, "log_softmax_backward", grad, output, dim, true);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastcv, m) {
  m.def("softmax(Tensor input, int dim) -> Tensor");
  m.def("log_softmax(Tensor input, int dim) -> Tensor");
  m.def("softmax_backward(Tensor grad, Tensor output, int dim) -> Tensor");
  m.def("log_softmax_backward(Tensor grad, Tensor output, int dim) -> Tensor");
}
FASTCV_IMPL(m) {
  m.impl("softmax", TORCH_BOX(&softmax));
  m.impl("log_softmax", TORCH_BOX(&log_softmax));
  m.impl("softmax_backward", TORCH_BOX(&softmax_backward));
  m.impl("log_softmax_backward", TORCH_BOX(&log_softmax_backward));
}

}  // namespace fastcv
