#include "conv/conv_activation.h"

#include "common/dispatch.h"
#include "conv/conv_gelu.h"
#include "conv/conv_sigmoid.h"
#include "conv/conv_store.h"

namespace fastcv::FASTCV_ISA {
namespace {

// y = select(zero, 0, grad * f) over [begin, end), where rule(x, f, zero) sets f and the lanes that vanish.
template <class S, class Rule>
FASTCV_INLINE void apply(const ConvActivationParams& p, int64_t begin, int64_t end, const Rule& rule) {
  using T = acc_t<S>;
  constexpr int w = Vec<T>::width;
  const S *x = static_cast<const S*>(p.x), *grad = static_cast<const S*>(p.grad);
  S* y = static_cast<S*>(p.y);
  for (int64_t i = begin; i < end; i += w) {
    const int n = static_cast<int>(end - i < w ? end - i : w);
    const bool whole = n == w;
    const Vec<T> v = whole ? load(x + i) : load_n(x + i, n);
    Vec<T> f;
    Mask<T> zero;
    rule(v, f, zero);
    if (grad != nullptr) f = f * (whole ? load(grad + i) : load_n(grad + i, n));
    f = select<T>(zero, Vec<T>(T(0)), f);
    if (whole) store(y + i, f);
    else store_n(y + i, f, n);
  }
}

template <class S>
void run(const ConvActivationParams& p, int64_t begin, int64_t end) {
  using T = acc_t<S>;
  using V = Vec<T>;
  const int order = p.order;
  const auto all = [](bool yes) { return Mask<T>(int_of<T>(yes ? -1 : 0)); };
  if (order == 0) {
    const Activation activation = p.activation;
    const double slope = p.slope;
    return apply<S>(p, begin, end, [&](V x, V& f, Mask<T>& zero) {
      f = activate(x, activation, slope);
      zero = all(false);
    });
  }
  switch (p.activation) {
    case Activation::none:
      return apply<S>(p, begin, end, [&](V, V& f, Mask<T>& zero) {
        f = V(T(1));
        zero = all(order > 1);
      });
    case Activation::relu:
      return apply<S>(p, begin, end, [&](V x, V& f, Mask<T>& zero) {
        f = V(T(1));
        zero = (x <= V(T(0))) | all(order > 1);
      });
    case Activation::relu6:
      return apply<S>(p, begin, end, [&](V x, V& f, Mask<T>& zero) {
        f = V(T(1));
        zero = (x <= V(T(0))) | (x >= V(T(6))) | all(order > 1);
      });
    case Activation::hardswish:
      return apply<S>(p, begin, end, [&](V x, V& f, Mask<T>& zero) {
        const Mask<T> below = x <= V(T(-3)), above = ~(x < V(T(3)));
        f = order == 1 ? select<T>(above, V(T(1)), x / V(T(3)) + V(T(0.5))) : V(T(1) / 3);
        zero = below | (above & all(order == 2)) | all(order > 2);
      });
    case Activation::silu: {
      // (x s)^(n) = x s^(n) + n s^(n - 1)
      double now[kActivationOrders + 2], before[kActivationOrders + 2];
      sigmoid_derivative(order, now);
      sigmoid_derivative(order - 1, before);
      return apply<S>(p, begin, end, [&](V x, V& f, Mask<T>& zero) {
        // At -|x|, where s is small and exact; s^(n)(x) = (-1)^(n + 1) s^(n)(-x), and s(x) = 1 - s(-x).
        const Mask<T> positive = x > V(T(0));
        const V s = V(T(1)) / (V(T(1)) + exp(select<T>(positive, x, -x)));
        V a(static_cast<T>(now[order + 1])), b(static_cast<T>(before[order]));
        for (int k = order; k >= 0; --k) a = fma(a, s, V(static_cast<T>(now[k])));
        for (int k = order - 1; k >= 0; --k) b = fma(b, s, V(static_cast<T>(before[k])));
        a = select<T>(positive & all(order % 2 == 0), -a, a);
        b = select<T>(positive & all(order % 2 == 1), order == 1 ? V(T(1)) - b : -b, b);
        f = fma(x, a, V(static_cast<T>(order)) * b);
        zero = all(false);
      });
    }
    case Activation::gelu: {
      double c[kActivationOrders + 2];
      gelu_derivative(order, c);
      return apply<S>(p, begin, end, [&](V x, V& f, Mask<T>& zero) {
        V sum(static_cast<T>(c[order]));
        for (int k = order - 1; k >= 0; --k) sum = fma(sum, x, V(static_cast<T>(c[k])));
        f = sum * (V(static_cast<T>(kNormalDensity)) * exp(V(T(-0.5)) * x * x));
        if (order == 1) f = f + normal_distribution(x);
        zero = all(false);
      });
    }
    case Activation::leaky_relu: {
      const V slope(static_cast<T>(p.slope));
      return apply<S>(p, begin, end, [&](V x, V& f, Mask<T>& zero) {
        f = select<T>(x > V(T(0)), V(T(1)), slope);
        zero = all(order > 1);
      });
    }
  }
}

}  // namespace

void conv_activation(const ConvActivationParams& p, const Exec& exec) {
  constexpr int64_t kGrain = 1 << 14;
  dispatch_float(p.dtype, [&](auto zero) {
    using S = decltype(zero);
    parallel_for(exec, p.size, kGrain, [&](int64_t begin, int64_t end) { run<S>(p, begin, end); });
  });
}

}  // namespace fastcv::FASTCV_ISA
