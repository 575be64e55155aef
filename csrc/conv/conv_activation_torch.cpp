// The door of conv_activation: schema, checks, output. No arithmetic on elements.
#include "conv/conv_activation.h"

#include "common/door.h"

namespace fastcv {
namespace {

using namespace door;

Tensor conv_activation_impl(const Tensor& input, OptionalTensor grad, int64_t activation, int64_t order, double slope) {
  check(input.dim() >= 3 && input.dim() <= 5, "conv_activation: expected a batched input of 3 to 5 dimensions, got ",
        show(input));
  check(activation >= 0 && activation < kActivations, "conv_activation: unknown activation ", activation);
  check(order >= 0 && order <= kActivationOrders, "conv_activation: expected an order of 0 to ", kActivationOrders,
        ", got ", order);
  ConvActivationParams p{};
  p.dtype = dtype_of(input, "conv_activation");
  check(p.dtype <= DType::f16, "conv_activation: expected a floating dtype, got ", dtype_name(input.scalar_type()));
  const bool channels_last = is_channels_last(input);
  const Tensor x = as_dense(input, channels_last);
  OptionalTensor g;
  if (grad) {
    check(sizes(*grad) == sizes(input) && grad->scalar_type() == input.scalar_type(),
          "conv_activation: expected a grad of the input's shape ", show(input), " and dtype ",
          dtype_name(input.scalar_type()), ", got ", show(*grad), " ", dtype_name(grad->scalar_type()));
    check_same_device("conv_activation", {&input, &*grad});
    g = as_dense(*grad, channels_last);
    p.grad = g->data_ptr();
  }
  Tensor y = empty(sizes(input), input.scalar_type(), input, channels_last);
  p.x = x.data_ptr();
  p.y = y.data_ptr();
  p.size = y.numel();
  p.order = static_cast<int>(order);
  p.activation = static_cast<Activation>(activation);
  p.slope = slope;
  if (p.size > 0) run_variant(conv_activation_table, p, y);
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastcv, m) {
  m.def("conv_activation(Tensor input, Tensor? grad, int activation, int order, float slope=0.01) -> Tensor");
}
FASTCV_IMPL(m) { m.impl("conv_activation", TORCH_BOX(&conv_activation_impl)); }

}  // namespace fastcv
