// The derivatives of the logistic function s(x) = 1 / (1 + exp(-x)) as polynomials in s: from s' = s - s^2 follows
// (s^k)' = k s^k - k s^(k+1).
#pragma once
#include "conv/conv_activation.h"

namespace fastcv {

// c[0 .. order + 1]: the order-th derivative is the sum of c[k] s^k.
static inline void sigmoid_derivative(int order, double* c) {
  for (int k = 0; k < kActivationOrders + 2; ++k) c[k] = k == 1;
  for (int i = 0; i < order; ++i)
    for (int k = i + 2; k > 0; --k) c[k] = k * c[k] - (k - 1) * c[k - 1];
}

}  // namespace fastcv
