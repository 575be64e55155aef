// The door of group norm (and so of instance norm): schemas, checks, outputs. No arithmetic on elements.
#include "norm/group_norm.h"
#include "norm/norm_door.h"

namespace fastcv {
namespace {

using namespace norm_door;

void check_groups(const char* op, int64_t groups, int64_t channels) {
  check(groups > 0 && channels % groups == 0, op, ": expected num_groups to divide ", channels, " channels, got ",
        groups);
}

std::tuple<Tensor, Tensor, Tensor> group_norm(const Tensor& input, int64_t groups, const OptionalTensor& weight,
                                              const OptionalTensor& bias, double eps) {
  const char* op = "group_norm";
  check_same_device(op, {&input, pointer(weight), pointer(bias)});
  const Shape shape = shape_of(op, input);
  check_groups(op, groups, shape.c);
  const bool channels_last = is_channels_last(input);
  GroupNormParams p{};
  p.dtype = float_dtype(op, input);
  p.n = shape.n, p.c = shape.c, p.s = shape.s, p.groups = groups;
  p.channels_last = channels_last || p.s == 1;
  p.eps = eps;
  const Tensor x = as_dense(input, channels_last);
  OptionalTensor hold[2];
  Tensor output = empty(sizes(input), input.scalar_type(), input, channels_last);
  Tensor mean = empty({p.n, groups}, ScalarType::Double, input), var = empty({p.n, groups}, ScalarType::Double, input);
  p.x = x.data_ptr();
  p.y = output.data_ptr();
  p.weight = vector_of(op, "weight", weight, p.c, hold[0]);
  p.bias = vector_of(op, "bias", bias, p.c, hold[1]);
  p.mean = static_cast<double*>(mean.data_ptr());
  p.var = static_cast<double*>(var.data_ptr());
  run_variant(group_norm_table, p, input);
  return {output, mean, var};
}

// wanted: 1 the gradient of input, 2 of weight, 4 of bias; the others come back empty.
std::tuple<Tensor, Tensor, Tensor> group_norm_backward(const Tensor& grad, const Tensor& input, const Tensor& mean,
                                                       const Tensor& var, int64_t groups, const OptionalTensor& weight,
                                                       const OptionalTensor& bias, double eps, int64_t wanted) {
  const char* op = "group_norm_backward";
  check_same_device(op, {&grad, &input, &mean, &var, pointer(weight), pointer(bias)});
  const Shape shape = shape_of(op, input);
  check_groups(op, groups, shape.c);
  const bool channels_last = is_channels_last(input);
  GroupNormBackwardParams p{};
  p.dtype = float_dtype(op, input);
  p.n = shape.n, p.c = shape.c, p.s = shape.s, p.groups = groups;
  p.channels_last = channels_last || p.s == 1;
  p.eps = eps;
  const Tensor g = matching(op, "a gradient", grad, input, channels_last), x = as_dense(input, channels_last);
  OptionalTensor hold[4];
  Tensor dx = wanted & 1 ? empty(sizes(input), input.scalar_type(), input, channels_last)
                         : empty({0}, input.scalar_type(), input);
  p.grad = g.data_ptr();
  p.x = x.data_ptr();
  p.dx = wanted & 1 ? dx.data_ptr() : nullptr;
  p.weight = vector_of(op, "weight", weight, p.c, hold[0]);
  vector_of(op, "bias", bias, p.c, hold[1]);
  const NormVector m = vector_of(op, "mean", mean, p.n * groups, hold[2]);
  const NormVector v = vector_of(op, "var", var, p.n * groups, hold[3]);
  check(m.dtype == DType::f64 && v.dtype == DType::f64, op, ": expected float64 statistics");
  p.mean = static_cast<const double*>(m.data);
  p.var = static_cast<const double*>(v.data);
  Tensor dweight = vector_like(weight, wanted & 2, input, p.dweight);
  Tensor dbias = vector_like(bias, wanted & 4, input, p.dbias);
  run_variant(group_norm_backward_table, p, input);
  return {dx, dweight, dbias};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastcv, m) {
  m.def(
      "group_norm(Tensor input, int num_groups, Tensor? weight, Tensor? bias, float eps) -> (Tensor, Tensor, Tensor)");
  m.def(
      "group_norm_backward(Tensor grad, Tensor input, Tensor mean, Tensor var, int num_groups, Tensor? weight, "
      "Tensor? bias, float eps, int wanted) -> (Tensor, Tensor, Tensor)");
}
FASTCV_IMPL(m) {
  m.impl("group_norm", TORCH_BOX(&group_norm));
  m.impl("group_norm_backward", TORCH_BOX(&group_norm_backward));
}

}  // namespace fastcv
