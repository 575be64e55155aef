// Winograd convolution of float32 whose products are made on AMX tiles, of two bfloat16 parts of each factor:
// hi * hi + hi * lo + lo * hi, as igemm_bf16x3_amx multiplies. The transforms stay float32.
//
// F(4x4) amplifies what the parts leave out 7 times: largest error against float64, relative to the largest output,
// 3e-5 to 4.5e-5 where igemm_bf16x3_amx has 5e-6 and TF32 3.4e-4. Infinities and NaN spread through their tile, and so
// do numbers that the transforms carry beyond the largest bfloat16.
#include "conv/conv.h"
#include "conv/conv_amx.h"
#include "conv/conv_winograd.h"

namespace fastcv::FASTCV_ISA {
namespace {

// V: panels of up to 16 rows, all of a block alike, [channels / 32][part][row][32]: a row holds channels c and c + 16
// side by side. U: [point][block of 32 outputs][channels / 32][part][pair][output][2]. S: [block of 32
// outputs][row][32].
struct WinogradParts {
  using Tile = TileProduct<2>;
  static constexpr int L = Vec<float>::width;
  static constexpr int kRows = 16, kChannels = 32;
  static constexpr int kWide = 4;
  // Parts of inputs are dear, and two factors that come from the second cache hold the tiles up.
  static constexpr bool kRepeatsInputs = false, kPointsFirst = true;
  static constexpr int64_t least_tiles(bool streamed) { return streamed ? 3 * kRows / 2 : kRows; }
  static constexpr int64_t floats_of_block(bool streamed) { return streamed ? 3 << 19 : 1 << 18; }

  static int64_t chunk(int64_t, int) { return 128; }
  static int64_t weight_channels(int64_t channels) { return round_up(channels, kChannels); }
  static int64_t pitch(int64_t) { return 32; }
  // An even number of panels: tiles are multiplied two by two.
  static int64_t panels(int64_t tiles) { return tiles <= kRows ? 1 : 2 * ceil_div(tiles, 2 * kRows); }
  static int64_t room(int64_t tiles) { return panels(tiles) * ceil_div(tiles, panels(tiles)); }
  static void cut(WinogradBlock& b) {
    b.panels = panels(b.count);
    b.rows = ceil_div(b.count, b.panels);
    b.longer = 0;
  }

  // High and low parts of two vectors, theirs side by side.
  FASTCV_INLINE void put_pair(Vec<float> even, Vec<float> odd, float* high, float* low) {
    const auto pair = [](__m512i a, __m512i b) {
      return (Vec<float>)(__m512)_mm512_or_si512(_mm512_srli_epi32(a, 16), b);
    };
    __m512i a = near_bf16((__m512i)even.v), b = near_bf16((__m512i)odd.v);
    const __m512 rest_a = _mm512_sub_ps(even.v, (__m512)a), rest_b = _mm512_sub_ps(odd.v, (__m512)b);
    if (_mm512_cmp_ps_mask(rest_a, rest_b, _CMP_UNORD_Q) != 0) [[unlikely]] {  // near_bf16 loses a NaN full of ones
      const __m512i nan = _mm512_set1_epi32(0x7fc00000);
      a = _mm512_mask_mov_epi32(a, _mm512_cmp_ps_mask(rest_a, rest_a, _CMP_UNORD_Q), nan);
      b = _mm512_mask_mov_epi32(b, _mm512_cmp_ps_mask(rest_b, rest_b, _CMP_UNORD_Q), nan);
    }
    store(high, pair(a, b));
    store(low, pair(near_bf16((__m512i)rest_a), near_bf16((__m512i)rest_b)));
  }

  // The first vector waits as it is where its high part will stand.
  template <int MH, int MW>
  FASTCV_INLINE void input(int i, const float* x, int64_t row, int64_t column, float* out, int64_t step, int64_t rows) {
    if (i == 0) return winograd_input<MH, MW>(x, row, column, out, step);
    transform_tile<WinogradAlgebra<MH>::input, WinogradAlgebra<MW>::input>(
        [&](int r, int c) __attribute__((always_inline)) { return load(x + r * row + c * column); },
        [&](int r, int c, Vec<float> v) __attribute__((always_inline)) {
          float* to = out + (r * (MW + 2) + c) * step;
          put_pair(load(to), v, to, to + rows * L);
        });
  }

  template <int MH, int MW, bool Rotated>
  static void weights(const float* taps, int64_t channels, int64_t width, float* u, int64_t u_point) {
    alignas(64) static constexpr float kNone[9 * L]{};
    alignas(64) float points[(MH + 2) * (MW + 2) * L];
    const auto taps_of = [&](int64_t c) { return c < channels ? taps + c * 9 * L : kNone; };
    for (int64_t c = 0; c < channels; c += kChannels, u += kChannels * width)
      for (int64_t j = 0; j < L; ++j) {
        winograd_weight<MH, MW, Rotated>(taps_of(c + j), points, L);
        const float* w = taps_of(c + j + L);
        transform_tile<WinogradAlgebra<MH>::weight, WinogradAlgebra<MW>::weight>(
            [&](int r, int s)
                __attribute__((always_inline)) { return load(w + (Rotated ? 8 - (r * 3 + s) : r * 3 + s) * L); },
            [&](int r, int s, Vec<float> v) __attribute__((always_inline)) {
              const int xi = r * (MW + 2) + s;
              float* to = u + xi * u_point + j * width;
              put_pair(load(points + xi * L), v, to, to + L * width);
            });
      }
  }

  // For each point all outputs at once: its V stays near, and U is read once.
  static void multiply(const WinogradProduct& p, const float* u) {
    constexpr int64_t kLine = 64;
    const WinogradBlock& b = p.block;
    const TileSession session(tiles_of_rows(b.rows));
    TileStep steps[kMostWinogradTileChannels / kChannels];
    const int64_t tile = b.rows * kLine;
    const int64_t channels = weight_channels(p.channels);
    TileSum s{steps, channels / kChannels, tile, nullptr, nullptr, nullptr, 0, b.rows, p.c0 > 0};
    for (int64_t i = 0; i < s.count; ++i) steps[i] = {i * 2 * tile, i * L};
    const int64_t block = channels * 32, rows = b.first_of(p.last) - b.first_of(p.first);
    const int64_t pairs = ceil_div(p.last - p.first, 2);
    for (int64_t xi = 0; xi < p.points; ++xi, u += p.u_point)
      for (int64_t n = 0; n < p.width; n += 32) {
        const int vectors = p.width - n > L ? 2 : 1;
        s.weights = reinterpret_cast<const uint32_t*>(u + n / 32 * block);
        // What is multiplied next.
        const bool last = n + 32 >= p.width;
        s.ahead = reinterpret_cast<const char*>(last ? u + p.u_point : u + (n / 32 + 1) * block);
        s.ahead_lines = ceil_div(block * 4 / kLine, pairs * s.count);
        if (last && xi + 1 == p.points) s.ahead = nullptr;
        for (int64_t panel = p.first; panel < p.last;) {
          const int64_t count = Tile::tiles_at_once(p.last - panel, vectors);
          PixelTile tiles[4];
          for (int64_t m = 0; m < count; ++m)
            tiles[m] = {b.v + xi * b.v_point + b.first_of(panel + m) * p.c_padded + p.c0 * b.rows, kLine};
          Tile::multiply(s, false, tiles, count, vectors,
                         p.sums + xi * p.s_point + rows * n + (b.first_of(panel) - b.first_of(p.first)) * 32);
          panel += count;
          if (s.ahead != nullptr) s.ahead += s.ahead_lines * kLine * s.count;
        }
      }
  }
};

}  // namespace

void conv_winograd4_bf16x3(const ConvParams& p, const Exec& exec) {
  Winograd<4, 4, WinogradParts>(p, exec.threads).run(exec);
}
size_t conv_winograd4_bf16x3_workspace(const ConvParams& p, int threads) {
  return Winograd<4, 4, WinogradParts>(p, threads).workspace();
}
size_t conv_winograd4_bf16x3_kept(const ConvParams& p) { return Winograd<4, 4, WinogradParts>(p, 1).kept(); }

}  // namespace fastcv::FASTCV_ISA
