// The derivative of a distance by one coordinate, for vectors of coordinates. For *_simd.cpp files only.
// torch's subgradients: 0 at distance 0; for p = inf every coordinate that reaches the maximum gets the whole gradient.
#pragma once
#include "common/simd.h"
#include "neighbors/pow_abs.h"

namespace fastcv::FASTCV_ISA {

template <class T>
FASTCV_INLINE Vec<T> signed_as(Vec<T> magnitude, Vec<T> sign) {
  using I = int_of<T>;
  const Vec<I> bit(static_cast<I>(static_cast<std::make_unsigned_t<I>>(1) << (sizeof(I) * 8 - 1)));
  return bitcast<T>((bitcast<I>(magnitude) & ~bit) | (bitcast<I>(sign) & bit));
}
// -1, 0, 1; NaN stays.
template <class T>
FASTCV_INLINE Vec<T> sign_of(Vec<T> x) {
  const Vec<T> zero(T(0));
  return select<T>((x < zero) | (x > zero), signed_as(Vec<T>(T(1)), x), x);
}

// Each has weight(g, distance), the part of the formula that is the same for all coordinates, of one pair or of a
// vector of them, and add(sum, difference, weight, distance) = sum + the derivative.
template <class T>
struct SlopeL1 {
  explicit SlopeL1(double) {}
  T weight(T g, T) const { return g; }
  Vec<T> weight(Vec<T> g, Vec<T>) const { return g; }
  Vec<T> add(Vec<T> sum, Vec<T> x, Vec<T> w, Vec<T>) const { return fma(w, sign_of(x), sum); }
};
template <class T>
struct SlopeL2 {
  explicit SlopeL2(double) {}
  T weight(T g, T distance) const { return distance == 0 ? T(0) : g / distance; }
  Vec<T> weight(Vec<T> g, Vec<T> distance) const {
    const Vec<T> zero(T(0));
    return select<T>(distance == zero, zero, g / distance);
  }
  Vec<T> add(Vec<T> sum, Vec<T> x, Vec<T> w, Vec<T>) const { return fma(w, x, sum); }
};
// Of the squared distance.
template <class T>
struct SlopeSquare {
  explicit SlopeSquare(double) {}
  T weight(T g, T) const { return 2 * g; }
  Vec<T> weight(Vec<T> g, Vec<T>) const { return g + g; }
  Vec<T> add(Vec<T> sum, Vec<T> x, Vec<T> w, Vec<T>) const { return fma(w, x, sum); }
};
template <class T>
struct SlopeLinf {
  explicit SlopeLinf(double) {}
  T weight(T g, T) const { return g; }
  Vec<T> weight(Vec<T> g, Vec<T>) const { return g; }
  Vec<T> add(Vec<T> sum, Vec<T> x, Vec<T> w, Vec<T> distance) const {
    const Vec<T> s = sign_of(x);
    return fma(w, select<T>((abs(x) == distance) | (x != x), s, Vec<T>(T(0))), sum);
  }
};
template <class T>
struct SlopeLp {
  PowAbs<T> power;
  double exponent;
  explicit SlopeLp(double p) : power(p - 1), exponent(p - 1) {}
  // In double: the power would multiply the rounding error of the quotient's other half.
  T weight(T g, T distance) const {
    return distance == 0 ? T(0) : static_cast<T>(g / __builtin_pow(static_cast<double>(distance), exponent));
  }
  Vec<T> weight(Vec<T> g, Vec<T> distance) const {
    for (int i = 0; i < Vec<T>::width; ++i) g.v[i] = weight(g.v[i], distance.v[i]);
    return g;
  }
  Vec<T> add(Vec<T> sum, Vec<T> x, Vec<T> w, Vec<T>) const {
    const Vec<T> zero(T(0));
    return fma(w, select<T>(x == zero, zero, signed_as(power(x), x)), sum);
  }
};

// f(slope) for this p; p = 0 has no slope and is its caller's business.
template <class T, class F>
FASTCV_INLINE void with_slope(double p, bool squared, F&& f) {
  if (squared) f(SlopeSquare<T>(p));
  else if (p == 1) f(SlopeL1<T>(p));
  else if (p == 2) f(SlopeL2<T>(p));
  else if (p == __builtin_inf()) f(SlopeLinf<T>(p));
  else f(SlopeLp<T>(p));
}

}  // namespace fastcv::FASTCV_ISA
