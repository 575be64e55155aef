// Weight gradient of 3x3 convolutions of stride 1 by Winograd's F(MH x MW, 3 x 3) in float32, any padding, dilation and
// groups (conv_winograd_algebra.h has the formulas, conv_winograd_tiles.h the tiles). Per group, and per block of
// input and output channels:
//
//   V[point][vector of input channels][tile][lane]    = transformed inputs
//   E[point][vector of output channels][tile][lane]   = transformed output gradients
//   S[point][output channel][input channel]           = sum over tiles of E * V, one small matrix product per point
//   grad_weight                                       = transformed S
//
// Tiles come in spans whose V and E stay in the last cache. A sum runs over kSteps tiles in registers and then joins
// what stands in S, which keeps rounding errors small: that order follows from the geometry alone. Threads share V, E
// and S, and take vectors of channels, then points with a vector of output channels, then rows of grad_weight.
#pragma once
#include "conv/conv_wgrad.h"
#include "conv/conv_winograd_algebra.h"
#include "conv/conv_winograd_tiles.h"

namespace fastcv::FASTCV_ISA {

#if defined(__AVX512F__)
inline constexpr int kWinogradGradRows = 8;  // of the register tile
#else
inline constexpr int kWinogradGradRows = 4;
#endif
inline constexpr int kWinogradGradVectors = 2;

// s[m][n * L ..] (+)= sum over `steps` of e[step * L + m] * the vector at v + n * v_pitch + step * L.
template <int NV>
[[gnu::noinline]] static void winograd_outer_products(const float* e, const float* v, int64_t v_pitch, int64_t steps,
                                                      float* s, int64_t s_pitch, bool first) {
  constexpr int L = Vec<float>::width, MR = kWinogradGradRows;
  Vec<float> sum[MR][NV];
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 2
    for (int n = 0; n < NV; ++n) sum[m][n] = Vec<float>(0.0f);
  for (int64_t t = 0; t < steps; ++t, e += L, v += L) {
    Vec<float> w[NV];
#pragma GCC unroll 2
    for (int n = 0; n < NV; ++n) w[n] = load(v + n * v_pitch);
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
      const Vec<float> x(e[m]);
#pragma GCC unroll 2
      for (int n = 0; n < NV; ++n) sum[m][n] = fma(x, w[n], sum[m][n]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 2
    for (int n = 0; n < NV; ++n) {
      float* out = s + m * s_pitch + n * L;
      store(out, first ? sum[m][n] : load(out) + sum[m][n]);
    }
}

template <int MH, int MW>
class WinogradWgrad {
  static constexpr int NH = MH + 2, NW = MW + 2, kPoints = NH * NW, L = Vec<float>::width;
  static constexpr int64_t kSteps = 32;
  static constexpr int64_t kOutputs = 128, kInputs = 256;  // channels of a block
  static constexpr int64_t kSpanFloats = 3 << 19, kLeastSpan = 128, kMostSpan = 384;
  static constexpr int64_t kPad = 5 * L;  // floats between points: their streams must not share cache sets

 public:
  WinogradWgrad(const ConvWgradParams& params, int threads)
      : p(params), tiles(p.batch, p.out, p.dilation), slots(threads) {
    cg = p.in_channels / p.groups;
    kg = p.out_channels / p.groups;
    inputs = least(kInputs, round_up(cg, L));
    outputs = least(kOutputs, round_up(kg, L));
    x = {static_cast<const float*>(p.input),
         p.in_channels,
         {p.in[1], p.in[2]},
         {-p.pad[1], -p.pad[2]},
         p.input_channels_last};
    dy = {static_cast<const float*>(p.grad_output), p.out_channels, {p.out[1], p.out[2]}, {0, 0}, p.grad_channels_last};
    unit = tiles.unit(p.input_channels_last && p.grad_channels_last);
    span = most(kLeastSpan, least(kMostSpan, kSpanFloats / (kPoints * (inputs + outputs)) / kSteps * kSteps));
    span = least(tiles.count, round_up(span, unit));
    v_point = inputs * span + kPad;
    e_point = outputs * span + kPad;
    s_point = outputs * inputs + kPad;
    e_at = bytes(kPoints * v_point);
    s_at = e_at + bytes(kPoints * e_point);
    table_at = s_at + bytes(kPoints * s_point);
    slots_at = table_at + static_cast<size_t>(round_up(span * static_cast<int64_t>(sizeof(WinogradTile)), 64));
    slot_bytes = bytes(most(kPoints, tiles.template band_pixels<NH, NW>()) * L);
  }
  size_t workspace() const { return slots_at + static_cast<size_t>(slots) * slot_bytes; }

  void run(const Exec& exec) const {
    char* base = static_cast<char*>(exec.workspace);
    float *v = reinterpret_cast<float*>(base), *e = reinterpret_cast<float*>(base + e_at);
    float* s = reinterpret_cast<float*>(base + s_at);
    auto* table = reinterpret_cast<WinogradTile*>(base + table_at);
    for (int64_t group = 0; group < p.groups; ++group)
      for (int64_t k0 = 0; k0 < kg; k0 += outputs)
        for (int64_t c0 = 0; c0 < cg; c0 += inputs) {
          for (int64_t tile = 0; tile < tiles.count; tile += span) {
            const int64_t count = least(span, tiles.count - tile);
            tiles.list(tile, count, table);
            transform(exec, base, group, k0, c0, table, tile, count, v, e);
            multiply(exec, k0, c0, count, v, e, s);
            write(exec, group, k0, c0, s, tile == 0);
          }
        }
  }

 private:
  static size_t bytes(int64_t floats) { return static_cast<size_t>(round_up(floats * 4, 64)); }
  int64_t vectors(int64_t channels, int64_t first, int64_t block) const {
    return ceil_div(least(block, channels - first), L);
  }

  void transform(const Exec& exec, char* base, int64_t group, int64_t k0, int64_t c0, const WinogradTile* table,
                 int64_t tile, int64_t count, float* v, float* e) const {
    const int64_t x_vectors = vectors(cg, c0, inputs), all = x_vectors + vectors(kg, k0, outputs);
    const int64_t cuts = unit > 1 ? 1 : least(count, ceil_div(4 * exec.threads, all));
    parallel_slots(exec, all * cuts, 1, [&](int slot, int64_t first, int64_t last) {
      float* buffer = reinterpret_cast<float*>(base + slots_at + static_cast<size_t>(slot) * slot_bytes);
      for (int64_t i = first; i < last; ++i) {
        const int64_t vector = i / cuts, begin = count * (i % cuts) / cuts, end = count * (i % cuts + 1) / cuts;
        if (vector < x_vectors) {
          const int64_t c = c0 + vector * L;
          float* out = v + (vector * count + begin) * L;
          winograd_windows<NH, NW>(tiles, x, group * cg + c, static_cast<int>(least(L, cg - c)), table, tile, begin,
                                   end, buffer, [&](const float* from, int64_t row, int64_t column) {
                                     winograd_input<MH, MW>(from, row, column, out, v_point);
                                     out += L;
                                   });
        } else {
          const int64_t k = k0 + (vector - x_vectors) * L;
          float* out = e + ((vector - x_vectors) * count + begin) * L;
          winograd_windows<MH, MW>(tiles, dy, group * kg + k, static_cast<int>(least(L, kg - k)), table, tile, begin,
                                   end, buffer, [&](const float* from, int64_t row, int64_t column) {
                                     winograd_output_transposed<MH, MW>(from, row, column, out, e_point);
                                     out += L;
                                   });
        }
      }
    });
  }

  void multiply(const Exec& exec, int64_t k0, int64_t c0, int64_t count, const float* v, const float* e,
                float* s) const {
    const int64_t x_vectors = vectors(cg, c0, inputs), dy_vectors = vectors(kg, k0, outputs);
    parallel_for(exec, kPoints * dy_vectors, 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t point = i / dy_vectors, vector = i % dy_vectors;
        const float *e_row = e + point * e_point + vector * count * L, *v_row = v + point * v_point;
        float* s_row = s + point * s_point + vector * L * inputs;
        for (int64_t t = 0; t < count; t += kSteps) {
          const int64_t steps = least(kSteps, count - t);
          for (int64_t c = 0; c < x_vectors; c += kWinogradGradVectors)
            for (int m = 0; m < L; m += kWinogradGradRows) {
              const float *from_e = e_row + t * L + m, *from_v = v_row + (c * count + t) * L;
              float* to = s_row + m * inputs + c * L;
              if (c + kWinogradGradVectors <= x_vectors)
                winograd_outer_products<kWinogradGradVectors>(from_e, from_v, count * L, steps, to, inputs, t == 0);
              else winograd_outer_products<1>(from_e, from_v, count * L, steps, to, inputs, t == 0);
            }
        }
      }
    });
  }

  void write(const Exec& exec, int64_t group, int64_t k0, int64_t c0, const float* s, bool first_span) const {
    const int64_t rows = least(outputs, kg - k0), columns = least(inputs, cg - c0);
    parallel_for(exec, rows, 8, [&](int64_t first, int64_t last) {
      for (int64_t k = first; k < last; ++k) {
        float* row = static_cast<float*>(p.grad_weight) + (group * kg + k0 + k) * cg * 9;
        for (int64_t c = 0; c < columns; c += L) {
          const int n = static_cast<int>(least(L, columns - c));
          Vec<float> taps[9];
          winograd_weight_transposed<MH, MW>(s + k * inputs + c, s_point, taps);
          if (p.weight_channels_last) {
#pragma GCC unroll 9
            for (int tap = 0; tap < 9; ++tap) write_run(row + tap * cg + c0 + c, taps[tap], n, first_span);
          } else {
            write_rows_of_nine(row + (c0 + c) * 9, taps, n, first_span);
          }
        }
      }
    });
  }

  FASTCV_INLINE void write_run(float* out, Vec<float> v, int n, bool first_span) {
    store_n(out, first_span ? v : load_n(out, n) + v, n);
  }

  // n rows of nine numbers, one from each tap.
  static void write_rows_of_nine(float* out, const Vec<float> (&taps)[9], int n, bool first_span) {
    if constexpr (L >= 16) {
      Vec<float> square[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) square[i] = i < 9 ? taps[i] : Vec<float>(0.0f);
      transpose<L>(square);
      for (int j = 0; j < n; ++j) write_run(out + j * 9, square[j], 9, first_span);
    } else {
      float columns[9][L];
#pragma GCC unroll 9
      for (int tap = 0; tap < 9; ++tap) store(columns[tap], taps[tap]);
      for (int j = 0; j < n; ++j)
        for (int tap = 0; tap < 9; ++tap, ++out) *out = first_span ? columns[tap][j] : *out + columns[tap][j];
    }
  }

  const ConvWgradParams& p;
  const WinogradTiles<MH, MW> tiles;
  const int slots;
  WinogradImages x, dy;
  int64_t cg, kg, inputs, outputs;  // channels of a group; of a block, whole vectors
  int64_t unit, span;               // tiles of a span, a multiple of unit
  int64_t v_point, e_point, s_point;
  size_t e_at, s_at, table_at, slots_at, slot_bytes;
};

}  // namespace fastcv::FASTCV_ISA
