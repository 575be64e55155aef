// Plain conversions between storage types and arithmetic ones, for the reference files only.
#pragma once
#include "common/types.h"

namespace fastcv {

static inline float widen(float x) { return x; }
static inline double widen(double x) { return x; }
static inline float widen(bf16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float y;
  __builtin_memcpy(&y, &bits, sizeof y);
  return y;
}
static inline float widen(f16 x) {
  _Float16 y;
  __builtin_memcpy(&y, &x.bits, sizeof y);
  return static_cast<float>(y);
}
static inline void narrow(double x, float* y) { *y = static_cast<float>(x); }
static inline void narrow(double x, double* y) { *y = x; }
static inline void narrow(double x, bf16* y) {
  const float f = static_cast<float>(x);
  uint32_t bits;
  __builtin_memcpy(&bits, &f, sizeof bits);
  y->bits = static_cast<uint16_t>(f != f ? (bits >> 16) | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
static inline void narrow(double x, f16* y) {
  const _Float16 h = static_cast<_Float16>(static_cast<float>(x));
  __builtin_memcpy(&y->bits, &h, sizeof h);
}

}  // namespace fastcv
