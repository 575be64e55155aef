// gelu(x) = x P(x) with P the distribution function of the standard normal and p its density. From p' = -x p follows
// that the n-th derivative is a polynomial times p, and P besides where n = 1: with He the Hermite polynomials,
//
//   gelu' = x p + P        gelu^(n) = (-1)^n (n He_(n-2) - x He_(n-1)) p
#pragma once
#include "conv/conv_activation.h"

namespace fastcv {

inline constexpr double kNormalDensity = 0.39894228040143267794;  // at 0: 1 / sqrt(2 pi)

// c[0 .. order]: the polynomial of the order-th derivative, from the first on.
static inline void gelu_derivative(int order, double* c) {
  double before[kActivationOrders + 2] = {}, now[kActivationOrders + 2] = {1};  // He_(order-2), He_(order-1)
  for (int n = 1; n < order; ++n) {
    double next[kActivationOrders + 2] = {};
    for (int k = 0; k < n; ++k) next[k + 1] = now[k];
    for (int k = 0; k < n; ++k) next[k] -= (n - 1) * before[k];
    for (int k = 0; k <= n; ++k) before[k] = now[k], now[k] = next[k];
  }
  const int sign = order % 2 == 0 ? 1 : -1;
  for (int k = 0; k < kActivationOrders + 2; ++k) c[k] = sign * order * before[k] * (order > 1);
  for (int k = 0; k < order; ++k) c[k + 1] -= sign * now[k];
}

}  // namespace fastcv
