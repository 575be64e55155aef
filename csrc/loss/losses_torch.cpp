// The doors of multi_margin_loss, kl_div, soft_iou_loss and of scale_gradient_, which finishes a fused gradient.
#include "loss/kl_div.h"

#include "common/door.h"
#include "loss/multi_margin.h"
#include "loss/scale.h"
#include "loss/soft_iou.h"

namespace fastcv {
namespace {

using namespace door;

DType float_dtype(const Tensor& t, const char* op) {
  const DType dtype = dtype_of(t, op);
  check(dtype <= DType::f16, op, ": expected a floating dtype, got ", dtype_name(t.scalar_type()));
  return dtype;
}

void check_same(const char* op, const char* name, const Tensor& t, const Ints& want, const Tensor& like) {
  check(sizes(t) == want && t.scalar_type() == like.scalar_type(), op, ": expected ", name, " of size ", show(want),
        " and dtype ", dtype_name(like.scalar_type()), ", got ", show(t), " ", dtype_name(t.scalar_type()));
  check_same_device(op, {&like, &t});
}

// ---- multi_margin_loss --------------------------------------------------------------------------------------------

struct MarginCall {
  MultiMarginParams p{};
  Tensor x, target;
  OptionalTensor weight;
  int64_t bad = -1;
};

void prepare(const char* op, const Tensor& input, const Tensor& target, int64_t p, double margin,
             const OptionalTensor& weight, int64_t reduction, MarginCall& c) {
  check(input.dim() == 2 && input.size(1) > 0, op, ": expected scores (rows, classes), got ", show(input));
  check(target.scalar_type() == ScalarType::Long && sizes(target) == Ints{input.size(0)}, op,
        ": expected Long targets of size [", input.size(0), "], got ", show(target), " ",
        dtype_name(target.scalar_type()));
  check(p == 1 || p == 2, op, ": only p == 1 and p == 2 supported, got ", p);
  check(reduction >= 0 && reduction <= 2, op, ": unknown reduction ", reduction);
  check_same_device(op, {&input, &target});
  c.p.dtype = float_dtype(input, op);
  c.x = as_dense(input);
  c.target = as_dense(target);
  if (weight) {
    check_same(op, "weight", *weight, {input.size(1)}, input);
    c.weight = as_dense(*weight);
    c.p.weight = c.weight->data_ptr();
  }
  c.p.x = c.x.data_ptr();
  c.p.target = static_cast<const int64_t*>(c.target.data_ptr());
  c.p.bad = input.is_cuda() ? nullptr : &c.bad;
  c.p.rows = input.size(0);
  c.p.classes = input.size(1);
  c.p.margin = margin;
  c.p.p = static_cast<int32_t>(p);
  c.p.reduction = static_cast<Reduction>(reduction);
}

void run(const VariantTable<MultiMarginParams>& table, const char* op, const MarginCall& c, const Tensor& input) {
  run_variant(table, c.p, input);
  if (c.bad >= 0)
    check(false, op, ": target ", c.p.target[c.bad], " at index (", c.bad, ") is out of range [0, ", c.p.classes, ")");
}

Tensor multi_margin_loss(const Tensor& input, const Tensor& target, int64_t p, double margin,
                         const OptionalTensor& weight, int64_t reduction) {
  MarginCall c;
  prepare("multi_margin_loss", input, target, p, margin, weight, reduction, c);
  Tensor loss = empty(reduction == 0 ? Ints{c.p.rows} : Ints{}, input.scalar_type(), input);
  c.p.loss = loss.data_ptr();
  run(multi_margin_loss_table, "multi_margin_loss", c, input);
  return loss;
}

Tensor multi_margin_loss_backward(const Tensor& grad, const Tensor& input, const Tensor& target, int64_t p,
                                  double margin, const OptionalTensor& weight, int64_t reduction) {
  const char* op = "multi_margin_loss_backward";
  MarginCall c;
  prepare(op, input, target, p, margin, weight, reduction, c);
  check_same(op, "grad", grad, reduction == 0 ? Ints{c.p.rows} : Ints{}, input);
  const Tensor dense = as_dense(grad);
  Tensor result = empty(sizes(input), input.scalar_type(), input);
  c.p.grad_loss = dense.data_ptr();
  c.p.grad = result.data_ptr();
  run(multi_margin_loss_backward_table, op, c, input);
  return result;
}

// ---- kl_div -------------------------------------------------------------------------------------------------------

struct Pair {
  Tensor x, target;
};

Pair same_pair(const char* op, const Tensor& input, const Tensor& target) {
  check_same(op, "target", target, sizes(input), input);
  return {as_dense(input), as_dense(target)};
}

Tensor kl_div(const Tensor& input, const Tensor& target, bool reduce, double divisor, bool log_target) {
  KlDivParams p{};
  p.dtype = float_dtype(input, "kl_div");
  const Pair pair = same_pair("kl_div", input, target);
  Tensor loss = empty(reduce ? Ints{} : sizes(input), input.scalar_type(), input);
  p.x = pair.x.data_ptr();
  p.target = pair.target.data_ptr();
  p.loss = loss.data_ptr();
  p.n = input.numel();
  p.divisor = divisor;
  p.reduce = reduce;
  p.log_target = log_target;
  run_variant(kl_div_table, p, input);
  return loss;
}

// Gradients that are not wanted come back as empty tensors.
Tensor wanted(bool want, const Tensor& like, void** data) {
  Tensor result = empty(want ? sizes(like) : Ints{0}, like.scalar_type(), like);
  *data = want ? result.data_ptr() : nullptr;
  return result;
}

std::tuple<Tensor, Tensor> kl_div_backward(const Tensor& grad, const Tensor& input, const Tensor& target, bool reduce,
                                           double divisor, bool log_target, bool need_input, bool need_target) {
  const char* op = "kl_div_backward";
  KlDivParams p{};
  p.dtype = float_dtype(input, op);
  const Pair pair = same_pair(op, input, target);
  check_same(op, "grad", grad, reduce ? Ints{} : sizes(input), input);
  const Tensor dense = as_dense(grad);
  Tensor grad_x = wanted(need_input, input, &p.grad_x), grad_target = wanted(need_target, input, &p.grad_target);
  p.x = pair.x.data_ptr();
  p.target = pair.target.data_ptr();
  p.grad_loss = dense.data_ptr();
  p.n = input.numel();
  p.divisor = divisor;
  p.reduce = reduce;
  p.log_target = log_target;
  run_variant(kl_div_backward_table, p, input);
  return {grad_x, grad_target};
}

// ---- soft_iou_loss ------------------------------------------------------------------------------------------------

void prepare(const char* op, const Tensor& input, double eps, SoftIouParams& p) {
  check(input.dim() == 2, op, ": expected (groups, elements), got ", show(input));
  p.dtype = float_dtype(input, op);
  p.groups = input.size(0);
  p.n = input.size(1);
  p.eps = eps;
}

std::tuple<Tensor, Tensor> soft_iou_loss(const Tensor& input, const Tensor& target, double eps) {
  SoftIouParams p{};
  prepare("soft_iou_loss", input, eps, p);
  const Pair pair = same_pair("soft_iou_loss", input, target);
  Tensor loss = empty({p.groups}, input.scalar_type(), input), sums = empty({p.groups, 2}, ScalarType::Double, input);
  p.x = pair.x.data_ptr();
  p.target = pair.target.data_ptr();
  p.loss = loss.data_ptr();
  p.sums = static_cast<double*>(sums.data_ptr());
  run_variant(soft_iou_loss_table, p, input);
  return {loss, sums};
}

std::tuple<Tensor, Tensor> soft_iou_loss_backward(const Tensor& grad, const Tensor& input, const Tensor& target,
                                                  const Tensor& sums, double eps, bool need_input, bool need_target) {
  const char* op = "soft_iou_loss_backward";
  SoftIouParams p{};
  prepare(op, input, eps, p);
  const Pair pair = same_pair(op, input, target);
  check_same(op, "grad", grad, {p.groups}, input);
  check(sums.scalar_type() == ScalarType::Double && sizes(sums) == Ints{p.groups, 2}, op, ": expected sums of size [",
        p.groups, ", 2] Double, got ", show(sums), " ", dtype_name(sums.scalar_type()));
  check_same_device(op, {&input, &sums});
  const Tensor dense = as_dense(grad), dense_sums = as_dense(sums);
  Tensor grad_x = wanted(need_input, input, &p.grad_x), grad_target = wanted(need_target, input, &p.grad_target);
  p.x = pair.x.data_ptr();
  p.target = pair.target.data_ptr();
  p.grad_loss = dense.data_ptr();
  p.sums = static_cast<double*>(dense_sums.data_ptr());
  run_variant(soft_iou_loss_backward_table, p, input);
  return {grad_x, grad_target};
}

// ---- scale_gradient_ ----------------------------------------------------------------------------------------------

void scale_gradient(Tensor x, const Tensor& factor) {
  const char* op = "scale_gradient_";
  check_same(op, "factor", factor, {}, x);
  const bool transposed = x.dim() == 2 && x.stride(0) == 1 && x.stride(1) == x.size(0);
  check(x.numel() == 0 || transposed || is_dense(x, false) || is_dense(x, true), op,
        ": expected a tensor without gaps or overlaps, got sizes ", show(x), " and strides ", show(strides(x)));
  const ScaleParams p{x.data_ptr(), factor.data_ptr(), x.data_ptr(), x.numel(), float_dtype(x, op)};
  run_variant(scale_gradient_table, p, x);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastcv, m) {
  m.def("multi_margin_loss(Tensor input, Tensor target, int p, float margin, Tensor? weight, int reduction) -> Tensor");
  m.def(
      "multi_margin_loss_backward(Tensor grad, Tensor input, Tensor target, int p, float margin, Tensor? weight, int "
      "reduction) -> Tensor");
  m.def("kl_div(Tensor input, Tensor target, bool reduce, float divisor, bool log_target) -> Tensor");
  m.def(
      "kl_div_backward(Tensor grad, Tensor input, Tensor target, bool reduce, float divisor, bool log_target, bool "
      "need_input, bool need_target) -> (Tensor, Tensor)");
  m.def("soft_iou_loss(Tensor input, Tensor target, float eps) -> (Tensor, Tensor)");
  m.def(
      "soft_iou_loss_backward(Tensor grad, Tensor input, Tensor target, Tensor sums, float eps, bool need_input, bool "
      "need_target) -> (Tensor, Tensor)");
  m.def("scale_gradient_(Tensor(a!) x, Tensor factor) -> ()");
}
FASTCV_IMPL(m) {
  m.impl("multi_margin_loss", TORCH_BOX(&multi_margin_loss));
  m.impl("multi_margin_loss_backward", TORCH_BOX(&multi_margin_loss_backward));
  m.impl("kl_div", TORCH_BOX(&kl_div));
  m.impl("kl_div_backward", TORCH_BOX(&kl_div_backward));
  m.impl("soft_iou_loss", TORCH_BOX(&soft_iou_loss));
  m.impl("soft_iou_loss_backward", TORCH_BOX(&soft_iou_loss_backward));
  m.impl("scale_gradient_", TORCH_BOX(&scale_gradient));
}

}  // namespace fastcv
