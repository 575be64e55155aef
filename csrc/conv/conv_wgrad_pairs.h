// Steps of two bfloat16 pixels for the weight gradient (conv_wgrad_gemm.h): what dot products and matrix tiles share.
#pragma once
#include "conv/conv_wgrad_gemm.h"

namespace fastcv::FASTCV_ISA {
namespace {

struct PairSteps {
  using S = bf16;
  using T = float;
  using E = float;  // two pixels, in the bits of a float that no arithmetic touches
  using G = bf16;
  static constexpr int kPair = 2, kPlanes = 1, w = 16;
  static __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1); }
  FASTCV_INLINE G get(const S* from) { return *from; }
  FASTCV_INLINE void move(G* to, const S* from, int n) {
    if (n == w) _mm256_storeu_si256((__m256i*)to, _mm256_loadu_si256((const __m256i*)from));
    else _mm256_mask_storeu_epi16(to, first(n), _mm256_maskz_loadu_epi16(first(n), from));
  }
  FASTCV_INLINE __m512i widened(const S* from, int n) {
    return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first(n), from));
  }
  FASTCV_INLINE Vec<E> channels(const S* from, int64_t pitch, int pixels, int n) {
    __m512i pairs = widened(from, n);
    if (pixels == 2) pairs = _mm512_or_si512(pairs, _mm512_slli_epi32(widened(from + pitch, n), 16));
    return Vec<E>((Vec<E>::Raw)pairs);
  }
  FASTCV_INLINE Vec<E> steps(const S* from, int pixels) {
    const __mmask32 mask = static_cast<__mmask32>((uint64_t{1} << pixels) - 1);
    return Vec<E>((Vec<E>::Raw)_mm512_maskz_loadu_epi16(mask, from));
  }
};

}  // namespace
}  // namespace fastcv::FASTCV_ISA
