#include "roof/probes.h"

#include "common/scalar.h"

namespace fastcv {
namespace {

template <class S>
void product(const TileProductParams& p) {
  const S *a = static_cast<const S*>(p.a), *b = static_cast<const S*>(p.b);
  for (int64_t row = 0; row < kTileRows; ++row)
    for (int64_t column = 0; column < kTileColumns; ++column) {
      double sum = 0;
      for (int64_t k = 0; k < kTileDepth; ++k)
        sum += widen(a[row * kTileDepth + k]) * widen(b[column * kTileDepth + k]);
      p.d[row * kTileColumns + column] = static_cast<float>(sum);
    }
}

}  // namespace

void step_chain_ref(const StepChainParams& p, const Exec&) {
  for (int64_t i = 0; i < p.n; ++i) {
    float v = p.x[i];
    for (int64_t s = 0; s < p.steps; ++s) v += 1;
    p.y[i] = v;
  }
}

void cache_read_ref(const CacheReadParams& p, const Exec&) {
  double sum = 0;
  for (int64_t i = 0; i < p.n; ++i) sum += p.x[i];
  for (int64_t r = 0; r < p.readers; ++r) p.y[r] = static_cast<float>(static_cast<double>(p.steps) * sum);
}

void tile_product_ref(const TileProductParams& p, const Exec&) {
  if (p.dtype == DType::f32) return product<float>(p);
  return p.dtype == DType::bf16 ? product<bf16>(p) : product<f16>(p);
}

void tma_tile_ref(const TmaTileParams& p, const Exec&) {
  const auto* x = static_cast<const uint16_t*>(p.x);
  auto* y = static_cast<uint16_t*>(p.y);
  // Positions are numbered along a row, then from row to row, then from image to image.
  int64_t columns = 1, rows = 1, first = 0;
  if (p.im2col) {
    columns = (p.w - 1 + p.upper[0] - p.lower[0]) / p.step[0] + 1;
    rows = (p.h - 1 + p.upper[1] - p.lower[1]) / p.step[1] + 1;
    const int64_t column = (p.at[1] - p.lower[0]) / p.step[0], row = (p.at[2] - p.lower[1]) / p.step[1];
    first = (p.at[3] * rows + row) * columns + column;
  }
  for (int64_t i = 0; i < p.pixels; ++i) {
    int64_t w = p.at[1], h = p.at[2] + i, n = 0;
    if (p.im2col) {
      const int64_t position = first + i;
      w = p.lower[0] + position % columns * p.step[0] + p.offset[0];
      h = p.lower[1] + position / columns % rows * p.step[1] + p.offset[1];
      n = position / columns / rows;
    }
    const int64_t tall = p.im2col ? p.h : p.n * p.h;
    const bool inside = w >= 0 && w < p.w && h >= 0 && h < tall && n < (p.im2col ? p.n : 1);
    for (int64_t j = 0; j < kTileDepth; ++j) {
      const int64_t c = p.at[0] + j, chunk = (j / 8) ^ (i % 8);
      y[i * kTileDepth + chunk * 8 + j % 8] =
          inside && c >= 0 && c < p.c ? x[((n * p.h + h) * p.w + w) * p.c + c] : uint16_t{0};
    }
  }
}

}  // namespace fastcv
