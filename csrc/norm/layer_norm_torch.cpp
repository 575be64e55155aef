// The door of layer norm: schemas, checks, outputs. No arithmetic on elements.
#include "norm/layer_norm.h"
#include "norm/norm_door.h"

namespace fastcv {
namespace {

using namespace norm_door;

// The last `dims` dimensions are normalised: m rows of l elements.
void rows_of(const char* op, const Tensor& input, int64_t dims, int64_t& m, int64_t& l, Ints& lead) {
  check(dims >= 1 && dims <= input.dim(), op, ": cannot normalise the last ", dims, " dimensions of ", show(input));
  m = l = 1;
  for (int64_t d = 0; d < input.dim() - dims; ++d) {
    m *= input.size(d);
    lead.push_back(input.size(d));
  }
  for (int64_t d = input.dim() - dims; d < input.dim(); ++d) l *= input.size(d);
}

std::tuple<Tensor, Tensor, Tensor> layer_norm(const Tensor& input, int64_t dims, const OptionalTensor& weight,
                                              const OptionalTensor& bias, double eps) {
  const char* op = "layer_norm";
  check_same_device(op, {&input, pointer(weight), pointer(bias)});
  LayerNormParams p{};
  Ints lead;
  rows_of(op, input, dims, p.m, p.l, lead);
  p.dtype = float_dtype(op, input);
  p.eps = eps;
  const Tensor x = as_dense(input);
  OptionalTensor hold[2];
  Tensor output = empty(sizes(input), input.scalar_type(), input);
  Tensor mean = empty(lead, ScalarType::Double, input), var = empty(lead, ScalarType::Double, input);
  p.x = x.data_ptr();
  p.y = output.data_ptr();
  p.weight = vector_of(op, "weight", weight, p.l, hold[0]);
  p.bias = vector_of(op, "bias", bias, p.l, hold[1]);
  p.mean = static_cast<double*>(mean.data_ptr());
  p.var = static_cast<double*>(var.data_ptr());
  run_variant(layer_norm_table, p, input);
  return {output, mean, var};
}

// wanted: 1 the gradient of input, 2 of weight, 4 of bias; the others come back empty.
std::tuple<Tensor, Tensor, Tensor> layer_norm_backward(const Tensor& grad, const Tensor& input, const Tensor& mean,
                                                       const Tensor& var, int64_t dims, const OptionalTensor& weight,
                                                       const OptionalTensor& bias, double eps, int64_t wanted) {
  const char* op = "layer_norm_backward";
  check_same_device(op, {&grad, &input, &mean, &var, pointer(weight), pointer(bias)});
  LayerNormBackwardParams p{};
  Ints lead;
  rows_of(op, input, dims, p.m, p.l, lead);
  p.dtype = float_dtype(op, input);
  p.eps = eps;
  const Tensor g = matching(op, "a gradient", grad, input, false), x = as_dense(input);
  OptionalTensor hold[4];
  Tensor dx = empty(wanted & 1 ? sizes(input) : Ints{0}, input.scalar_type(), input);
  p.grad = g.data_ptr();
  p.x = x.data_ptr();
  p.dx = wanted & 1 ? dx.data_ptr() : nullptr;
  p.weight = vector_of(op, "weight", weight, p.l, hold[0]);
  vector_of(op, "bias", bias, p.l, hold[1]);
  const NormVector m = vector_of(op, "mean", mean, p.m, hold[2]), v = vector_of(op, "var", var, p.m, hold[3]);
  check(m.dtype == DType::f64 && v.dtype == DType::f64, op, ": expected float64 statistics");
  p.mean = static_cast<const double*>(m.data);
  p.var = static_cast<const double*>(v.data);
  Tensor dweight = vector_like(weight, wanted & 2, input, p.dweight);
  Tensor dbias = vector_like(bias, wanted & 4, input, p.dbias);
  run_variant(layer_norm_backward_table, p, input);
  return {dx, dweight, dbias};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastcv, m) {
  m.def("layer_norm(Tensor input, int dims, Tensor? weight, Tensor? bias, float eps) -> (Tensor, Tensor, Tensor)");
  m.def(
      "layer_norm_backward(Tensor grad, Tensor input, Tensor mean, Tensor var, int dims, Tensor? weight, "
      "Tensor? bias, float eps, int wanted) -> (Tensor, Tensor, Tensor)");
}
FASTCV_IMPL(m) {
  m.impl("layer_norm", TORCH_BOX(&layer_norm));
  m.impl("layer_norm_backward", TORCH_BOX(&layer_norm_backward));
}

}  // namespace fastcv
