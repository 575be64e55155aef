// The door of linear_cross_entropy: schema, checks, outputs.
#include "loss/linear_cross_entropy.h"

#include "common/door.h"

namespace fastcv {
namespace {

using namespace door;

struct Call {
  LinearCrossEntropyParams p{};
  Tensor x, w, target;
  OptionalTensor bias, class_weight;
  int64_t bad = -1;
};

void check_vector(const char* op, const char* name, const Tensor& t, int64_t n, const Tensor& like) {
  check(sizes(t) == Ints{n} && t.scalar_type() == like.scalar_type(), op, ": expected ", name, " of size [", n,
        "] and dtype ", dtype_name(like.scalar_type()), ", got ", show(t), " ", dtype_name(t.scalar_type()));
  check_same_device(op, {&like, &t});
}

void prepare(const char* op, const Tensor& input, const Tensor& w, const OptionalTensor& bias, const Tensor& target,
             const OptionalTensor& class_weight, int64_t reduction, int64_t ignore_index, double smoothing, Call& c) {
  check(input.dim() == 2 && w.dim() == 2 && input.size(1) == w.size(1), op,
        ": expected input (N, features) and weight (C, features), got ", show(input), " and ", show(w));
  check(reduction >= 0 && reduction <= 2, op, ": reduction ", reduction, " is none of 0 (none), 1 (mean), 2 (sum)");
  check(smoothing >= 0 && smoothing <= 1, op, ": label_smoothing must be between 0.0 and 1.0, got ", smoothing);
  check(input.scalar_type() == w.scalar_type(), op, ": input is ", dtype_name(input.scalar_type()), ", weight ",
        dtype_name(w.scalar_type()));
  check_same_device(op, {&input, &w, &target});
  c.p.dtype = dtype_of(input, op);
  check(c.p.dtype <= DType::f16, op, ": expected a floating dtype, got ", dtype_name(input.scalar_type()));
  c.p.rows = input.size(0);
  c.p.features = input.size(1);
  c.p.classes = w.size(0);
  const ScalarType kind = target.scalar_type();
  if (kind == ScalarType::Long || kind == ScalarType::Byte) {
    check(sizes(target) == Ints{c.p.rows}, op, ": expected target size [", c.p.rows, "], got ", show(target));
    c.p.target_kind = kind == ScalarType::Long ? Target::i64 : Target::u8;
  } else {
    check(kind == input.scalar_type() && sizes(target) == Ints{c.p.rows, c.p.classes}, op,
          ": expected Long targets or probabilities of size ", show({c.p.rows, c.p.classes}), ", got ", show(target),
          " ", dtype_name(kind));
    c.p.target_kind = Target::probability;
  }
  c.x = as_dense(input);
  c.w = as_dense(w);
  c.target = as_dense(target);
  if (bias) {
    check_vector(op, "bias", *bias, c.p.classes, input);
    c.bias = as_dense(*bias);
    c.p.bias = c.bias->data_ptr();
  }
  if (class_weight) {
    check_vector(op, "class weight", *class_weight, c.p.classes, input);
    c.class_weight = as_dense(*class_weight);
    c.p.class_weight = c.class_weight->data_ptr();
  }
  c.p.x = c.x.data_ptr();
  c.p.w = c.w.data_ptr();
  c.p.target = c.target.data_ptr();
  c.p.bad = input.is_cuda() ? nullptr : &c.bad;
  c.p.ignore_index = ignore_index;
  c.p.smoothing = smoothing;
  c.p.reduction = static_cast<Reduction>(reduction);
}

void run(const VariantTable<LinearCrossEntropyParams>& table, const Call& c, const Tensor& input) {
  run_variant(table, c.p, input, Denormals::flush);
  if (c.bad < 0) return;
  const int64_t value = c.p.target_kind == Target::i64 ? static_cast<const int64_t*>(c.p.target)[c.bad]
                                                       : int64_t{static_cast<const uint8_t*>(c.p.target)[c.bad]};
  throw std::out_of_range("target " + std::to_string(value) + " at index (" + std::to_string(c.bad) +
                          ") is outside [0, " + std::to_string(c.p.classes) +
                          "); did you mean ignore_index=" + std::to_string(value) + "?");
}

Tensor linear_cross_entropy(const Tensor& input, const Tensor& w, const OptionalTensor& bias, const Tensor& target,
                            const OptionalTensor& class_weight, int64_t reduction, int64_t ignore_index,
                            double smoothing) {
  Call c;
  prepare("linear_cross_entropy", input, w, bias, target, class_weight, reduction, ignore_index, smoothing, c);
  Tensor loss = empty(reduction == 0 ? Ints{c.p.rows} : Ints{}, input.scalar_type(), input);
  c.p.loss = loss.data_ptr();
  run(linear_cross_entropy_table, c, input);
  return loss;
}

// Gradients that are not wanted come back as empty tensors.
Tensor wanted(bool want, const Ints& size, const Tensor& like, void** data) {
  Tensor result = empty(want ? size : Ints{0}, like.scalar_type(), like);
  *data = want ? result.data_ptr() : nullptr;
  return result;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> linear_cross_entropy_with_grad(
    const Tensor& input, const Tensor& w, const OptionalTensor& bias, const Tensor& target,
    const OptionalTensor& class_weight, int64_t reduction, int64_t ignore_index, double smoothing, bool need_input,
    bool need_weight, bool need_bias) {
  const char* op = "linear_cross_entropy_with_grad";
  Call c;
  prepare(op, input, w, bias, target, class_weight, reduction, ignore_index, smoothing, c);
  check(reduction != 0, op, ": needs reduction mean or sum");
  Tensor loss = empty({}, input.scalar_type(), input);
  c.p.loss = loss.data_ptr();
  Tensor grad_x = wanted(need_input, sizes(input), input, &c.p.grad_x);
  Tensor grad_w = wanted(need_weight, sizes(w), input, &c.p.grad_w);
  Tensor grad_b = wanted(need_bias, {c.p.classes}, input, &c.p.grad_b);
  run(linear_cross_entropy_table, c, input);
  return {loss, grad_x, grad_w, grad_b};
}

std::tuple<Tensor, Tensor, Tensor> linear_cross_entropy_backward(const Tensor& grad, const Tensor& input,
                                                                 const Tensor& w, const OptionalTensor& bias,
                                                                 const Tensor& target,
                                                                 const OptionalTensor& class_weight, int64_t reduction,
                                                                 int64_t ignore_index, double smoothing,
                                                                 bool need_input, bool need_weight, bool need_bias) {
  const char* op = "linear_cross_entropy_backward";
  Call c;
  prepare(op, input, w, bias, target, class_weight, reduction, ignore_index, smoothing, c);
  const Ints want = reduction == 0 ? Ints{c.p.rows} : Ints{};
  check(sizes(grad) == want && grad.scalar_type() == input.scalar_type(), op, ": expected grad of size ", show(want),
        ", got ", show(grad), " ", dtype_name(grad.scalar_type()));
  check_same_device(op, {&input, &grad});
  const Tensor dense = as_dense(grad);
  c.p.grad_loss = dense.data_ptr();
  Tensor grad_x = wanted(need_input, sizes(input), input, &c.p.grad_x);
  Tensor grad_w = wanted(need_weight, sizes(w), input, &c.p.grad_w);
  Tensor grad_b = wanted(need_bias, {c.p.classes}, input, &c.p.grad_b);
  run(linear_cross_entropy_backward_table, c, input);
  return {grad_x, grad_w, grad_b};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastcv, m) {
  m.def(
      "linear_cross_entropy(Tensor input, Tensor linear_weight, Tensor? linear_bias, Tensor target, Tensor? weight, "
      "int "
      "reduction, int ignore_index, float label_smoothing) -> Tensor");
  m.def(
      "linear_cross_entropy_with_grad(Tensor input, Tensor linear_weight, Tensor? linear_bias, Tensor target, Tensor? "
      "weight, int reduction, int ignore_index, float label_smoothing, bool need_input, bool need_weight, bool "
      "need_bias) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "linear_cross_entropy_backward(Tensor grad, Tensor input, Tensor linear_weight, Tensor? linear_bias, Tensor "
      "target, Tensor? weight, int reduction, int ignore_index, float label_smoothing, bool need_input, bool "
      "need_weight, bool need_bias) -> (Tensor, Tensor, Tensor)");
}
FASTCV_IMPL(m) {
  m.impl("linear_cross_entropy", TORCH_BOX(&linear_cross_entropy));
  m.impl("linear_cross_entropy_with_grad", TORCH_BOX(&linear_cross_entropy_with_grad));
  m.impl("linear_cross_entropy_backward", TORCH_BOX(&linear_cross_entropy_backward));
}

}  // namespace fastcv
