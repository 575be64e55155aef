// |x|^p of a vector. For *_simd.cpp files only.
// Multiples of one half up to 8 are products and a square root; any other p goes lane by lane through the C library.
#pragma once
#include "common/simd.h"

namespace fastcv::FASTCV_ISA {

template <class T>
struct PowAbs {
  T p;
  int halves;  // 2p where that is a small integer, else -1

  explicit PowAbs(double power) : p(static_cast<T>(power)), halves(-1) {
    if (power >= 0 && power <= 8 && 2 * power == static_cast<int>(2 * power)) halves = static_cast<int>(2 * power);
  }
  [[gnu::always_inline]] Vec<T> operator()(Vec<T> difference) const {
    const Vec<T> x = abs(difference);
    if (halves < 0) {
      Vec<T> r;
      for (int i = 0; i < Vec<T>::width; ++i) {
        if constexpr (std::is_same_v<T, float>) r.v[i] = __builtin_powf(x.v[i], p);
        else r.v[i] = __builtin_pow(x.v[i], p);
      }
      return r;
    }
    Vec<T> r = halves % 2 == 1 ? sqrt(x) : Vec<T>(T(1));
    for (int i = 1; i < halves; i += 2) r = r * x;
    return r;
  }
};

}  // namespace fastcv::FASTCV_ISA
