// The products of a Winograd convolution in vectors of float32: register tiles of 14 tiles (6 before AVX-512) by two
// vectors of outputs.
//
// V: panels of near-equal rows, [channels / L][rows][L] each. U: [block of 32 outputs][chunk][point][channel][width],
// width 32, or L in the last block of few. S: [tile][width].
#pragma once
#include "conv/conv_winograd_algebra.h"
#include "conv/conv_winograd_panels.h"

namespace fastcv::FASTCV_ISA {

#if defined(__AVX512F__)
inline constexpr int kWinogradRows = 14;  // of the register tile: 14 x 2 sums, 2 weights, 1 input in 32 registers
#else
inline constexpr int kWinogradRows = 6;
#endif

// s[MR][NV] (+)= v * u over the channels. v is [channels / L][MR][L]. Meanwhile a vector per channel, `ahead_step`
// apart, is fetched from `ahead` to the second cache.
template <int MR, int NV>
[[gnu::noinline]] static void winograd_multiply(const float* v, const float* u, int64_t channels, float* s,
                                                int64_t s_pitch, bool first, const float* ahead, int64_t ahead_step) {
  using P = PlainProduct<float>;
  constexpr int L = Vec<float>::width;
  Vec<float> sum[MR][NV];
#pragma GCC unroll 14
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 2
    for (int n = 0; n < NV; ++n) sum[m][n] = Vec<float>(0.0f);
  for (; channels > 0; channels -= L, v += MR * L) {
    const int64_t lanes = least(L, channels);
    for (int64_t c = 0; c < lanes; ++c, u += NV * L, ahead += ahead_step) {
      __builtin_prefetch(ahead, 0, 2);
      Vec<float> w[NV];
#pragma GCC unroll 2
      for (int n = 0; n < NV; ++n) w[n] = load(u + n * L);
#pragma GCC unroll 14
      for (int m = 0; m < MR; ++m) {
        const Vec<float> x = P::spread(v + m * L + c);
#pragma GCC unroll 2
        for (int n = 0; n < NV; ++n) sum[m][n] = fma(x, w[n], sum[m][n]);
      }
    }
  }
#pragma GCC unroll 14
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 2
    for (int n = 0; n < NV; ++n) {
      float* out = s + m * s_pitch + n * L;
      store(out, first ? sum[m][n] : load(out) + sum[m][n]);
    }
}

template <int NV>
static void winograd_multiply(int rows, const float* v, const float* u, int64_t channels, float* s, int64_t s_pitch,
                              bool first, const float* ahead, int64_t ahead_step) {
  switch (rows) {
#define FASTCV_ROWS(r) \
  case r:              \
    return winograd_multiply<r, NV>(v, u, channels, s, s_pitch, first, ahead, ahead_step);
    FASTCV_ROWS(1)
    FASTCV_ROWS(2)
    FASTCV_ROWS(3)
    FASTCV_ROWS(4)
    FASTCV_ROWS(5)
    FASTCV_ROWS(6)
#if defined(__AVX512F__)
    FASTCV_ROWS(7)
    FASTCV_ROWS(8)
    FASTCV_ROWS(9)
    FASTCV_ROWS(10)
    FASTCV_ROWS(11)
    FASTCV_ROWS(12)
    FASTCV_ROWS(13)
    FASTCV_ROWS(14)
#endif
#undef FASTCV_ROWS
    default:
      __builtin_unreachable();
  }
}

struct WinogradVectors {
  static constexpr int L = Vec<float>::width;
  static constexpr int kRows = kWinogradRows, kChannels = L;  // tiles of a panel; channels that lie together in V
  static constexpr int kWide = 1;                             // blocks of outputs that are multiplied together
  static constexpr bool kRepeatsInputs = true;                // rather than meet once more
  static constexpr bool kPointsFirst = false;                 // whether all outputs of a point lie together in U
  static constexpr int64_t least_tiles(bool streamed) { return streamed ? 2 * kRows : kRows; }
  static constexpr int64_t floats_of_block(bool) { return 128 << 10; }  // of V and S, for the second cache

  // Longer chains are faster and less exact. The tiles that need the more exact sums are taken where 32 are enough
  // for the rule, larger ones where torch's own sums have lost more (conv.cpp).
  static int64_t chunk(int64_t channels, int outputs_of_tile) {
    return outputs_of_tile == 16 && channels > 64 ? 64 : 32;
  }
  static int64_t weight_channels(int64_t channels) { return channels; }
  static int64_t pitch(int64_t width) { return width; }
  static int64_t room(int64_t tiles) { return tiles; }
  static void cut(WinogradBlock& b) {
    b.panels = ceil_div(b.count, kRows);
    b.rows = b.count / b.panels;
    b.longer = b.count % b.panels;
  }

  template <int MH, int MW>
  FASTCV_INLINE void input(int, const float* x, int64_t row, int64_t column, float* out, int64_t step, int64_t) {
    winograd_input<MH, MW>(x, row, column, out, step);
  }

  // A vector of outputs of some channels, whose taps are [channel][9][L], to u of their block.
  template <int MH, int MW, bool Rotated>
  static void weights(const float* taps, int64_t channels, int64_t width, float* u, int64_t u_point) {
    for (int64_t c = 0; c < channels; ++c) winograd_weight<MH, MW, Rotated>(taps + c * 9 * L, u + c * width, u_point);
  }

  // Weights are read once by a few panels, faster than they come from the third cache, and no hardware looks ahead over
  // a page's end: so the first panels fetch those of the next point, which follow. Where weights are transformed chunk
  // by chunk, the next point's are near, and the first panel fetches the next chunk's taps.
  static void multiply(const WinogradProduct& p, const float* u) {
    const WinogradBlock& b = p.block;
    for (int64_t xi = 0; xi < p.points; ++xi, u += p.u_point)
      for (int64_t panel = p.first; panel < p.last; ++panel) {
        const int rows = b.rows_of(panel);
        const float* v = b.v + xi * b.v_point + b.first_of(panel) * p.c_padded + p.c0 * rows;
        float* s = p.sums + xi * p.s_point + (b.first_of(panel) - b.first_of(p.first)) * p.width;
        const int64_t part = panel - p.first, lines = p.width / L;  // of each channel's weights, a panel fetches one
        const float* ahead = u + (part < lines ? p.u_point + part * p.channels * L : 0);
        int64_t step = p.last - p.first < lines ? p.width : L;  // its neighbour comes along
        if (p.taps_ahead != nullptr && part == 0 && xi < 18) {  // nine points fetch a vector's
          ahead = p.taps_ahead + xi / 9 * p.taps_step + xi % 9 * p.channels * L;
          step = L;
        }
        if (lines == 2) winograd_multiply<2>(rows, v, u, p.channels, s, p.width, p.c0 == 0, ahead, step);
        else winograd_multiply<1>(rows, v, u, p.channels, s, p.width, p.c0 == 0, ahead, step);
      }
  }
};

}  // namespace fastcv::FASTCV_ISA
