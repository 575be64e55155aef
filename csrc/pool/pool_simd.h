// Vector pieces that the pooling kernels share: NaN-keeping maxima, edges, and rows split by stride.
#pragma once
#include "common/simd.h"
#include "pool/pool_geometry.h"

namespace fastcv::FASTCV_ISA {
namespace {

constexpr int64_t kGrain = 1 << 14;  // elements: below this, waking a thread costs more than it saves

FASTCV_POOL_INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
FASTCV_POOL_INLINE int64_t rows_grain(int64_t elements_per_row) {
  return elements_per_row >= kGrain ? 1 : kGrain / (elements_per_row > 0 ? elements_per_row : 1);
}

// Asks for what lies four kilobytes behind p: rows follow each other in memory, and the hardware follows neither
// several of them at once nor one into the next page. Asking for memory that does not exist does no harm.
template <class S>
FASTCV_INLINE void ask(const S* p) {
  __builtin_prefetch(reinterpret_cast<const char*>(p) + 4096, 0, 2);
}

// The larger of both, NaN if x is NaN; best where best is NaN.
template <class T>
FASTCV_INLINE Vec<T> larger(Vec<T> best, Vec<T> x) {
  using R = typename Vec<T>::Raw;
#if defined(__AVX512F__)
  const __m512 a = (__m512)x.v, m = _mm512_max_ps(a, (__m512)best.v);
  return Vec<T>((R)_mm512_mask_mov_ps(m, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), a));
#elif defined(__AVX2__)
  if constexpr (std::is_same_v<T, float>) {
    const __m256 a = (__m256)x.v, m = _mm256_max_ps(a, (__m256)best.v);
    return Vec<T>((R)_mm256_blendv_ps(m, a, _mm256_cmp_ps(a, a, _CMP_UNORD_Q)));
  } else {
    const __m256d a = (__m256d)x.v, m = _mm256_max_pd(a, (__m256d)best.v);
    return Vec<T>((R)_mm256_blendv_pd(m, a, _mm256_cmp_pd(a, a, _CMP_UNORD_Q)));
  }
#else
  return Vec<T>(R(((x.v > best.v) | (x.v != x.v)) ? x.v : best.v));
#endif
}

// Where x > best or x is NaN: best and its code become x and its code.
template <class T>
FASTCV_INLINE void keep_larger(Vec<T>& best, Vec<int_of<T>>& code, Vec<T> x, Vec<int_of<T>> x_code) {
  using R = typename Vec<T>::Raw;
  using I = typename Vec<int_of<T>>::Raw;
#if defined(__AVX512F__)
  // "x is a number and not larger": two compares that share a mask, and the blends read it the other way round.
  const __m512 a = (__m512)x.v, b = (__m512)best.v;
  const __mmask16 old = _mm512_mask_cmp_ps_mask(_mm512_cmp_ps_mask(a, a, _CMP_ORD_Q), a, b, _CMP_NGT_UQ);
  best = Vec<T>((R)_mm512_mask_mov_ps(a, old, b));
  code = Vec<int_of<T>>((I)_mm512_mask_mov_epi32((__m512i)x_code.v, old, (__m512i)code.v));
#else
  const I take = (I)(x.v > best.v) | (I)(x.v != x.v);
  best = Vec<T>(R(take ? x.v : best.v));
  code = Vec<int_of<T>>(I(take ? x_code.v : code.v));
#endif
}

// sum + x where code == want; a vector's width of codes. Bytes stay bytes: one compare serves sixteen floats.
template <class T>
FASTCV_INLINE Vec<T> add_where(Vec<T> sum, const uint8_t* code, uint8_t want, Vec<T> x) {
#if defined(__AVX512F__)
  using R = typename Vec<T>::Raw;
  const __mmask16 k =
      _mm_cmpeq_epi8_mask(_mm_loadu_si128((const __m128i*)code), _mm_set1_epi8(static_cast<char>(want)));
  return Vec<T>((R)_mm512_mask_add_ps((__m512)sum.v, k, (__m512)sum.v, (__m512)x.v));
#else
  using I = int_of<T>;
  Vec<I> wide;
  for (int i = 0; i < Vec<I>::width; ++i) wide.v[i] = code[i];
  return sum + bitcast<T>((wide == Vec<I>(static_cast<I>(want))) & bitcast<I>(x));
#endif
}
template <class T>
FASTCV_INLINE Vec<T> add_where(Vec<T> sum, const int64_t* code, int64_t want, Vec<T> x) {
#if defined(__AVX512F__)
  using R = typename Vec<T>::Raw;
  const __m512i all = _mm512_set1_epi64(want);
  const __mmask8 low = _mm512_cmpeq_epi64_mask(_mm512_loadu_si512(code), all);
  const __mmask8 high = _mm512_cmpeq_epi64_mask(_mm512_loadu_si512(code + 8), all);
  const __mmask16 k = static_cast<__mmask16>(high << 8 | low);
  return Vec<T>((R)_mm512_mask_add_ps((__m512)sum.v, k, (__m512)sum.v, (__m512)x.v));
#else
  using I = int_of<T>;
  Vec<I> hit;
  for (int i = 0; i < Vec<I>::width; ++i) hit.v[i] = code[i] == want ? I(-1) : I(0);
  return sum + bitcast<T>(hit & bitcast<I>(x));
#endif
}

// The first n of a vector's elements (n may exceed the width), and storing as many.
template <class S>
FASTCV_INLINE Vec<acc_t<S>> load_some(const S* p, int64_t n) {
  return n >= Vec<acc_t<S>>::width ? load(p) : load_n(p, static_cast<int>(n));
}
template <class S>
FASTCV_INLINE void store_some(S* p, Vec<acc_t<S>> x, int64_t n) {
  if (n >= Vec<acc_t<S>>::width) store(p, x);
  else store_n(p, x, static_cast<int>(n));
}

// Splits a padded row by stride: phase f of it, phase[f * pitch + q], is row[q * kStride + f - pad], or fill outside
// [0, width), for q in [0, count) (and up to a vector beyond). get(x, n) gives the elements from x on, n of them valid
// (n >= the vector's width: all). Every tap of a window then is a contiguous load.
template <int kStride, class T, class Get>
FASTCV_INLINE void split_row(Get get, int64_t width, int64_t pad, int64_t count, T* phase, int64_t pitch, T fill) {
  static_assert(kStride == 1 || kStride == 2);
  constexpr int w = Vec<T>::width;
  const int64_t first = (pad + kStride - 1) / kStride;  // the first q whose inputs all lie at or behind 0
  for (int64_t f = 0; f < kStride; ++f)
    for (int64_t q = 0; q < first; ++q) phase[f * pitch + q] = fill;
  if (kStride == 2 && pad % 2 == 1) phase[pitch + first - 1] = get(0, 1)[0];
  const auto at = [&](int64_t x) __attribute__((always_inline)) {
    const int64_t n = width - x;
    if (n >= w) return get(x, w);
    if (n <= 0) return Vec<T>(fill);
    return select<T>(first_lanes<T>(static_cast<int>(n)), get(x, n), Vec<T>(fill));
  };
  for (int64_t q = first; q < count; q += w) {
    const int64_t x = q * kStride - pad;
    if constexpr (kStride == 1) {
      detail::store_raw(phase + q, at(x));
    } else {
      Vec<T> even, odd;
      unzip(at(x), at(x + w), even, odd);
      detail::store_raw(phase + q, even);
      detail::store_raw(phase + pitch + q, odd);
    }
  }
}

// Where the taps of a split row lie, relative to the output column.
FASTCV_POOL_INLINE int64_t tap_place(const PoolAxis& a, int64_t j, int64_t pitch) {
  return j * a.dilation % a.stride * pitch + j * a.dilation / a.stride;
}
// How many columns of each phase the windows of a row need.
FASTCV_POOL_INLINE int64_t phase_count(const PoolAxis& a) { return a.out + (a.kernel - 1) * a.dilation / a.stride; }

// Hands out a slot's scratch memory piece by piece.
class Scratch {
 public:
  [[gnu::always_inline]] Scratch(const PoolParams& p, const Exec& exec, int slot)
      : at_(static_cast<char*>(exec.workspace) + slot * slot_bytes(p)) {}
  template <class T>
  [[gnu::always_inline]] T* take(int64_t n) {
    T* here = reinterpret_cast<T*>(at_);
    at_ += (n * sizeof(T) + 63) / 64 * 64;
    return here;
  }

 private:
  char* at_;
};

}  // namespace
}  // namespace fastcv::FASTCV_ISA
