// The door of batch norm and max pooling in one pass: schemas, checks, outputs. No arithmetic on elements.
#include "pool/batch_norm_max_pool2d.h"

#include "norm/norm_door.h"
#include "pool/pool_door.h"

namespace fastcv {
namespace {

using namespace norm_door;
using pool_door::Geometry;

struct Result {
  Tensor values, offsets, mean, var;
};

// mean and var: given; without them those of the batch are computed and returned.
Result forward(const char* op, const Tensor& input, const OptionalTensor& mean, const OptionalTensor& var,
               const OptionalTensor& weight, const OptionalTensor& bias, double eps, double slope, double cap,
               Geometry geometry, bool offsets) {
  check(input.dim() == 4, op, ": expected a 4-D input, got ", show(input));
  check_same_device(op, {&input, pointer(mean), pointer(var), pointer(weight), pointer(bias)});
  BatchNormMaxPool2dParams p{};
  BatchNormParams& norm = p.norm;
  PoolParams& pool = p.pool;
  pool_door::read_map(op, input, pool, false);
  pool_door::set_windows(op, pool, geometry, input.size(2), input.size(3));
  check(!offsets || geometry.kernel[0] * geometry.kernel[1] <= 256, op,
        ": offsets need at most 256 window elements, got ", show(geometry.kernel));
  pool.channels_last = layout_of(input);
  pool.where_is_offset = true;
  p.dtype = norm.dtype = pool.dtype;
  norm.n = pool.n, norm.c = pool.c, norm.s = pool.h.in * pool.w.in;
  norm.channels_last = pool.channels_last || norm.s == 1;
  norm.training = !mean.has_value();
  norm.eps = eps;
  norm.act = activation_of(op, slope, cap);
  const Tensor x = as_dense(input, pool.channels_last);
  OptionalTensor hold[4];
  norm.x = x.data_ptr();
  norm.weight = vector_of(op, "weight", weight, norm.c, hold[0]);
  norm.bias = vector_of(op, "bias", bias, norm.c, hold[1]);
  norm.mean = vector_of(op, "mean", mean, norm.c, hold[2]);
  norm.var = vector_of(op, "var", var, norm.c, hold[3]);
  const auto statistics = [&] { return empty({norm.training ? norm.c : 0}, ScalarType::Double, input); };
  Result result{pool_door::new_map(input, pool, pool.h.out, pool.w.out, input.scalar_type()),
                offsets ? pool_door::new_map(input, pool, pool.h.out, pool.w.out, ScalarType::Byte)
                        : empty({0}, ScalarType::Byte, input),
                statistics(), statistics()};
  norm.save_mean = static_cast<double*>(result.mean.data_ptr());
  norm.save_var = static_cast<double*>(result.var.data_ptr());
  pool.y = result.values.data_ptr();
  pool.where = offsets ? result.offsets.data_ptr() : nullptr;
  run_variant(batch_norm_max_pool2d_table, p, input);
  return result;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_max_pool2d_train(
    const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias, double eps, double slope, double cap,
    Ints kernel, Ints stride, Ints padding, Ints dilation, bool ceil_mode, bool offsets) {
  Result r = forward("batch_norm_max_pool2d_train", input, std::nullopt, std::nullopt, weight, bias, eps, slope, cap,
                     {kernel, stride, padding, dilation, ceil_mode}, offsets);
  return {r.values, r.offsets, r.mean, r.var};
}

std::tuple<Tensor, Tensor> batch_norm_max_pool2d_eval(const Tensor& input, const Tensor& mean, const Tensor& var,
                                                      const OptionalTensor& weight, const OptionalTensor& bias,
                                                      double eps, double slope, double cap, Ints kernel, Ints stride,
                                                      Ints padding, Ints dilation, bool ceil_mode, bool offsets) {
  Result r = forward("batch_norm_max_pool2d_eval", input, mean, var, weight, bias, eps, slope, cap,
                     {kernel, stride, padding, dilation, ceil_mode}, offsets);
  return {r.values, r.offsets};
}

}  // namespace

// offsets: whether the second result is wanted; it is empty otherwise.
STABLE_TORCH_LIBRARY_FRAGMENT(fastcv, m) {
  m.def(
      "batch_norm_max_pool2d_train(Tensor input, Tensor? weight, Tensor? bias, float eps, float slope, float cap, "
      "SymInt[] kernel_size, SymInt[] stride, SymInt[] padding, SymInt[] dilation, bool ceil_mode, bool offsets) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "batch_norm_max_pool2d_eval(Tensor input, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, float eps, "
      "float slope, float cap, SymInt[] kernel_size, SymInt[] stride, SymInt[] padding, SymInt[] dilation, "
      "bool ceil_mode, bool offsets) -> (Tensor, Tensor)");
}
FASTCV_IMPL(m) {
  m.impl("batch_norm_max_pool2d_train", TORCH_BOX(&batch_norm_max_pool2d_train));
  m.impl("batch_norm_max_pool2d_eval", TORCH_BOX(&batch_norm_max_pool2d_eval));
}

}  // namespace fastcv
