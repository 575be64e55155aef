// The door of conv_wgrad: schema, checks, torch's layout rule, output. No arithmetic on elements.
#include "conv/conv_wgrad.h"

#include "common/door.h"

namespace fastcv {
namespace {

using namespace door;

constexpr int64_t kSizeLimit = int64_t{1} << 31;  // of strides, pads and kernels: products of two fit into 64 bits

void check_values(const char* name, const Ints& values, int64_t count, int64_t least) {
  check(static_cast<int64_t>(values.size()) == count, "conv_wgrad: expected ", count, " values of ", name, ", got ",
        show(values));
  for (const int64_t v : values)
    check(v >= least && v < kSizeLimit, "conv_wgrad: ", name, " must be at least ", least, ", got ", show(values));
}

Tensor conv_wgrad_impl(const Tensor& input, const Tensor& grad_output, Ints kernel_size, Ints stride, Ints padding,
                       Ints dilation, int64_t groups, int64_t precision) {
  const int64_t nd = input.dim() - 2;
  check(nd >= 1 && nd <= 3, "conv_wgrad: expected a batched input of 3 to 5 dimensions, got ", show(input));
  check(grad_output.dim() == input.dim() && grad_output.size(0) == input.size(0),
        "conv_wgrad: expected grad_output with the dimensions and the batch of input ", show(input), ", got ",
        show(grad_output));
  check_same_device("conv_wgrad", {&input, &grad_output});
  check_values("kernel_size", kernel_size, nd, 1);
  check_values("stride", stride, nd, 1);
  check_values("padding", padding, static_cast<int64_t>(padding.size()) == 2 * nd ? 2 * nd : nd, 0);
  check_values("dilation", dilation, nd, 1);
  check(precision >= 0 && precision < kPrecisions, "conv_wgrad: unknown precision ", precision);
  ConvWgradParams p{};
  p.batch = input.size(0);
  p.in_channels = input.size(1);
  p.out_channels = grad_output.size(1);
  p.groups = groups;
  check(groups > 0 && p.in_channels % groups == 0 && p.out_channels % groups == 0,
        "conv_wgrad: expected channels that groups=", groups, " divides, got input ", show(input), " and grad_output ",
        show(grad_output));
  for (int i = 0; i < 3; ++i) p.in[i] = p.out[i] = p.kernel[i] = p.stride[i] = p.dilation[i] = 1;
  for (int64_t i = 0; i < nd; ++i) {
    const int64_t dim = 3 - nd + i;
    p.in[dim] = input.size(2 + i);
    p.out[dim] = grad_output.size(2 + i);
    p.kernel[dim] = kernel_size[i];
    p.stride[dim] = stride[i];
    p.pad[dim] = padding[i];
    p.dilation[dim] = dilation[i];
  }
  p.dtype = dtype_of(input, "conv_wgrad");
  p.precision = static_cast<Precision>(precision);
  check(p.dtype <= DType::f16 && grad_output.scalar_type() == input.scalar_type(),
        "conv_wgrad: expected two tensors of one floating dtype, got ", dtype_name(input.scalar_type()), " and ",
        dtype_name(grad_output.scalar_type()));
  p.input_channels_last = is_channels_last(input);
  p.grad_channels_last = is_channels_last(grad_output);
  p.weight_channels_last = p.input_channels_last || p.grad_channels_last;
  // Without a sum over channels a copy costs less than a kernel that reads two layouts.
  if (p.in_channels == groups) p.grad_channels_last = p.input_channels_last;
  const Tensor x = as_dense(input, p.input_channels_last), dy = as_dense(grad_output, p.grad_channels_last);
  Ints weight_sizes{p.out_channels, p.in_channels / groups};
  weight_sizes.insert(weight_sizes.end(), kernel_size.begin(), kernel_size.end());
  int64_t elements = 1;
  for (const int64_t size : weight_sizes)
    check(!__builtin_mul_overflow(elements, size, &elements) && elements < (int64_t{1} << 56),
          "conv_wgrad: a weight of ", show(weight_sizes), " is too large");
  Tensor dw = empty(weight_sizes, input.scalar_type(), input, p.weight_channels_last);
  p.input = x.data_ptr();
  p.grad_output = dy.data_ptr();
  p.grad_weight = dw.data_ptr();
  const Denormals denormals = p.precision == Precision::ieee ? Denormals::keep : Denormals::flush;
  if (dw.numel() > 0) run_variant(conv_wgrad_table, p, dw, denormals);
  return dw;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastcv, m) {
  m.def(
      "conv_wgrad(Tensor input, Tensor grad_output, SymInt[] kernel_size, int[] stride, int[] padding, "
      "int[] dilation, int groups, int precision) -> Tensor");
}
FASTCV_IMPL(m) { m.impl("conv_wgrad", TORCH_BOX(&conv_wgrad_impl)); }

}  // namespace fastcv
