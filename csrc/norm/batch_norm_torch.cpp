// The door of batch norm: schemas, checks, outputs. No arithmetic on elements.
#include "norm/batch_norm.h"
#include "norm/norm_door.h"
#include "norm/statistics_door.h"

namespace fastcv {
namespace {

using namespace norm_door;

Tensor forward(const char* op, const Tensor& input, const OptionalTensor& residual, const OptionalTensor& mean,
               const OptionalTensor& var, const OptionalTensor& weight, const OptionalTensor& bias, double eps,
               double slope, double cap, Tensor* save_mean, Tensor* save_var) {
  check_same_device(op, {&input, pointer(residual), pointer(mean), pointer(var), pointer(weight), pointer(bias)});
  const Shape shape = shape_of(op, input);
  const bool channels_last = layout_of(input);
  BatchNormParams p{};
  p.dtype = float_dtype(op, input);
  p.n = shape.n, p.c = shape.c, p.s = shape.s;
  p.channels_last = channels_last || p.s == 1;
  p.eps = eps;
  p.act = activation_of(op, slope, cap);
  const Tensor x = as_dense(input, channels_last);
  OptionalTensor added, hold[4];
  if (residual.has_value()) added = matching(op, "a residual", *residual, input, channels_last);
  Tensor output = empty(sizes(input), input.scalar_type(), input, channels_last);
  p.x = x.data_ptr();
  p.residual = added.has_value() ? added->data_ptr() : nullptr;
  p.y = output.data_ptr();
  p.weight = vector_of(op, "weight", weight, p.c, hold[0]);
  p.bias = vector_of(op, "bias", bias, p.c, hold[1]);
  p.mean = vector_of(op, "running_mean", mean, p.c, hold[2]);
  p.var = vector_of(op, "running_var", var, p.c, hold[3]);
  p.training = save_mean != nullptr;
  if (p.training) {
    *save_mean = empty({p.c}, ScalarType::Double, input);
    *save_var = empty({p.c}, ScalarType::Double, input);
    p.save_mean = static_cast<double*>(save_mean->data_ptr());
    p.save_var = static_cast<double*>(save_var->data_ptr());
  }
  run_variant(batch_norm_table, p, input);
  return output;
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_train(const Tensor& input, const OptionalTensor& residual,
                                                    const OptionalTensor& weight, const OptionalTensor& bias,
                                                    double eps, double slope, double cap) {
  Tensor mean, var;
  Tensor output = forward("batch_norm_train", input, residual, std::nullopt, std::nullopt, weight, bias, eps, slope,
                          cap, &mean, &var);
  return {output, mean, var};
}

Tensor batch_norm_eval(const Tensor& input, const OptionalTensor& residual, const Tensor& mean, const Tensor& var,
                       const OptionalTensor& weight, const OptionalTensor& bias, double eps, double slope, double cap) {
  return forward("batch_norm_eval", input, residual, mean, var, weight, bias, eps, slope, cap, nullptr, nullptr);
}

// wanted: 1 the gradient of input, 2 of weight, 4 of bias, 8 of the residual; the others come back empty.
std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_backward(const Tensor& grad, const Tensor& input,
                                                               const OptionalTensor& result, const Tensor& mean,
                                                               const Tensor& var, const OptionalTensor& weight,
                                                               const OptionalTensor& bias, bool training, double eps,
                                                               double slope, double cap, int64_t wanted) {
  const char* op = "batch_norm_backward";
  check_same_device(op, {&grad, &input, pointer(result), &mean, &var, pointer(weight), pointer(bias)});
  const Shape shape = shape_of(op, input);
  const bool channels_last = layout_of(input);
  BatchNormBackwardParams p{};
  p.dtype = float_dtype(op, input);
  p.n = shape.n, p.c = shape.c, p.s = shape.s;
  p.channels_last = channels_last || p.s == 1;
  p.training = training;
  p.eps = eps;
  p.act = activation_of(op, slope, cap);
  const Tensor g = matching(op, "a gradient", grad, input, channels_last), x = as_dense(input, channels_last);
  OptionalTensor y, hold[4];
  if (result.has_value()) y = matching(op, "an output", *result, input, channels_last);
  p.grad = g.data_ptr();
  p.x = x.data_ptr();
  p.y = y.has_value() ? y->data_ptr() : nullptr;
  p.mean = vector_of(op, "mean", mean, p.c, hold[0]);
  p.var = vector_of(op, "var", var, p.c, hold[1]);
  p.weight = vector_of(op, "weight", weight, p.c, hold[2]);
  p.bias = vector_of(op, "bias", bias, p.c, hold[3]);
  const auto full = [&](bool want) {
    return want ? empty(sizes(input), input.scalar_type(), input, channels_last)
                : empty({0}, input.scalar_type(), input);
  };
  Tensor dx = full(wanted & 1), dresidual = full(wanted & 8);
  p.dx = wanted & 1 ? dx.data_ptr() : nullptr;
  p.dresidual = wanted & 8 ? dresidual.data_ptr() : nullptr;
  Tensor dweight = vector_like(weight, wanted & 2, input, p.dweight);
  Tensor dbias = vector_like(bias, wanted & 4, input, p.dbias);
  run_variant(batch_norm_backward_table, p, input);
  return {dx, dweight, dbias, dresidual};
}

Tensor batch_norm_input_grad(const Tensor& grad, const Tensor& input, const Tensor& mean, const Tensor& var,
                             const OptionalTensor& weight, const Tensor& sums, int64_t count, double eps) {
  const char* op = "batch_norm_input_grad";
  check_same_device(op, {&grad, &input, &mean, &var, pointer(weight), &sums});
  const Shape shape = shape_of(op, input);
  const bool channels_last = layout_of(input);
  check(sums.scalar_type() == ScalarType::Double && sums.numel() == 2 * shape.c, op, ": expected float64 sums of ",
        2 * shape.c, " elements, got ", sums.numel());
  check(count > 0, op, ": expected a positive count, got ", count);
  const Tensor g = matching(op, "a gradient", grad, input, channels_last), x = as_dense(input, channels_last);
  const Tensor totals = as_dense(sums);
  Tensor dx = empty(sizes(input), input.scalar_type(), input, channels_last);
  OptionalTensor hold[3];
  BatchNormBackwardParams p{};
  p.grad = g.data_ptr();
  p.x = x.data_ptr();
  p.dx = dx.data_ptr();
  p.mean = vector_of(op, "mean", mean, shape.c, hold[0]);
  p.var = vector_of(op, "var", var, shape.c, hold[1]);
  p.weight = vector_of(op, "weight", weight, shape.c, hold[2]);
  p.dtype = float_dtype(op, input);
  p.n = shape.n, p.c = shape.c, p.s = shape.s;
  p.channels_last = channels_last || p.s == 1;
  p.training = true;
  p.eps = eps;
  p.act = activation_of(op, 1, 0);
  p.sums = static_cast<const double*>(totals.data_ptr());
  p.count = count;
  run_variant(batch_norm_backward_table, p, input);
  return dx;
}

void batch_norm_update(Tensor running_mean, Tensor running_var, const Tensor& mean, const Tensor& var, int64_t count,
                       double momentum) {
  const char* op = "batch_norm_update_";
  check_same_device(op, {&running_mean, &running_var, &mean, &var});
  const int64_t c = running_mean.numel();
  check(running_var.numel() == c, op, ": expected running statistics of one size, got ", c, " and ",
        running_var.numel());
  check(mean.scalar_type() == ScalarType::Double && var.scalar_type() == ScalarType::Double, op,
        ": expected float64 statistics");
  check(c > 0 ? mean.numel() % c == 0 : mean.numel() == 0, op, ": expected statistics for ", c, " channels, got ",
        mean.numel());
  check(var.numel() == mean.numel(), op, ": expected mean and var of one size, got ", mean.numel(), " and ",
        var.numel());
  if (mean.numel() == 0) return;
  Tensor m = as_dense(running_mean), v = as_dense(running_var);
  const Tensor dense_mean = as_dense(mean), dense_var = as_dense(var);
  const BatchNormUpdateParams p{{m.data_ptr(), float_dtype(op, m)},
                                {v.data_ptr(), float_dtype(op, v)},
                                static_cast<const double*>(dense_mean.data_ptr()),
                                static_cast<const double*>(dense_var.data_ptr()),
                                mean.numel() / c,
                                c,
                                count,
                                momentum};
  run_variant(batch_norm_update_table, p, m);
  if (!is_dense(running_mean, false)) torch::stable::copy_(running_mean, m);
  if (!is_dense(running_var, false)) torch::stable::copy_(running_var, v);
}

// Both at once: a call of an op costs microseconds.
std::tuple<Tensor, Tensor, Tensor> batch_norm_train_update(const Tensor& input, const OptionalTensor& residual,
                                                           Tensor running_mean, Tensor running_var,
                                                           const OptionalTensor& weight, const OptionalTensor& bias,
                                                           double momentum, double eps, double slope, double cap) {
  auto result = batch_norm_train(input, residual, weight, bias, eps, slope, cap);
  if (input.numel() > 0)
    batch_norm_update(running_mean, running_var, std::get<1>(result), std::get<2>(result),
                      input.numel() / input.size(1), momentum);
  return result;
}

}  // namespace

std::tuple<Tensor, Tensor> batch_norm_statistics(const Tensor& input) {
  const char* op = "batch_norm_statistics";
  const Shape shape = shape_of(op, input);
  const bool channels_last = layout_of(input);
  Tensor mean = empty({shape.c}, ScalarType::Double, input), var = empty({shape.c}, ScalarType::Double, input);
  const Tensor x = as_dense(input, channels_last);
  BatchNormParams p{};
  p.x = x.data_ptr();
  p.dtype = float_dtype(op, input);
  p.n = shape.n, p.c = shape.c, p.s = shape.s;
  p.channels_last = channels_last || p.s == 1;
  p.training = true;
  p.eps = 1;
  p.act = activation_of(op, 1, 0);
  p.save_mean = static_cast<double*>(mean.data_ptr());
  p.save_var = static_cast<double*>(var.data_ptr());
  run_variant(batch_norm_table, p, input);
  return {mean, var};
}

STABLE_TORCH_LIBRARY_FRAGMENT(fastcv, m) {
  m.def(
      "batch_norm_train(Tensor input, Tensor? residual, Tensor? weight, Tensor? bias, float eps, float slope, "
      "float cap) -> (Tensor, Tensor, Tensor)");
  m.def(
      "batch_norm_eval(Tensor input, Tensor? residual, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, "
      "float eps, float slope, float cap) -> Tensor");
  m.def(
      "batch_norm_backward(Tensor grad, Tensor input, Tensor? output, Tensor mean, Tensor var, Tensor? weight, "
      "Tensor? bias, bool training, float eps, float slope, float cap, int wanted) -> (Tensor, Tensor, Tensor, "
      "Tensor)");
  m.def("batch_norm_statistics(Tensor input) -> (Tensor, Tensor)");
  m.def(
      "batch_norm_input_grad(Tensor grad, Tensor input, Tensor mean, Tensor var, Tensor? weight, Tensor sums, "
      "SymInt count, float eps) -> Tensor");
  m.def(
      "batch_norm_update_(Tensor(a!) running_mean, Tensor(b!) running_var, Tensor mean, Tensor var, SymInt count, "
      "float momentum) -> ()");
  m.def(
      "batch_norm_train_update_(Tensor input, Tensor? residual, Tensor(a!) running_mean, Tensor(b!) running_var, "
      "Tensor? weight, Tensor? bias, float momentum, float eps, float slope, float cap) -> (Tensor, Tensor, Tensor)");
}
FASTCV_IMPL(m) {
  m.impl("batch_norm_train", TORCH_BOX(&batch_norm_train));
  m.impl("batch_norm_eval", TORCH_BOX(&batch_norm_eval));
  m.impl("batch_norm_backward", TORCH_BOX(&batch_norm_backward));
  m.impl("batch_norm_statistics", TORCH_BOX(&batch_norm_statistics));
  m.impl("batch_norm_input_grad", TORCH_BOX(&batch_norm_input_grad));
  m.impl("batch_norm_update_", TORCH_BOX(&batch_norm_update));
  m.impl("batch_norm_train_update_", TORCH_BOX(&batch_norm_train_update));
}

}  // namespace fastcv
