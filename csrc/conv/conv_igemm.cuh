// Convolution and its input gradient on tensor cores: an implicit product of gathered pixels and weights, by cp.async,
// ldmatrix and mma.sync. Rows are the pixels of a phase, columns the output channels of a group, and the sum runs over
// taps, then channels. Both operands come in 16-byte chunks of channels of one tap; a step along k takes four chunks,
// so that few channels fill it with several taps.
//
// In shared memory a row of a step is 64 bytes; its chunk c lies at c ^ (row / 2 % 4), so that the eight rows of an
// ldmatrix tile fall into different banks. Four steps are in flight.
//
// A sum may be cut into segments of steps, which are added up in their order: by the block that makes them all, or,
// each by a block of its own, through memory. The bits are the same.
#pragma once
#include "conv/conv_axis.cuh"
#include "conv/conv_chunks.cuh"
#include "conv/conv_gpu.h"
#include "conv/conv_operands.cuh"
#include "conv/conv_statistics.cuh"
#include "conv/conv_store.cuh"

namespace fastcv::FASTCV_GPU {

struct Igemm {
  ConvParams p;
  Axis d, h, w;
  Steps y;
  const void *x, *weights;
  double* moments;  // of the tiles' outputs, where statistics are wanted
  int64_t cg, kg, taps, padded, step_x[3], step_n, rows, tiles_m, tiles_n, tiles;
  int chunks;  // of a tap
  Divider by_cells_d, by_cells_h, by_cells_w, by_phases_d, by_phases_h, by_phases_w, by_tiles_m, by_tiles_n;
  bool packs;  // y is channels_last and can be written 16 bytes at a time
  Divider by_tiles;
  int segment_steps = 0;  // unless Cut::none
  int64_t segments = 1;
  bool odd_rows = false;     // if paired
  float* partial = nullptr;  // of Cut::apart: [segment][tile][row][column]

  Igemm(const ConvParams& params, const IgemmPlan& plan, const void* from, const void* packed, int tile_m, int tile_n)
      : p(params),
        d(p, 0),
        h(p, 1),
        w(p, 2),
        y(p.k, p.out, p.channels_last),
        x(from),
        weights(packed),
        moments(nullptr),
        cg(plan.cg),
        kg(plan.kg),
        taps(plan.taps),
        padded(plan.padded),
        rows(p.n * d.cells * h.cells * w.cells),
        tiles_m((rows + tile_m - 1) / tile_m),
        tiles_n((kg + tile_n - 1) / tile_n),
        tiles(tiles_m * tiles_n * d.phases * h.phases * w.phases * p.groups),
        chunks(static_cast<int>(padded / plan.chunk)),
        by_cells_d(d.cells),
        by_cells_h(h.cells),
        by_cells_w(w.cells),
        by_phases_d(d.phases),
        by_phases_h(h.phases),
        by_phases_w(w.phases),
        by_tiles_m(tiles_m),
        by_tiles_n(tiles_n),
        packs(p.channels_last && kg % plan.chunk == 0 && aligned_to(p.y, 16) && aligned_to(p.residual, 16)),
        by_tiles(tiles) {
    step_x[2] = p.groups * padded;
    step_x[1] = step_x[2] * p.in[2];
    step_x[0] = step_x[1] * p.in[1];
    step_n = step_x[0] * p.in[0];
  }

  // The image and cells of a row.
  __device__ __forceinline__ int64_t split(int64_t row, int64_t& cd, int64_t& ch, int64_t& cw) const {
    cw = row;
    ch = by_cells_w.split(cw);
    cd = by_cells_h.split(ch);
    return by_cells_d.split(cd);
  }
};

// Where a tile lies: its first column and row, phases and group.
struct TilePlace {
  int64_t n0, m0, pd, ph, pw, group;
  __device__ __forceinline__ TilePlace(const Igemm& g, int64_t tile, int tile_m, int tile_n) : group(tile) {
    n0 = group, group = g.by_tiles_n.split(n0);  // first, so that blocks which read the same pixels run together
    m0 = group, group = g.by_tiles_m.split(m0);
    pw = group, group = g.by_phases_w.split(pw);
    ph = group, group = g.by_phases_h.split(ph);
    pd = group, group = g.by_phases_d.split(pd);
    n0 *= tile_n;
    m0 *= tile_m;
  }
  __device__ __forceinline__ void set_taps(const Igemm& g, const TapTable& taps) const {
    const int t = threadIdx.x;
    if (t == 0) taps.set(0, g.d.taps(pd));
    if (t == 1) taps.set(1, g.h.taps(ph));
    if (t == 2) taps.set(2, g.w.taps(pw));
  }
};

// Goes through the chunks of a phase's taps, four at a time from a thread's first.
struct ChunkWalk {
  const Igemm& g;
  const TapTable taps;
  int chunk = 0, left = 0;     // of the tap; chunks until the end
  int id = 0, ih = 0, iw = 0;  // numbers of the tap
  int d = 0, h = 0, w = 0;     // its place
  int64_t x = 0, weight = 0;   // offsets of its first channel

  __device__ __forceinline__ void place() {
    d = static_cast<int>(taps.shift(0, id));
    h = static_cast<int>(taps.shift(1, ih));
    w = static_cast<int>(taps.shift(2, iw));
    x = d * g.step_x[0] + h * g.step_x[1] + w * g.step_x[2];
    weight = ((taps.index(0, id) * g.h.kernel + taps.index(1, ih)) * g.w.kernel + taps.index(2, iw)) * g.padded;
  }
  __device__ __forceinline__ void forward(int n) {
    chunk += n;
    left -= n;
    if (chunk < g.chunks || left <= 0) return;
    do {
      chunk -= g.chunks;
      if (++iw < taps.count(2)) continue;
      iw = 0;
      if (++ih < taps.count(1)) continue;
      ih = 0;
      ++id;
    } while (chunk >= g.chunks);
    place();
  }
};

constexpr int kChunksPerStep = 4, kStages = 4;
enum class Cut { none, here, apart };

__device__ __forceinline__ int chunks_of(const Igemm& g, const TapTable& taps) {
  return static_cast<int>(taps.count(0) * taps.count(1) * taps.count(2)) * g.chunks;
}
__device__ __forceinline__ int steps_of(int chunks) { return (chunks + kChunksPerStep - 1) / kChunksPerStep; }

// From sums in shared memory, which begin with the place's first row and column, to y.
template <class S, int rows, int tile_n, int threads>
__device__ __forceinline__ void store_sums(const Igemm& g, const TilePlace& at, Shared<float> sums, int pitch) {
  constexpr int per_chunk = 16 / sizeof(S);
  const ConvParams& p = g.p;
  const int width = g.packs ? per_chunk : 1, columns = tile_n / width;
  for (int i = threadIdx.x; i < rows * columns; i += threads) {
    const int m = p.channels_last ? i / columns : i % rows, n = (p.channels_last ? i % columns : i / rows) * width;
    if (at.m0 + m >= g.rows || at.n0 + n >= g.kg) continue;
    int64_t cd, ch, cw;
    const int64_t image = g.split(at.m0 + m, cd, ch, cw);
    const int64_t od = cd * g.d.out_step + at.pd, oh = ch * g.h.out_step + at.ph, ow = cw * g.w.out_step + at.pw;
    if (od >= g.d.out || oh >= g.h.out || ow >= g.w.out) continue;
    const int64_t k = at.group * g.kg + at.n0 + n;
    const int64_t to = image * g.y.n + k * g.y.c + od * g.y.at[0] + oh * g.y.at[1] + ow * g.y.at[2];
    if (!g.packs) {
      static_cast<S*>(p.y)[to] = finished<S>(p, sums[m * pitch + n], k, to);
      continue;
    }
    float pack[per_chunk];
#pragma unroll
    for (int e = 0; e < per_chunk; ++e) pack[e] = sums[m * pitch + n + e];
    store_channels<S, per_chunk>(p, pack, k, to);
  }
}

template <int tile_m, int tile_n>
constexpr size_t igemm_shared_bytes() {
  const size_t stages = size_t{kStages} * (tile_m + tile_n) * 64, sums = size_t{tile_m} * (tile_n + 4) * 4;
  return stages > sums ? stages : sums;
}

// warps_m x warps_n warps make a tile_m x tile_n tile.
// paired: chunks are two pixels, and where the kernel's rows are odd the last of a row is one and zeros.
template <class Kind, int tile_m, int tile_n, int warps_m, int warps_n, Cut cut, bool paired = false>
__global__ void __launch_bounds__(warps_m * warps_n * 32) igemm_kernel(const Igemm g) {
  using S = typename Kind::S;
  using Half = uint16_t;  // shared memory is addressed in 16-bit elements, whatever they hold
  constexpr int threads = warps_m * warps_n * 32, per_chunk = 16 / sizeof(S);
  constexpr int rows_apart = threads / kChunksPerStep, rows_m = tile_m / rows_apart, rows_n = tile_n / rows_apart;
  constexpr int stage = (tile_m + tile_n) * 32;  // in 16-bit elements
  constexpr int subs_m = tile_m / warps_m / 16, subs_n = tile_n / warps_n / 8;
  static_assert(rows_m > 0 && rows_n > 0 && subs_n % 2 == 0);
  constexpr int kOutside = -(1 << 30);
  FASTCV_DYNAMIC_SHARED(Half, shared);
  FASTCV_SHARED(int64_t, tap_numbers, TapTable::kNumbers);
  const TapTable taps{tap_numbers};
  const ConvParams& p = g.p;
  const S* x = static_cast<const S*>(g.x);
  const S* weights = static_cast<const S*>(g.weights);
  const int t = threadIdx.x, lane = t % 32, warp_m = t / 32 / warps_n * (tile_m / warps_m),
            warp_n = t / 32 % warps_n * (tile_n / warps_n);
  const int my_chunk = t % kChunksPerStep, my_row = t / kChunksPerStep;
  const auto place = [](int row, int chunk) { return row * 32 + (chunk ^ row / 2 % 4) * 8; };

  const int64_t jobs = cut == Cut::apart ? g.tiles * g.segments : g.tiles;
  for (int64_t job = blockIdx.x; job < jobs; job += gridDim.x) {
    int64_t tile = job, segment = 0;
    if constexpr (cut == Cut::apart) segment = g.by_tiles.split(tile);
    const TilePlace at(g, tile, tile_m, tile_n);
    const int64_t m0 = at.m0, n0 = at.n0, group = at.group;
    at.set_taps(g, taps);
    __syncthreads();
    const int chunks = chunks_of(g, taps), all = steps_of(chunks);
    const int begin = cut == Cut::apart ? static_cast<int>(segment) * g.segment_steps : 0;
    const int steps = cut == Cut::apart ? min(begin + g.segment_steps, all) : all;  // where the sum ends
    if (cut == Cut::apart && begin >= steps) {  // this phase has fewer taps than others
      __syncthreads();
      continue;
    }

    // The rows of either operand that this thread copies.
    int64_t row_at[rows_m], column_at[rows_n];
    int row_d[rows_m], row_h[rows_m], row_w[rows_m];
#pragma unroll
    for (int j = 0; j < rows_m; ++j) {
      int64_t cd, ch, cw;
      const int64_t row = m0 + my_row + j * rows_apart, n = g.split(row, cd, ch, cw);
      row_d[j] = row < g.rows ? static_cast<int>(cd * g.d.in_step + taps.offset(0)) : kOutside;
      row_h[j] = static_cast<int>(ch * g.h.in_step + taps.offset(1));
      row_w[j] = static_cast<int>(cw * g.w.in_step + taps.offset(2));
      row_at[j] =
          n * g.step_n + group * g.padded + row_d[j] * g.step_x[0] + row_h[j] * g.step_x[1] + row_w[j] * g.step_x[2];
    }
#pragma unroll
    for (int j = 0; j < rows_n; ++j) {
      const int64_t n = n0 + my_row + j * rows_apart;
      column_at[j] = n < g.kg ? (group * g.kg + n) * g.taps * g.padded : -1;
    }
    ChunkWalk walk{g, taps};
    walk.left = chunks;
    if (chunks > 0) walk.place();
    walk.forward(begin * kChunksPerStep + my_chunk);

    const auto fetch = [&](int step) {
      if (step < steps) {
        const Shared<Half> a = shared + step % kStages * stage, b = a + tile_m * 32;
        const bool any = walk.left > 0;
        const int64_t channel = walk.chunk * per_chunk;
        [[maybe_unused]] const int whole =
            paired && g.odd_rows && walk.iw + 1 == g.w.kernel ? 8 : 16;  // bytes of a chunk
#pragma unroll
        for (int j = 0; j < rows_m; ++j) {
          const int row = my_row + j * rows_apart;
          const bool valid = any && static_cast<unsigned>(row_d[j] + walk.d) < static_cast<unsigned>(p.in[0]) &&
                             static_cast<unsigned>(row_h[j] + walk.h) < static_cast<unsigned>(p.in[1]) &&
                             static_cast<unsigned>(row_w[j] + walk.w) < static_cast<unsigned>(p.in[2]);
          const S* from = valid ? x + row_at[j] + walk.x + channel : x;
          const Shared<Half> to = a + place(row, my_chunk);
          if constexpr (paired) copy_async_part(to, reinterpret_cast<const Half*>(from), valid ? whole : 0);
          else copy_async(to, reinterpret_cast<const Half*>(from), valid);
        }
#pragma unroll
        for (int j = 0; j < rows_n; ++j) {
          const int row = my_row + j * rows_apart;
          const bool valid = any && column_at[j] >= 0;
          const S* from = valid ? weights + column_at[j] + walk.weight + channel : weights;
          copy_async(b + place(row, my_chunk), reinterpret_cast<const Half*>(from), valid);
        }
        walk.forward(kChunksPerStep);
      }
      commit_async();
    };

    float sum[subs_m][subs_n][4] = {}, total[cut == Cut::here ? subs_m : 1][cut == Cut::here ? subs_n : 1][4] = {};
    const bool busy = m0 + warp_m < g.rows && n0 + warp_n < g.kg;  // this warp has sums to make
    int left = g.segment_steps;                                    // of the segment
#pragma unroll
    for (int step = 0; step < kStages - 1; ++step) fetch(begin + step);
    for (int step = begin; step < steps; ++step) {
      wait_async<kStages - 2>();
      __syncthreads();
      fetch(step + kStages - 1);
      const Shared<Half> a = shared + step % kStages * stage, b = a + tile_m * 32;
      if (!busy) continue;
      multiply_step<Kind>(
          sum,
          [&](int half, int m) {
            return load_matrix_x4(a + place(warp_m + m * 16 + lane % 8 + lane / 8 % 2 * 8, half * 2 + lane / 16));
          },
          [&](int half, int n) {
            return load_matrix_x4(b + place(warp_n + n * 8 + lane % 8 + lane / 16 * 8, half * 2 + lane / 8 % 2));
          });
      if constexpr (cut == Cut::here) {
        if (--left > 0 && step + 1 < steps) continue;
        left = g.segment_steps;
#pragma unroll
        for (int m = 0; m < subs_m; ++m)
#pragma unroll
          for (int n = 0; n < subs_n; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              total[m][n][i] += sum[m][n][i];
              sum[m][n][i] = 0;
            }
      }
    }
    wait_async<0>();
    __syncthreads();
    if constexpr (cut == Cut::apart) {
      float* to = g.partial + (job * tile_m + warp_m + lane / 4) * tile_n + warp_n + lane % 4 * 2;
#pragma unroll
      for (int m = 0; m < subs_m; ++m)
#pragma unroll
        for (int n = 0; n < subs_n; ++n)
#pragma unroll
          for (int half = 0; half < 2; ++half)
            store_pack(to + (m * 16 + half * 8) * tile_n + n * 8,
                       Pack<float, 2>{{sum[m][n][half * 2], sum[m][n][half * 2 + 1]}});
      continue;
    }

    // Through shared memory, so that neighbouring threads write neighbouring elements.
    const int pitch = p.channels_last ? tile_n + 4 : tile_n + 1;
    const Shared<float> sums = shared_cast<float>(shared);
#pragma unroll
    for (int m = 0; m < subs_m; ++m)
#pragma unroll
      for (int n = 0; n < subs_n; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float value = sum[m][n][i];
          if constexpr (cut == Cut::here) value = total[m][n][i];
          sums[(warp_m + m * 16 + lane / 4 + i / 2 * 8) * pitch + warp_n + n * 8 + lane % 4 * 2 + i % 2] = value;
        }
    __syncthreads();
    store_sums<S, tile_m, tile_n, threads>(g, at, sums, pitch);
    __syncthreads();  // the next tile's copies go where the sums are
    if (g.moments != nullptr) {
      const int64_t k0 = group * g.kg + n0;
      const FirstRows rows{static_cast<int>(min(g.rows - m0, int64_t{tile_m}))};
      const int columns = static_cast<int>(min(g.kg - n0, int64_t{tile_n}));
      tile_moments<S, threads, tile_n>(p, sums, pitch, rows, columns, k0, g.moments + 2 * (m0 / tile_m * p.k + k0), t,
                                       [] { __syncthreads(); });
    }
  }
}

// Adds up the segments of 16 rows of a tile, one such slice to a block.
constexpr int kAddRows = 16, kAddThreads = 128;
template <class S, int tile_m, int tile_n>
__global__ void __launch_bounds__(kAddThreads) add_tiles_kernel(const Igemm g) {
  using Four = Pack<float, 4>;
  constexpr int pitch = tile_n + 4, slices = tile_m / kAddRows;
  FASTCV_SHARED(float, sums, kAddRows* pitch);
  FASTCV_SHARED(int64_t, tap_numbers, TapTable::kNumbers);
  const TapTable taps{tap_numbers};
  const int64_t tile = blockIdx.x / slices;
  const int first = blockIdx.x % slices * kAddRows;
  TilePlace at(g, tile, tile_m, tile_n);
  at.set_taps(g, taps);
  __syncthreads();
  const int segments = (steps_of(chunks_of(g, taps)) + g.segment_steps - 1) / g.segment_steps;
  for (int i = threadIdx.x; i < kAddRows * tile_n / 4; i += kAddThreads) {
    const int row = i / (tile_n / 4), column = i % (tile_n / 4) * 4;
    const float* from = g.partial + (tile * tile_m + first + row) * tile_n + column;
    Four total{};
#pragma unroll 4
    for (int s = 0; s < segments; ++s) {
      const Four part = load_pack<Four>(from + s * g.tiles * tile_m * tile_n);
#pragma unroll
      for (int e = 0; e < 4; ++e) total.at[e] += part.at[e];
    }
    store_shared(sums + row * pitch + column, total);
  }
  __syncthreads();
  at.m0 += first;
  store_sums<S, kAddRows, tile_n, kAddThreads>(g, at, sums, pitch);
}

template <class Kind, int tile_m, int tile_n, int warps_m, int warps_n, bool paired>
int launch_igemm_tile(const Igemm& g, CUstream_st* stream) {
  static_assert(tile_m >= kLeastTileRows);
  const int error =
      launch(igemm_kernel<Kind, tile_m, tile_n, warps_m, warps_n, Cut::none, paired>, grid_for(g.tiles, 1),
             warps_m * warps_n * 32, igemm_shared_bytes<tile_m, tile_n>(), stream, g);
  if (error != 0 || g.moments == nullptr) return error;
  return merge_moments(g.moments, tile_m, g.rows, g.p.k, *g.p.statistics, stream);
}

// The tile decides the speed and nothing else: every sum is made by the same instructions in any.
template <class Kind, bool paired = false>
int multiply_igemm(const ConvParams& p, const IgemmPlan& plan, const void* x, const void* w, double* moments,
                   CUstream_st* stream, bool odd_rows = false) {
  const auto problem = [&](int tile) {
    Igemm g(p, plan, x, w, tile, tile);
    g.moments = moments;
    g.odd_rows = odd_rows;
    return g;
  };
  if constexpr (!Kind::chunked) {
    constexpr int64_t kMultiprocessors = 128;  // tiles enough to keep a large GPU busy
    if (const Igemm g = problem(128); plan.kg > 64 && g.tiles >= kMultiprocessors)
      return launch_igemm_tile<Kind, 128, 128, 2, 4, paired>(g, stream);
  }
  return launch_igemm_tile<Kind, 64, 64, 2, 2, paired>(problem(64), stream);
}
template <class Kind>
int launch_igemm(const ConvParams& p, void* workspace, CUstream_st* stream) {
  const IgemmPlan plan(p);
  const void *x, *w;
  if (const int error = chunked_operands<typename Kind::S>(p, plan, workspace, x, w, stream); error != 0) return error;
  auto* moments = reinterpret_cast<double*>(static_cast<char*>(workspace) + plan.x_bytes + plan.w_bytes);
  return multiply_igemm<Kind>(p, plan, x, w, p.statistics != nullptr ? moments : nullptr, stream);
}

// The sum in segments (SegmentedPlan): `apart` where the batch has few tiles, else `here`.
template <class Kind>
int launch_segmented_igemm(const ConvParams& p, void* workspace, CUstream_st* stream) {
  using S = typename Kind::S;
  constexpr int kTile = SegmentedPlan::kTile;
  const IgemmPlan plan(p);
  const SegmentedPlan segmented(p);
  const void *x, *w;
  if (const int error = chunked_operands<S>(p, plan, workspace, x, w, stream); error != 0) return error;
  const auto cut = [&](int tile_m) {
    Igemm g(p, plan, x, w, tile_m, kTile);
    g.segment_steps = static_cast<int>(segmented.length);
    g.segments = segmented.segments;
    g.partial = reinterpret_cast<float*>(static_cast<char*>(workspace) + plan.x_bytes + plan.w_bytes);
    return g;
  };
  const Igemm g = cut(kTile), large = cut(2 * kTile);
  if (!segmented.apart && large.tiles >= SegmentedPlan::kMultiprocessors)
    return launch(igemm_kernel<Kind, 2 * kTile, kTile, 4, 2, Cut::here>, grid_for(large.tiles, 1), 256,
                  igemm_shared_bytes<2 * kTile, kTile>(), stream, large);
  if (!segmented.apart)
    return launch(igemm_kernel<Kind, kTile, kTile, 2, 2, Cut::here>, grid_for(g.tiles, 1), 128,
                  igemm_shared_bytes<kTile, kTile>(), stream, g);
  const int error = launch(igemm_kernel<Kind, kTile, kTile, 2, 2, Cut::apart>, grid_for(g.tiles * g.segments, 1), 128,
                           igemm_shared_bytes<kTile, kTile>(), stream, g);
  if (error != 0) return error;
  const auto slices = static_cast<unsigned>(g.tiles * (kTile / kAddRows));
  return launch(add_tiles_kernel<S, kTile, kTile>, slices, kAddThreads, 0, stream, g);
}

}  // namespace fastcv::FASTCV_GPU
