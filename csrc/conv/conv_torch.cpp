// The door of conv and conv_dgrad: schemas, checks, torch's layout rule, outputs. No arithmetic on elements.
#include "conv/conv.h"

#include <cstring>

#include "common/door.h"
#include "conv/conv_door.h"
#include "norm/statistics_door.h"

namespace fastcv {
namespace {

using namespace door;

constexpr int64_t kSizeLimit = int64_t{1} << 31;  // of strides, pads and kernels: products of two fit into 64 bits

// Everything that one call needs: owns the dense copies that params points into.
struct Call {
  ConvParams params{};
  Tensor x, w;
  OptionalTensor bias, residual;
  Ints y_sizes;
};

// torch runs 1-D convolutions as 2-D ones over a row-major input: there only the weight's strides can ask for
// channels_last.
bool asks_channels_last(const Tensor& t) {
  if (t.dim() != 3) return is_channels_last(t);
  const Ints size = sizes(t), stride = strides(t);
  return is_channels_last(Ints{size[0], size[1], 1, size[2]},
                          Ints{stride[0], stride[1], size[2] * stride[2], stride[2]});
}

// torch's rule. In 5 dimensions torch also falls back to row-major for some small float32 workloads and for an output
// padding as large as the stride; which ones varies with its threads and the CPU, so that is not followed here.
bool output_channels_last(const Tensor& x, const Tensor& w) {
  if (x.numel() == 0) return false;
  if (x.dim() == 5 && (x.scalar_type() == ScalarType::Double || x.scalar_type() == ScalarType::Half)) return false;
  return (x.dim() > 3 && asks_channels_last(x)) || asks_channels_last(w);
}

void check_geometry(const char* op, int64_t nd, const Ints& stride, const Ints& padding, const Ints& dilation) {
  const auto length = [&](const char* name, const Ints& values, bool ok) {
    check(ok, op, ": expected ", nd, " values of ", name, ", got ", show(values));
  };
  length("stride", stride, static_cast<int64_t>(stride.size()) == nd);
  length("dilation", dilation, static_cast<int64_t>(dilation.size()) == nd);
  length("padding", padding,
         static_cast<int64_t>(padding.size()) == nd || static_cast<int64_t>(padding.size()) == 2 * nd);
  for (const int64_t v : stride)
    check(v > 0 && v < kSizeLimit, op, ": non-positive stride is not supported: ", show(stride));
  for (const int64_t v : dilation)
    check(v > 0 && v < kSizeLimit, op, ": dilation should be greater than zero: ", show(dilation));
  for (const int64_t v : padding)
    check(v >= 0 && v < kSizeLimit, op, ": negative padding is not supported: ", show(padding));
}

// Checks what both directions share and fills params but for y; rows and columns of the weight say which is which.
void prepare(const char* op, Call& call, const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
             const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups, int64_t precision,
             bool transposed) {
  ConvParams& p = call.params;
  const int64_t nd = x.dim() - 2;
  check(nd >= 1 && nd <= 3, op, ": expected a batched input of 3 to 5 dimensions, got ", show(x));
  check(weight.dim() == x.dim(), op, ": expected a weight of ", x.dim(), " dimensions for input ", show(x),
        ", got weight ", show(weight));
  check_geometry(op, nd, stride, padding, dilation);
  check_same_device(op, {&x, &weight, bias ? &*bias : nullptr});
  p.dtype = dtype_of(x, op);
  check(p.dtype <= DType::f16, op, ": expected a floating dtype, got ", dtype_name(x.scalar_type()));
  const auto same_dtype = [&](const char* name, const Tensor& t) {
    check(t.scalar_type() == x.scalar_type(), op, ": expected ", name, " of the input's dtype ",
          dtype_name(x.scalar_type()), ", got ", dtype_name(t.scalar_type()));
  };
  same_dtype("weight", weight);
  check(groups > 0, op, ": groups must be positive, got ", groups);
  check(precision >= 0 && precision < kPrecisions, op, ": unknown precision ", precision);
  check(weight.size(0) > 0 && weight.size(0) % groups == 0, op,
        ": expected weight.shape[0] to be a positive multiple of groups=", groups, ", got weight ", show(weight));
  p.n = x.size(0);
  p.c = x.size(1);
  p.groups = groups;
  p.k = transposed ? weight.size(1) * groups : weight.size(0);
  check(p.c == (transposed ? weight.size(0) : weight.size(1) * groups), op, ": input ", show(x), " has ", p.c,
        " channels, weight ", show(weight), " with groups=", groups, " needs ",
        transposed ? weight.size(0) : weight.size(1) * groups);
  if (bias) {
    same_dtype("bias", *bias);
    check(bias->dim() == 1 && bias->size(0) == p.k, op, ": expected a bias of [", p.k, "], got ", show(*bias));
    call.bias = as_dense(*bias);
    p.bias = call.bias->data_ptr();
  }
  for (int dim = 0; dim < 3; ++dim)
    p.in[dim] = p.out[dim] = p.kernel[dim] = p.stride[dim] = p.dilation[dim] = 1, p.pad[dim] = 0;
  for (int64_t i = 0; i < nd; ++i) {
    const int64_t dim = 3 - nd + i;
    p.in[dim] = x.size(2 + i);
    p.kernel[dim] = weight.size(2 + i);
    p.stride[dim] = stride[i];
    p.dilation[dim] = dilation[i];
    p.pad[dim] = padding[i];
    check(p.kernel[dim] > 0 && p.kernel[dim] < kSizeLimit, op, ": kernel sizes must be positive, got weight ",
          show(weight));
  }
  p.precision = static_cast<Precision>(precision);
  p.transposed = transposed;
  p.channels_last = output_channels_last(x, weight);
  p.weight_channels_last = !is_dense(weight, false) && is_dense(weight, true);
  call.x = as_dense(x, p.channels_last);
  call.w = as_dense(weight, p.weight_channels_last);
  p.x = call.x.data_ptr();
  p.w = call.w.data_ptr();
}

// Packed weights are bytes behind this: which kernel arranged the weights of which layer.
struct alignas(64) PackedHead {
  void (*run)(const ConvParams&, const Exec&);
  ConvParams layer;
};

Denormals denormals(const ConvParams& p) { return p.precision == Precision::ieee ? Denormals::keep : Denormals::flush; }

// What packed weights depend on, next to the kernel.
ConvParams layer_of(const ConvParams& p) {
  ConvParams layer;
  std::memset(static_cast<void*>(&layer), 0,
              sizeof layer);  // padding too: packed weights are the same bytes every time
  layer.c = p.c;
  layer.k = p.k;
  layer.groups = p.groups;
  for (int i = 0; i < 3; ++i) {
    layer.kernel[i] = p.kernel[i];
    layer.stride[i] = p.stride[i];
    layer.dilation[i] = p.dilation[i];
    layer.pad[i] = p.pad[i];
  }
  layer.dtype = p.dtype;
  layer.transposed = p.transposed;
  return layer;
}

// The weights of a call as the CPU kernel that would run it arranges them; empty where it keeps none.
Tensor pack(const VariantTable<ConvParams>& table, Call& call) {
  ConvParams& p = call.params;
  p.weights_kept = true;
  double size = static_cast<double>(p.n) * static_cast<double>(p.k);
  for (const int64_t out : p.out) size *= static_cast<double>(out);
  const bool computes = p.c > 0 && size > 0 && size < 0x1p40;  // kernels plan for outputs that can be
  const Variant<ConvParams>* row = call.x.is_cuda() || !computes ? nullptr : table.pick(p);
  if (row == nullptr || row->kept == nullptr) return empty({0}, ScalarType::Byte, call.x);
  p.packing = Packing::fill;
  PackedHead head;
  std::memset(static_cast<void*>(&head), 0, sizeof head);
  head.run = row->run;
  head.layer = layer_of(p);
  Tensor packed = empty({static_cast<int64_t>(sizeof head + row->kept(p))}, ScalarType::Byte, call.x);
  std::memcpy(packed.data_ptr(), &head, sizeof head);
  p.packed = static_cast<char*>(packed.data_ptr()) + sizeof head;
  run_row(*row, p, call.x, denormals(p));
  return packed;
}

// Lets a call use packed weights if the kernel that will run it arranged them; otherwise they are passed over. Either
// way the kernel is the one for weights that are kept: no bytes stand for weights that are not arranged yet.
void use_packed(const char* op, const VariantTable<ConvParams>& table, ConvParams& p, const Tensor& packed) {
  check(packed.scalar_type() == ScalarType::Byte && packed.dim() == 1 && packed.is_cpu() && is_dense(packed, false), op,
        ": packed must be what ", op, "_pack returned, got ", dtype_name(packed.scalar_type()), " ", show(packed));
  p.weights_kept = true;
  if (packed.numel() == 0) return;
  PackedHead head;
  const Variant<ConvParams>* row = table.pick(p);
  if (row == nullptr || row->kept == nullptr) return;
  if (packed.numel() != static_cast<int64_t>(sizeof head + row->kept(p))) return;
  std::memcpy(&head, packed.data_ptr(), sizeof head);
  if (head.run != row->run || head.layer != layer_of(p)) return;
  p.packed = static_cast<char*>(packed.data_ptr()) + sizeof head;
  p.packing = Packing::ready;
}

// Allocates y for the sizes in params and runs a row of the table, which ends with the residual and the activation.
Tensor finish(const char* op, const VariantTable<ConvParams>& table, Call& call, int64_t nd,
              const OptionalTensor& residual, int64_t activation, double slope, const OptionalTensor& packed) {
  ConvParams& p = call.params;
  check(activation >= 0 && activation < kActivations, op, ": unknown activation ", activation);
  p.activation = static_cast<Activation>(activation);
  p.slope = slope;
  Ints y_sizes{p.n, p.k};
  for (int64_t dim = 3 - nd; dim < 3; ++dim) y_sizes.push_back(p.out[dim]);
  Tensor y = empty(y_sizes, call.x.scalar_type(), call.x, p.channels_last);
  if (residual) {
    check(sizes(*residual) == y_sizes && residual->scalar_type() == y.scalar_type(), op,
          ": expected a residual of the output's shape ", show(y_sizes), " and dtype ", dtype_name(y.scalar_type()),
          ", got ", show(*residual), " ", dtype_name(residual->scalar_type()));
    check_same_device(op, {&call.x, &*residual});
    call.residual = as_dense(*residual, p.channels_last);
    p.residual = call.residual->data_ptr();
  }
  p.y = y.data_ptr();
  if (packed && !y.is_cuda() && y.numel() > 0) use_packed(op, table, p, *packed);
  if (y.numel() > 0) run_variant(table, p, y, denormals(p));
  return y;
}

void prepare_conv(Call& call, const Tensor& input, const Tensor& weight, const OptionalTensor& bias, const Ints& stride,
                  const Ints& padding, const Ints& dilation, int64_t groups, int64_t precision) {
  prepare("conv", call, input, weight, bias, stride, padding, dilation, groups, precision, false);
  ConvParams& p = call.params;
  const int64_t nd = input.dim() - 2;
  for (int64_t i = 0; i < nd; ++i) {
    const int64_t dim = 3 - nd + i, end = padding[static_cast<int64_t>(padding.size()) == nd ? i : nd + i];
    const int64_t padded = p.in[dim] + padding[i] + end, reach = p.dilation[dim] * (p.kernel[dim] - 1) + 1;
    check(padded >= reach, "conv: kernel of ", reach, " elements (dilation included) does not fit into the ", padded,
          " elements of padded input ", show(input), ", dimension ", 2 + i);
    p.out[dim] = (padded - reach) / p.stride[dim] + 1;
  }
  if (p.c == 0) p.k = 0;  // torch's convolution of no channels has none
}

void prepare_dgrad(Call& call, const Tensor& grad_output, const Tensor& weight, const OptionalTensor& bias,
                   const Ints& input_size, const Ints& stride, const Ints& padding, const Ints& dilation,
                   int64_t groups, int64_t precision) {
  prepare("conv_dgrad", call, grad_output, weight, bias, stride, padding, dilation, groups, precision, true);
  const int64_t nd = grad_output.dim() - 2;
  check(static_cast<int64_t>(input_size.size()) == nd, "conv_dgrad: expected ", nd, " values of input_size, got ",
        show(input_size));
  for (int64_t i = 0; i < nd; ++i) {
    check(input_size[i] >= 0, "conv_dgrad: input_size must not be negative, got ", show(input_size));
    call.params.out[3 - nd + i] = input_size[i];
  }
}

// y, and in double the mean and the biased variance of each of its channels: made by the convolution's kernel where
// that can, else by a pass of batch norm's over y.
std::tuple<Tensor, Tensor, Tensor> conv_statistics_impl(const Tensor& input, const Tensor& weight, OptionalTensor bias,
                                                        Ints stride, Ints padding, Ints dilation, int64_t groups,
                                                        int64_t precision) {
  Call call;
  prepare_conv(call, input, weight, bias, stride, padding, dilation, groups, precision);
  ConvParams& p = call.params;
  Tensor mean = empty({p.k}, ScalarType::Double, input), var = empty({p.k}, ScalarType::Double, input);
  ConvStatistics statistics{static_cast<double*>(mean.data_ptr()), static_cast<double*>(var.data_ptr())};
  p.statistics = &statistics;
  Tensor y = finish("conv_statistics", conv_table, call, input.dim() - 2, {}, 0, 0, {});
  if (!statistics.made && p.k > 0) std::tie(mean, var) = batch_norm_statistics(y);
  return {y, mean, var};
}

Tensor conv_dgrad_impl(const Tensor& grad_output, const Tensor& weight, OptionalTensor bias, Ints input_size,
                       Ints stride, Ints padding, Ints dilation, int64_t groups, int64_t precision,
                       OptionalTensor packed, OptionalTensor residual, int64_t activation, double slope) {
  Call call;
  prepare_dgrad(call, grad_output, weight, bias, input_size, stride, padding, dilation, groups, precision);
  return finish("conv_dgrad", conv_dgrad_table, call, grad_output.dim() - 2, residual, activation, slope, packed);
}

Tensor conv_pack_impl(const Tensor& input, const Tensor& weight, Ints stride, Ints padding, Ints dilation,
                      int64_t groups, int64_t precision) {
  Call call;
  prepare_conv(call, input, weight, {}, stride, padding, dilation, groups, precision);
  return pack(conv_table, call);
}

Tensor conv_dgrad_pack_impl(const Tensor& grad_output, const Tensor& weight, Ints input_size, Ints stride, Ints padding,
                            Ints dilation, int64_t groups, int64_t precision) {
  Call call;
  prepare_dgrad(call, grad_output, weight, {}, input_size, stride, padding, dilation, groups, precision);
  return pack(conv_dgrad_table, call);
}

}  // namespace

door::Tensor conv_of(const door::Tensor& input, const door::Tensor& weight, door::OptionalTensor bias,
                     door::Ints stride, door::Ints padding, door::Ints dilation, int64_t groups,
                     door::OptionalTensor residual, int64_t activation, int64_t precision, door::OptionalTensor packed,
                     double slope) {
  Call call;
  prepare_conv(call, input, weight, bias, stride, padding, dilation, groups, precision);
  return finish("conv", conv_table, call, input.dim() - 2, residual, activation, slope, packed);
}

STABLE_TORCH_LIBRARY_FRAGMENT(fastcv, m) {
  m.def(
      "conv(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] dilation, int groups, "
      "Tensor? residual, int activation, int precision, Tensor? packed=None, float slope=0.01) -> Tensor");
  m.def(
      "conv_dgrad(Tensor grad_output, Tensor weight, Tensor? bias, SymInt[] input_size, int[] stride, int[] padding, "
      "int[] dilation, int groups, int precision, Tensor? packed=None, Tensor? residual=None, int activation=0, "
      "float slope=0.01) -> Tensor");
  m.def(
      "conv_statistics(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] dilation, "
      "int groups, int precision) -> (Tensor, Tensor, Tensor)");
  // Weights that one kernel has arranged for itself: to be passed on as `packed` with the same weight.
  m.def(
      "conv_pack(Tensor input, Tensor weight, int[] stride, int[] padding, int[] dilation, int groups, int precision) "
      "-> Tensor");
  m.def(
      "conv_dgrad_pack(Tensor grad_output, Tensor weight, SymInt[] input_size, int[] stride, int[] padding, "
      "int[] dilation, int groups, int precision) -> Tensor");
}
FASTCV_IMPL(m) {
  m.impl("conv", TORCH_BOX(&conv_of));
  m.impl("conv_statistics", TORCH_BOX(&conv_statistics_impl));
  m.impl("conv_dgrad", TORCH_BOX(&conv_dgrad_impl));
  m.impl("conv_pack", TORCH_BOX(&conv_pack_impl));
  m.impl("conv_dgrad_pack", TORCH_BOX(&conv_dgrad_pack_impl));
}

}  // namespace fastcv
