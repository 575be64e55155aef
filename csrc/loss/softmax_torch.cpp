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

Tensor prepare(const char* op, const Tensor& input, int64_t dim, bool log, bool any_layout, SoftmaxParams& p,
               Tensor& dense) {
  split(op, input, dim, p);
  p.log = log;
  p.input_rows = any_layout && input.dim() >= 4 && (dim == 1 || dim == 1 - input.dim()) && !is_dense(input, false) &&
                 is_dense(input, true);
  dense = p.input_rows ? input : as_dense(input);
  Tensor output = empty(sizes(input), input.scalar_type(), input);
  p.x = dense.data_ptr();
  p.dy = nullptr;
  p.y = output.data_ptr();
  return output;
}

Tensor prepare_backward(const char* op, const Tensor& grad, const Tensor& output, int64_t dim, bool log,
                        SoftmaxParams& p, Tensor& y, Tensor& dy) {
  split(op, output, dim, p);
  check(sizes(grad) == sizes(output) && grad.scalar_type() == output.scalar_type(), op, ": grad ", show(sizes(grad)),
        " ", dtype_name(grad.scalar_type()), " does not match output ", show(sizes(output)), " ",
        dtype_name(output.scalar_type()));
  check_same_device(op, {&grad, &output});
  p.log = log;
  p.input_rows = false;
  y = as_dense(output);
  dy = as_dense(grad);
  Tensor dx = empty(sizes(output), output.scalar_type(), output);
  p.x = y.data_ptr();
  p.dy = dy.data_ptr();
  p.y = dx.data_ptr();
  return dx;
}

Tensor forward_cpu(const VariantTable<SoftmaxParams>& table, const char* op, const Tensor& input, int64_t dim,
                   bool log) {
  SoftmaxParams p;
  Tensor dense;
  Tensor output = prepare(op, input, dim, log, true, p, dense);
  run_variant(table, p, input);
  return output;
}

Tensor backward_cpu(const VariantTable<SoftmaxParams>& table, const char* op, const Tensor& grad, const Tensor& output,
                    int64_t dim, bool log) {
  SoftmaxParams p;
  Tensor y, dy;
  Tensor dx = prepare_backward(op, grad, output, dim, log, p, y, dy);
  run_variant(table, p, output);
  return dx;
}

Tensor softmax_cpu(const Tensor& input, int64_t dim) {
  return forward_cpu(softmax_table, "softmax", input, dim, false);
}
Tensor log_softmax_cpu(const Tensor& input, int64_t dim) {
  return forward_cpu(log_softmax_table, "log_softmax", input, dim, true);
}
Tensor softmax_backward_cpu(const Tensor& grad, const Tensor& output, int64_t dim) {
  return backward_cpu(softmax_backward_table, "softmax_backward", grad, output, dim, false);
}
Tensor log_softmax_backward_cpu(const Tensor& grad, const Tensor& output, int64_t dim) {
  return backward_cpu(log_softmax_backward_table, "log_softmax_backward", grad, output, dim, true);
}

#if FASTCV_WITH_CUDA
CUstream_st* stream_of(const Tensor& t) { return static_cast<CUstream_st*>(current_stream(t)); }

// The kernels want the classes last; other dims are brought there, which costs a copy each way.
Tensor swapped(const Tensor& t, int64_t dim) { return torch::stable::transpose(t, dim, -1); }

Tensor forward_on_cuda(const char* op, const Tensor& input, int64_t dim, bool log) {
  torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  SoftmaxParams p;
  Tensor dense;
  split(op, input, dim, p);
  if (p.inner != 1) return as_dense(swapped(forward_on_cuda(op, swapped(input, dim), -1, log), dim));
  Tensor output = prepare(op, input, dim, log, false, p, dense);
  check_launch(fastcv::softmax_cuda(p, stream_of(input)), op, "block_cuda");
  return output;
}

Tensor backward_on_cuda(const char* op, const Tensor& grad, const Tensor& output, int64_t dim, bool log) {
  torch::stable::accelerator::DeviceGuard guard(output.get_device_index());
  SoftmaxParams p;
  Tensor y, dy;
  split(op, output, dim, p);
  if (p.inner != 1 && sizes(grad) == sizes(output))
    return as_dense(swapped(backward_on_cuda(op, swapped(grad, dim), swapped(output, dim), -1, log), dim));
  Tensor dx = prepare_backward(op, grad, output, dim, log, p, y, dy);
  check_launch(fastcv::softmax_backward_cuda(p, stream_of(output)), op, "block_cuda");
  return dx;
}

Tensor softmax_on_cuda(const Tensor& input, int64_t dim) { return forward_on_cuda("softmax", input, dim, false); }
Tensor log_softmax_on_cuda(const Tensor& input, int64_t dim) {
  return forward_on_cuda("log_softmax", input, dim, true);
}
Tensor softmax_backward_on_cuda(const Tensor& grad, const Tensor& output, int64_t dim) {
  return backward_on_cuda("softmax_backward", grad, output, dim, false);
}
Tensor log_softmax_backward_on_cuda(const Tensor& grad, const Tensor& output, int64_t dim) {
  return backward_on_cuda("log_softmax_backward", grad, output, dim, true);
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastcv, m) {
  m.def("softmax(Tensor input, int dim) -> Tensor");
  m.def("log_softmax(Tensor input, int dim) -> Tensor");
  m.def("softmax_backward(Tensor grad, Tensor output, int dim) -> Tensor");
  m.def("log_softmax_backward(Tensor grad, Tensor output, int dim) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(fastcv, CPU, m) {
  m.impl("softmax", TORCH_BOX(&softmax_cpu));
  m.impl("log_softmax", TORCH_BOX(&log_softmax_cpu));
  m.impl("softmax_backward", TORCH_BOX(&softmax_backward_cpu));
  m.impl("log_softmax_backward", TORCH_BOX(&log_softmax_backward_cpu));
}
#if FASTCV_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(fastcv, CUDA, m) {
  m.impl("softmax", TORCH_BOX(&softmax_on_cuda));
  m.impl("log_softmax", TORCH_BOX(&log_softmax_on_cuda));
  m.impl("softmax_backward", TORCH_BOX(&softmax_backward_on_cuda));
  m.impl("log_softmax_backward", TORCH_BOX(&log_softmax_backward_on_cuda));
}
#endif

}  // namespace fastcv
