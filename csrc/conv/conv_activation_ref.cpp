#include "conv/conv_activation.h"

#include <cmath>

#include "common/dispatch.h"
#include "common/scalar.h"
#include "conv/conv_gelu.h"
#include "conv/conv_sigmoid.h"

namespace fastcv {
namespace {

double polynomial(const double* c, double s) {
  double sum = 0;
  for (int k = kActivationOrders + 1; k >= 0; --k) sum = sum * s + c[k];
  return sum;
}

// The derivative at x; `zero` says that it vanishes there by definition.
double derivative(const ConvActivationParams& p, double x, bool* zero) {
  const int order = p.order;
  *zero = false;
  switch (p.activation) {
    case Activation::none:
      *zero = order > 1;
      return order == 0 ? x : 1;
    case Activation::relu:
      *zero = order > 1 || x <= 0;
      return order == 0 ? x : 1;
    case Activation::relu6:
      *zero = order > 1 || x <= 0 || (order == 1 && x >= 6);
      return order == 0 ? (x >= 6 ? 6 : x) : 1;
    case Activation::silu: {
      // At -|x|, where s is small and exact; s^(n)(x) = (-1)^(n + 1) s^(n)(-x), and s(x) = 1 - s(-x).
      const double s = 1 / (1 + std::exp(std::fabs(x)));
      const auto of = [&](int n) {
        double c[kActivationOrders + 2];
        sigmoid_derivative(n, c);
        const double value = polynomial(c, s);
        return x <= 0 || n % 2 == 1 ? value : n == 0 ? 1 - value : -value;
      };
      return x * of(order) + (order == 0 ? 0 : order * of(order - 1));
    }
    case Activation::hardswish:
      *zero = order > 2 || x <= -3 || (order == 2 && !(x < 3));
      if (order == 0) return x >= 3 ? x : x * (x + 3) / 6;
      return order == 2 ? 1.0 / 3 : x < 3 ? x / 3 + 0.5 : 1;
    case Activation::gelu: {
      const double distribution = std::erfc(-x * 0.70710678118654752440) / 2;
      if (order == 0) return x * distribution;
      double c[kActivationOrders + 2];
      gelu_derivative(order, c);
      return polynomial(c, x) * kNormalDensity * std::exp(-x * x / 2) + (order == 1 ? distribution : 0);
    }
    case Activation::leaky_relu:
      *zero = order > 1;
      return (order == 0 ? x : 1) * (x > 0 ? 1 : p.slope);
  }
  __builtin_unreachable();
}

template <class S>
void run(const ConvActivationParams& p) {
  for (int64_t i = 0; i < p.size; ++i) {
    bool zero;
    const double f = derivative(p, widen(static_cast<const S*>(p.x)[i]), &zero);
    const double grad = p.grad == nullptr ? 1 : widen(static_cast<const S*>(p.grad)[i]);
    narrow(zero ? 0 : p.grad == nullptr ? f : grad * f, static_cast<S*>(p.y) + i);
  }
}

}  // namespace

void conv_activation_ref(const ConvActivationParams& p, const Exec&) {
  dispatch_float(p.dtype, [&](auto zero) { run<decltype(zero)>(p); });
}

}  // namespace fastcv
