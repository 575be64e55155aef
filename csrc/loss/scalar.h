// Storage types to double and back, for the _ref files: plain, exact, slow.
#pragma once
#include <cmath>
#include <cstring>

#include "common/types.h"

namespace fastcv::scalar {
namespace {

inline double to_double(double x) { return x; }
inline double to_double(float x) { return x; }
inline double to_double(bf16 x) {
  const uint32_t u = static_cast<uint32_t>(x.bits) << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
inline double to_double(f16 x) {
  const int exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
  const double sign = x.bits & 0x8000 ? -1 : 1;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  return sign * (exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24));
}

inline void from_double(double x, double* y) { *y = x; }
inline void from_double(double x, float* y) { *y = static_cast<float>(x); }
inline void from_double(double x, bf16* y) {
  const float f = static_cast<float>(x);
  uint32_t u;
  std::memcpy(&u, &f, 4);
  y->bits = std::isnan(f) ? 0x7fc0 : static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
inline void from_double(double x, f16* y) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const double magnitude = std::fabs(x);
  if (std::isnan(x)) y->bits = 0x7e00;
  else if (magnitude >= 65520) y->bits = sign | 0x7c00;
  else if (magnitude < 0x1p-14) y->bits = sign | static_cast<uint16_t>(std::nearbyint(magnitude * 0x1p24));
  else {
    int exponent;
    const double fraction = std::frexp(magnitude, &exponent);  // [0.5, 1)
    const auto rounded = static_cast<int>(std::nearbyint(fraction * 2048));
    y->bits = sign | static_cast<uint16_t>(((exponent + 13) << 10) + rounded);
  }
}

// f(zero of the storage type).
template <class F>
void dispatch(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32:
      return f(float{});
    case DType::f64:
      return f(double{});
    case DType::bf16:
      return f(bf16{});
    case DType::f16:
      return f(f16{});
    default:
      __builtin_trap();  // the door admits no other
  }
}

}  // namespace
}  // namespace fastcv::scalar
