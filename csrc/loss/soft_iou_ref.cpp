#include "loss/soft_iou.h"

#include "common/dispatch.h"
#include "common/scalar.h"

namespace fastcv {
namespace {

template <class S>
void forward(const SoftIouParams& p) {
  const S *x = static_cast<const S*>(p.x), *target = static_cast<const S*>(p.target);
  for (int64_t k = 0; k < p.groups; ++k) {
    double both = 0, either = 0;
    for (int64_t i = k * p.n; i < (k + 1) * p.n; ++i) {
      const double v = widen(x[i]), t = widen(target[i]);
      both += v * t;
      either += v + t - v * t;
    }
    p.sums[2 * k] = both;
    p.sums[2 * k + 1] = either;
    narrow(either + p.eps == 0 ? 0 : 1 - (both + p.eps) / (either + p.eps), static_cast<S*>(p.loss) + k);
  }
}

template <class S>
void backward(const SoftIouParams& p) {
  const S *x = static_cast<const S*>(p.x), *target = static_cast<const S*>(p.target);
  S *grad_x = static_cast<S*>(p.grad_x), *grad_target = static_cast<S*>(p.grad_target);
  for (int64_t k = 0; k < p.groups; ++k) {
    const double both = p.sums[2 * k] + p.eps, either = p.sums[2 * k + 1] + p.eps;
    const double g = widen(static_cast<const S*>(p.grad_loss)[k]);
    const auto slope = [&](double other) {
      return either == 0 ? 0 : g * (both * (1 - other) - either * other) / (either * either);
    };
    for (int64_t i = k * p.n; i < (k + 1) * p.n; ++i) {
      if (grad_x) narrow(slope(widen(target[i])), &grad_x[i]);
      if (grad_target) narrow(slope(widen(x[i])), &grad_target[i]);
    }
  }
}

}  // namespace

void soft_iou_ref(const SoftIouParams& p, const Exec&) {
  dispatch_float(p.dtype, [&](auto zero) { forward<decltype(zero)>(p); });
}

void soft_iou_backward_ref(const SoftIouParams& p, const Exec&) {
  dispatch_float(p.dtype, [&](auto zero) { backward<decltype(zero)>(p); });
}

}  // namespace fastcv
