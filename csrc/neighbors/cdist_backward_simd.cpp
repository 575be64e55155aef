// The gradient of cdist: vectors lie along the coordinates; a tile of rows of x1 keeps its coordinates and sums in
// registers while a block of rows of x2 passes by.
#include "neighbors/cdist_backward.h"

#include "common/dispatch.h"
#include "neighbors/slope.h"

namespace fastcv::FASTCV_ISA {
namespace {

constexpr int kRows = kVectorBytes == 64 ? 4 : 2;  // 2 vectors of coordinates and of sums for each
constexpr int kVectors = 2;
constexpr int kBlockN = 128;      // rows of x2: also the length of a partial sum
constexpr int kBlockDepth = 256;  // coordinates: a block of x2 stays in L2
constexpr int kTaskRows = 32;

// Rows [0, rows) of x1 at x1, coordinates [d, d + width): adds the slopes against nb rows of x2 to out.
template <class Slope, class T>
void tile(const Slope& slope, const T* x1, const T* x2, int64_t depth, int64_t d, int width, int rows, int nb,
          const T (*weight)[kBlockN], const T (*distance)[kBlockN], T* out) {
  constexpr int w = Vec<T>::width;
  const auto get = [&](const T* row, int v) {
    const int n = width - v * w;
    return n >= w ? detail::load_raw(row + d + v * w) : n > 0 ? detail::load_raw_n(row + d + v * w, n) : Vec<T>(T(0));
  };
  Vec<T> a[kRows][kVectors], sum[kRows][kVectors];
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) {
      a[r][v] = r < rows ? get(x1 + r * depth, v) : Vec<T>(T(0));
      sum[r][v] = Vec<T>(T(0));
    }
  const auto pass = [&](auto load_row) {
    for (int j = 0; j < nb; ++j) {
      Vec<T> b[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) b[v] = load_row(x2 + j * depth, v);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const Vec<T> wr(weight[r][j]), dr(distance[r][j]);
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) sum[r][v] = slope.add(sum[r][v], a[r][v] - b[v], wr, dr);
      }
    }
  };
  if (width == kVectors * w) pass([&](const T* row, int v) { return detail::load_raw(row + d + v * w); });
  else pass(get);
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < kVectors; ++v) {
      T* to = out + r * depth + d + v * w;
      const int n = width - v * w;
      if (n >= w) detail::store_raw(to, detail::load_raw(to) + sum[r][v]);
      else if (n > 0) detail::store_raw_n(to, detail::load_raw_n(to, n) + sum[r][v], n);
    }
}

template <class T, class Slope>
void run(const CdistBackwardParams& p, const Slope& slope, const Exec& exec) {
  constexpr int step = kVectors * Vec<T>::width;
  const int64_t tasks_per_item = (p.m + kTaskRows - 1) / kTaskRows;
  const int64_t steps = kTaskRows * (p.n + 1) * (p.depth + 8);
  parallel_for(exec, p.batch * tasks_per_item, 1 + (1 << 18) / steps, [&](int64_t begin, int64_t end) {
    T weight[kTaskRows][kBlockN], distance[kTaskRows][kBlockN];
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / tasks_per_item, m0 = task % tasks_per_item * kTaskRows;
      const int rows = static_cast<int>(p.m - m0 < kTaskRows ? p.m - m0 : kTaskRows);
      const T* x1 = static_cast<const T*>(p.x1) + b * p.x1_batch + m0 * p.depth;
      const T* x2 = static_cast<const T*>(p.x2) + b * p.x2_batch;
      const T* grad = static_cast<const T*>(p.grad) + b * p.grad_stride[0] + m0 * p.grad_stride[1];
      const T* dist = static_cast<const T*>(p.distance) + b * p.distance_stride[0] + m0 * p.distance_stride[1];
      T* out = static_cast<T*>(p.out) + (b * p.m + m0) * p.depth;
      __builtin_memset(out, 0, rows * p.depth * sizeof(T));
      for (int64_t n0 = 0; n0 < p.n; n0 += kBlockN) {
        const int nb = static_cast<int>(p.n - n0 < kBlockN ? p.n - n0 : kBlockN);
        for (int r = 0; r < kTaskRows; ++r)
          for (int j = 0; j < nb; ++j) {
            // Rows beyond the last weigh nothing.
            distance[r][j] = r < rows ? dist[r * p.distance_stride[1] + (n0 + j) * p.distance_stride[2]] : T(0);
            weight[r][j] = r < rows
                               ? slope.weight(grad[r * p.grad_stride[1] + (n0 + j) * p.grad_stride[2]], distance[r][j])
                               : T(0);
          }
        for (int64_t d0 = 0; d0 < p.depth; d0 += kBlockDepth)
          for (int r = 0; r < rows; r += kRows)
            for (int64_t d = d0; d < p.depth && d < d0 + kBlockDepth; d += step)
              tile(slope, x1 + r * p.depth, x2 + n0 * p.depth, p.depth, d,
                   static_cast<int>(p.depth - d < step ? p.depth - d : step), rows - r < kRows ? rows - r : kRows, nb,
                   weight + r, distance + r, out + r * p.depth);
      }
    }
  });
}

}  // namespace

void cdist_backward(const CdistBackwardParams& p, const Exec& exec) {
  if (p.batch * p.m * p.depth == 0) return;
  const auto as = [&](auto zero) {
    using T = decltype(zero);
    if (p.p == 0) {
      __builtin_memset(p.out, 0, p.batch * p.m * p.depth * sizeof(T));
      return;
    }
    with_slope<T>(p.p, false, [&](const auto& slope) { run<T>(p, slope, exec); });
  };
  dispatch_wide(p.dtype, as);
}

}  // namespace fastcv::FASTCV_ISA
