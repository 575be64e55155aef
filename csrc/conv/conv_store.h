// The end of every convolution kernel: from sums (bias included) to y, with residual and activation.
#pragma once
#include "common/simd.h"
#include "conv/conv.h"

namespace fastcv::FASTCV_ISA {

// The standard normal distribution's tail: P(z < N), z >= 0.
FASTCV_INLINE Vec<float> normal_tail(Vec<float> z) {
  using V = Vec<float>;
  // A polynomial in t = 1 / (1 + 0.35 z) over exp(-z^2 / 2), fitted to 3.2e-8 of its value from 0 to 13.5.
  const V t = V(1.0f) / fma(V(0.35f), z, V(1.0f));
  V q(-0.029125963774020963f);
  for (const float c : {0.1438726980434069f, -0.25550548101042253f, 0.15893028567950573f, -0.022937781982729555f,
                        0.1054331891122347f, 0.11985237918251648f, 0.13985908941233752f, 0.13962156945644022f})
    q = fma(q, t, V(c));
  return exp(V(-0.5f) * z * z) * (q * t);
}
FASTCV_INLINE Vec<double> normal_tail(Vec<double> z) {
  double lanes[Vec<double>::width];
  detail::store_raw(lanes, z);
  for (double& lane : lanes) lane = ::erfc(lane * 0.70710678118654752440) / 2;
  return detail::load_raw(lanes);
}
// The distribution function, exact on both sides of 0.
template <class T>
FASTCV_INLINE Vec<T> normal_distribution(Vec<T> x) {
  const Mask<T> positive = x > Vec<T>(T(0));
  const Vec<T> tail = normal_tail(select<T>(positive, x, -x));
  return select<T>(positive, Vec<T>(T(1)) - tail, tail);
}

// The activations that are long: called, so that not every store holds a copy.
template <class T>
[[gnu::noinline]] static Vec<T> activate_smoothly(Vec<T> v, Activation activation) {
  const Vec<T> zero(T(0));
  if (activation == Activation::silu) return v / (Vec<T>(T(1)) + exp(-v));
  if (activation == Activation::gelu) return v * normal_distribution(v);
  return select<T>(v <= Vec<T>(T(-3)), zero, select<T>(v >= Vec<T>(T(3)), v, v * (v + Vec<T>(T(3))) / Vec<T>(T(6))));
}

template <class T>
FASTCV_INLINE Vec<T> activate(Vec<T> v, Activation activation, double slope) {
  const Vec<T> zero(T(0));
  switch (activation) {
    case Activation::none:
      return v;
    case Activation::relu:
      return select<T>(v <= zero, zero, v);
    case Activation::relu6:
      return select<T>(v <= zero, zero, select<T>(v >= Vec<T>(T(6)), Vec<T>(T(6)), v));
    case Activation::silu:
    case Activation::hardswish:
    case Activation::gelu:
      return activate_smoothly(v, activation);
    case Activation::leaky_relu:
      return select<T>(v <= zero, v * Vec<T>(static_cast<T>(slope)), v);
  }
  __builtin_unreachable();
}

// The first n sums to y[at], y[at + 1], ...
template <class S>
FASTCV_INLINE void store_final(const ConvParams& p, int64_t at, Vec<acc_t<S>> v, int n) {
  S* y = static_cast<S*>(p.y) + at;
  const S* residual = static_cast<const S*>(p.residual);
  if (n == Vec<acc_t<S>>::width) {
    if (residual != nullptr) v = v + load(residual + at);
    store(y, activate(v, p.activation, p.slope));
  } else {
    if (residual != nullptr) v = v + load_n(residual + at, n);
    store_n(y, activate(v, p.activation, p.slope), n);
  }
}

// The first n of each of the first m vectors to lines of y that are `pitch` apart.
template <class S>
FASTCV_INLINE void store_final_square(const ConvParams& p, int64_t at, int64_t pitch,
                                      const Vec<acc_t<S>> (&lines)[Vec<acc_t<S>>::width], int m, int n) {
  constexpr int kLanes = Vec<acc_t<S>>::width;
  if (m == kLanes && n == kLanes && p.residual == nullptr && p.activation == Activation::none) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) store(static_cast<S*>(p.y) + at + i * pitch, lines[i]);
    return;
  }
  for (int i = 0; i < m; ++i) store_final<S>(p, at + i * pitch, lines[i], n);
}

// To y[at], y[at + step], ...
template <class S>
FASTCV_INLINE void store_final_strided(const ConvParams& p, int64_t at, int64_t step, Vec<acc_t<S>> v, int n) {
  const S* residual = static_cast<const S*>(p.residual);
  acc_t<S> sums[Vec<acc_t<S>>::width];
  if (residual != nullptr) {
    detail::store_raw(sums, v);
    for (int i = 0; i < n; ++i) sums[i] += load_one(residual + at + i * step);
    v = detail::load_raw(sums);
  }
  detail::store_raw(sums, activate(v, p.activation, p.slope));
  for (int i = 0; i < n; ++i) store_one(static_cast<S*>(p.y) + at + i * step, sums[i]);
}

}  // namespace fastcv::FASTCV_ISA
