// What the plain-loop references of this family share: scalars as double, and where an element lies.
#pragma once
#include <cstring>

#include "pool/pool.h"

namespace fastcv {
namespace {

[[maybe_unused]] double widen(float x) { return x; }
[[maybe_unused]] double widen(double x) { return x; }
[[maybe_unused]] double widen(bf16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}
[[maybe_unused]] double widen(f16 x) {
  const int exponent = x.bits >> 10 & 0x1f, mantissa = x.bits & 0x3ff;
  double magnitude;
  if (exponent == 0x1f) magnitude = mantissa != 0 ? __builtin_nan("") : __builtin_inf();
  else if (exponent == 0) magnitude = __builtin_ldexp(mantissa, -24);
  else magnitude = __builtin_ldexp(mantissa + 0x400, exponent - 25);
  return x.bits & 0x8000 ? -magnitude : magnitude;
}

// To nearest, ties to even.
template <class S>
S narrow(double x);
template <>
[[maybe_unused]] float narrow<float>(double x) {
  return static_cast<float>(x);
}
template <>
[[maybe_unused]] double narrow<double>(double x) {
  return x;
}
template <>
[[maybe_unused]] bf16 narrow<bf16>(double x) {
  const float f = static_cast<float>(x);
  uint32_t bits;
  std::memcpy(&bits, &f, sizeof bits);
  if (x != x) return {static_cast<uint16_t>(bits >> 16 | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}
template <>
[[maybe_unused]] f16 narrow<f16>(double x) {
  const uint16_t sign = __builtin_signbit(x) ? 0x8000 : 0;
  if (x != x) return {static_cast<uint16_t>(sign | 0x7e00)};
  const double magnitude = __builtin_fabs(x);
  if (magnitude >= 65520.0) return {static_cast<uint16_t>(sign | 0x7c00)};
  if (magnitude < 0x1p-14) return {static_cast<uint16_t>(sign | static_cast<int>(__builtin_rint(magnitude * 0x1p24)))};
  int exponent;
  const double fraction = __builtin_frexp(magnitude, &exponent);  // in [0.5, 1)
  // A mantissa that rounds up to 2048 carries into the exponent, as it should.
  const int mantissa = static_cast<int>(__builtin_rint(fraction * 2048));
  return {static_cast<uint16_t>(sign | (((exponent + 13) << 10) + mantissa))};
}

template <class F>
void dispatch_ref(DType dtype, F&& f) {
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

// Where element (n, c, h, w) of a map of this height and width lies.
[[maybe_unused]] int64_t place(int64_t channels, bool channels_last, int64_t height, int64_t width, int64_t n,
                               int64_t c, int64_t h, int64_t w) {
  return channels_last ? ((n * height + h) * width + w) * channels + c : ((n * channels + c) * height + h) * width + w;
}
[[maybe_unused]] int64_t place(const PoolParams& p, int64_t height, int64_t width, int64_t n, int64_t c, int64_t h,
                               int64_t w) {
  return place(p.c, p.channels_last, height, width, n, c, h, w);
}

template <class F>
void for_each_output(const PoolParams& p, F&& f) {
  for (int64_t n = 0; n < p.n; ++n)
    for (int64_t c = 0; c < p.c; ++c)
      for (int64_t oh = 0; oh < p.h.out; ++oh)
        for (int64_t ow = 0; ow < p.w.out; ++ow) f(n, c, oh, ow);
}

}  // namespace
}  // namespace fastcv
