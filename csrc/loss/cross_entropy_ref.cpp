#include "loss/cross_entropy.h"

#include "common/dispatch.h"
#include "common/scalar.h"

namespace fastcv {
namespace {

template <class S>
void run(const CrossEntropyParams& p) {
  const S *x = static_cast<const S*>(p.x), *q = static_cast<const S*>(p.target);
  const S *weight = static_cast<const S*>(p.weight), *grad_loss = static_cast<const S*>(p.grad_loss);
  S *loss = static_cast<S*>(p.loss), *grad = static_cast<S*>(p.grad);
  const bool soft = p.target_kind == Target::probability;
  const int64_t rows = p.outer * p.inner;
  const auto class_weight = [&](int64_t c) { return weight ? widen(weight[c]) : 1.0; };
  const auto index = [&](int64_t r) {
    return p.target_kind == Target::i64 ? static_cast<const int64_t*>(p.target)[r]
                                        : int64_t{static_cast<const uint8_t*>(p.target)[r]};
  };
  double count = 0;
  *p.bad = -1;
  for (int64_t r = 0; r < rows; ++r) {
    if (soft) {
      count += 1;
    } else if (index(r) != p.ignore_index) {
      if (index(r) < 0 || index(r) >= p.classes) {
        *p.bad = r;
        return;
      }
      count += class_weight(index(r));
    }
  }
  const double spread = p.smoothing / static_cast<double>(p.classes), keep = 1 - p.smoothing;
  double total = 0;
  for (int64_t r = 0; r < rows; ++r) {
    const auto at = [&](int64_t c) { return (r / p.inner * p.classes + c) * p.inner + r % p.inner; };
    const bool ignored = !soft && index(r) == p.ignore_index;
    // What log p_c is weighed with.
    const auto coefficient = [&](int64_t c) {
      if (soft) return class_weight(c) * (keep * widen(q[at(c)]) + spread);
      const double picked = c == index(r) ? keep * class_weight(c) : 0;
      return p.smoothing > 0 ? picked + spread * class_weight(c) : picked;
    };
    double m = -INFINITY, sum = 0, mine = 0, mass = 0;
    for (int64_t c = 0; c < p.classes; ++c) m = widen(x[at(c)]) > m ? widen(x[at(c)]) : m;
    for (int64_t c = 0; c < p.classes; ++c) sum += std::exp(widen(x[at(c)]) - m);
    for (int64_t c = 0; c < p.classes; ++c) {
      mass += coefficient(c);
      if (soft || p.smoothing > 0 || c == index(r)) mine -= coefficient(c) * (widen(x[at(c)]) - m - std::log(sum));
    }
    if (ignored) mine = mass = 0;
    total += mine;
    if (loss && p.reduction == Reduction::none) narrow(mine, &loss[r]);
    if (!grad) continue;
    double scale = p.reduction == Reduction::mean ? 1 / count : 1;
    if (grad_loss) scale *= widen(grad_loss[p.reduction == Reduction::none ? r : 0]);
    if (ignored) scale = 0;
    for (int64_t c = 0; c < p.classes; ++c) {
      const double probability = std::exp(widen(x[at(c)]) - m) / sum;
      narrow(scale * (mass * probability - (ignored ? 0 : coefficient(c))), &grad[at(c)]);
    }
  }
  if (loss && p.reduction == Reduction::sum) narrow(total, loss);
  if (loss && p.reduction == Reduction::mean) narrow(total / count, loss);
}

}  // namespace

void cross_entropy_ref(const CrossEntropyParams& p, const Exec&) {
  dispatch_float(p.dtype, [&](auto zero) { run<decltype(zero)>(p); });
}

}  // namespace fastcv
