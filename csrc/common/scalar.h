// Storage types to double and back, one element at a time: plain, exact, slow, for the _ref files.
#pragma once
#include <cmath>
#include <cstring>

#include "common/types.h"

namespace fastcv {

static inline double widen(double x) { return x; }
static inline double widen(float x) { return x; }
static inline double widen(uint8_t x) { return x; }
static inline double widen(bf16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
static inline double widen(f16 x) {
  const int exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
  const double sign = x.bits >> 15 ? -1 : 1;
  if (exponent == 31) return fraction == 0 ? sign * INFINITY : NAN;
  return sign * (exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(fraction + 1024, exponent - 25));
}

// Rounded to nearest even; to bf16 by way of float.
static inline void narrow(double x, double* y) { *y = x; }
static inline void narrow(double x, float* y) { *y = static_cast<float>(x); }
static inline void narrow(double x, bf16* y) {
  const float f = static_cast<float>(x);
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  y->bits = static_cast<uint16_t>(f != f ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
static inline void narrow(double x, f16* y) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const double a = std::fabs(x);
  if (a != a) y->bits = sign | 0x7e00;
  else if (a >= 65520) y->bits = sign | 0x7c00;
  else {
    const int e = a < 0x1p-14 ? -14 : std::ilogb(a);
    // nearbyint rounds ties to even; a carry runs into the exponent by itself.
    const int fraction = static_cast<int>(std::nearbyint(std::ldexp(a, 10 - e)));
    y->bits =
        static_cast<uint16_t>(sign | (e == -14 && fraction < 1024 ? fraction : (e + 15) * 1024 + fraction - 1024));
  }
}

}  // namespace fastcv
