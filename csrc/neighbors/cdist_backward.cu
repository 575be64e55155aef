// The gradient of cdist on CUDA: a block takes 64 points x 64 coordinates and runs over the other side's points, 16 at
// a time through shared memory. Sums run in blocks of 128 points, blocks in order.
#include "neighbors/cdist_backward.h"

#include "neighbors/slope.cuh"

namespace fastcv::FASTCV_GPU {
namespace {

constexpr int kOthers = kUnits;

template <class Slope>
__global__ void __launch_bounds__(kThreads)
    tile_kernel(const Slope slope, const CdistBackwardParams p, int64_t across, int64_t down) {
  using T = typename Slope::T;
  FASTCV_SHARED(T, weights, kOthers * kRow);    // [other point][point]
  FASTCV_SHARED(T, distances, kOthers * kRow);  // [other point][point]
  FASTCV_SHARED(T, others, kOthers * kRow);     // [other point][coordinate]
  for (int64_t tile = blockIdx.x; tile < across * down * p.batch; tile += gridDim.x) {
    const int64_t b = tile / (across * down), m0 = tile / across % down * kTile, d0 = tile % across * kTile;
    const T* x1 = static_cast<const T*>(p.x1) + b * p.x1_batch;
    const T* x2 = static_cast<const T*>(p.x2) + b * p.x2_batch;
    const T* grad = static_cast<const T*>(p.grad) + b * p.grad_stride[0];
    const T* distance = static_cast<const T*>(p.distance) + b * p.distance_stride[0];
    // Neighbouring threads read neighbouring addresses of grad.
    const bool others_first = p.grad_stride[2] <= p.grad_stride[1];
    T x[kMine][kMine], sum[kMine][kMine] = {}, total[kMine][kMine] = {};
#pragma unroll
    for (int i = 0; i < kMine * kMine; ++i) {
      const int64_t m = m0 + my_row() + i / kMine, d = d0 + my_column() + i % kMine;
      x[i / kMine][i % kMine] = m < p.m && d < p.depth ? x1[m * p.depth + d] : T(0);
    }
    for (int64_t n0 = 0; n0 < p.n; n0 += kOthers) {
      __syncthreads();
#pragma unroll
      for (int i = threadIdx.x; i < kOthers * kTile; i += kThreads) {
        const int other = others_first ? i % kOthers : i / kTile, point = others_first ? i / kOthers : i % kTile;
        const int64_t n = n0 + other, m = m0 + point;
        const bool there = n < p.n && m < p.m;
        const T far = there ? distance[m * p.distance_stride[1] + n * p.distance_stride[2]] : T(0);
        weights[other * kRow + point] =
            there ? slope.weight(grad[m * p.grad_stride[1] + n * p.grad_stride[2]], far) : T(0);
        distances[other * kRow + point] = far;
      }
#pragma unroll
      for (int i = threadIdx.x; i < kOthers * kTile; i += kThreads) {
        const int64_t n = n0 + i / kTile, d = d0 + i % kTile;
        others[i / kTile * kRow + i % kTile] = n < p.n && d < p.depth ? x2[n * p.depth + d] : T(0);
      }
      __syncthreads();
      const int count = static_cast<int>(p.n - n0 < kOthers ? p.n - n0 : kOthers);
      for (int k = 0; k < count; ++k) {
        const auto w = load_shared<Pack<T, kMine>>(weights + (k * kRow + my_row()));
        const auto far = load_shared<Pack<T, kMine>>(distances + (k * kRow + my_row()));
        const auto y = load_shared<Pack<T, kMine>>(others + (k * kRow + my_column()));
#pragma unroll
        for (int i = 0; i < kMine; ++i)
#pragma unroll
          for (int j = 0; j < kMine; ++j) sum[i][j] += slope.term(x[i][j] - y.at[j], w.at[i], far.at[i]);
      }
      if ((n0 + kOthers) % kSumUnits != 0 && n0 + kOthers < p.n) continue;
#pragma unroll
      for (int i = 0; i < kMine * kMine; ++i) {
        total[i / kMine][i % kMine] += sum[i / kMine][i % kMine];
        sum[i / kMine][i % kMine] = 0;
      }
    }
#pragma unroll
    for (int i = 0; i < kMine * kMine; ++i) {
      const int64_t m = m0 + my_row() + i / kMine, d = d0 + my_column() + i % kMine;
      if (m < p.m && d < p.depth) static_cast<T*>(p.out)[(b * p.m + m) * p.depth + d] = total[i / kMine][i % kMine];
    }
  }
}

}  // namespace

int cdist_backward(const CdistBackwardParams& p, void*, CUstream_st* stream) {
  const int64_t across = tiles(p.depth), down = tiles(p.m);
  if (across * down * p.batch == 0) return cudaSuccess;
  if (p.p == 0) return clear(p.out, p.dtype, p.batch * p.m * p.depth, stream);
  return with_slope(p.dtype, p.p, false, [&](const auto& slope) {
    return launch(tile_kernel<std::decay_t<decltype(slope)>>, grid_for(across * down * p.batch, 1), kThreads, 0, stream,
                  slope, p, across, down);
  });
}

}  // namespace fastcv::FASTCV_GPU
