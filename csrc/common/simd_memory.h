// Vectors from memory and back, widened from a storage type to what arithmetic happens in, and rounded to nearest even
// on the way out; whole or the first n elements, of which no byte behind is touched.
#pragma once
#include "common/simd_vector.h"

namespace fastcv::FASTCV_ISA {

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
#if defined(__AVX512F__)
template <class S>
FASTCV_INLINE Vec<float> widen_halves(__m256i bits) {
  using R = typename Vec<float>::Raw;
  if constexpr (std::is_same_v<S, bf16>) return Vec<float>((R)_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  else return Vec<float>((R)_mm512_cvtph_ps(bits));
}
#endif
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
    if constexpr (sizeof(S) == 2) return detail::widen_halves<S>(_mm256_loadu_si256((const __m256i*)p));
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
#if defined(__AVX512BW__)
    if constexpr (sizeof(S) == 2)
      return detail::widen_halves<S>(_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1), p));
#endif
    S buffer[Vec<float>::width] = {};
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

}  // namespace fastcv::FASTCV_ISA
