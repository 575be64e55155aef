// The door of max and average pooling: schemas, checks, torch's layout rule, outputs. No arithmetic on elements.
#include "pool/pool.h"

#include "pool/pool_door.h"

namespace fastcv {
namespace {

using namespace pool_door;

// Max ----------------------------------------------------------------------------------------------------------------

enum class Where { none, offsets, indices };
struct MaxResult {
  Tensor values;
  OptionalTensor where;
};

MaxResult run_max(const VariantTable<PoolParams>& table, const Tensor& input, PoolParams& p, Where where) {
  p.channels_last = is_channels_last(input);
  const Tensor x = as_dense(input, p.channels_last);
  MaxResult result{new_map(input, p, p.h.out, p.w.out, input.scalar_type()), {}};
  if (where != Where::none)
    result.where = new_map(input, p, p.h.out, p.w.out, where == Where::offsets ? ScalarType::Byte : ScalarType::Long);
  if (result.values.numel() == 0) return result;
  p.x = x.data_ptr();
  p.y = result.values.data_ptr();
  p.where = result.where ? result.where->data_ptr() : nullptr;
  p.where_is_offset = where == Where::offsets;
  run_variant(table, p, input);
  return result;
}

MaxResult max_pool(const Tensor& input, Geometry g, Where where) {
  constexpr const char* op = "max_pool2d";
  PoolParams p{};
  read_map(op, input, p, false);
  const auto size = input.sizes();
  set_windows(op, p, g, size[input.dim() - 2], size[input.dim() - 1]);
  check(where != Where::offsets || g.kernel[0] * g.kernel[1] <= 256, op,
        ": offsets need at most 256 window elements, got ", show(g.kernel));
  return run_max(max_pool2d_table, input, p, where);
}

Tensor max_pool2d(const Tensor& input, Ints kernel, Ints stride, Ints padding, Ints dilation, bool ceil_mode) {
  return max_pool(input, {kernel, stride, padding, dilation, ceil_mode}, Where::none).values;
}
std::tuple<Tensor, Tensor> max_pool2d_with_offsets(const Tensor& input, Ints kernel, Ints stride, Ints padding,
                                                   Ints dilation, bool ceil_mode) {
  MaxResult result = max_pool(input, {kernel, stride, padding, dilation, ceil_mode}, Where::offsets);
  return {result.values, *result.where};
}
std::tuple<Tensor, Tensor> max_pool2d_with_indices(const Tensor& input, Ints kernel, Ints stride, Ints padding,
                                                   Ints dilation, bool ceil_mode) {
  MaxResult result = max_pool(input, {kernel, stride, padding, dilation, ceil_mode}, Where::indices);
  return {result.values, *result.where};
}

MaxResult adaptive_max_pool(const Tensor& input, const Ints& output_size, Where where) {
  constexpr const char* op = "adaptive_max_pool2d";
  PoolParams p{};
  read_map(op, input, p, false);
  const auto size = input.sizes();
  set_adaptive_windows(op, p, output_size, size[input.dim() - 2], size[input.dim() - 1]);
  return run_max(adaptive_max_pool2d_table, input, p, where);
}
Tensor adaptive_max_pool2d(const Tensor& input, Ints output_size) {
  return adaptive_max_pool(input, output_size, Where::none).values;
}
std::tuple<Tensor, Tensor> adaptive_max_pool2d_with_indices(const Tensor& input, Ints output_size) {
  MaxResult result = adaptive_max_pool(input, output_size, Where::indices);
  return {result.values, *result.where};
}

// Backward -----------------------------------------------------------------------------------------------------------

// The sizes of the gradient and the input map; returns the input's height and width.
void read_gradient(const char* op, const Tensor& grad, const Ints& input_size, PoolParams& p) {
  read_map(op, grad, p, true);
  check(input_size.size() == 2 && input_size[0] > 0 && input_size[1] > 0 && input_size[0] < kSizeLimit &&
            input_size[1] < kSizeLimit,
        op, ": input_size must be a positive height and width, got ", show(input_size));
}
void check_output(const char* op, const Tensor& grad, const PoolParams& p) {
  const auto size = grad.sizes();
  const size_t last = size.size() - 1;
  check(size[last - 1] == p.h.out && size[last] == p.w.out, op, ": expected a gradient of height and width ",
        show({p.h.out, p.w.out}), ", got ", show(grad));
}

Tensor run_backward(const VariantTable<PoolParams>& table, const Tensor& grad, PoolParams& p, bool channels_last) {
  p.channels_last = channels_last && grad.dim() == 4;
  const Tensor g = as_dense(grad, p.channels_last);
  Tensor result = new_map(grad, p, p.h.in, p.w.in, grad.scalar_type());
  if (result.numel() == 0) return result;
  p.x = g.data_ptr();
  p.y = result.data_ptr();
  run_variant(table, p, grad);
  return result;
}

Tensor max_pool2d_backward(const Tensor& grad, const Tensor& where, Ints input_size, Ints kernel, Ints stride,
                           Ints padding, Ints dilation, bool ceil_mode, bool channels_last) {
  constexpr const char* op = "max_pool2d_backward";
  PoolParams p{};
  read_gradient(op, grad, input_size, p);
  set_windows(op, p, {kernel, stride, padding, dilation, ceil_mode}, input_size[0], input_size[1]);
  check_output(op, grad, p);
  check(sizes(where) == sizes(grad), op, ": expected indices of the gradient's shape ", show(grad), ", got ",
        show(where));
  check_same_device(op, {&grad, &where});
  p.where_is_offset = where.scalar_type() == ScalarType::Byte;
  check(p.where_is_offset || where.scalar_type() == ScalarType::Long, op,
        ": expected indices of dtype Long or Byte, got ", dtype_name(where.scalar_type()));
  const Tensor map = as_dense(where, channels_last && grad.dim() == 4);
  p.where = map.data_ptr();
  return run_backward(max_pool2d_backward_table, grad, p, channels_last);
}

// Average ------------------------------------------------------------------------------------------------------------

Tensor run_average(const VariantTable<PoolParams>& table, const Tensor& input, PoolParams& p) {
  p.channels_last = is_channels_last(input);
  const Tensor x = as_dense(input, p.channels_last);
  Tensor result = new_map(input, p, p.h.out, p.w.out, input.scalar_type());
  if (result.numel() == 0) return result;
  p.x = x.data_ptr();
  p.y = result.data_ptr();
  run_variant(table, p, input);
  return result;
}

void set_divisor(const char* op, PoolParams& p, bool count_include_pad, std::optional<int64_t> divisor_override) {
  check(!divisor_override || *divisor_override != 0, op, ": divisor must be not zero");
  p.count_include_pad = count_include_pad;
  p.divisor = divisor_override.value_or(0);
}

Tensor avg_pool2d(const Tensor& input, Ints kernel, Ints stride, Ints padding, bool ceil_mode, bool count_include_pad,
                  std::optional<int64_t> divisor_override) {
  constexpr const char* op = "avg_pool2d";
  PoolParams p{};
  read_map(op, input, p, false);
  const auto size = input.sizes();
  set_windows(op, p, {kernel, stride, padding, {1, 1}, ceil_mode}, size[input.dim() - 2], size[input.dim() - 1]);
  set_divisor(op, p, count_include_pad, divisor_override);
  return run_average(avg_pool2d_table, input, p);
}

Tensor avg_pool2d_backward(const Tensor& grad, Ints input_size, Ints kernel, Ints stride, Ints padding, bool ceil_mode,
                           bool count_include_pad, std::optional<int64_t> divisor_override, bool channels_last) {
  constexpr const char* op = "avg_pool2d_backward";
  PoolParams p{};
  read_gradient(op, grad, input_size, p);
  set_windows(op, p, {kernel, stride, padding, {1, 1}, ceil_mode}, input_size[0], input_size[1]);
  set_divisor(op, p, count_include_pad, divisor_override);
  check_output(op, grad, p);
  return run_backward(avg_pool2d_backward_table, grad, p, channels_last);
}

Tensor adaptive_avg_pool2d(const Tensor& input, Ints output_size) {
  constexpr const char* op = "adaptive_avg_pool2d";
  PoolParams p{};
  read_map(op, input, p, true);
  const auto size = input.sizes();
  set_adaptive_windows(op, p, output_size, size[input.dim() - 2], size[input.dim() - 1]);
  return run_average(adaptive_avg_pool2d_table, input, p);
}

Tensor adaptive_avg_pool2d_backward(const Tensor& grad, Ints input_size, bool channels_last) {
  constexpr const char* op = "adaptive_avg_pool2d_backward";
  PoolParams p{};
  read_gradient(op, grad, input_size, p);
  const auto size = grad.sizes();
  set_adaptive_windows(op, p, {size[grad.dim() - 2], size[grad.dim() - 1]}, input_size[0], input_size[1]);
  return run_backward(adaptive_avg_pool2d_backward_table, grad, p, channels_last);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastcv, m) {
  m.def(
      "max_pool2d(Tensor input, SymInt[] kernel_size, SymInt[] stride, SymInt[] padding, SymInt[] dilation, "
      "bool ceil_mode) -> Tensor");
  m.def(
      "max_pool2d_with_offsets(Tensor input, SymInt[] kernel_size, SymInt[] stride, SymInt[] padding, "
      "SymInt[] dilation, bool ceil_mode) -> (Tensor, Tensor)");
  m.def(
      "max_pool2d_with_indices(Tensor input, SymInt[] kernel_size, SymInt[] stride, SymInt[] padding, "
      "SymInt[] dilation, bool ceil_mode) -> (Tensor, Tensor)");
  m.def(
      "max_pool2d_backward(Tensor grad, Tensor indices, SymInt[] input_size, SymInt[] kernel_size, SymInt[] stride, "
      "SymInt[] padding, SymInt[] dilation, bool ceil_mode, bool channels_last) -> Tensor");
  m.def("adaptive_max_pool2d(Tensor input, SymInt[] output_size) -> Tensor");
  m.def("adaptive_max_pool2d_with_indices(Tensor input, SymInt[] output_size) -> (Tensor, Tensor)");
  m.def(
      "avg_pool2d(Tensor input, SymInt[] kernel_size, SymInt[] stride, SymInt[] padding, bool ceil_mode, "
      "bool count_include_pad, int? divisor_override) -> Tensor");
  m.def(
      "avg_pool2d_backward(Tensor grad, SymInt[] input_size, SymInt[] kernel_size, SymInt[] stride, "
      "SymInt[] padding, bool ceil_mode, bool count_include_pad, int? divisor_override, bool channels_last) -> Tensor");
  m.def("adaptive_avg_pool2d(Tensor input, SymInt[] output_size) -> Tensor");
  m.def("adaptive_avg_pool2d_backward(Tensor grad, SymInt[] input_size, bool channels_last) -> Tensor");
}

FASTCV_IMPL(m) {
  m.impl("max_pool2d", TORCH_BOX(&max_pool2d));
  m.impl("max_pool2d_with_offsets", TORCH_BOX(&max_pool2d_with_offsets));
  m.impl("max_pool2d_with_indices", TORCH_BOX(&max_pool2d_with_indices));
  m.impl("max_pool2d_backward", TORCH_BOX(&max_pool2d_backward));
  m.impl("adaptive_max_pool2d", TORCH_BOX(&adaptive_max_pool2d));
  m.impl("adaptive_max_pool2d_with_indices", TORCH_BOX(&adaptive_max_pool2d_with_indices));
  m.impl("avg_pool2d", TORCH_BOX(&avg_pool2d));
  m.impl("avg_pool2d_backward", TORCH_BOX(&avg_pool2d_backward));
  m.impl("adaptive_avg_pool2d", TORCH_BOX(&adaptive_avg_pool2d));
  m.impl("adaptive_avg_pool2d_backward", TORCH_BOX(&adaptive_avg_pool2d_backward));
}

}  // namespace fastcv
