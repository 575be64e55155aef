// The gradient of cdist, 32 rows of x1 and a block of rows of x2 at a time. The weights of all their pairs are computed
// once, then used for every coordinate: vectors lie along the coordinates, and a tile of rows of x1 keeps its
// coordinates and sums in registers while the block, copied so that it stays in the L1 cache, passes by. Of few
// coordinates vectors lie along the block instead.
#include "neighbors/cdist_backward.h"

#include "common/dispatch.h"
#include "neighbors/slope.h"

namespace fastcv::FASTCV_ISA {
namespace {

constexpr int kRows = kVectorBytes == 64 ? 4 : 2;  // 2 vectors of coordinates and of sums for each
constexpr int kBlockN = 128;                       // rows of x2: also the length of a partial sum
constexpr int kTaskRows = 32;
constexpr int kFew = 8;  // coordinates
template <class T>
constexpr int kWidth = 2 * Vec<T>::width;  // coordinates of a tile
template <class T>
constexpr int kBlockDepth = kWidth<T> * (kVectorBytes == 64 ? 2 : 4);

// What the pairs of 32 rows with a block have in common, and the block's coordinates: [row][kBlockDepth], or
// [coordinate][row]. Rows of x1 beyond the last weigh nothing.
template <class T>
struct Block {
  alignas(64) T weight[kTaskRows][kBlockN];
  alignas(64) T distance[kTaskRows][kBlockN];
  alignas(64) T x2[kBlockN * kBlockDepth<T>];
};

// to[i][j] = from[i * steps[0] + j * steps[1]], zeros from rows and columns on up to whole vectors.
template <class T>
void gather(const T* from, const int64_t* steps, int rows, int columns, T (*to)[kBlockN]) {
  constexpr int w = Vec<T>::width;
  for (int i0 = 0; i0 < kTaskRows; i0 += w)
    for (int j0 = 0; j0 < columns; j0 += w) {
      const int ni = rows - i0 < w ? rows - i0 : w, nj = columns - j0 < w ? columns - j0 : w;
      Vec<T> square[w];
      const T* at = from + i0 * steps[0] + j0 * steps[1];
      const auto run = [&](const T* first, int n) {
        return n >= w ? detail::load_raw(first) : n > 0 ? detail::load_raw_n(first, n) : Vec<T>(T(0));
      };
      if (steps[1] == 1) {
        for (int i = 0; i < w; ++i) square[i] = i < ni ? run(at + i * steps[0], nj) : Vec<T>(T(0));
      } else if (steps[0] == 1) {
        for (int j = 0; j < w; ++j) square[j] = j < nj ? run(at + j * steps[1], ni) : Vec<T>(T(0));
        transpose<w>(square);
      } else {
        for (int i = 0; i < w; ++i)
          for (int j = 0; j < w; ++j) square[i].v[j] = i < ni && j < nj ? at[i * steps[0] + j * steps[1]] : T(0);
      }
      for (int i = 0; i < w; ++i) detail::store_raw(to[i0 + i] + j0, square[i]);
    }
}

// Coordinates [d, d + n) of nb rows: one row after the other, padded with zeros.
template <class T>
void copy_rows(const T* x2, int64_t depth, int64_t d, int n, int nb, T* to) {
  constexpr int w = Vec<T>::width;
  for (int j = 0; j < nb; ++j, to += kBlockDepth<T>)
    for (int i = 0; i < kBlockDepth<T>; i += w)
      detail::store_raw(to + i, n - i >= w  ? detail::load_raw(x2 + j * depth + d + i)
                                : n - i > 0 ? detail::load_raw_n(x2 + j * depth + d + i, n - i)
                                            : Vec<T>(T(0)));
}

// Coordinates [d, d + n) of up to kRows rows of x1, n <= kWidth: adds the slopes against nb rows of a block to out.
template <class Slope, class T>
void tile(const Slope& slope, const T* x1, const T* x2, int64_t depth, int64_t d, int n, int rows, int nb,
          const T (*weight)[kBlockN], const T (*distance)[kBlockN], T* out) {
  constexpr int w = Vec<T>::width;
  const auto get = [&](const T* row, int v) {
    const int lanes = n - v * w;
    return lanes >= w  ? detail::load_raw(row + d + v * w)
           : lanes > 0 ? detail::load_raw_n(row + d + v * w, lanes)
                       : Vec<T>(T(0));
  };
  Vec<T> a[kRows][2], sum[kRows][2];
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < 2; ++v) {
      a[r][v] = r < rows ? get(x1 + r * depth, v) : Vec<T>(T(0));
      sum[r][v] = Vec<T>(T(0));
    }
  for (int j = 0; j < nb; ++j, x2 += kBlockDepth<T>) {
    const Vec<T> b[2] = {detail::load_raw(x2), detail::load_raw(x2 + w)};
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const Vec<T> wr(weight[r][j]), dr(distance[r][j]);
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) sum[r][v] = slope.add(sum[r][v], a[r][v] - b[v], wr, dr);
    }
  }
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < 2; ++v) {
      T* to = out + r * depth + d + v * w;
      const int lanes = n - v * w;
      if (lanes >= w) detail::store_raw(to, detail::load_raw(to) + sum[r][v]);
      else if (lanes > 0) detail::store_raw_n(to, detail::load_raw_n(to, lanes) + sum[r][v], lanes);
    }
}

// All coordinates of one row of x1, at most kFew, against nb rows of a block, which lie along the vectors.
template <class Slope, class T>
void few(const Slope& slope, const T* x1, const T* x2, int depth, int nb, const T* weight, const T* distance, T* out) {
  constexpr int w = Vec<T>::width;
  for (int d = 0; d < depth; ++d, x2 += kBlockN) {
    Vec<T> sum[2] = {Vec<T>(T(0)), Vec<T>(T(0))};
    for (int j = 0; j < nb; j += 2 * w)
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        const int at = j + v * w;
        sum[v] = slope.add(sum[v], Vec<T>(x1[d]) - detail::load_raw(x2 + at), detail::load_raw(weight + at),
                           detail::load_raw(distance + at));
      }
    out[d] += reduce_add(sum[0] + sum[1]);
  }
}

template <class T, class Slope>
void run(const CdistBackwardParams& p, const Slope& slope, const Exec& exec) {
  constexpr int w = Vec<T>::width;
  const int64_t tasks_per_item = (p.m + kTaskRows - 1) / kTaskRows;
  const int64_t steps = kTaskRows * (p.n + 1) * (p.depth + 8);
  parallel_for(exec, p.batch * tasks_per_item, 1 + (1 << 18) / steps, [&](int64_t begin, int64_t end) {
    Block<T> block;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / tasks_per_item, m0 = task % tasks_per_item * kTaskRows;
      const int rows = static_cast<int>(p.m - m0 < kTaskRows ? p.m - m0 : kTaskRows);
      const T* x1 = static_cast<const T*>(p.x1) + b * p.x1_batch + m0 * p.depth;
      const T* x2 = static_cast<const T*>(p.x2) + b * p.x2_batch;
      const T* grad = static_cast<const T*>(p.grad) + b * p.grad_stride[0] + m0 * p.grad_stride[1];
      const T* dist = static_cast<const T*>(p.distance) + b * p.distance_stride[0] + m0 * p.distance_stride[1];
      T* out = static_cast<T*>(p.out) + (b * p.m + m0) * p.depth;
      __builtin_memset(out, 0, rows * p.depth * sizeof(T));
      for (int64_t n0 = 0; n0 < p.n; n0 += kBlockN, x2 += kBlockN * p.depth) {
        const int nb = static_cast<int>(p.n - n0 < kBlockN ? p.n - n0 : kBlockN);
        gather(grad + n0 * p.grad_stride[2], p.grad_stride + 1, rows, nb, block.weight);
        gather(dist + n0 * p.distance_stride[2], p.distance_stride + 1, rows, nb, block.distance);
        for (int r = 0; r < rows; ++r)
          for (int j = 0; j < nb; j += w)
            detail::store_raw(block.weight[r] + j, slope.weight(detail::load_raw(block.weight[r] + j),
                                                                detail::load_raw(block.distance[r] + j)));
        if (p.depth <= kFew) {
          // Beyond the block the last row again, without weight: what is not finite there is not finite here either.
          const int depth = static_cast<int>(p.depth), padded = (nb + 2 * w - 1) / (2 * w) * (2 * w);
          for (int j = 0; j < padded; ++j)
            for (int d = 0; d < depth; ++d) block.x2[d * kBlockN + j] = x2[(j < nb ? j : nb - 1) * p.depth + d];
          for (int r = 0; r < rows; ++r) {
            for (int j = nb; j < padded; ++j) block.weight[r][j] = 0, block.distance[r][j] = block.distance[r][nb - 1];
            few(slope, x1 + r * depth, block.x2, depth, nb, block.weight[r], block.distance[r], out + r * depth);
          }
          continue;
        }
        for (int64_t d0 = 0; d0 < p.depth; d0 += kBlockDepth<T>) {
          const int nd = static_cast<int>(p.depth - d0 < kBlockDepth<T> ? p.depth - d0 : kBlockDepth<T>);
          copy_rows(x2, p.depth, d0, nd, nb, block.x2);
          for (int r = 0; r < rows; r += kRows)
            for (int d = 0; d < nd; d += kWidth<T>)
              tile(slope, x1 + r * p.depth, block.x2 + d, p.depth, d0 + d, nd - d < kWidth<T> ? nd - d : kWidth<T>,
                   rows - r < kRows ? rows - r : kRows, nb, block.weight + r, block.distance + r, out + r * p.depth);
        }
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
