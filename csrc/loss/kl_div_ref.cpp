#include "loss/kl_div.h"

#include "common/dispatch.h"
#include "common/scalar.h"

namespace fastcv {
namespace {

template <class S>
void forward(const KlDivParams& p) {
  const S *x = static_cast<const S*>(p.x), *target = static_cast<const S*>(p.target);
  S* loss = static_cast<S*>(p.loss);
  double sum = 0;
  for (int64_t i = 0; i < p.n; ++i) {
    const double v = widen(x[i]), t = widen(target[i]);
    const double term = p.log_target ? std::exp(t) * (t - v) : (t == 0 ? 0 : t * std::log(t)) - t * v;
    sum += term;
    if (!p.reduce) narrow(term, &loss[i]);
  }
  if (p.reduce) narrow(sum / p.divisor, loss);
}

template <class S>
void backward(const KlDivParams& p) {
  const S *x = static_cast<const S*>(p.x), *target = static_cast<const S*>(p.target);
  const S* grad_loss = static_cast<const S*>(p.grad_loss);
  S *grad_x = static_cast<S*>(p.grad_x), *grad_target = static_cast<S*>(p.grad_target);
  for (int64_t i = 0; i < p.n; ++i) {
    const double v = widen(x[i]), t = widen(target[i]);
    const double g = p.reduce ? widen(grad_loss[0]) / p.divisor : widen(grad_loss[i]);
    const double e = p.log_target ? std::exp(t) : t;
    if (grad_x) narrow(-e * g, &grad_x[i]);
    if (grad_target) narrow(g * (p.log_target ? e * (t - v + 1) : t == 0 ? NAN : std::log(t) + 1 - v), &grad_target[i]);
  }
}

}  // namespace

void kl_div_ref(const KlDivParams& p, const Exec&) {
  dispatch_float(p.dtype, [&](auto zero) { forward<decltype(zero)>(p); });
}

void kl_div_backward_ref(const KlDivParams& p, const Exec&) {
  dispatch_float(p.dtype, [&](auto zero) { backward<decltype(zero)>(p); });
}

}  // namespace fastcv
