// exp and log of vectors, to about one ulp.
#pragma once
#include "common/simd_vector.h"

namespace fastcv::FASTCV_ISA {

// exp: exact at 0, exp(-inf) = 0, exp(+inf) = inf, NaN stays. Cody-Waite reduction x = n ln2 + r, |r| <= ln2/2, a
// polynomial for e^r, then 2^n in two steps so that results below the normal range round correctly.
template <class T>
FASTCV_INLINE Vec<T> exp(Vec<T> x) {
  using I [[maybe_unused]] = int_of<T>;
  constexpr bool f32 = std::is_same_v<T, float>;
  constexpr T kLog2e = T(1.44269504088896340736);
  constexpr T kHi = f32 ? T(0.693359375) : T(6.93145751953125e-1);
  constexpr T kLo = f32 ? T(-2.12194440054690583e-4) : T(1.42860682030941723212e-6);
  constexpr T kMax = f32 ? T(89) : T(710), kMin = f32 ? T(-104) : T(-746);
  const Vec<T> clamped = max(Vec<T>(kMin), min(Vec<T>(kMax), x));  // in this order NaN stays
#if defined(__AVX512F__)
  Vec<T> n;
  if constexpr (f32) n = Vec<T>((typename Vec<T>::Raw)_mm512_roundscale_ps((__m512)(clamped * Vec<T>(kLog2e)).v, 8));
  else n = Vec<T>((typename Vec<T>::Raw)_mm512_roundscale_pd((__m512d)(clamped * Vec<T>(kLog2e)).v, 8));
#else
  // Adding 1.5 * 2^(mantissa bits) leaves the nearest integer in the low bits.
  constexpr T kShift = f32 ? T(12582912.0) : T(6755399441055744.0);
  const Vec<T> shifted = fma(clamped, Vec<T>(kLog2e), Vec<T>(kShift));
  const Vec<T> n = shifted - Vec<T>(kShift);
  const Vec<I> ni = bitcast<I>(shifted) - bitcast<I>(Vec<T>(kShift));
#endif
  const Vec<T> r = fma(n, Vec<T>(-kLo), fma(n, Vec<T>(-kHi), clamped));
  Vec<T> p;
  if constexpr (f32) {
    p = Vec<T>(1.0f / 5040);
    p = fma(p, r, Vec<T>(1.0f / 720));
    p = fma(p, r, Vec<T>(1.0f / 120));
    p = fma(p, r, Vec<T>(1.0f / 24));
    p = fma(p, r, Vec<T>(1.0f / 6));
  } else {
    p = Vec<T>(1.0 / 6227020800.0);
    const double c[] = {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320,
                        1.0 / 5040,      1.0 / 720,      1.0 / 120,     1.0 / 24,     1.0 / 6};
#pragma GCC unroll 10
    for (int i = 0; i < 10; ++i) p = fma(p, r, Vec<T>(T(c[i])));
  }
  p = fma(p, r, Vec<T>(T(0.5)));
  p = fma(p, r, Vec<T>(T(1)));
  p = fma(p, r, Vec<T>(T(1)));
#if defined(__AVX512F__)
  if constexpr (f32) return Vec<T>((typename Vec<T>::Raw)_mm512_scalef_ps((__m512)p.v, (__m512)n.v));
  else return Vec<T>((typename Vec<T>::Raw)_mm512_scalef_pd((__m512d)p.v, (__m512d)n.v));
#else
  constexpr int kBits = f32 ? 23 : 52;
  constexpr I kBias = f32 ? 127 : 1023;
  const Vec<I> half = Vec<I>(ni.v >> 1), rest = ni - half;
  const Vec<T> s1 = bitcast<T>(Vec<I>((half + Vec<I>(kBias)).v << kBits));
  const Vec<T> s2 = bitcast<T>(Vec<I>((rest + Vec<I>(kBias)).v << kBits));
  return p * s1 * s2;
#endif
}

// log: log(0) = -inf, log(negative) = NaN, log(+inf) = inf, NaN stays. x = 2^k (1 + f) with 1 + f in [sqrt(1/2),
// sqrt(2)); log(1 + f) = f - f^2/2 + s (f^2/2 + R(s^2)), s = f / (2 + f).
template <class T>
FASTCV_INLINE Vec<T> log(Vec<T> x) {
  using I = int_of<T>;
  constexpr bool f32 = std::is_same_v<T, float>;
  constexpr int kBits = f32 ? 23 : 52;
  constexpr T kTiny = f32 ? T(1.17549435e-38) : T(2.2250738585072014e-308);
  constexpr T kUp = f32 ? T(33554432) : T(18014398509481984.0);  // 2^25, 2^54: makes subnormals normal
  constexpr T kInf = static_cast<T>(__builtin_inf());
  constexpr I kSqrtHalf = f32 ? I(0x3f3504f3) : I(0x3fe6a09e667f3bcdLL);
  constexpr I kOne = f32 ? I(0x3f800000) : I(0x3ff0000000000000LL);
  const Mask<T> tiny = x < Vec<T>(kTiny);
  const Vec<I> bits = bitcast<I>(select<T>(tiny, x * Vec<T>(kUp), x)) + Vec<I>(kOne - kSqrtHalf);
  const Vec<I> k = Vec<I>(bits.v >> kBits) - Vec<I>(kOne >> kBits) - (tiny & Vec<I>(f32 ? 25 : 54));
  const Vec<I> mantissa = (bits & Vec<I>((I(1) << kBits) - 1)) + Vec<I>(kSqrtHalf);
  const Vec<T> f = bitcast<T>(mantissa) - Vec<T>(T(1));
  constexpr T kShift = f32 ? T(12582912.0) : T(6755399441055744.0);  // integer to float, exactly
  const Vec<T> n = bitcast<T>(k + bitcast<I>(Vec<T>(kShift))) - Vec<T>(kShift);
  const Vec<T> s = f / (f + Vec<T>(T(2))), z = s * s, half = f * f * Vec<T>(T(0.5));
  Vec<T> r;
  if constexpr (f32) {
    r = Vec<T>(0.24279078841f);
    r = fma(r, z, Vec<T>(0.28498786688f));
    r = fma(r, z, Vec<T>(0.40000972152f));
    r = fma(r, z, Vec<T>(0.66666662693f));
  } else {
    const double c[] = {1.531383769920937332e-01, 1.818357216161805012e-01, 2.222219843214978396e-01,
                        2.857142874366239149e-01, 3.999999999940941908e-01, 6.666666666666735130e-01};
    r = Vec<T>(T(1.479819860511658591e-01));
#pragma GCC unroll 6
    for (int i = 0; i < 6; ++i) r = fma(r, z, Vec<T>(T(c[i])));
  }
  r = r * z;
  constexpr T kHi = f32 ? T(6.9313812256e-01) : T(6.93147180369123816490e-01);
  constexpr T kLo = f32 ? T(9.0580006145e-06) : T(1.90821492927058770002e-10);
  Vec<T> y = fma(n, Vec<T>(kHi), f - (half - fma(s, half + r, n * Vec<T>(kLo))));
  y = select<T>(x == Vec<T>(T(0)), Vec<T>(-kInf), y);
  y = select<T>(x < Vec<T>(T(0)), Vec<T>(static_cast<T>(__builtin_nan(""))), y);
  return select<T>((x != x) | (x == Vec<T>(kInf)), x, y);
}

}  // namespace fastcv::FASTCV_ISA
