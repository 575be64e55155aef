// Scalar conversions and the plain distance of one pair, in double: for the *_ref.cpp files of this folder only.
#pragma once
#include <cmath>
#include <cstring>

#include "common/types.h"

namespace fastcv::neighbors_ref {

inline double widen(float x) { return x; }
inline double widen(double x) { return x; }
inline double widen(uint8_t x) { return x; }
inline double widen(bf16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
inline double widen(f16 x) {
  const int exponent = x.bits >> 10 & 31, mantissa = x.bits & 1023;
  const double sign = x.bits >> 15 ? -1.0 : 1.0;
  if (exponent == 31) return mantissa == 0 ? sign * INFINITY : NAN;
  return sign * (exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(mantissa + 1024, exponent - 25));
}
inline void narrow(double x, double* to) { *to = x; }
inline void narrow(double x, float* to) { *to = static_cast<float>(x); }
inline void narrow(double x, bf16* to) {
  const float f = static_cast<float>(x);
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  to->bits = static_cast<uint16_t>(f != f ? bits >> 16 | 64 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline void narrow(double x, f16* to) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const double a = std::fabs(x);
  if (a != a) to->bits = sign | 0x7e00;
  else if (a >= 65520) to->bits = sign | 0x7c00;
  else {
    int e = a < 0x1p-14 ? -14 : std::ilogb(a);
    // nearbyint rounds ties to even; a carry runs into the exponent by itself.
    const int mantissa = static_cast<int>(std::nearbyint(std::ldexp(a, 10 - e)));
    to->bits =
        static_cast<uint16_t>(sign | (e == -14 && mantissa < 1024 ? mantissa : (e + 15) * 1024 + mantissa - 1024));
  }
}

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
