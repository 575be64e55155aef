// The plain distance of one pair, in double: for the *_ref.cpp files of this folder only.
#pragma once
#include <cmath>

#include "common/scalar.h"

namespace fastcv::neighbors_ref {

// The sum under the root: for p = inf the maximum, for p = 0 the count.
template <class S>
double distance_sum(const S* a, const S* b, int64_t depth, double p) {
  double sum = 0;
  for (int64_t d = 0; d < depth; ++d) {
    const double x = std::fabs(widen(a[d]) - widen(b[d]));
    if (p == 0) sum += x != x ? x : x != 0;
    else if (p == INFINITY) sum = x > sum ? x : sum;
    else if (p == 1) sum += x;
    else if (p == 2) sum += x * x;
    else sum += std::pow(x, p);
  }
  return sum;
}
inline double root(double sum, double p) {
  if (p == 0 || p == 1 || p == INFINITY) return sum;
  return p == 2 ? std::sqrt(sum) : std::pow(sum, 1 / p);
}

// a - b; for p = inf as the distances of this type round it: by being equal to one the largest is recognised.
template <class S>
double difference(S a, S b, double p) {
  const double exact = static_cast<double>(a) - static_cast<double>(b);
  return p == INFINITY ? static_cast<double>(static_cast<S>(exact)) : exact;
}

// d distance / d a where x = a - b is one coordinate's difference, times g: torch's subgradients (0 at distance 0).
inline double slope(double g, double x, double distance, double p) {
  const double sign = x > 0 ? 1 : x < 0 ? -1 : x;
  if (p == 0) return 0;
  if (p == 1) return g * sign;
  if (p == INFINITY) return std::fabs(x) == distance ? g * sign : 0;
  if (distance == 0 || (x == 0 && p < 1)) return 0;
  if (p == 2) return g * x / distance;
  return g * sign * std::pow(std::fabs(x), p - 1) / std::pow(distance, p - 1);
}

// f(zero of the storage type).
template <class F>
void dispatch(DType dtype, F&& f) {
  if (dtype == DType::f32) f(float{});
  else if (dtype == DType::f64) f(double{});
  else if (dtype == DType::bf16) f(bf16{});
  else if (dtype == DType::f16) f(f16{});
  else f(uint8_t{});
}

}  // namespace fastcv::neighbors_ref
