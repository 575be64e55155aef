// Elements of any dtype as doubles, for the *_ref.cpp files of this family.
#pragma once
#include <cmath>
#include <cstring>

#include "norm/norm.h"

namespace fastcv {
namespace {

[[maybe_unused]] double get_f16(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  double value;
  if (exponent == 31) value = mantissa ? NAN : INFINITY;
  else if (exponent == 0) value = std::ldexp(mantissa, -24);
  else value = std::ldexp(1024 + mantissa, exponent - 25);
  return bits & 0x8000 ? -value : value;
}

[[maybe_unused]] double get(const void* p, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::f32:
      return static_cast<const float*>(p)[i];
    case DType::f64:
      return static_cast<const double*>(p)[i];
    case DType::bf16: {
      const uint32_t bits = static_cast<uint32_t>(static_cast<const bf16*>(p)[i].bits) << 16;
      float f;
      std::memcpy(&f, &bits, 4);
      return f;
    }
    default:
      return get_f16(static_cast<const f16*>(p)[i].bits);
  }
}
[[maybe_unused]] double get(const NormVector& v, int64_t i, double absent) {
  return v.data == nullptr ? absent : get(v.data, v.dtype, i);
}

// Rounds to the nearest value with `digits` significant bits and exponents of at least `lowest`, ties to even.
[[maybe_unused]] double round_to(double x, int digits, int lowest) {
  if (!std::isfinite(x) || x == 0) return x;
  int exponent;
  std::frexp(x, &exponent);
  const int unit = (exponent < lowest ? lowest : exponent) - digits;
  return std::ldexp(std::nearbyint(std::ldexp(x, -unit)), unit);
}

[[maybe_unused]] void put(void* p, DType dtype, int64_t i, double x) {
  if (p == nullptr) return;
  switch (dtype) {
    case DType::f32:
      static_cast<float*>(p)[i] = static_cast<float>(x);
      return;
    case DType::f64:
      static_cast<double*>(p)[i] = x;
      return;
    case DType::bf16: {
      const float f = static_cast<float>(round_to(x, 8, -125));
      uint32_t bits;
      std::memcpy(&bits, &f, 4);
      static_cast<bf16*>(p)[i].bits = static_cast<uint16_t>(bits >> 16 | (std::isnan(x) ? 0x40 : 0));
      return;
    }
    default: {
      const double r = round_to(x, 11, -13);
      const double a = std::fabs(r);
      uint16_t bits = std::signbit(x) ? 0x8000 : 0;
      if (std::isnan(x)) {
        bits |= 0x7e00;
      } else if (a > 65504) {
        bits |= 0x7c00;
      } else if (a >= std::ldexp(1, -14)) {
        int exponent;
        const double mantissa = std::frexp(a, &exponent);
        bits |= static_cast<uint16_t>((exponent + 14) << 10 | (static_cast<int>(std::ldexp(mantissa, 11)) & 1023));
      } else {
        bits |= static_cast<uint16_t>(std::ldexp(a, 24));
      }
      static_cast<f16*>(p)[i].bits = bits;
    }
  }
}
[[maybe_unused]] void put(const NormVector& v, int64_t i, double x) { put(const_cast<void*>(v.data), v.dtype, i, x); }

[[maybe_unused]] double activate(const Activation& a, double v) {
  const double bent = v <= 0 ? (a.slope == 0 ? 0 : a.slope * v) : v;
  return a.cap > 0 && bent > a.cap ? a.cap : bent;
}
[[maybe_unused]] double gate(const Activation& a, double g, double v) {
  if (a.slope == 1 && !(a.cap > 0)) return g;
  if (a.cap > 0 && v >= a.cap) return 0;
  return v <= 0 ? (a.slope == 0 ? 0 : a.slope * g) : g;
}

}  // namespace
}  // namespace fastcv
