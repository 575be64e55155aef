// Mean and variance of a convolution's output from the sums that its tiles still hold, so that a batch norm behind it
// need not read the output again. Values are taken as they are stored, rounded to S; sums run in double around the
// first value of a tile, then around the first tile's mean: large means cost no digits. The order depends on the shape
// and the rows of a tile alone.
#pragma once
#include "common/numbers.cuh"
#include "conv/conv.h"

namespace fastcv::FASTCV_GPU {

// The rows of a tile that are outputs: the first ones.
struct FirstRows {
  int count;
  __device__ __forceinline__ int end() const { return count; }
  __device__ __forceinline__ bool has(int) const { return true; }
};

// Of `rows` and the first `columns` columns of a tile of sums in shared memory, which are of the output channels k,
// k + 1, ...: mean and sum of squared deviations to to[0], to[1]; to[2], to[3]; ... By `threads` threads, of which
// this is number `thread`, and sync() the barrier; they have seen the sums, and leave their place to be written anew.
// rows: their count, the first of them is row 0, the last stands before end(), and has(row).
template <class S, int threads, int tile_n, class Rows, class Sync>
__device__ __forceinline__ void tile_moments(const ConvParams& p, Shared<float> sums, int pitch, const Rows& rows,
                                             int columns, int64_t k, double* to, int thread, const Sync& sync) {
  constexpr int parts = threads / tile_n;
  static_assert(parts * tile_n == threads);
  const int column = thread % tile_n, part = thread / tile_n;
  double a = 0, b = 0, shift = 0;
  if (column < columns) {
    const float bias = p.bias == nullptr ? 0.0f : widen(static_cast<const S*>(p.bias)[k + column]);
    const auto value = [&](int row) {
      return static_cast<double>(widen(narrow<S>(static_cast<float>(sums[row * pitch + column]) + bias)));
    };
    shift = value(0);
    for (int row = part; row < rows.end(); row += parts) {
      if (!rows.has(row)) continue;
      const double d = value(row) - shift;
      a += d;
      b += d * d;
    }
  }
  sync();
  const Shared<double> box = shared_cast<double>(sums);
  box[2 * thread] = a;
  box[2 * thread + 1] = b;
  sync();
  if (part == 0 && column < columns) {
    for (int other = 1; other < parts; ++other) {
      a += box[2 * (other * tile_n + column)];
      b += box[2 * (other * tile_n + column) + 1];
    }
    const double left = b - a * a / rows.count;
    to[2 * column] = shift + a / rows.count;
    to[2 * column + 1] = left < 0 ? 0 : left;
  }
  sync();
}

// The rows of each tile of a long matrix: tile_m, or fewer in the last one.
struct TileRows {
  int64_t tile_m, rows;
  __device__ __forceinline__ int64_t operator()(int64_t tile) const { return min(tile_m, rows - tile * tile_m); }
};

// moments [tiles][k][2] of tiles of rows_of(tile) rows to mean and biased variance of all `rows`; the first tile has
// some, tiles without any are not read. A block takes 32 channels, a warp every eighth tile.
template <int threads, class RowsOf>
__global__ void __launch_bounds__(threads)
    merge_moments_kernel(const double* moments, int64_t tiles, const RowsOf rows_of, int64_t rows, int64_t k,
                         double* mean, double* var) {
  constexpr int kSide = 32, parts = threads / kSide;
  FASTCV_SHARED(double, box, 2 * threads);
  const int lane = threadIdx.x % kSide, part = threadIdx.x / kSide;
  for (int64_t k0 = blockIdx.x * int64_t{kSide}; k0 < k; k0 += gridDim.x * int64_t{kSide}) {
    const int64_t channel = k0 + lane;
    double a = 0, b = 0, shift = 0;
    if (channel < k) {
      shift = moments[2 * channel];
      for (int64_t tile = part; tile < tiles; tile += parts) {
        const int64_t count = rows_of(tile);
        if (count <= 0) continue;
        const double* at = moments + 2 * (tile * k + channel);
        const double n = static_cast<double>(count), d = at[0] - shift;
        a += n * d;
        b += at[1] + n * d * d;
      }
    }
    box[2 * threadIdx.x] = a;
    box[2 * threadIdx.x + 1] = b;
    __syncthreads();
    if (part == 0 && channel < k) {
      for (int other = 1; other < parts; ++other) {
        a += box[2 * (other * kSide + lane)];
        b += box[2 * (other * kSide + lane) + 1];
      }
      const double count = static_cast<double>(rows), v = (b - a * a / count) / count;
      mean[channel] = shift + a / count;
      var[channel] = v < 0 ? 0 : v;
    }
    __syncthreads();
  }
}
template <class RowsOf>
int merge_moments(const double* moments, int64_t tiles, const RowsOf& rows_of, int64_t rows, int64_t k,
                  ConvStatistics& to, CUstream_st* stream) {
  to.made = true;
  constexpr int threads = 256;
  return launch(merge_moments_kernel<threads, RowsOf>, grid_for(k, 32), threads, 0, stream, moments, tiles, rows_of,
                rows, k, to.mean, to.var);
}
inline int merge_moments(const double* moments, int64_t tile_m, int64_t rows, int64_t k, ConvStatistics& to,
                         CUstream_st* stream) {
  return merge_moments(moments, (rows + tile_m - 1) / tile_m, TileRows{tile_m, rows}, rows, k, to, stream);
}

}  // namespace fastcv::FASTCV_GPU
