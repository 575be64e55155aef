// The first n of a vector of 16-bit numbers by masked instructions, where common/simd.h takes them one by one.
#pragma once
#include "common/simd.h"

namespace fastcv::FASTCV_ISA {

#if defined(__AVX512BW__)
FASTCV_INLINE __m256i load_halves_n(const void* p, int n) {
  return _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1), p);
}
FASTCV_INLINE Vec<float> load_n(const bf16* p, int n) {
  return Vec<float>((Vec<float>::Raw)_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_halves_n(p, n)), 16));
}
FASTCV_INLINE Vec<float> load_n(const f16* p, int n) {
  return Vec<float>((Vec<float>::Raw)_mm512_cvtph_ps(load_halves_n(p, n)));
}
template <class S>
FASTCV_INLINE void store_halves_n(S* p, Vec<float> a, int n) {
  S buffer[16];
  store(buffer, a);
  _mm256_mask_storeu_epi16(p, static_cast<__mmask16>((1u << n) - 1), _mm256_loadu_si256((const __m256i*)buffer));
}
FASTCV_INLINE void store_n(bf16* p, Vec<float> a, int n) { store_halves_n(p, a, n); }
FASTCV_INLINE void store_n(f16* p, Vec<float> a, int n) { store_halves_n(p, a, n); }
#endif

}  // namespace fastcv::FASTCV_ISA
