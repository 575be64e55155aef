// Weight gradient of float32 on AMX tiles: both factors are cut into three bfloat16 parts as they are packed, and the
// six products of parts that count are summed (conv_amx.h): no less exact than float32 arithmetic, with its infinities
// and NaN. Parts below 2^-126 count as zeros.
#include "conv/conv_amx.h"
#include "conv/conv_wgrad_gemm.h"

namespace fastcv::FASTCV_ISA {
namespace {

struct PartSteps {
  using P = TileProduct<3>;
  using S = float;
  using T = float;
  using E = float;  // two pixels' parts, in the bits of a float that no arithmetic touches
  using G = float;
  static constexpr int kPair = 2, kRows = 16, kPlanes = P::kStored, w = 16;
  static constexpr bool kTiles = true;
  using Session = TileSession;
  static constexpr int64_t kSteps = 16;  // of a tile

  FASTCV_INLINE G get(const S* from) { return *from; }
  FASTCV_INLINE void move(G* to, const S* from, int n) {
    if (n == w) store(to, load(from));
    else store_n(to, load_n(from, n), n);
  }

  // The output gradient of rows [0, rows) from `channel` on as [row][plane][step], the steps padded with zeros to whole
  // tiles. Three planes unless `special`; returns whether a number is not finite, or has an infinite part.
  static bool pack_a(const Plan<PartSteps>& plan, int64_t channel, int64_t rows, int64_t first, int64_t n, bool special,
                     E* dst) {
    constexpr int64_t pitch = Plan<PartSteps>::kPitch, plane = Plan<PartSteps>::kPlanePitch;
    const int64_t planes = special ? kPlanes : P::kParts;
    const ConvWgradParams& p = plan.p;
    const int64_t channel_step = p.grad_channels_last ? 1 : plan.plane;
    const int64_t pixel_step = p.grad_channels_last ? p.out_channels : 1;
    __m512 poison = _mm512_setzero_ps();
    for (int64_t k = 0; k < rows; k += kRows) {
      const int have = static_cast<int>(least(kRows, rows - k));
      // A short run writes beyond its end: into what the next run or the padding will hold.
      for_images(plan, first, n, [&](int64_t image, int64_t pixel, int64_t pixels, int64_t at) {
        const S* from = static_cast<const S*>(p.grad_output) + image * p.out_channels * plan.plane +
                        (channel + k) * channel_step + pixel * pixel_step;
        for (int64_t i = 0; i < pixels; i += kPair * kSteps) {
          Vec<T> block[2][kRows];  // 16 pixels of a row, and 16 more
          for (int half = 0; half < 2; ++half) {
            const int64_t j = i + half * w;
            const int count = static_cast<int>(most(0, least(w, pixels - j)));
            if (p.grad_channels_last) {
              for (int s = 0; s < w; ++s)
                block[half][s] = s < count ? load_n(from + (j + s) * pixel_step, have) : Vec<T>(T(0));
              transpose_square(block[half]);
            } else {
              for (int r = 0; r < kRows; ++r)
                block[half][r] = r < have ? load_n(from + r * channel_step + j, count) : Vec<T>(T(0));
            }
          }
          bf16* out = reinterpret_cast<bf16*>(dst + k * pitch + at + i / kPair);
          if (special)
            for (int r = 0; r < kRows; ++r)
              P::put(out + r * pitch * kPair, plane * kPair, kPlanes, block[0][r], block[1][r]);
          else
            for (int r = 0; r < kRows; ++r)
              P::put_finite(out + r * pitch * kPair, plane * kPair, block[0][r], block[1][r], poison);
        }
      });
      for (int r = 0; r < kRows; ++r)
        for (int64_t i = 0; i < planes; ++i) store(dst + (k + r) * pitch + i * plane + n, Vec<E>(E(0)));
    }
    return special || _mm512_cmp_ps_mask(poison, poison, _CMP_UNORD_Q) != 0;
  }

  // A panel of B: [tile of steps][part][step][columns], and behind all of them the last plane, [step][columns], of
  // panels that are `special`.
  struct Panel {
    uint32_t *parts, *clean;
    int64_t width;
    bool special;
    __m512 poison = _mm512_setzero_ps();

    Panel(E* b, int vectors, bool with_clean)
        : parts(reinterpret_cast<uint32_t*>(b)),
          clean(parts + P::kParts * Plan<PartSteps>::panel * kChunk),
          width(int64_t{w} * vectors),
          special(with_clean) {}
    bool finite() const { return _mm512_cmp_ps_mask(poison, poison, _CMP_UNORD_Q) == 0; }
    // Both pixels of a step at 16 columns.
    void put(int64_t step, int64_t column, Vec<T> even, Vec<T> odd) {
      uint32_t* out = parts + step / kSteps * P::kParts * kSteps * width + step % kSteps * width + column;
      if (special) P::pack_pair(out, kSteps * width, clean + step * width + column, even, odd);
      else P::pack_pair_finite(out, kSteps * width, even, odd, poison);
    }
    void pad(int64_t n) {
      for (int64_t step = n; step % kSteps != 0; ++step)
        for (int64_t column = 0; column < width; column += w) put(step, column, Vec<T>(T(0)), Vec<T>(T(0)));
    }
  };
  static void pack_b(const Plan<PartSteps>& plan, int64_t group, int64_t column, int vectors, int64_t first, int64_t n,
                     Panel& panel, G* gathered) {
    if (plan.p.input_channels_last) {
      for_images(plan, first, n, [&](int64_t image, int64_t pixel, int64_t count, int64_t at) {
        gather_channels_last(plan, group, column, vectors, image, pixel, count, gathered);
        for (int64_t i = 0; i < count; i += kPair)
          for (int64_t j = 0; j < panel.width; j += w) {
            const G* pixels = gathered + i * panel.width + j;
            panel.put(at + i / kPair, j, load(pixels), i + 1 < count ? load(pixels + panel.width) : Vec<T>(T(0)));
          }
      });
    } else {
      for (int v = 0; v < vectors; ++v) {
        const int64_t stride = gather_rows(plan, group, column + v * w, first, n, gathered);
        for (int64_t i = 0; i < n * kPair; i += w) {
          Vec<T> block[w];
          for (int l = 0; l < w; ++l) block[l] = load(gathered + l * stride + i);
          transpose_square(block);
          for (int64_t e = 0; e < w && i + e < n * kPair; e += kPair)
            panel.put((i + e) / kPair, v * w, block[e], block[e + 1]);
        }
      }
    }
    panel.pad(n);
  }

  static void multiply_panel(const E* a, const Panel& b, int64_t n, bool special, int64_t row_panels, T* out,
                             int64_t out_step, bool add) {
    constexpr int64_t pitch = Plan<PartSteps>::kPitch, size = sizeof(E);
    const int vectors = static_cast<int>(b.width / w);
    TileStep tile_steps[kChunk / kSteps];
    TileSum s{tile_steps, ceil_div(n, kSteps), Plan<PartSteps>::kPlanePitch * size, b.parts, b.clean, nullptr, 0};
    for (int64_t i = 0; i < s.count; ++i) tile_steps[i] = {i * kSteps * size, i * kSteps};
    alignas(64) T sums[2 * kRows * 32];
    for (int64_t r = 0; r < row_panels; r += 2) {
      const int64_t count = least(2, row_panels - r);
      const PixelTile tiles[2] = {{a + r * kRows * pitch, pitch * size}, {a + (r + 1) * kRows * pitch, pitch * size}};
      P::multiply(s, special, tiles, count, vectors, sums);
      for (int64_t m = 0; m < count; ++m)
        finish_tile<PartSteps>(sums + m * kRows * 32, vectors, out + (r + m) * out_step, add);
    }
  }

  // The chunk of steps [first, first + n) of the panels [first_panel, last_panel); tiles: of the first row.
  static void run_chunk(const Plan<PartSteps>& plan, int64_t group, int64_t channel, int64_t rows, int64_t first,
                        int64_t n, int64_t first_panel, int64_t last_panel, E* a, E* b, G* gathered, T* tiles,
                        bool add) {
    bool special = pack_a(plan, channel, rows, first, n, false, a), all_planes = false;
    for (int64_t panel = first_panel; panel < last_panel; ++panel) {
      const int64_t column = panel * Plan<PartSteps>::panel;
      const int vectors = static_cast<int>(least(kVectors, ceil_div(plan.columns - column, w)));
      Panel packed(b, vectors, special);
      pack_b(plan, group, column, vectors, first, n, packed, gathered);
      if (!packed.finite()) {
        special = true;
        packed = Panel(b, vectors, special);
        pack_b(plan, group, column, vectors, first, n, packed, gathered);
      }
      if (special && !all_planes) all_planes = pack_a(plan, channel, rows, first, n, true, a);
      multiply_panel(a, packed, n, special, ceil_div(rows, kRows), tiles + panel * Plan<PartSteps>::tile,
                     plan.column_panels * Plan<PartSteps>::tile, add);
    }
  }
};

}  // namespace

size_t conv_wgrad_bf16x6_workspace(const ConvWgradParams& p, int threads) { return workspace<PartSteps>(p, threads); }
void conv_wgrad_bf16x6(const ConvWgradParams& p, const Exec& exec) { run<PartSteps>(p, exec); }

}  // namespace fastcv::FASTCV_ISA
