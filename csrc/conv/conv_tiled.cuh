// A product of a gathered and a plain matrix on the ordinary arithmetic units: C[m][n] = sum over k of A[m][k] B[k][n].
//
// Element A[m][k] lies at row(m) + depth(k), places and positions both, and is zero where the position is outside of
// the image; B[k][n] lies at depth(k).plain + column(n). A block makes a 64 x 64 tile in steps of 16 along k. Sums run
// in chunks of 32 products, in the order of k.
//
// Problem (a kernel parameter):
//   a, b: const S*   in[3]: the sizes that positions must stay below   tiles(): how many there are
//   a_rows_fast, b_columns_fast, c_rows_fast: whether neighbours in memory are neighbours along m (n, m) or along k (n)
//   note(i, t, notes): thread t of the first warp writes down up to 16 numbers about tile i, to be read after a barrier
//   tile(i, notes) -> Tile with rows, columns, begin, end (of k) of this tile and:
//     row(m) -> Point   depth(k) -> Depth   column(n) -> int64_t
//     spot(m): where row m's sums go, -1 for nowhere   store(spot, n, sum)
#pragma once
#include "common/numbers.cuh"
#include "common/reduce.cuh"

namespace fastcv::FASTCV_GPU {

struct Point {
  int64_t at, d, h, w;
};
struct Depth {
  Point gather;
  int64_t plain;
};

constexpr int kTile = 64, kStep = 16, kTiledThreads = 256, kNotes = 16;

// A table of points in shared memory.
struct Points {
  Shared<int64_t> at, d, h, w;
  __device__ __forceinline__ void set(int i, const Point& p) const {
    at[i] = p.at;
    d[i] = p.d;
    h[i] = p.h;
    w[i] = p.w;
  }
};

template <class S, class Problem>
__global__ void __launch_bounds__(kTiledThreads) tiled_kernel(const Problem g) {
  using T = acc_t<S>;
  constexpr int pitch = kTile + 4, wide = 16 / sizeof(T), flush = 32 / kStep;
  using Wide = Pack<T, wide>;
  FASTCV_SHARED(T, a, kStep * pitch);
  FASTCV_SHARED(T, b, kStep * pitch);
  FASTCV_SHARED(int64_t, row_at, kTile);
  FASTCV_SHARED(int64_t, row_d, kTile);
  FASTCV_SHARED(int64_t, row_h, kTile);
  FASTCV_SHARED(int64_t, row_w, kTile);
  FASTCV_SHARED(int64_t, column_at, kTile);
  FASTCV_SHARED(int64_t, depth_at, 2 * kStep);
  FASTCV_SHARED(int64_t, depth_d, 2 * kStep);
  FASTCV_SHARED(int64_t, depth_h, 2 * kStep);
  FASTCV_SHARED(int64_t, depth_w, 2 * kStep);
  FASTCV_SHARED(int64_t, depth_plain, 2 * kStep);
  FASTCV_SHARED(int64_t, notes, kNotes);
  const Points rows{row_at, row_d, row_h, row_w}, depths{depth_at, depth_d, depth_h, depth_w};
  const int t = threadIdx.x;
  // What a thread loads (four of either matrix) and the 4 x 4 sums that it makes.
  const int a_k = g.a_rows_fast ? t / kTile : t % kStep, a_m = g.a_rows_fast ? t % kTile : t / kStep;
  const int b_k = g.b_columns_fast ? t / kTile : t % kStep, b_n = g.b_columns_fast ? t % kTile : t / kStep;
  const int a_next_k = g.a_rows_fast ? kTiledThreads / kTile : 0, a_next_m = g.a_rows_fast ? 0 : kTiledThreads / kStep;
  const int b_next_k = g.b_columns_fast ? kTiledThreads / kTile : 0;
  const int b_next_n = g.b_columns_fast ? 0 : kTiledThreads / kStep;
  const int m4 = 4 * (g.c_rows_fast ? t % 16 : t / 16), n4 = 4 * (g.c_rows_fast ? t / 16 : t % 16);

  for (int64_t i = blockIdx.x; i < g.tiles(); i += gridDim.x) {
    if (t < kWarp) g.note(i, t, notes);
    __syncthreads();
    const auto tile = g.tile(i, notes);
    const auto describe = [&](int k, int64_t step) {
      const int64_t at = tile.begin + step * kStep + k;
      if (at >= tile.end) return;
      const Depth depth = tile.depth(at);
      const int slot = static_cast<int>(step % 2) * kStep + k;
      depths.set(slot, depth.gather);
      depth_plain[slot] = depth.plain;
    };
    T next_a[4], next_b[4];
    const auto load = [&](int64_t step) {
      const int64_t left = tile.end - tile.begin - step * kStep;
      const int slot = static_cast<int>(step % 2) * kStep;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int k = a_k + j * a_next_k, m = a_m + j * a_next_m;
        next_a[j] = 0;
        if (k >= left || m >= tile.rows) continue;
        const int64_t d = row_d[m] + depth_d[slot + k], h = row_h[m] + depth_h[slot + k];
        const int64_t w = row_w[m] + depth_w[slot + k];
        if (d < 0 || d >= g.in[0] || h < 0 || h >= g.in[1] || w < 0 || w >= g.in[2]) continue;
        next_a[j] = widen(g.a[row_at[m] + depth_at[slot + k]]);
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int k = b_k + j * b_next_k, n = b_n + j * b_next_n;
        next_b[j] = k < left && n < tile.columns ? widen(g.b[column_at[n] + depth_plain[slot + k]]) : T(0);
      }
    };

    if (t < kTile) {
      if (t < tile.rows) rows.set(t, tile.row(t));
    } else if (t < 2 * kTile) {
      if (t - kTile < tile.columns) column_at[t - kTile] = tile.column(t - kTile);
    } else if (t < 2 * kTile + kStep) {
      describe(t - 2 * kTile, 0);
    }
    __syncthreads();
    T sum[4][4] = {}, chunk[4][4] = {};
    const bool busy = m4 < tile.rows && n4 < tile.columns;
    const int64_t steps = (tile.end - tile.begin + kStep - 1) / kStep;
    if (steps > 0) load(0);
    for (int64_t step = 0; step < steps; ++step) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        a[(a_k + j * a_next_k) * pitch + a_m + j * a_next_m] = next_a[j];
        b[(b_k + j * b_next_k) * pitch + b_n + j * b_next_n] = next_b[j];
      }
      if (t < kStep) describe(t, step + 1);
      __syncthreads();
      if (step + 1 < steps) load(step + 1);
      if (busy) {
#pragma unroll 4
        for (int k = 0; k < kStep; ++k) {
          T x[4], y[4];
#pragma unroll
          for (int part = 0; part < 4; part += wide) {
            const Wide p = load_shared<Wide>(a + (k * pitch + m4 + part)),
                       q = load_shared<Wide>(b + (k * pitch + n4 + part));
#pragma unroll
            for (int e = 0; e < wide; ++e) x[part + e] = p.at[e], y[part + e] = q.at[e];
          }
#pragma unroll
          for (int m = 0; m < 4; ++m)
#pragma unroll
            for (int n = 0; n < 4; ++n) chunk[m][n] = fma(x[m], y[n], chunk[m][n]);
        }
      }
      if (step % flush == flush - 1) {
#pragma unroll
        for (int m = 0; m < 4; ++m)
#pragma unroll
          for (int n = 0; n < 4; ++n) sum[m][n] += chunk[m][n], chunk[m][n] = 0;
      }
      __syncthreads();
    }
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      const int64_t spot = m4 + m < tile.rows ? tile.spot(m4 + m) : -1;
      if (spot < 0) continue;
#pragma unroll
      for (int n = 0; n < 4; ++n)
        if (n4 + n < tile.columns) tile.store(spot, n4 + n, sum[m][n] + chunk[m][n]);
    }
  }
}

template <class S, class Problem>
int launch_tiled(const Problem& g, CUstream_st* stream) {
  if (g.tiles() == 0) return cudaSuccess;
  return launch(tiled_kernel<S, Problem>, grid_for(g.tiles(), 1), kTiledThreads, 0, stream, g);
}

}  // namespace fastcv::FASTCV_GPU
