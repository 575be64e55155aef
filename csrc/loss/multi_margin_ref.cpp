#include "loss/multi_margin.h"

#include "common/dispatch.h"
#include "common/scalar.h"

namespace fastcv {
namespace {

template <class S>
void run(const MultiMarginParams& p) {
  const S *x = static_cast<const S*>(p.x), *weight = static_cast<const S*>(p.weight);
  const S* grad_loss = static_cast<const S*>(p.grad_loss);
  S *loss = static_cast<S*>(p.loss), *grad = static_cast<S*>(p.grad);
  const bool each = p.reduction == Reduction::none;
  const double divisor = p.reduction == Reduction::mean ? static_cast<double>(p.rows) : 1;
  *p.bad = -1;
  for (int64_t r = 0; r < p.rows && *p.bad < 0; ++r)
    if (p.target[r] < 0 || p.target[r] >= p.classes) *p.bad = r;
  if (*p.bad >= 0) return;
  double total = 0;
  for (int64_t r = 0; r < p.rows; ++r) {
    const S* row = x + r * p.classes;
    const int64_t t = p.target[r];
    const double scale = (weight ? widen(weight[t]) : 1) / static_cast<double>(p.classes);
    const auto slack = [&](int64_t c) {
      const double z = p.margin - widen(row[t]) + widen(row[c]);
      return c != t && z > 0 ? z : 0.0;
    };
    double mine = 0, pull = 0;
    for (int64_t c = 0; c < p.classes; ++c) mine += p.p == 1 ? slack(c) : slack(c) * slack(c);
    total += mine * scale;
    if (loss && each) narrow(mine * scale, &loss[r]);
    if (!grad) continue;
    const double g = widen(grad_loss[each ? r : 0]) * scale / divisor;
    const auto slope = [&](int64_t c) { return slack(c) > 0 ? (p.p == 1 ? g : 2 * g * slack(c)) : 0.0; };
    for (int64_t c = 0; c < p.classes; ++c) {
      pull += slope(c);
      if (c != t) narrow(slope(c), &grad[r * p.classes + c]);
    }
    narrow(-pull, &grad[r * p.classes + t]);
  }
  if (loss && !each) narrow(total / divisor, loss);
}

}  // namespace

void multi_margin_ref(const MultiMarginParams& p, const Exec&) {
  dispatch_float(p.dtype, [&](auto zero) { run<decltype(zero)>(p); });
}

}  // namespace fastcv
