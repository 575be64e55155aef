// One pass over the elements of a tensor, 16 bytes of each tensor a thread at a time, whatever the alignment: only how
// a pack is loaded and stored depends on that. What is constant for a channel, a group or a row is computed in double
// by the block that needs it, once, into shared memory; nothing is divided per element.
//
// Rule says what is made of an element:
//   in[kInputs], out[kOutputs]        dense tensors of one shape; null ones are not there
//   Coefficients coefficients(plane)  of channel c of image n: plane = n * channels + c
//   operator()(coefficients, values, results)
// and of a matrix, where both rows and columns matter (layer norm):
//   Row row(row), columns(first, last, coefficients), operator()(coefficients, row, values, results)
//
// A thread holds several packs of each input in flight, 16 KB and more on an SM: docs/cuda.md, "Norms at memory speed".
#pragma once
#include "norm/norm.cuh"

namespace fastcv::FASTCV_GPU {

constexpr int kAhead = 2;

template <class S, int outputs>
__device__ __forceinline__ void store_all(S* const (&to)[outputs], int64_t offset, int64_t count, int access,
                                          const Pack<S, kPack<S>> (&from)[outputs]) {
#pragma unroll
  for (int k = 0; k < outputs; ++k)
    if (to[k] != nullptr) store_elements(to[k] + offset, count, access, from[k]);
}

template <class Rule>
int access_of(const Rule& rule, int64_t step, int64_t size) {
  int access = 16;
  for (const void* p : rule.in) access = access_bytes({p}, {step}, size) < access ? 0 : access;
  for (const void* p : rule.out) access = access_bytes({p}, {step}, size) < access ? 0 : access;
  return access;
}

// Blocks for `tiles` tiles, so many that the last ones to run do not matter, with at least `least` tiles each.
inline int64_t tiles_each(int64_t tiles, int64_t parallel, int64_t least) {
  constexpr int64_t kBlocks = 4096;
  const int64_t blocks = parallel < kBlocks ? kBlocks / parallel : 1, each = (tiles + blocks - 1) / blocks;
  return each > least ? each : least;
}

// Planes ------------------------------------------------------------------------------------------------------------

// Row-major tensors: planes of `run` elements with constants of their own, cut into tiles without regard to them. A
// tile has at most kThreads planes.
struct Planes {
  int64_t run, total, tile;
  Divider by_run;
  uint64_t magic;  // ceil(2^32 / run) where a tile may hold several planes: plane = offset * magic / 2^32
  int access;
  Planes(int64_t run, int64_t total, int64_t most, int pack, int access)
      : run(run), total(total), tile(most), by_run(run), magic(0), access(access) {
    const int64_t fit = (kThreads - 2) * run / pack * pack;
    if (run <= most) magic = ((uint64_t{1} << 32) + run - 1) / run, tile = fit < most ? fit : most;
  }
  // Of an offset from the start of a tile's first plane.
  __device__ __forceinline__ int plane(int64_t offset) const {
    return magic == 0 ? offset >= run : static_cast<int>(static_cast<uint64_t>(offset) * magic >> 32);
  }
};

template <class S, class Rule>
__global__ void __launch_bounds__(kThreads, Rule::kInputs == 3 ? 2 : 3) planes_kernel(const Rule rule, const Planes g) {
  using T = acc_t<S>;
  using Coefficients = typename Rule::Coefficients;
  constexpr int n = kPack<S>, inputs = Rule::kInputs, outputs = Rule::kOutputs;
  FASTCV_SHARED(Coefficients, table, kThreads);
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * g.tile;
  const int64_t end = begin + g.tile < g.total ? begin + g.tile : g.total;
  Pack<S, n> packs[kAhead][inputs];  // on their way while the constants are computed
#pragma unroll
  for (int u = 0; u < kAhead; ++u) {
    const int64_t at = begin + (u * kThreads + threadIdx.x) * n;
    if (at < end) load_all(rule.in, at, end - at, g.access, packs[u]);
  }
  const int64_t first = g.by_run.divide(begin), start = first * g.run;
  const int last = g.plane(end - 1 - start);
  if (static_cast<int>(threadIdx.x) <= last) table[threadIdx.x] = rule.coefficients(first + threadIdx.x);
  __syncthreads();
#pragma unroll
  for (int u = 0; u < kAhead; ++u) {
    const int64_t at = begin + (u * kThreads + threadIdx.x) * n;
    if (at >= end) continue;
    int plane = g.plane(at - start);
    int64_t left = start + (plane + 1) * g.run - at;  // of this plane
    Coefficients c = table[plane];
    Pack<S, n> made[outputs];
    const auto make = [&](int i) {
      T values[inputs], results[outputs];
      element<S>(packs[u], i, values);
      rule(c, values, results);
#pragma unroll
      for (int k = 0; k < outputs; ++k) made[k].at[i] = narrow<S>(results[k]);
    };
    if (left >= n) {
#pragma unroll
      for (int i = 0; i < n; ++i) make(i);
    } else {
#pragma unroll
      for (int i = 0; i < n; ++i) {
        if (i >= left) {  // the next plane begins here
          plane = plane < last ? plane + 1 : last;
          left += g.run;
          c = table[plane];
        }
        make(i);
      }
    }
    store_all(rule.out, at, end - at, g.access, made);
  }
}

// Columns -----------------------------------------------------------------------------------------------------------

// Tensors with channels innermost: a thread takes a pack of a row and every so many-th row, so that its channels stay.
// Rows of channels that are no whole packs are taken several at a time, `period` elements.
struct Columns {
  int64_t image, channels, period, rows, rows_each;  // elements of an image; rows of a period in it, and of a block
  Divider by_channels;
  int lanes, access;
  unsigned chunks, splits;
  Columns(int64_t images, int64_t image, int64_t channels, int pack, int ahead, int access)
      : image(image), channels(channels), period(channels), by_channels(channels), access(access) {
    while (period % pack != 0) period *= 2;
    rows = (image + period - 1) / period;
    lanes = norm_lanes(period / pack);
    chunks = static_cast<unsigned>((period / pack + lanes - 1) / lanes);
    const int64_t tile = kThreads / lanes * ahead;
    rows_each = tile * tiles_each((rows + tile - 1) / tile, images * chunks, 8 / ahead);
    splits = static_cast<unsigned>((rows + rows_each - 1) / rows_each);
  }
};

// Rows that a thread has in flight: beside the constants of a pack's channels, registers are left for so many packs.
template <class S, class Rule>
constexpr int kRowsAhead = kPack<S> * Rule::kInputs > 16  ? 1
                           : kPack<S> * Rule::kInputs > 8 ? 2
                                                          : 4;

template <class S, class Rule>
__global__ void __launch_bounds__(kThreads, 2) columns_kernel(const Rule rule, const Columns g) {
  using T = acc_t<S>;
  using Coefficients = typename Rule::Coefficients;
  constexpr int n = kPack<S>, inputs = Rule::kInputs, outputs = Rule::kOutputs;
  constexpr int kRows = kRowsAhead<S, Rule>;
  FASTCV_SHARED(Coefficients, table, kNormLanes * n);
  const unsigned chunk = blockIdx.x % g.chunks, rest = blockIdx.x / g.chunks;
  const int64_t image = rest / g.splits, begin = (rest % g.splits) * g.rows_each;
  const int64_t end = begin + g.rows_each < g.rows ? begin + g.rows_each : g.rows;
  const int lane = threadIdx.x & (g.lanes - 1), tall = kThreads / g.lanes;
  const int64_t first = static_cast<int64_t>(chunk) * g.lanes * n, column = first + lane * n;
  if (static_cast<int>(threadIdx.x) < g.lanes * n) {
    int64_t channel = first + threadIdx.x;
    g.by_channels.split(channel);
    table[threadIdx.x] = rule.coefficients(image * g.channels + channel);
  }
  __syncthreads();
  if (column >= g.period) return;
  Coefficients c[n];
#pragma unroll
  for (int i = 0; i < n; ++i) c[i] = table[lane * n + i];
  for (int64_t row = begin + threadIdx.x / g.lanes; row < end; row += kRows * tall) {
    Pack<S, n> packs[kRows][inputs];
#pragma unroll
    for (int u = 0; u < kRows; ++u) {
      const int64_t at = (row + u * tall) * g.period + column;
      if (row + u * tall < end && at < g.image)
        load_all(rule.in, image * g.image + at, g.image - at, g.access, packs[u]);
    }
#pragma unroll
    for (int u = 0; u < kRows; ++u) {
      const int64_t at = (row + u * tall) * g.period + column;
      if (row + u * tall >= end || at >= g.image) continue;
      Pack<S, n> made[outputs];
#pragma unroll
      for (int i = 0; i < n; ++i) {
        T values[inputs], results[outputs];
        element<S>(packs[u], i, values);
        rule(c[i], values, results);
#pragma unroll
        for (int k = 0; k < outputs; ++k) made[k].at[i] = narrow<S>(results[k]);
      }
      store_all(rule.out, image * g.image + at, g.image - at, g.access, made);
    }
  }
}

// rule for every element of images x channels x run, or, channels_last, images x run x channels. Where coefficients do
// not depend on the image, channels_last images may count as one.
template <class S, class Rule>
int sweep(const Rule& rule, int64_t images, int64_t channels, int64_t run, bool channels_last, CUstream_st* stream) {
  if (images * channels * run == 0) return cudaSuccess;
  if (channels_last) {
    const int64_t image = channels * run;
    const Columns g(images, image, channels, kPack<S>, kRowsAhead<S, Rule>,
                    access_of(rule, images > 1 ? image : 0, sizeof(S)));
    return launch(columns_kernel<S, Rule>, static_cast<unsigned>(images * g.splits * g.chunks), kThreads, 0, stream,
                  rule, g);
  }
  const Planes g(run, images * channels * run, kThreads * kAhead * kPack<S>, kPack<S>, access_of(rule, 0, sizeof(S)));
  return launch(planes_kernel<S, Rule>, static_cast<unsigned>((g.total + g.tile - 1) / g.tile), kThreads, 0, stream,
                rule, g);
}

// Matrices ----------------------------------------------------------------------------------------------------------

// Rows of `length` elements; a block's rows, of which it makes the constants first, are at most kThreads.
struct Matrix {
  int64_t rows, length, rows_each;
  int lanes, access;
  unsigned chunks;
  Matrix(int64_t rows, int64_t length, int pack, int access) : rows(rows), length(length), access(access) {
    const int64_t packs = (length + pack - 1) / pack;
    lanes = norm_lanes(packs);
    chunks = static_cast<unsigned>((packs + lanes - 1) / lanes);
    const int64_t tile = kThreads / lanes * kAhead;
    rows_each = tile * tiles_each((rows + tile - 1) / tile, chunks, 2);
    rows_each = rows_each < kThreads ? rows_each : kThreads;
  }
};

template <class S, class Rule>
__global__ void __launch_bounds__(kThreads, 2) matrix_kernel(const Rule rule, const Matrix g) {
  using T = acc_t<S>;
  constexpr int n = kPack<S>, inputs = Rule::kInputs, outputs = Rule::kOutputs;
  FASTCV_SHARED(typename Rule::Row, table, kThreads);
  const unsigned chunk = blockIdx.x % g.chunks;
  const int64_t begin = (blockIdx.x / g.chunks) * g.rows_each;
  const int count = static_cast<int>(g.rows - begin < g.rows_each ? g.rows - begin : g.rows_each);
  const int lane = threadIdx.x & (g.lanes - 1), tall = kThreads / g.lanes;
  const int64_t column = (static_cast<int64_t>(chunk) * g.lanes + lane) * n;
  if (static_cast<int>(threadIdx.x) < count) table[threadIdx.x] = rule.row(begin + threadIdx.x);
  __syncthreads();
  if (column >= g.length) return;
  typename Rule::Coefficients c[n];
  rule.columns(column, g.length - 1, c);
  for (int row = threadIdx.x / g.lanes; row < count; row += kAhead * tall) {
    Pack<S, n> packs[kAhead][inputs];
#pragma unroll
    for (int u = 0; u < kAhead; ++u)
      if (row + u * tall < count)
        load_all(rule.in, (begin + row + u * tall) * g.length + column, g.length - column, g.access, packs[u]);
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      if (row + u * tall >= count) continue;
      const typename Rule::Row r = table[row + u * tall];
      Pack<S, n> made[outputs];
#pragma unroll
      for (int i = 0; i < n; ++i) {
        T values[inputs], results[outputs];
        element<S>(packs[u], i, values);
        rule(c[i], r, values, results);
#pragma unroll
        for (int k = 0; k < outputs; ++k) made[k].at[i] = narrow<S>(results[k]);
      }
      store_all(rule.out, (begin + row + u * tall) * g.length + column, g.length - column, g.access, made);
    }
  }
}
template <class S, class Rule>
int sweep_matrix(const Rule& rule, int64_t rows, int64_t length, CUstream_st* stream) {
  if (rows * length == 0) return cudaSuccess;
  const Matrix g(rows, length, kPack<S>, access_of(rule, rows > 1 ? length : 0, sizeof(S)));
  return launch(matrix_kernel<S, Rule>, static_cast<unsigned>((rows + g.rows_each - 1) / g.rows_each * g.chunks),
                kThreads, 0, stream, rule, g);
}

}  // namespace fastcv::FASTCV_GPU
