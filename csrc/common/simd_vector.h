// Vec<T>, a vector of T, and what is done with it lane by lane (simd.h has the whole).
#pragma once
#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>

#include "common/types.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#ifndef FASTCV_ISA
#error "common/simd.h is for files that the build compiles per instruction set"
#endif

namespace fastcv::FASTCV_ISA {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif

#define FASTCV_INLINE [[gnu::always_inline]] static inline

template <class S>
using acc_t = std::conditional_t<std::is_same_v<S, double>, double, float>;
// The integer as wide as a float type: what its comparisons yield and what indices travel in beside it.
template <class T>
using int_of = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;

template <class T>
struct RawOf;  // spelled out, because GCC drops vector_size on a dependent type
template <>
struct RawOf<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
};
template <>
struct RawOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
};
template <>
struct RawOf<int32_t> {
  typedef int32_t type __attribute__((vector_size(kVectorBytes)));
};
template <>
struct RawOf<int64_t> {
  typedef int64_t type __attribute__((vector_size(kVectorBytes)));
};

template <class T>
struct Vec {
  static constexpr int width = kVectorBytes / sizeof(T);
  using Raw = typename RawOf<T>::type;
  Raw v;

  Vec() = default;
  [[gnu::always_inline]] Vec(Raw raw) : v(raw) {}
  [[gnu::always_inline]] explicit Vec(T x) : v(x - Raw{}) {}  // x - 0 keeps the sign of -0 (x + 0 would not)

  [[gnu::always_inline]] T operator[](int i) const { return v[i]; }
};
template <class T>
using Mask = Vec<int_of<T>>;

#define FASTCV_OP(op)                                    \
  template <class T>                                     \
  FASTCV_INLINE Vec<T> operator op(Vec<T> a, Vec<T> b) { \
    return Vec<T>(a.v op b.v);                           \
  }
FASTCV_OP(+)
FASTCV_OP(-)
FASTCV_OP(*)
FASTCV_OP(/)
FASTCV_OP(&)
FASTCV_OP(|)
#undef FASTCV_OP
#define FASTCV_COMPARE(op)                                \
  template <class T>                                      \
  FASTCV_INLINE Mask<T> operator op(Vec<T> a, Vec<T> b) { \
    return Mask<T>(typename Mask<T>::Raw(a.v op b.v));    \
  }
FASTCV_COMPARE(<)
FASTCV_COMPARE(<=)
FASTCV_COMPARE(>)
FASTCV_COMPARE(>=)
FASTCV_COMPARE(==)
FASTCV_COMPARE(!=)
#undef FASTCV_COMPARE
template <class T>
FASTCV_INLINE Vec<T> operator-(Vec<T> a) {
  return Vec<T>(-a.v);
}
template <class T>
FASTCV_INLINE Vec<T> operator~(Vec<T> a) {
  return Vec<T>(~a.v);
}
template <class T>
FASTCV_INLINE Vec<T>& operator+=(Vec<T>& a, Vec<T> b) {
  a.v += b.v;
  return a;
}

template <class T>
FASTCV_INLINE Vec<T> select(Mask<T> mask, Vec<T> yes, Vec<T> no) {
  return Vec<T>(mask.v ? yes.v : no.v);
}
template <class To, class From>
FASTCV_INLINE Vec<To> bitcast(Vec<From> a) {
  return Vec<To>((typename Vec<To>::Raw)a.v);
}
// A vector that many operations read: in a register from here on, where GCC would load it again for each of them.
template <class T>
FASTCV_INLINE void hold(Vec<T>& a) {
#if defined(__AVX512F__)
  __asm__("" : "+v"(a.v));
#elif defined(__x86_64__)
  __asm__("" : "+x"(a.v));
#else
  (void)a;
#endif
}

// a * b + c, rounded once where the instruction set can.
template <class T>
FASTCV_INLINE Vec<T> fma(Vec<T> a, Vec<T> b, Vec<T> c) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>)
    return Vec<T>((typename Vec<T>::Raw)_mm512_fmadd_ps((__m512)a.v, (__m512)b.v, (__m512)c.v));
  else if constexpr (std::is_same_v<T, double>)
    return Vec<T>((typename Vec<T>::Raw)_mm512_fmadd_pd((__m512d)a.v, (__m512d)b.v, (__m512d)c.v));
#elif defined(__AVX2__)
  if constexpr (std::is_same_v<T, float>)
    return Vec<T>((typename Vec<T>::Raw)_mm256_fmadd_ps((__m256)a.v, (__m256)b.v, (__m256)c.v));
  else if constexpr (std::is_same_v<T, double>)
    return Vec<T>((typename Vec<T>::Raw)_mm256_fmadd_pd((__m256d)a.v, (__m256d)b.v, (__m256d)c.v));
#else
  if constexpr (std::is_floating_point_v<T>) return Vec<T>(a.v * b.v + c.v);
#endif
  else return Vec<T>(a.v * b.v + c.v);
}
// The smaller / larger of two numbers; b where either is NaN (as the x86 instructions have it).
template <class T>
FASTCV_INLINE Vec<T> min(Vec<T> a, Vec<T> b) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) return Vec<T>((typename Vec<T>::Raw)_mm512_min_ps((__m512)a.v, (__m512)b.v));
  if constexpr (std::is_same_v<T, double>)
    return Vec<T>((typename Vec<T>::Raw)_mm512_min_pd((__m512d)a.v, (__m512d)b.v));
#elif defined(__AVX2__)
  if constexpr (std::is_same_v<T, float>) return Vec<T>((typename Vec<T>::Raw)_mm256_min_ps((__m256)a.v, (__m256)b.v));
  if constexpr (std::is_same_v<T, double>)
    return Vec<T>((typename Vec<T>::Raw)_mm256_min_pd((__m256d)a.v, (__m256d)b.v));
#endif
  return Vec<T>(a.v < b.v ? a.v : b.v);
}
template <class T>
FASTCV_INLINE Vec<T> max(Vec<T> a, Vec<T> b) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) return Vec<T>((typename Vec<T>::Raw)_mm512_max_ps((__m512)a.v, (__m512)b.v));
  if constexpr (std::is_same_v<T, double>)
    return Vec<T>((typename Vec<T>::Raw)_mm512_max_pd((__m512d)a.v, (__m512d)b.v));
#elif defined(__AVX2__)
  if constexpr (std::is_same_v<T, float>) return Vec<T>((typename Vec<T>::Raw)_mm256_max_ps((__m256)a.v, (__m256)b.v));
  if constexpr (std::is_same_v<T, double>)
    return Vec<T>((typename Vec<T>::Raw)_mm256_max_pd((__m256d)a.v, (__m256d)b.v));
#endif
  return Vec<T>(a.v > b.v ? a.v : b.v);
}
// The larger, or NaN if either is NaN.
template <class T>
FASTCV_INLINE Vec<T> max_nan(Vec<T> a, Vec<T> b) {
  return select<T>((a > b) | (a != a), a, b);
}
template <class T>
FASTCV_INLINE Vec<T> abs(Vec<T> a) {
  using I = int_of<T>;
  return bitcast<T>(bitcast<I>(a) &
                    Vec<I>(static_cast<I>(~(static_cast<std::make_unsigned_t<I>>(1) << (sizeof(I) * 8 - 1)))));
}
template <class T>
FASTCV_INLINE Vec<T> sqrt(Vec<T> a) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) return Vec<T>((typename Vec<T>::Raw)_mm512_sqrt_ps((__m512)a.v));
  else return Vec<T>((typename Vec<T>::Raw)_mm512_sqrt_pd((__m512d)a.v));
#elif defined(__AVX2__)
  if constexpr (std::is_same_v<T, float>) return Vec<T>((typename Vec<T>::Raw)_mm256_sqrt_ps((__m256)a.v));
  else return Vec<T>((typename Vec<T>::Raw)_mm256_sqrt_pd((__m256d)a.v));
#else
  Vec<T> r;
  for (int i = 0; i < Vec<T>::width; ++i) r.v[i] = std::sqrt(a.v[i]);
  return r;
#endif
}
namespace detail {
template <class T, int... i>
FASTCV_INLINE Vec<T> count_lanes(std::integer_sequence<int, i...>) {
  return Vec<T>(typename Vec<T>::Raw{static_cast<T>(i)...});
}
}  // namespace detail
// 0, 1, 2, ...
template <class T>
FASTCV_INLINE Vec<T> iota() {
  return detail::count_lanes<T>(std::make_integer_sequence<int, Vec<T>::width>{});
}
// Lanes 0 .. n-1.
template <class T>
FASTCV_INLINE Mask<T> first_lanes(int n) {
  using I = int_of<T>;
  return iota<I>() < Vec<I>(static_cast<I>(n));
}
template <class T>
FASTCV_INLINE bool any(Vec<T> mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi64_mask((__m512i)mask.v, (__m512i)mask.v) != 0;
#elif defined(__AVX2__)
  return !_mm256_testz_si256((__m256i)mask.v, (__m256i)mask.v);
#else
  T r = 0;
  for (int i = 0; i < Vec<T>::width; ++i) r |= mask.v[i];
  return r != 0;
#endif
}

}  // namespace fastcv::FASTCV_ISA
