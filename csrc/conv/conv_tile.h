// The register tile of the convolution kernels and the pieces around it: MR gathered pixels times NV vectors of output
// channels, accumulated over taps and input channels without leaving the registers.
//
// A Product says what is multiplied: X, how a pixel's channels are stored; kPair, how many of them one step consumes;
// W, a packed weight (kPair channels of one output channel); Acc, what sums are kept in; kStored, how many packed
// weights stand for one; kTiles, whether matrix tiles (conv_amx.h) multiply, not the tile below; Session, what a thread
// holds meanwhile; kRounds, whether sums are rounded to X in the end, by more than one long chain of them loses.
#pragma once
#include <utility>

#include "conv/conv_plan.h"

namespace fastcv::FASTCV_ISA {

#if defined(__AVX512F__)
inline constexpr int kPanelVectors = 4;  // 32 registers: 6 x 4 or 8 x 3 sums
#else
inline constexpr int kPanelVectors = 2;  // 16 registers: 6 x 2 sums
#endif
template <int NV>
inline constexpr int kTileRows = NV == kPanelVectors ? 6 : 8;

template <class T>
struct PlainProduct {
  using X = T;
  using W = T;
  using Acc = T;
  static constexpr int kPair = 1;
  static constexpr int kStored = 1;
  static constexpr bool kTiles = false, kRounds = false;
  using Session = int;
  using Packed = Vec<T>;
  FASTCV_INLINE Packed load_weights(const W* w) { return load(w); }
  FASTCV_INLINE Packed spread(const X* x) {
#if defined(__AVX512F__)
    return Packed((typename Packed::Raw)_mm512_set1_ps(*x));
#elif defined(__AVX2__)
    if constexpr (sizeof(T) == 4) return Packed((typename Packed::Raw)_mm256_broadcast_ss(x));
    else return Packed((typename Packed::Raw)_mm256_broadcast_sd(x));
#else
    return Packed(*x);
#endif
  }
  FASTCV_INLINE Vec<Acc> multiply_add(Packed x, Packed w, Vec<Acc> sum) { return fma(x, w, sum); }
};

// One strip: some pixels, one panel of output channels.
template <class P>
struct Strip {
  const typename P::X* const* rows;  // [taps][row_pitch]: where each pixel's channels start, for each tap
  const typename P::X* zeros;        // the row that stands for pixels outside the image
  int64_t row_pitch, taps, steps;    // steps: of kPair channels, per tap
  int64_t channel;                   // first channel, added to every row
  const typename P::W* weights;      // [taps * steps][panel]
  const typename P::W* ahead;        // what follows these weights, fetched meanwhile; nullptr: nothing
  int64_t segment;                   // steps summed in registers before they join the total: segment_of
  const typename P::Acc* bias;       // [panel]; nullptr: sums join what stands in out
  const int64_t* places;             // [pixels]: where in out each pixel's sums go, in units of out_pitch
  typename P::Acc* out;
  typename P::X* rounded;  // where the sums go instead, if not nullptr: only with kRounds
  int64_t out_pitch;
  // Small groups, many to a vector: channels in and out per group, else 0.
  int group_in, group_out;
};

// One long chain of roundings loses more than a chain of chains: about the square root of the terms is the best length,
// and from 32 on adding up the parts costs a few percent at most. Depends on the layer only.
static inline int64_t segment_of(int64_t terms) { return terms <= 32 * 32 ? 32 : terms <= 64 * 64 ? 64 : 128; }

template <class P, int MR, int NV>
[[gnu::noinline]] static void tile(const Strip<P>& s, int64_t pixel) {
  using Acc = typename P::Acc;
  constexpr int kWidth = Vec<Acc>::width;
  Vec<Acc> sum[MR][NV];
  const Acc* before =
      s.bias != nullptr ? s.bias : s.out;  // what the sums join: the bias first, then what stands in out
  int64_t before_pitch = s.bias != nullptr ? 0 : s.out_pitch;
  const auto start = [&] {
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sum[m][v] = Vec<Acc>(Acc(0));
  };
  const auto finish = [&] {
    if constexpr (P::kRounds) {
      if (s.rounded != nullptr) {
#pragma GCC unroll 8
        for (int m = 0; m < MR; ++m) {
          typename P::X* out = s.rounded + s.places[pixel + m] * s.out_pitch;
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) store(out + v * kWidth, load(s.bias + v * kWidth) + sum[m][v]);
        }
        return;
      }
    }
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
      const int64_t place = s.places[pixel + m];
      Acc* out = s.out + place * s.out_pitch;
      const Acc* from = before + place * before_pitch;
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) store(out + v * kWidth, load(from + v * kWidth) + sum[m][v]);
    }
    before = s.out;
    before_pitch = s.out_pitch;
  };
  start();
  const typename P::W* w = s.weights;
  const int64_t steps = s.steps;
  int64_t left = s.segment;
  // The first tiles of a strip fetch a cache line per step each, until all that follows has been asked for.
  constexpr int64_t kLine = 64 / sizeof(typename P::W);
  const int64_t line = pixel / kTileRows<NV>;
  const bool fetches = s.ahead != nullptr && line * kLine < NV * kWidth;
  const typename P::W* ahead = fetches ? s.ahead + line * s.taps * steps * kLine : w;
  const int64_t ahead_step = fetches ? kLine : 0;
  for (int64_t tap = 0; tap < s.taps; ++tap) {
    const typename P::X* const* rows = s.rows + tap * s.row_pitch + pixel;
    const typename P::X* x[MR];
    bool outside = true;
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
      outside &= rows[m] == s.zeros;
      x[m] = rows[m] + s.channel;
    }
    if (outside) {  // all terms are zero; the segments stay where they are, so sums do not depend on the tile's company
      w += steps * NV * kWidth;
      if (steps < left) {
        left -= steps;
      } else {
        finish();
        start();
        left = s.segment - (steps - left) % s.segment;
      }
      continue;
    }
    for (int64_t i = 0; i < steps;) {
      const int64_t end = least(steps, i + left);
      left -= end - i;
      for (; i < end; ++i, ahead += ahead_step) {
        __builtin_prefetch(ahead, 0, 2);
        typename P::Packed weights[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) weights[v] = P::load_weights(w + v * kWidth);
#pragma GCC unroll 8
        for (int m = 0; m < MR; ++m) {
          const typename P::Packed spread = P::spread(x[m] + i * P::kPair);
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) sum[m][v] = P::multiply_add(spread, weights[v], sum[m][v]);
        }
        w += NV * kWidth;
      }
      if (left == 0) {
        finish();
        start();
        left = s.segment;
      }
    }
  }
  if (left != s.segment || before == s.bias) finish();
}

template <class P, int NV>
static void piece(const Strip<P>& s, int64_t pixels) {
  int64_t i = 0;
  for (; i + kTileRows<NV> <= pixels; i += kTileRows<NV>) tile<P, kTileRows<NV>, NV>(s, i);
  if constexpr (sizeof(typename P::Acc) == 4) {  // float64 is not raced: its short rests take pixel by pixel
    if (i + 4 <= pixels) tile<P, 4, NV>(s, i), i += 4;
    if (i + 2 <= pixels) tile<P, 2, NV>(s, i), i += 2;
  }
  for (; i < pixels; ++i) tile<P, 1, NV>(s, i);
}

// Weights that do not fit into the second-level cache are taken some taps at a time, for all pixels, where that cuts no
// segment: the same sums. What follows is fetched where the tiles ask for all of it and the cache holds it until then.
template <class P, int NV>
static void strip(const Strip<P>& whole, int64_t pixels) {
  constexpr int64_t kPiece = 512 << 10;
  const int64_t tap_weights = whole.steps * NV * Vec<typename P::Acc>::width;
  const int64_t tap_bytes = tap_weights * static_cast<int64_t>(sizeof(typename P::W));
  const bool fits = whole.taps * tap_bytes <= 2 * kPiece, fetches = pixels >= NV * kTileRows<NV>;
  Strip<P> s = whole;
  if (P::kRounds || whole.steps % whole.segment != 0 || fits) {
    if (!fits || !fetches) s.ahead = nullptr;
    return piece<P, NV>(s, pixels);
  }
  const int64_t at_once = most(1, kPiece / tap_bytes);
  for (int64_t tap = 0; tap < whole.taps; tap += at_once) {
    s.rows = whole.rows + tap * s.row_pitch;
    s.weights = whole.weights + tap * tap_weights;
    s.taps = least(at_once, whole.taps - tap);
    const bool last = tap + s.taps == whole.taps;
    s.ahead = !fetches ? nullptr : last ? whole.ahead : s.weights + s.taps * tap_weights;
    if (tap > 0) s.bias = nullptr;
    piece<P, NV>(s, pixels);
  }
}

template <class P>
static void run_strip(const Strip<P>& s, int64_t pixels, int vectors) {
  switch (vectors) {
    case 1:
      return strip<P, 1>(s, pixels);
    case 2:
      return strip<P, 2>(s, pixels);
#if defined(__AVX512F__)
    case 3:
      return strip<P, 3>(s, pixels);
    default:
      return strip<P, 4>(s, pixels);
#else
    default:
      __builtin_unreachable();
#endif
  }
}

// ---- small groups: a vector of outputs spans several groups -------------------------------------------------------

// Lane j of vector a moved to where index says.
template <class T>
FASTCV_INLINE Vec<T> permute(Vec<T> a, Mask<T> index) {
  return Vec<T>(__builtin_shuffle(a.v, index.v));
}

// Each output lane takes its own group's channels out of one load of the pixel: GroupIn permutations per tap, none
// (GroupIn = 0) if every channel is a group of its own. Weights are [taps * GroupIn][panel].
template <class T, int MR, int NV, int GroupIn>
[[gnu::noinline]] static void group_tile(const Strip<PlainProduct<T>>& s, int64_t pixel) {
  constexpr int kWidth = Vec<T>::width;
  Vec<T> sum[MR][NV];
  Mask<T> index[GroupIn == 0 ? 1 : GroupIn];
  if constexpr (GroupIn > 0)
    for (int j = 0; j < kWidth; ++j) index[0].v[j] = static_cast<int_of<T>>(j / s.group_out * GroupIn);
  for (int c = 1; c < GroupIn; ++c) index[c] = index[0] + Mask<T>(static_cast<int_of<T>>(c));
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) sum[m][v] = load(s.bias + v * kWidth);
  const T* w = s.weights;
  const int64_t vector_step = GroupIn == 0 ? kWidth : kWidth / s.group_out * GroupIn;
  for (int64_t tap = 0; tap < s.taps; ++tap) {
    const T* const* rows = s.rows + tap * s.row_pitch + pixel;
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
      const T* x = rows[m] + s.channel;
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) {
        const Vec<T> channels = load(x + v * vector_step);
        if constexpr (GroupIn == 0) {
          sum[m][v] = fma(channels, load(w + v * kWidth), sum[m][v]);
        } else {
#pragma GCC unroll 8
          for (int c = 0; c < GroupIn; ++c)
            sum[m][v] = fma(permute(channels, index[c]), load(w + (c * NV + v) * kWidth), sum[m][v]);
        }
      }
    }
    w += (GroupIn == 0 ? 1 : GroupIn) * NV * kWidth;
  }
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) {
    T* out = s.out + s.places[pixel + m] * s.out_pitch;
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) store(out + v * kWidth, sum[m][v]);
  }
}

template <class T, int NV, int GroupIn>
static void group_strip(const Strip<PlainProduct<T>>& s, int64_t pixels) {
  int64_t i = 0;
  if constexpr (sizeof(T) == 4)
    for (; i + 6 <= pixels; i += 6) group_tile<T, 6, NV, GroupIn>(s, i);
  for (; i < pixels; ++i) group_tile<T, 1, NV, GroupIn>(s, i);
}

inline constexpr int kGroupPanelVectors = 2;
template <class T>
static bool groups_fit(int64_t group_in, int64_t group_out) {
  return group_in <= group_out && group_in <= 8 && (group_in & (group_in - 1)) == 0 && group_out < Vec<T>::width &&
         Vec<T>::width % group_out == 0;
}

template <class T, int NV>
static void run_group_strip(const Strip<PlainProduct<T>>& s, int64_t pixels) {
  if (s.group_out == 1) return group_strip<T, NV, 0>(s, pixels);
  switch (s.group_in) {
    case 1:
      return group_strip<T, NV, 1>(s, pixels);
    case 2:
      return group_strip<T, NV, 2>(s, pixels);
    case 4:
      return group_strip<T, NV, 4>(s, pixels);
    default:
      return group_strip<T, NV, 8>(s, pixels);
  }
}

// ---- transposition of a square of vectors ------------------------------------------------------------------------

// r[i][j] <-> r[j][i].
template <class T>
FASTCV_INLINE void transpose_square(Vec<T> (&r)[Vec<T>::width]) {
#if defined(__AVX512F__)
  // Shuffles without index vectors: sixteen rows and their halves fit into the registers.
  using Raw = typename Vec<T>::Raw;
  __m512 u[16];
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    const __m512 a = (__m512)r[i].v, b = (__m512)r[i + 1].v, c = (__m512)r[i + 2].v, d = (__m512)r[i + 3].v;
    const __m512d ab0 = (__m512d)_mm512_unpacklo_ps(a, b), ab1 = (__m512d)_mm512_unpackhi_ps(a, b);
    const __m512d cd0 = (__m512d)_mm512_unpacklo_ps(c, d), cd1 = (__m512d)_mm512_unpackhi_ps(c, d);
    u[i] = (__m512)_mm512_unpacklo_pd(ab0, cd0);
    u[i + 1] = (__m512)_mm512_unpackhi_pd(ab0, cd0);
    u[i + 2] = (__m512)_mm512_unpacklo_pd(ab1, cd1);
    u[i + 3] = (__m512)_mm512_unpackhi_pd(ab1, cd1);
  }
  // Lane j % 4 of each quarter of u[i + j % 4] now holds column j of rows i .. i + 3.
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512 even0 = _mm512_shuffle_f32x4(u[j], u[4 + j], 0x88), odd0 = _mm512_shuffle_f32x4(u[j], u[4 + j], 0xdd);
    const __m512 even1 = _mm512_shuffle_f32x4(u[8 + j], u[12 + j], 0x88);
    const __m512 odd1 = _mm512_shuffle_f32x4(u[8 + j], u[12 + j], 0xdd);
    r[j].v = (Raw)_mm512_shuffle_f32x4(even0, even1, 0x88);
    r[4 + j].v = (Raw)_mm512_shuffle_f32x4(odd0, odd1, 0x88);
    r[8 + j].v = (Raw)_mm512_shuffle_f32x4(even0, even1, 0xdd);
    r[12 + j].v = (Raw)_mm512_shuffle_f32x4(odd0, odd1, 0xdd);
  }
#else
  transpose<Vec<T>::width>(r);
#endif
}

// a0 b0 c0 a1 b1 c1 ...
template <class T, int v, int... i>
FASTCV_INLINE Vec<T> third_of_threes(Vec<T> a, Vec<T> b, Vec<T> c, std::integer_sequence<int, i...>) {
  constexpr int w = Vec<T>::width;
  const auto ab = __builtin_shufflevector(a.v, b.v, ((v * w + i) / 3 + ((v * w + i) % 3 == 1 ? w : 0))...);
  return Vec<T>(__builtin_shufflevector(ab, c.v, ((v * w + i) % 3 == 2 ? w + (v * w + i) / 3 : i)...));
}
template <class T>
FASTCV_INLINE void store_threes(T* out, Vec<T> a, Vec<T> b, Vec<T> c) {
  constexpr int w = Vec<T>::width;
  constexpr auto lanes = std::make_integer_sequence<int, w>();
  store(out, third_of_threes<T, 0>(a, b, c, lanes));
  store(out + w, third_of_threes<T, 1>(a, b, c, lanes));
  store(out + 2 * w, third_of_threes<T, 2>(a, b, c, lanes));
}

// [rows][row_step] -> [width][to_step]; a whole square, or rows and columns of one, the rest of it read as zeros.
template <class T, class S>
FASTCV_INLINE void load_square(Vec<T> (&r)[Vec<T>::width], const S* from, int64_t row_step, int rows, int columns) {
  constexpr int w = Vec<T>::width;
  if (rows == w && columns == w) {
#pragma GCC unroll 16
    for (int i = 0; i < w; ++i) r[i] = load(from + i * row_step);
  } else if (columns == w) {
    for (int i = 0; i < w; ++i) r[i] = i < rows ? load(from + i * row_step) : Vec<T>(T(0));
  } else {
    for (int i = 0; i < w; ++i) r[i] = i < rows ? load_n(from + i * row_step, columns) : Vec<T>(T(0));
  }
  transpose_square(r);
}

}  // namespace fastcv::FASTCV_ISA
