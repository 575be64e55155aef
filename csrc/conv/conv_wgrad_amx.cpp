// Weight gradient of bfloat16 on AMX tiles: 16 output channels times 32 pixels, times 32 pixels times 16 columns.
#include "conv/conv_amx.h"
#include "conv/conv_wgrad_pairs.h"

namespace fastcv::FASTCV_ISA {
namespace {

struct TileSteps : PairSteps {
  static constexpr int kRows = 16;
  static constexpr bool kTiles = true;
  using Session = TileSession;
  static constexpr int64_t kSteps = 16;  // of a tile

  // The output gradient of rows [0, rows) from `channel` on as [row][step], the steps padded with zeros to whole tiles.
  static void pack_a(const Plan<TileSteps>& plan, int64_t channel, int64_t rows, int64_t first, int64_t n, E* dst) {
    constexpr int64_t pitch = Plan<TileSteps>::kPitch;
    const ConvWgradParams& p = plan.p;
    const int64_t channel_step = p.grad_channels_last ? 1 : plan.plane;
    const int64_t pixel_step = p.grad_channels_last ? p.out_channels : 1;
    for (int64_t k = 0; k < rows; k += kRows) {
      const int have = static_cast<int>(least(kRows, rows - k));
      // A short run writes beyond its end: into what the next run or the padding will hold.
      for_images(plan, first, n, [&](int64_t image, int64_t pixel, int64_t pixels, int64_t at) {
        const S* from = static_cast<const S*>(p.grad_output) + image * p.out_channels * plan.plane +
                        (channel + k) * channel_step + pixel * pixel_step;
        for (int64_t i = 0; i < pixels; i += kPair * kSteps) {
          E* out = dst + k * pitch + at + i / kPair;
          Vec<E> block[kRows];
          if (p.grad_channels_last) {
            for (int64_t s = 0; s < kSteps; ++s) {
              const int64_t j = i + s * kPair;
              block[s] = j < pixels ? channels(from + j * pixel_step, pixel_step,
                                               static_cast<int>(least(kPair, pixels - j)), have)
                                    : Vec<E>(E(0));
            }
            transpose_square(block);
          } else {
            for (int r = 0; r < kRows; ++r)
              block[r] = r < have
                             ? steps(from + r * channel_step + i, static_cast<int>(least(kPair * kSteps, pixels - i)))
                             : Vec<E>(E(0));
          }
          for (int r = 0; r < kRows; ++r) store(out + r * pitch, block[r]);
        }
      });
      for (int r = 0; r < kRows; ++r) store(dst + (k + r) * pitch + n, Vec<E>(E(0)));
    }
  }

  static void multiply_panel(const E* a, E* b, int64_t n, int vectors, int64_t row_panels, T* out, int64_t out_step,
                             bool add) {
    constexpr int64_t pitch = Plan<TileSteps>::kPitch;
    const int64_t width = int64_t{16} * vectors;
    TileStep tile_steps[kChunk / kSteps];
    TileSum s{tile_steps, ceil_div(n, kSteps), 0, reinterpret_cast<const uint32_t*>(b), nullptr, nullptr, 0};
    for (int64_t i = 0; i < s.count; ++i) tile_steps[i] = {i * kSteps * static_cast<int64_t>(sizeof(E)), i * kSteps};
    for (int64_t i = n * width; i < s.count * kSteps * width; i += w) store(b + i, Vec<E>(E(0)));
    alignas(64) T sums[2 * kRows * 32];
    for (int64_t r = 0; r < row_panels; r += 2) {
      const bool two = r + 1 < row_panels;
      const PixelTile tiles[2] = {{a + r * kRows * pitch, pitch * 4}, {a + (r + 1) * kRows * pitch, pitch * 4}};
      TileProduct<1>::multiply(s, false, tiles, two ? 2 : 1, vectors, sums);
      for (int64_t m = 0; m < (two ? 2 : 1); ++m)
        finish_tile<TileSteps>(sums + m * kRows * 32, vectors, out + (r + m) * out_step, add);
    }
  }

  // The chunk of steps [first, first + n) at the panels [first_panel, last_panel).
  static void run_chunk(const Plan<TileSteps>& plan, int64_t group, int64_t channel, int64_t rows, int64_t first,
                        int64_t n, int64_t first_panel, int64_t last_panel, E* a, E* b, G* gathered, T* out, bool add) {
    pack_a(plan, channel, rows, first, n, a);
    for (int64_t panel = first_panel; panel < last_panel; ++panel) {
      const int64_t column = panel * Plan<TileSteps>::panel;
      const int vectors = static_cast<int>(least(kVectors, ceil_div(plan.columns - column, w)));
      pack_b(plan, group, column, vectors, first, n, b, gathered);
      multiply_panel(a, b, n, vectors, ceil_div(rows, kRows), out + panel * Plan<TileSteps>::tile,
                     plan.column_panels * Plan<TileSteps>::tile, add);
    }
  }
};

}  // namespace

size_t conv_wgrad_bf16_workspace(const ConvWgradParams& p, int threads) { return workspace<TileSteps>(p, threads); }
void conv_wgrad_bf16(const ConvWgradParams& p, const Exec& exec) { run<TileSteps>(p, exec); }

}  // namespace fastcv::FASTCV_ISA
