// Lanes of vectors among each other: rearranged, transposed, and reduced to one number in an order that never changes.
#pragma once
#include "common/simd_memory.h"

namespace fastcv::FASTCV_ISA {

namespace detail {
template <bool high, class T, int... i>
FASTCV_INLINE Vec<T> zip_half(Vec<T> a, Vec<T> b, std::integer_sequence<int, i...>) {
  constexpr int w = Vec<T>::width;
  return Vec<T>(__builtin_shufflevector(a.v, b.v, (i / 2 + (i % 2) * w + (high ? w / 2 : 0))...));
}
template <int first, class T, int... i>
FASTCV_INLINE Vec<T> slide(Vec<T> a, Vec<T> b, std::integer_sequence<int, i...>) {
  return Vec<T>(__builtin_shufflevector(a.v, b.v, (i + first)...));
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

// A vector's width of the sequence a, b, from its element `first` on.
template <int first, class T>
FASTCV_INLINE Vec<T> slide(Vec<T> a, Vec<T> b) {
  return detail::slide<first>(a, b, std::make_integer_sequence<int, Vec<T>::width>{});
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
// Reductions halve: ((0 + w/2) + (w/4 + ...)), the same order every time.
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

}  // namespace fastcv::FASTCV_ISA
