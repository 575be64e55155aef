// cdist on CUDA: a tile of pairs per block.
#include "neighbors/cdist.h"

#include "neighbors/pairs.cuh"

namespace fastcv::FASTCV_GPU {
namespace {

template <class Metric>
__global__ void __launch_bounds__(kThreads)
    tile_kernel(const Metric metric, const CdistParams p, int64_t across, int64_t down) {
  using T = typename Metric::T;
  for (int64_t tile = blockIdx.x; tile < across * down * p.batch; tile += gridDim.x) {
    const int64_t b = tile / (across * down), x0 = tile / across % down * kTile, y0 = tile % across * kTile;
    const PointRows x = PointRows{p.x1, p.m, p.depth, p.dtype}.from(b * p.x1_batch);
    const PointRows y = PointRows{p.x2, p.n, p.depth, p.dtype}.from(b * p.x2_batch);
    T sums[kMine][kMine];
    sum_tile(metric, x, y, x0, y0, sums);
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int64_t m = x0 + my_row() + i;
#pragma unroll
      for (int j = 0; j < kMine; ++j) {
        const int64_t n = y0 + my_column() + j;
        if (m < p.m && n < p.n)
          store_distance(p.out, p.out_dtype, (b * p.m + m) * p.n + n, metric.root(sums[i][j], false));
      }
    }
  }
}

}  // namespace

int cdist(const CdistParams& p, void*, CUstream_st* stream) {
  const int64_t across = tiles(p.n), down = tiles(p.m);
  if (across * down * p.batch == 0) return cudaSuccess;
  return with_metric(p.dtype, p.p, p.depth, [&](const auto& metric) {
    return launch(tile_kernel<std::decay_t<decltype(metric)>>, grid_for(across * down * p.batch, 1), kThreads, 0,
                  stream, metric, p, across, down);
  });
}

}  // namespace fastcv::FASTCV_GPU
