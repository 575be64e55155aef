// The door of cross_entropy and nll_loss: schemas, checks, outputs. Class indices out of range raise IndexError; on a
// GPU, where nobody waits for the kernel, they end it with an error, as torch's do.
#include "loss/nll.h"

#include "common/door.h"

namespace fastcv {
namespace {

using namespace door;

// The layout a loss kernel reads: rows (the class dim innermost) or columns.
struct Scores {
  Tensor dense;
  Ints strides;  // of dense and of gradients
  int64_t outer, classes, inner;
};

int64_t product(const Ints& values, size_t begin) {
  int64_t result = 1;
  for (size_t d = begin; d < values.size(); ++d) result *= values[d];
  return result;
}

// Takes (N, C, d...), (N, C) or (C) as it stands where the kernel can read it: row-major, channels_last, or a
// transposed matrix; makes it row-major otherwise.
Scores scores_of(const Tensor& x) {
  const Ints size = sizes(x);
  if (size.size() == 1) return {as_dense(x), {1}, 1, size[0], 1};
  const int64_t batch = size[0], classes = size[1], inner = product(size, 2);
  if (x.numel() == 0 || is_dense(x, false)) return {x, dense_strides(size, false), batch, classes, inner};
  if (size.size() > 2 && is_dense(x, true)) return {x, dense_strides(size, true), batch * inner, classes, 1};
  const Ints stride = strides(x);
  if (size.size() == 2 && stride[0] == 1 && stride[1] == batch) return {x, {1, batch}, 1, classes, batch};
  return {as_dense(x), dense_strides(size, false), batch, classes, inner};
}

struct Call {
  CrossEntropyParams p;
  Scores scores;
  Tensor target;  // dense
  OptionalTensor weight;
  Ints sample_sizes;
  int64_t bad = -1;
};

// Checks everything that reading memory depends on and fills c.p except the outputs. c must not move afterwards.
void prepare(const char* op, const Tensor& input, const Tensor& target, const OptionalTensor& weight, int64_t reduction,
             int64_t ignore_index, double smoothing, bool allow_soft, Call& c) {
  check(input.dim() >= 1, op, ": expected input of 1 or more dimensions, got a scalar");
  check(reduction >= 0 && reduction <= 2, op, ": reduction ", reduction, " is none of 0 (none), 1 (mean), 2 (sum)");
  check(smoothing >= 0 && smoothing <= 1, op, ": label_smoothing must be between 0.0 and 1.0, got ", smoothing);
  c.p = {};
  c.p.dtype = dtype_of(input, op);
  check(c.p.dtype <= DType::f16, op, ": expected a floating dtype, got ", dtype_name(input.scalar_type()));
  c.scores = scores_of(input);
  const Ints size = sizes(input), target_size = sizes(target);
  if (size.size() > 1) {
    c.sample_sizes = {size[0]};
    c.sample_sizes.insert(c.sample_sizes.end(), size.begin() + 2, size.end());
  }
  const ScalarType kind = target.scalar_type();
  if (kind == ScalarType::Long || kind == ScalarType::Byte) {
    const bool fits = target_size == c.sample_sizes || (size.size() == 1 && target_size == Ints{1});
    check(fits, op, ": expected target size ", show(c.sample_sizes), ", got ", show(target_size));
    c.target = as_dense(target);
    c.p.target_kind = kind == ScalarType::Long ? Target::i64 : Target::u8;
  } else {
    check(allow_soft && kind == input.scalar_type(), op, ": expected target dtype Long or Byte",
          allow_soft ? " or the dtype of input" : "", ", got ", dtype_name(kind));
    check(target_size == size, op, ": expected probabilities of size ", show(size), ", got ", show(target_size));
    c.target = target;
    if (strides(target) != c.scores.strides && target.numel() > 0) {
      c.target = empty_strided(size, c.scores.strides, kind, target);
      torch::stable::copy_(c.target, target);
    }
    c.p.target_kind = Target::probability;
  }
  check_same_device(op, {&input, &target, weight ? &*weight : nullptr});
  if (weight) {
    check(weight->dim() == 1 && weight->numel() == c.scores.classes, op, ": expected a weight for each of ",
          c.scores.classes, " classes, got size ", show(*weight));
    check(weight->scalar_type() == input.scalar_type(), op, ": expected weight dtype ", dtype_name(input.scalar_type()),
          ", got ", dtype_name(weight->scalar_type()));
    c.weight = as_dense(*weight);
    c.p.weight = c.weight->data_ptr();
  }
  c.p.x = c.scores.dense.data_ptr();
  c.p.target = c.target.data_ptr();
  c.p.bad = input.is_cuda() ? nullptr : &c.bad;
  c.p.outer = c.scores.outer;
  c.p.classes = c.scores.classes;
  c.p.inner = c.scores.inner;
  c.p.ignore_index = ignore_index;
  c.p.smoothing = smoothing;
  c.p.reduction = static_cast<Reduction>(reduction);
}

Tensor loss_for(const Call& c, const Tensor& like) {
  return empty(c.p.reduction == Reduction::none ? c.sample_sizes : Ints{}, like.scalar_type(), like);
}

void run(const VariantTable<CrossEntropyParams>& table, Call& c, const Tensor& input) {
  run_variant(table, c.p, input);
  if (c.bad < 0) return;
  const int64_t value = c.p.target_kind == Target::i64 ? static_cast<const int64_t*>(c.p.target)[c.bad]
                                                       : int64_t{static_cast<const uint8_t*>(c.p.target)[c.bad]};
  std::string index;
  int64_t flat = c.bad;
  for (size_t d = c.sample_sizes.size(); d-- > 0; flat /= c.sample_sizes[d])
    index = std::to_string(flat % c.sample_sizes[d]) + (index.empty() ? "" : ", ") + index;
  throw std::out_of_range("target " + std::to_string(value) + (index.empty() ? "" : " at index (" + index + ")") +
                          " is outside [0, " + std::to_string(c.p.classes) +
                          "); did you mean ignore_index=" + std::to_string(value) + "?");
}

Tensor take_grad(Call& c, const Tensor& input, const Tensor* grad_loss, Tensor& dense) {
  if (grad_loss) {
    const Ints want = c.p.reduction == Reduction::none ? c.sample_sizes : Ints{};
    check(sizes(*grad_loss) == want && grad_loss->scalar_type() == input.scalar_type(), "loss backward: expected grad ",
          show(want), " ", dtype_name(input.scalar_type()), ", got ", show(*grad_loss), " ",
          dtype_name(grad_loss->scalar_type()));
    check_same_device("loss backward", {&input, grad_loss});
    dense = as_dense(*grad_loss);
    c.p.grad_loss = dense.data_ptr();
  }
  Tensor grad = empty_strided(sizes(input), c.scores.strides, input.scalar_type(), input);
  c.p.grad = grad.data_ptr();
  return grad;
}

Tensor cross_entropy(const Tensor& input, const Tensor& target, const OptionalTensor& weight, int64_t reduction,
                     int64_t ignore_index, double smoothing) {
  Call c;
  prepare("cross_entropy", input, target, weight, reduction, ignore_index, smoothing, true, c);
  Tensor loss = loss_for(c, input);
  c.p.loss = loss.data_ptr();
  run(cross_entropy_table, c, input);
  return loss;
}

std::tuple<Tensor, Tensor> cross_entropy_with_grad(const Tensor& input, const Tensor& target,
                                                   const OptionalTensor& weight, int64_t reduction,
                                                   int64_t ignore_index, double smoothing) {
  Call c;
  prepare("cross_entropy_with_grad", input, target, weight, reduction, ignore_index, smoothing, true, c);
  check(c.p.reduction != Reduction::none, "cross_entropy_with_grad: needs reduction mean or sum");
  Tensor unused, loss = loss_for(c, input), grad = take_grad(c, input, nullptr, unused);
  c.p.loss = loss.data_ptr();
  run(cross_entropy_table, c, input);
  return {loss, grad};
}

Tensor cross_entropy_backward(const Tensor& grad_loss, const Tensor& input, const Tensor& target,
                              const OptionalTensor& weight, int64_t reduction, int64_t ignore_index, double smoothing) {
  Call c;
  Tensor dense;
  prepare("cross_entropy_backward", input, target, weight, reduction, ignore_index, smoothing, true, c);
  Tensor grad = take_grad(c, input, &grad_loss, dense);
  run(cross_entropy_backward_table, c, input);
  return grad;
}

Tensor nll_loss(const Tensor& input, const Tensor& target, const OptionalTensor& weight, int64_t reduction,
                int64_t ignore_index) {
  Call c;
  prepare("nll_loss", input, target, weight, reduction, ignore_index, 0, false, c);
  Tensor loss = loss_for(c, input);
  c.p.loss = loss.data_ptr();
  run(nll_loss_table, c, input);
  return loss;
}

Tensor nll_loss_backward(const Tensor& grad_loss, const Tensor& input, const Tensor& target,
                         const OptionalTensor& weight, int64_t reduction, int64_t ignore_index) {
  Call c;
  Tensor dense;
  prepare("nll_loss_backward", input, target, weight, reduction, ignore_index, 0, false, c);
  Tensor grad = take_grad(c, input, &grad_loss, dense);
  run(nll_loss_backward_table, c, input);
  return grad;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastcv, m) {
  m.def(
      "cross_entropy(Tensor input, Tensor target, Tensor? weight, int reduction, int ignore_index, float "
      "label_smoothing) -> Tensor");
  m.def(
      "cross_entropy_with_grad(Tensor input, Tensor target, Tensor? weight, int reduction, int ignore_index, float "
      "label_smoothing) -> (Tensor, Tensor)");
  m.def(
      "cross_entropy_backward(Tensor grad, Tensor input, Tensor target, Tensor? weight, int reduction, int "
      "ignore_index, float label_smoothing) -> Tensor");
  m.def("nll_loss(Tensor input, Tensor target, Tensor? weight, int reduction, int ignore_index) -> Tensor");
  m.def(
      "nll_loss_backward(Tensor grad, Tensor input, Tensor target, Tensor? weight, int reduction, int ignore_index) -> "
      "Tensor");
}
FASTCV_IMPL(m) {
  m.impl("cross_entropy", TORCH_BOX(&cross_entropy));
  m.impl("cross_entropy_with_grad", TORCH_BOX(&cross_entropy_with_grad));
  m.impl("cross_entropy_backward", TORCH_BOX(&cross_entropy_backward));
  m.impl("nll_loss", TORCH_BOX(&nll_loss));
  m.impl("nll_loss_backward", TORCH_BOX(&nll_loss_backward));
}

}  // namespace fastcv
