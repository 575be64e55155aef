// The door of conv_bias_grad: schema, checks, output. No arithmetic on elements.
#include "conv/conv_bias_grad.h"

#include "common/door.h"

namespace fastcv {
namespace {

using namespace door;

Tensor conv_bias_grad_impl(const Tensor& grad_output) {
  check(grad_output.dim() >= 3 && grad_output.dim() <= 5,
        "conv_bias_grad: expected a batched grad_output of 3 to 5 dimensions, got ", show(grad_output));
  ConvBiasGradParams p{};
  p.dtype = dtype_of(grad_output, "conv_bias_grad");
  check(p.dtype <= DType::f16, "conv_bias_grad: expected a floating dtype, got ",
        dtype_name(grad_output.scalar_type()));
  p.batch = grad_output.size(0);
  p.channels = grad_output.size(1);
  p.inner = 1;
  for (int64_t i = 2; i < grad_output.dim(); ++i) p.inner *= grad_output.size(i);
  p.channels_last = is_channels_last(grad_output);
  const Tensor dense = as_dense(grad_output, p.channels_last);
  Tensor grad_bias = empty({p.channels}, grad_output.scalar_type(), grad_output);
  p.grad_output = dense.data_ptr();
  p.grad_bias = grad_bias.data_ptr();
  if (p.channels > 0) run_variant(conv_bias_grad_table, p, grad_bias);
  return grad_bias;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastcv, m) { m.def("conv_bias_grad(Tensor grad_output) -> Tensor"); }
FASTCV_IMPL(m) { m.impl("conv_bias_grad", TORCH_BOX(&conv_bias_grad_impl)); }

}  // namespace fastcv
