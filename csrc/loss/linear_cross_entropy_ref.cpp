#include "loss/linear_cross_entropy.h"

#include <vector>

#include "common/dispatch.h"
#include "common/scalar.h"

namespace fastcv {
namespace {

template <class S>
std::vector<double> widened(const void* data, int64_t n) {
  std::vector<double> result(n);
  for (int64_t i = 0; i < n; ++i) result[i] = widen(static_cast<const S*>(data)[i]);
  return result;
}

template <class S>
void narrow_all(const std::vector<double>& from, void* to) {
  if (to)
    for (size_t i = 0; i < from.size(); ++i) narrow(from[i], static_cast<S*>(to) + i);
}

template <class S>
void run(const LinearCrossEntropyParams& p, const Exec& exec) {
  const int64_t rows = p.rows, features = p.features, classes = p.classes;
  const bool each = p.reduction == Reduction::none;
  const std::vector<double> x = widened<S>(p.x, rows * features), w = widened<S>(p.w, classes * features);
  const std::vector<double> bias = widened<S>(p.bias, p.bias ? classes : 0);
  const std::vector<double> class_weight = widened<S>(p.class_weight, p.class_weight ? classes : 0);
  const std::vector<double> grad_loss = widened<S>(p.grad_loss, p.grad_loss ? (each ? rows : 1) : 0);
  std::vector<double> target, scores(rows * classes), loss(each ? rows : 1), grad(rows * classes);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < classes; ++c) {
      double sum = p.bias ? bias[c] : 0;
      for (int64_t f = 0; f < features; ++f) sum += x[r * features + f] * w[c * features + f];
      scores[r * classes + c] = sum;
    }
  if (p.target_kind == Target::probability) target = widened<S>(p.target, rows * classes);
  CrossEntropyParams q{};
  q.x = scores.data();
  q.target = p.target_kind == Target::probability ? target.data() : p.target;
  q.weight = p.class_weight ? class_weight.data() : nullptr;
  q.grad_loss = p.grad_loss ? grad_loss.data() : nullptr;
  q.loss = loss.data();
  const bool wants_grad = p.grad_x || p.grad_w || p.grad_b;
  q.grad = wants_grad ? grad.data() : nullptr;
  q.bad = p.bad;
  q.outer = rows;
  q.classes = classes;
  q.inner = 1;
  q.ignore_index = p.ignore_index;
  q.smoothing = p.smoothing;
  q.dtype = DType::f64;
  q.target_kind = p.target_kind;
  q.reduction = p.reduction;
  cross_entropy_ref(q, exec);
  if (*p.bad >= 0) return;
  narrow_all<S>(loss, p.loss);
  if (!wants_grad) return;
  std::vector<double> grad_x(p.grad_x ? rows * features : 0), grad_w(p.grad_w ? classes * features : 0);
  std::vector<double> grad_b(p.grad_b ? classes : 0);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < classes; ++c) {
      const double g = grad[r * classes + c];
      if (p.grad_b) grad_b[c] += g;
      for (int64_t f = 0; f < features; ++f) {
        if (p.grad_x) grad_x[r * features + f] += g * w[c * features + f];
        if (p.grad_w) grad_w[c * features + f] += g * x[r * features + f];
      }
    }
  narrow_all<S>(grad_x, p.grad_x);
  narrow_all<S>(grad_w, p.grad_w);
  narrow_all<S>(grad_b, p.grad_b);
}

}  // namespace

void linear_cross_entropy_ref(const LinearCrossEntropyParams& p, const Exec& exec) {
  dispatch_float(p.dtype, [&](auto zero) { run<decltype(zero)>(p, exec); });
}

}  // namespace fastcv
