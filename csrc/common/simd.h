// Vectors, once for every instruction set. A *_simd.cpp file is compiled three times, with FASTCV_ISA = portable, avx2
// or avx512, and everything here lives in that namespace, so the linker can never hand AVX-512 code to an older CPU.
//
//   Vec<T>            T in float, double, int32_t, int64_t: 16 / 32 / 64 bytes wide; + - * / & | and comparisons
//   Mask              a comparison's result: a vector of 0 / -1 integers as wide as the operands
//   acc_t<S>          what arithmetic on storage type S happens in: double for double, float for all others
//   load<S>(p)        width elements of S (float, double, bf16, f16, uint8_t) widened to Vec<acc_t<S>>
//   load_n<S>(p, n)   the first n of them, zeros behind; touches no byte beyond the n-th element
//   store, store_n    back to S, rounding to nearest even
// Reductions add in a fixed order, so results do not depend on anything but the data and the instruction set.
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

// ---- loads and stores ------------------------------------------------------------------------------------------

namespace detail {

template <class T>
FASTCV_INLINE Vec<T> load_raw(const T* p) {
  Vec<T> r;
  std::memcpy(&r.v, p, sizeof r.v);
  return r;
}

// n elements of `bytes` each into a zeroed buffer: the portable partial load.
template <class T>
FASTCV_INLINE Vec<T> load_raw_n(const T* p, int n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    return Vec<T>((typename Vec<T>::Raw)_mm512_maskz_loadu_epi32(static_cast<__mmask16>((1u << n) - 1), p));
  else return Vec<T>((typename Vec<T>::Raw)_mm512_maskz_loadu_epi64(static_cast<__mmask8>((1u << n) - 1), p));
#elif defined(__AVX2__)
  const Mask<T> m = first_lanes<T>(n);
  if constexpr (sizeof(T) == 4) return Vec<T>((typename Vec<T>::Raw)_mm256_maskload_epi32((const int*)p, (__m256i)m.v));
  else return Vec<T>((typename Vec<T>::Raw)_mm256_maskload_epi64((const long long*)p, (__m256i)m.v));
#else
  Vec<T> r{typename Vec<T>::Raw{}};
  for (int i = 0; i < n; ++i) r.v[i] = p[i];
  return r;
#endif
}

template <class T>
FASTCV_INLINE void store_raw(T* p, Vec<T> a) {
  std::memcpy(p, &a.v, sizeof a.v);
}
template <class T>
FASTCV_INLINE void store_raw_n(T* p, Vec<T> a, int n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) _mm512_mask_storeu_epi32(p, static_cast<__mmask16>((1u << n) - 1), (__m512i)a.v);
  else _mm512_mask_storeu_epi64(p, static_cast<__mmask8>((1u << n) - 1), (__m512i)a.v);
#elif defined(__AVX2__)
  const Mask<T> m = first_lanes<T>(n);
  if constexpr (sizeof(T) == 4) _mm256_maskstore_epi32((int*)p, (__m256i)m.v, (__m256i)a.v);
  else _mm256_maskstore_epi64((long long*)p, (__m256i)m.v, (__m256i)a.v);
#else
  for (int i = 0; i < n; ++i) p[i] = a.v[i];
#endif
}

// Scalar conversions, written so that the compiler can vectorise a loop of them on any machine.
FASTCV_INLINE float bits_to_float(uint32_t u) {
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
FASTCV_INLINE uint32_t float_to_bits(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  return u;
}
FASTCV_INLINE float widen(bf16 x) { return bits_to_float(static_cast<uint32_t>(x.bits) << 16); }
FASTCV_INLINE float widen(uint8_t x) { return x; }
FASTCV_INLINE float widen(f16 x) {
#if defined(__AVX2__)
  return _cvtsh_ss(x.bits);
#else
  const uint32_t sign = (x.bits & 0x8000u) << 16, magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return bits_to_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // 2^112 puts the exponent right, for subnormals too.
  return bits_to_float(float_to_bits(bits_to_float(magnitude << 13) * 0x1p112f) | sign);
#endif
}
FASTCV_INLINE bf16 narrow_bf16(float f) {
  const uint32_t u = float_to_bits(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>(u >> 16 | 0x40u)};
  return {static_cast<uint16_t>((u + 0x7fffu + (u >> 16 & 1u)) >> 16)};
}
FASTCV_INLINE f16 narrow_f16(float f) {
#if defined(__AVX2__)
  return {static_cast<uint16_t>(_cvtss_sh(f, _MM_FROUND_TO_NEAREST_INT))};
#else
  const uint32_t u = float_to_bits(f), sign = u >> 16 & 0x8000u;
  uint32_t m = u & 0x7fffffffu;
  if (m > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
  if (m >= 0x47800000u)
    return {static_cast<uint16_t>(sign | 0x7c00u)};  // 65536 and above; 65520.. overflow by rounding below
  if (m < 0x38800000u) {  // below the smallest normal: adding 0.5 aligns the bits, the hardware rounds
    const float g = bits_to_float(m) + 0.5f;
    return {static_cast<uint16_t>(sign | (float_to_bits(g) - 0x3f000000u))};
  }
  m += 0xfffu + (m >> 13 & 1u);
  return {static_cast<uint16_t>(sign | (m - 0x38000000u) >> 13)};
#endif
}

}  // namespace detail

template <class S>
FASTCV_INLINE acc_t<S> load_one(const S* p) {
  if constexpr (std::is_floating_point_v<S>) return *p;
  else return detail::widen(*p);
}
template <class S>
FASTCV_INLINE void store_one(S* p, acc_t<S> x) {
  if constexpr (std::is_floating_point_v<S>) *p = x;
  else if constexpr (std::is_same_v<S, bf16>) *p = detail::narrow_bf16(x);
  else *p = detail::narrow_f16(x);
}

template <class S>
FASTCV_INLINE Vec<acc_t<S>> load(const S* p) {
  if constexpr (std::is_floating_point_v<S>) {
    return detail::load_raw(p);
  } else {
    using R = typename Vec<float>::Raw;
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<S, bf16>)
      return Vec<float>((R)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
    else if constexpr (std::is_same_v<S, f16>)
      return Vec<float>((R)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)));
    else return Vec<float>((R)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p))));
#elif defined(__AVX2__)
    if constexpr (std::is_same_v<S, bf16>)
      return Vec<float>((R)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
    else if constexpr (std::is_same_v<S, f16>)
      return Vec<float>((R)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)));
    else return Vec<float>((R)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p))));
#else
    Vec<float> r;
    for (int i = 0; i < Vec<float>::width; ++i) r.v[i] = detail::widen(p[i]);
    (void)sizeof(R);
    return r;
#endif
  }
}

template <class S>
FASTCV_INLINE void store(S* p, Vec<acc_t<S>> a) {
  if constexpr (std::is_floating_point_v<S>) {
    detail::store_raw(p, a);
  } else {
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<S, f16>) {
      _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    } else {
#if defined(__AVX512BF16__)
      _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh((__m512)a.v));  // subnormals become zero
      return;
#endif
      const __m512i u = (__m512i)a.v;
      const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
      const __m512i rounded =
          _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
      const __m512i quiet = _mm512_or_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(0x40));
      const __mmask16 nan = _mm512_cmp_ps_mask((__m512)a.v, (__m512)a.v, _CMP_UNORD_Q);
      _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(_mm512_mask_blend_epi32(nan, rounded, quiet)));
    }
#elif defined(__AVX2__)
    if constexpr (std::is_same_v<S, f16>) {
      _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    } else {
      const __m256i u = (__m256i)a.v, high = _mm256_srli_epi32(u, 16);
      const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
      const __m256i rounded =
          _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
      const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
      const __m256i nan = (__m256i)_mm256_cmp_ps((__m256)a.v, (__m256)a.v, _CMP_UNORD_Q);
      const __m256i words = _mm256_blendv_epi8(rounded, quiet, nan);
      const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(words, words), 0x08);
      _mm_storeu_si128((__m128i*)p, _mm256_castsi256_si128(packed));
    }
#else
    for (int i = 0; i < Vec<float>::width; ++i) store_one(p + i, a.v[i]);
#endif
  }
}

template <class S>
FASTCV_INLINE Vec<acc_t<S>> load_n(const S* p, int n) {
  if constexpr (std::is_floating_point_v<S>) {
    return detail::load_raw_n(p, n);
  } else {
    S buffer[Vec<float>::width] = {};
#if defined(__AVX512BW__)
    if constexpr (sizeof(S) == 2)
      _mm256_storeu_si256((__m256i*)buffer, _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1), p));
    else
#endif
      std::memcpy(buffer, p, static_cast<size_t>(n) * sizeof(S));
    return load(buffer);
  }
}
template <class S>
FASTCV_INLINE void store_n(S* p, Vec<acc_t<S>> a, int n) {
  if constexpr (std::is_floating_point_v<S>) {
    detail::store_raw_n(p, a, n);
  } else {
    S buffer[Vec<float>::width];
    store(buffer, a);
#if defined(__AVX512BW__)
    if constexpr (sizeof(S) == 2)
      _mm256_mask_storeu_epi16(p, static_cast<__mmask16>((1u << n) - 1), _mm256_loadu_si256((const __m256i*)buffer));
    else
#endif
      std::memcpy(p, buffer, static_cast<size_t>(n) * sizeof(S));
  }
}

// Integer vectors (indices): plain loads and stores.
template <class I>
FASTCV_INLINE Vec<I> load_int(const I* p) {
  return detail::load_raw(p);
}
template <class I>
FASTCV_INLINE void store_int(I* p, Vec<I> a) {
  detail::store_raw(p, a);
}
template <class I>
FASTCV_INLINE void store_int_n(I* p, Vec<I> a, int n) {
  detail::store_raw_n(p, a, n);
}

// ---- rearranging ------------------------------------------------------------------------------------------------

namespace detail {
template <bool high, class T, int... i>
FASTCV_INLINE Vec<T> zip_half(Vec<T> a, Vec<T> b, std::integer_sequence<int, i...>) {
  constexpr int w = Vec<T>::width;
  return Vec<T>(__builtin_shufflevector(a.v, b.v, (i / 2 + (i % 2) * w + (high ? w / 2 : 0))...));
}
template <int first, class T, int... i>
FASTCV_INLINE Vec<T> unzip_half(Vec<T> low, Vec<T> high, std::integer_sequence<int, i...>) {
  return Vec<T>(__builtin_shufflevector(low.v, high.v, (2 * i + first)...));
}
}  // namespace detail

// a0 b0 a1 b1 ...: the first half of that sequence and the second.
template <class T>
FASTCV_INLINE void zip(Vec<T> a, Vec<T> b, Vec<T>& low, Vec<T>& high) {
  constexpr auto lanes = std::make_integer_sequence<int, Vec<T>::width>{};
  low = detail::zip_half<false>(a, b, lanes);
  high = detail::zip_half<true>(a, b, lanes);
}

// And back: the elements of even and of odd index of the sequence low, high.
template <class T>
FASTCV_INLINE void unzip(Vec<T> low, Vec<T> high, Vec<T>& even, Vec<T>& odd) {
  constexpr auto lanes = std::make_integer_sequence<int, Vec<T>::width>{};
  even = detail::unzip_half<0>(low, high, lanes);
  odd = detail::unzip_half<1>(low, high, lanes);
}

// M rows of one vector each, M a power of two. Afterwards v, read in memory order, holds lane 0 of every row, then lane
// 1 of every row, ...: for M == width, the transposed square.
template <int M, class T>
FASTCV_INLINE void transpose(Vec<T>* v) {
#pragma GCC unroll 4
  for (int half = 1; half < M; half *= 2) {
    Vec<T> z[M];
#pragma GCC unroll 8
    for (int i = 0; i < M / 2; ++i) zip(v[i], v[i + M / 2], z[2 * i], z[2 * i + 1]);
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) v[i] = z[i];
  }
}

// ---- reductions over the lanes, halving: ((0+w/2)+(w/4+...)): the same order every time --------------------------

namespace detail {
template <int half, class T, int... i>
FASTCV_INLINE T add_halves(Vec<T> a, std::integer_sequence<int, i...> lanes) {
  const Vec<T> sum = a + Vec<T>(__builtin_shufflevector(a.v, a.v, ((i + half) % Vec<T>::width)...));
  if constexpr (half == 1) return sum.v[0];
  else return add_halves<half / 2>(sum, lanes);
}
}  // namespace detail
template <class T>
FASTCV_INLINE T reduce_add(Vec<T> a) {
  return detail::add_halves<Vec<T>::width / 2>(a, std::make_integer_sequence<int, Vec<T>::width>{});
}
// The largest lane of lanes that are no NaN.
template <class T>
FASTCV_INLINE T reduce_max(Vec<T> a) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) return _mm512_reduce_max_ps((__m512)a.v);
#endif
  T x[Vec<T>::width];
  detail::store_raw(x, a);
  T best = x[0];
  for (int i = 1; i < Vec<T>::width; ++i) best = x[i] > best ? x[i] : best;
  return best;
}
// The largest lane, NaN if any lane is NaN.
template <class T>
FASTCV_INLINE T reduce_max_nan(Vec<T> a) {
  T x[Vec<T>::width];
  detail::store_raw(x, a);
  T best = x[0];
  for (int i = 1; i < Vec<T>::width; ++i) best = (best > x[i] || best != best) ? best : x[i];
  return best;
}

// ---- exp: 1 ulp-scale, exact at 0, exp(-inf) = 0, exp(+inf) = inf, NaN stays --------------------------------------

// Cody-Waite reduction x = n ln2 + r, |r| <= ln2/2, a polynomial for e^r, then 2^n in two steps so that
// results below the normal range round correctly.
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

// ---- log: 1 ulp-scale, log(0) = -inf, log(negative) = NaN, log(+inf) = inf, NaN stays -----------------------------

// x = 2^k (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)); log(1 + f) = f - f^2/2 + s (f^2/2 + R(s^2)), s = f / (2 + f).
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
