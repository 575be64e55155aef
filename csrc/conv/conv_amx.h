// Convolution on matrix tiles: 16 pixels times 32 channels, times 32 channels times 16 output channels, summed in
// float32. Same packed pairs of weights as the dot products of *_avx512bf16.cpp, same engine (conv_igemm.h); pixels
// come from a window in which those of a tile lie at even distances (conv_flat.h).
//
// bfloat16 is multiplied as it is. float32 and float16 are split into bfloat16 parts that add up to the number (hi + lo
// for float16 exactly, for float32 to 2^-16; hi + mid + lo to 2^-24) and the products of parts that count are summed,
// small ones first. An infinity or NaN is its own hi, its other parts are zero, and where products of two parts would
// make inf * 0 of it a copy of hi stands in that has zeros in its place.
#pragma once
#include "common/amx.h"
#include "conv/conv_flat.h"

namespace fastcv::FASTCV_ISA {

// Nearest bfloat16, as a float; a finite number stays finite.
FASTCV_INLINE __m512i nearest_bf16(__m512i x) {
  const __m512i infinity = _mm512_set1_epi32(0x7f800000);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(x, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(x, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  // Above the largest bfloat16 the number is cut off instead: so is infinity, which stays as it is.
  const __mmask16 beyond = _mm512_cmpeq_epi32_mask(_mm512_and_si512(rounded, infinity), infinity);
  const __m512i nearest = _mm512_mask_blend_epi32(beyond, rounded, x);
  const __mmask16 nan = _mm512_cmp_ps_mask((__m512)x, (__m512)x, _CMP_UNORD_Q);
  return _mm512_and_si512(_mm512_mask_or_epi32(nearest, nan, x, _mm512_set1_epi32(0x400000)),
                          _mm512_set1_epi32(static_cast<int>(0xffff0000u)));
}

static inline void run_tiles(const TileStrip& s, int64_t tiles, int vectors);

// How many parts a number is cut into, and which products are summed.
template <int Parts>
struct TileProduct {
  using X = bf16;
  using W = uint32_t;  // two channels of one output channel
  using Acc = float;
  static constexpr int kPair = 2;
  static constexpr bool kTiles = true, kRounds = false;
  using Session = TileSession;
  static void run(const TileStrip& s, int64_t tiles, int vectors) { run_tiles(s, tiles, vectors); }
  // The last of several stored parts is hi with zeros for infinities and NaN; it is written only if there are any.
  static constexpr int kParts = Parts, kStored = Parts == 1 ? 1 : Parts + 1;
  static constexpr int kProducts = Parts * (Parts + 1) / 2;
  struct PartPair {
    int x, w;
  };
  // Parts 0 and 0 last; before them all whose order is lower.
  static constexpr PartPair product(int i) {
    for (int order = Parts - 1; order >= 0; --order)
      for (int x = order; x >= 0; --x)
        if (i-- == 0) return {x, order - x};
    return {0, 0};
  }
  // What is read for part `part` of one factor where the other's is `other`: only hi * hi may see what is not finite.
  static constexpr int stored(int part, int other, bool any_special) {
    return part == 0 && other != 0 && any_special ? Parts : part;
  }

  struct Split {
    __m512i part[kStored];  // as float32
    bool special;
  };
  FASTCV_INLINE Split split(Vec<Acc> v) {
    Split s;
    const __m512i x = (__m512i)v.v, infinity = _mm512_set1_epi32(0x7f800000);
    s.part[0] = nearest_bf16(x);
    s.special = false;
    if constexpr (Parts > 1) {
      const __mmask16 special = _mm512_cmpeq_epi32_mask(_mm512_and_si512(x, infinity), infinity);
      s.special = special != 0;
      __m512 rest = _mm512_maskz_sub_ps(static_cast<__mmask16>(~special), (__m512)x, (__m512)s.part[0]);
#pragma GCC unroll 2
      for (int i = 1; i < Parts; ++i) {
        s.part[i] = nearest_bf16((__m512i)rest);
        rest = _mm512_sub_ps(rest, (__m512)s.part[i]);
      }
      s.part[Parts] = _mm512_maskz_mov_epi32(static_cast<__mmask16>(~special), s.part[0]);
    }
    return s;
  }
  // 16 numbers, part by part `pitch` elements apart; returns whether one is not finite.
  FASTCV_INLINE bool put(X* out, int64_t pitch, Vec<Acc> v) {
    const Split s = split(v);
#pragma GCC unroll 4
    for (int i = 0; i < kStored; ++i)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i * pitch),
                          _mm512_cvtepi32_epi16(_mm512_srli_epi32(s.part[i], 16)));
    return s.special;
  }
  // Two channels of 16 output channels.
  FASTCV_INLINE bool pack_pair(W* out, int64_t pitch, Vec<Acc> even, Vec<Acc> odd) {
    const Split a = split(even), b = split(odd);
#pragma GCC unroll 4
    for (int i = 0; i < kStored; ++i)
      _mm512_storeu_si512(out + i * pitch, _mm512_or_si512(_mm512_srli_epi32(a.part[i], 16), b.part[i]));
    return a.special || b.special;
  }
};

// M tiles of pixels by N vectors of output channels into sums[M * 16][32].
template <int M, int N>
[[gnu::noinline]] static void multiply_tiles(const TileStrip& s, int64_t tile, int vector, int vectors, float* sums) {
  static_assert(M * N <= 4 && N <= 2);
  constexpr int kA = 4, kB = 6;  // registers 0 to 3 hold the sums
  Tiles::fence();
  const auto each = [](auto&& f) {
    f(std::integral_constant<int, 0>{});
    if constexpr (M > 1) f(std::integral_constant<int, 1>{});
    if constexpr (M > 2) f(std::integral_constant<int, 2>{}), f(std::integral_constant<int, 3>{});
  };
  each([](auto m) {
    Tiles::zero<m * N>();
    if constexpr (N == 2) Tiles::zero<m * N + 1>();
  });
  const char* x[M];
  int64_t pitch[M];
  for (int m = 0; m < M; ++m) x[m] = static_cast<const char*>(s.tiles[tile + m].at), pitch[m] = s.tiles[tile + m].pitch;
  const int64_t w_pitch = int64_t{64} * vectors;
  const char* w = reinterpret_cast<const char*>(s.weights) + 64 * vector;
  for (int64_t i = 0; i < s.steps; ++i) {
    const char* weights = w + s.weight_steps[i] * w_pitch;
    const int64_t step = s.pixel_steps[i];
    Tiles::load<kB>(weights, w_pitch);
    if constexpr (N == 2) Tiles::load<kB + 1>(weights + 64, w_pitch);
    each([&](auto m) {
      constexpr int a = kA + m % 2;
      Tiles::load<a>(x[m] + step, pitch[m]);
      Tiles::multiply_add_bf16<m * N, a, kB>();
      if constexpr (N == 2) Tiles::multiply_add_bf16<m * N + 1, a, kB + 1>();
    });
  }
  each([&](auto m) {
    Tiles::store<m * N>(sums + m * 16 * 32, 128);
    if constexpr (N == 2) Tiles::store<m * N + 1>(sums + m * 16 * 32 + 16, 128);
  });
}

static inline void run_tiles(const TileStrip& s, int64_t tiles, int vectors) {
  alignas(64) float sums[4 * 16 * 32];
  for (int v = 0; v < vectors; v += 2) {
    const int n = v + 2 <= vectors ? 2 : 1;
    for (int64_t t = 0; t < tiles;) {
      int64_t m = least(n == 2 ? 2 : 4, tiles - t);
      if (n == 2 && m == 2) multiply_tiles<2, 2>(s, t, v, vectors, sums);
      else if (n == 2) multiply_tiles<1, 2>(s, t, v, vectors, sums);
      else if (m == 4) multiply_tiles<4, 1>(s, t, v, vectors, sums);
      else
        m = least(2, m),
        m == 2 ? multiply_tiles<2, 1>(s, t, v, vectors, sums) : multiply_tiles<1, 1>(s, t, v, vectors, sums);
      for (int i = 0; i < n; ++i) {
        const Vec<float> bias = load(s.bias + (v + i) * 16);
        for (int64_t r = 0; r < m * 16; ++r) {
          const int64_t place = s.places[t * 16 + r];
          if (place < 0) continue;
          store(s.out + (place - s.first_place) * s.out_pitch + (v + i) * 16, load(sums + r * 32 + i * 16) + bias);
        }
      }
      t += m;
    }
  }
}

}  // namespace fastcv::FASTCV_ISA
