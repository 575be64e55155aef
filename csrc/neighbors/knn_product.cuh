// The search on tensor cores: products of 128 or 64 queries with all points of a part of y, tile by tile, by cp.async,
// ldmatrix and mma.sync. What a Kind makes of a tile's products says which pairs may be among the k nearest; these go
// to a queue of the warp, and whenever it holds a pair for every lane, the lanes sum one pair each directly, as the
// tiles of pairs.cuh do, and offer it to its query's list. So lists hold exact sums only, and correctness never depends
// on how many pairs a Kind lets pass: at worst all are summed.
//
// A warp has its queries for itself, 16 or 32 of them against 128 points, so that selection needs no barrier of the
// block. In shared memory a row of a step is 64 bytes; its 16-byte chunk c lies at c ^ (row / 2 % 4), so that the eight
// rows of an ldmatrix tile fall into different banks. Four steps are in flight, from one tile to the next.
#pragma once
#include "common/packs.cuh"
#include "neighbors/knn_plan.h"
#include "neighbors/ranked.cuh"

namespace fastcv::FASTCV_GPU {

constexpr int kProductWarps = 4, kProductThreads = kProductWarps * kWarp, kColumns = 128, kStages = 4;
constexpr int kColumnTiles = kColumns / 8;  // of a product
constexpr int kQueue = 2 * kWarp;           // pairs that wait in a warp's queue
constexpr int kTermBytes = KnnProduct::kTerms * kColumns * 4;
static_assert(kColumns == KnnProduct::kTilePoints);

// Both sides as a product takes them: rows of operands, three numbers of each, four of each tile of y.
struct Operands {
  KnnParams p;
  KnnProduct plan;
  const char *x, *y;
  const uint32_t *x_terms, *y_terms, *y_tiles;
  Ranked* neighbors;  // [query][part][k]
  int access;         // bytes of one read of x and y (packs.cuh)

  Operands(const KnnParams& params, const KnnProduct& product, char* memory)
      : p(params),
        plan(product),
        x(memory),
        y(memory + plan.y_at),
        x_terms(reinterpret_cast<const uint32_t*>(memory + plan.x_terms)),
        y_terms(reinterpret_cast<const uint32_t*>(memory + plan.y_terms)),
        y_tiles(reinterpret_cast<const uint32_t*>(memory + plan.y_tiles)),
        neighbors(reinterpret_cast<Ranked*>(memory + plan.neighbors)),
        access(access_bytes({p.x, p.y}, {p.depth, p.x_batch, p.y_batch}, element_bytes())) {}
  int64_t element_bytes() const { return p.dtype == DType::u8 ? 1 : p.dtype == DType::f32 ? 4 : 2; }
};

// The direct sum of one pair, with the bits of sum_tile.
template <class S>
__device__ __forceinline__ uint32_t direct_key(const S* a, const S* b, int64_t depth, int access) {
  constexpr int n = kPack<S>, block = kSumUnits;
  static_assert(block % n == 0);
  float total = 0;
  for (int64_t begin = 0; begin < depth; begin += block) {
    const int64_t end = depth - begin < block ? depth : begin + block;
    float sum = 0;
    for (int64_t d = begin; d < end; d += n) {
      const auto u = load_elements(a + d, end - d, access), v = load_elements(b + d, end - d, access);
#pragma unroll
      for (int i = 0; i < n; ++i) {
        const float difference = widen(u.at[i]) - widen(v.at[i]);
        sum = fma(difference, difference, sum);
      }
    }
    total += sum;
  }
  return Keys<float>::of(total);
}
template <>
__device__ __forceinline__ uint32_t direct_key(const uint8_t* a, const uint8_t* b, int64_t depth, int access) {
  uint32_t sum = 0;
  for (int64_t d = 0; d < depth; d += kPack<uint8_t>) {
    const auto u = load_elements(a + d, depth - d, access), v = load_elements(b + d, depth - d, access);
    uint32_t x[4], y[4];
    memcpy(x, &u, sizeof x);
    memcpy(y, &v, sizeof y);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t difference = __vabsdiffu4(x[i], y[i]);
      sum = __dp4a(difference, difference, sum);
    }
  }
  return sum;
}

// Of a block: the steps in flight, the lists, and the warps' queues of pairs (query, point).
template <int rows>
constexpr int kStageBytes = (rows + kColumns) * static_cast<int>(KnnProduct::kStep) + kTermBytes + 16;
template <int rows>
size_t product_shared_bytes(int64_t k) {
  return size_t{kStages} * kStageBytes<rows> + rows * static_cast<size_t>(k) * sizeof(Ranked) +
         size_t{kProductWarps} * kQueue * 2 * sizeof(int32_t);
}

// Kind: S, the points' type; Sum, of products; multiply(sum, a, b); segments, of a product of pieces; and
// Rows<groups>, what a thread knows of its `groups` queries: start, after_sums, scan, may_pass, passing
// (knn_filter.cu). one: k is 1.
template <class Kind, int subs_m>
__global__ void __launch_bounds__(kProductThreads) product_kernel(const Operands g, const Kind kind) {
  using S = typename Kind::S;
  using Sum = typename Kind::Sum;
  using Half = uint16_t;  // shared memory is addressed in 16-bit elements, whatever they hold
  constexpr int rows = kProductWarps * 16 * subs_m, groups = 2 * subs_m, stage = kStageBytes<rows> / 2;
  constexpr int kTermsAt = (rows + kColumns) * 32, kRowsApart = kProductThreads / 4;
  FASTCV_DYNAMIC_SHARED(Half, shared);
  const KnnParams& p = g.p;
  const int k = static_cast<int>(p.k), t = threadIdx.x, lane = t % kWarp, warp = t / kWarp;
  const RankedLists lists{shared_cast<Ranked>(shared + kStages * stage), k};
  const auto queue = shared_cast<int32_t>(lists.all + rows * k) + warp * 2 * kQueue;  // queries, then points
  const auto place = [](int row, int chunk) { return row * 32 + (chunk ^ row / 2 % 4) * 8; };
  const int my_chunk = t % 4, my_row = t / 4, first_row = warp * 16 * subs_m;
  const int64_t down = g.plan.tiles / p.batch;
  const int piece = static_cast<int>(g.plan.row_bytes / Kind::pieces / KnnProduct::kStep);
  const int steps = piece * Kind::segments;  // of a tile

  for (int64_t job = blockIdx.x; job < g.plan.tiles * g.plan.parts; job += gridDim.x) {
    const int64_t part = job % g.plan.parts, b = job / g.plan.parts / down, x0 = job / g.plan.parts % down * rows;
    const int64_t begin = part * g.plan.length, end = begin + g.plan.length < p.n ? begin + g.plan.length : p.n;
    const int64_t x_item = g.plan.x_items == 1 ? 0 : b, y_item = g.plan.y_items == 1 ? 0 : b;
    const char* x = g.x + (x_item * g.plan.x_rows + x0 + my_row) * g.plan.row_bytes + my_chunk * 16;
    const char* y = g.y + (y_item * g.plan.y_rows + begin + my_row) * g.plan.row_bytes + my_chunk * 16;
    const uint32_t* terms = g.y_terms + (y_item * g.plan.y_rows + begin);
    const uint32_t* tile_terms =
        g.y_tiles + (y_item * g.plan.y_rows + begin) / KnnProduct::kTilePoints * KnnProduct::kTileTerms;
    const int64_t all = (end - begin + kColumns - 1) / kColumns * steps;

    int64_t fetched = 0;
    int fetched_of_tile = 0;
    const auto fetch = [&] {
      if (fetched < all) {
        const Shared<Half> to = shared + static_cast<int>(fetched % kStages) * stage;
        // Pieces high and low: high with high, high with low, low with high.
        const int k0 = fetched_of_tile, of_x = k0 < piece ? k0 : k0 - piece,
                  of_y = k0 < 2 * piece ? k0 : k0 - 2 * piece;
#pragma unroll
        for (int j = 0; j < rows / kRowsApart; ++j)
          copy_async(to + place(my_row + j * kRowsApart, my_chunk),
                     reinterpret_cast<const Half*>(x + j * kRowsApart * g.plan.row_bytes + of_x * KnnProduct::kStep),
                     true);
#pragma unroll
        for (int j = 0; j < kColumns / kRowsApart; ++j)
          copy_async(to + (rows * 32 + place(my_row + j * kRowsApart, my_chunk)),
                     reinterpret_cast<const Half*>(y + j * kRowsApart * g.plan.row_bytes + of_y * KnnProduct::kStep),
                     true);
        if (++fetched_of_tile == steps) {  // what selection needs comes with the tile's last step
          constexpr int kChunks = kColumns / 4;
          if (t < KnnProduct::kTerms * kChunks)
            copy_async(
                to + (kTermsAt + t * 8),
                reinterpret_cast<const Half*>(terms + t / kChunks * (g.plan.y_items * g.plan.y_rows) + t % kChunks * 4),
                true);
          if (t == kProductThreads - 1)
            copy_async(to + (kTermsAt + kTermBytes / 2), reinterpret_cast<const Half*>(tile_terms), true);
          fetched_of_tile = 0;
          y += kColumns * g.plan.row_bytes;
          terms += kColumns;
          tile_terms += KnnProduct::kTileTerms;
        }
        ++fetched;
      }
      commit_async();
    };

    for (int row = warp * 16 * subs_m; row < (warp + 1) * 16 * subs_m; ++row) lists.clear(row);
    __syncwarp();
    const auto row_of = [&](int group) { return first_row + group / 2 * 16 + group % 2 * 8 + lane / 4; };
    typename Kind::template Rows<groups> mine;
#pragma unroll
    for (int i = 0; i < groups; ++i)
      mine.start(kind, i, g.x_terms + x_item * g.plan.x_rows + x0 + row_of(i), g.plan.x_items * g.plan.x_rows,
                 x0 + row_of(i) < p.m);
    int waiting = 0;  // pairs in the queue
    const S* points_x = static_cast<const S*>(p.x) + b * p.x_batch;
    const S* points_y = static_cast<const S*>(p.y) + b * p.y_batch;
    // Sums the last pairs of the queue, up to one per lane.
    const auto sum_pairs = [&] {
      const int count = waiting < kWarp ? waiting : kWarp, at = waiting - count + lane;
      __syncwarp();
      int query = first_row;
      Ranked neighbor = kNobody;
      if (lane < count) {
        query = queue[at];
        const int32_t point = queue[kQueue + at];
        neighbor =
            ranked(direct_key(points_x + (x0 + query) * p.depth, points_y + point * p.depth, p.depth, g.access), point);
      }
      waiting -= count;
      lists.offer(query, neighbor, lane < count);
#pragma unroll
      for (int i = 0; i < groups; ++i)
        if (x0 + row_of(i) < p.m) mine.after_sums(kind, i, lists.last(row_of(i)));
    };

    Sum sum[subs_m][kColumnTiles][4] = {};
    const bool busy = x0 + first_row < p.m;
    int64_t column0 = begin;
    int of_tile = 0;
#pragma unroll
    for (int i = 0; i < kStages - 1; ++i) fetch();
    for (int64_t step = 0; step < all; ++step) {
      wait_async<kStages - 2>();
      __syncthreads();
      fetch();
      if (!busy) continue;
      const Shared<Half> a = shared + static_cast<int>(step % kStages) * stage, of_y = a + rows * 32;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        Fragment4 fa[subs_m];
#pragma unroll
        for (int m = 0; m < subs_m; ++m)
          fa[m] = load_matrix_x4(a + place(first_row + m * 16 + lane % 8 + lane / 8 % 2 * 8, half * 2 + lane / 16));
#pragma unroll
        for (int n = 0; n < kColumnTiles; n += 2) {
          const Fragment4 f = load_matrix_x4(of_y + place(n * 8 + lane % 8 + lane / 16 * 8, half * 2 + lane / 8 % 2));
          const uint32_t left[2] = {f.at[0], f.at[1]}, right[2] = {f.at[2], f.at[3]};
#pragma unroll
          for (int m = 0; m < subs_m; ++m) {
            Kind::multiply(sum[m][n], fa[m].at, left);
            Kind::multiply(sum[m][n + 1], fa[m].at, right);
          }
        }
      }
      if (++of_tile < steps) continue;
      of_tile = 0;

      const auto terms_here = shared_cast<uint32_t>(a + kTermsAt);
      if (__any_sync(kAllLanes, mine.scan(kind, sum, terms_here))) {
        uint32_t seen[groups] = {}, bits[groups];
        for (bool again = true; again;) {
          again = false;
#pragma unroll
          for (int i = 0; i < groups; ++i) {
            bits[i] = 0;
            if (!__any_sync(kAllLanes, mine.may_pass(i))) continue;
            bits[i] = mine.passing(kind, i, sum[i / 2], terms_here, column0, end) & ~seen[i];
            if (x0 + row_of(i) >= p.m) bits[i] = 0;
          }
          // One pair of each lane at a time.
          for (;;) {
            int group = -1;
            uint32_t from = 0;
#pragma unroll
            for (int i = groups - 1; i >= 0; --i)
              if (bits[i] != 0) group = i, from = bits[i];
            const unsigned votes = __ballot_sync(kAllLanes, group >= 0);
            if (votes == 0) break;
            if (group >= 0) {
              const int bit = __ffs(from) - 1, at = waiting + __popc(votes & ((1u << lane) - 1));
              queue[at] = row_of(group);
              queue[kQueue + at] = static_cast<int32_t>(column0) + bit / 2 * 8 + lane % 4 * 2 + bit % 2;
#pragma unroll
              for (int i = 0; i < groups; ++i) {
                if (i != group) continue;
                bits[i] &= bits[i] - 1;
                seen[i] |= 1u << bit;
              }
            }
            waiting += __popc(votes);
            if (waiting < kWarp) continue;
            sum_pairs();
            again = true;  // by what is known now
            break;
          }
        }
      }
#pragma unroll
      for (int i = 0; i < subs_m * kColumnTiles * 4; ++i) sum[i / 4 / kColumnTiles][i / 4 % kColumnTiles][i % 4] = 0;
      column0 += kColumns;
    }
    while (waiting > 0) sum_pairs();
    wait_async<0>();
    for (int row = first_row; row < first_row + 16 * subs_m && x0 + row < p.m; ++row) {
      const int64_t to = ((b * p.m + x0 + row) * g.plan.parts + part) * k;
      for (int i = lane; i < k; i += kWarp) g.neighbors[to + i] = lists.all[row * k + i];
    }
    __syncthreads();  // the next job's copies go where these were
  }
}

// The search, the lists of y's parts into one, and the results. metric: of the direct sums.
template <class Kind, class Metric>
int search_products(const Operands& g, const Kind& kind, const Metric& metric, CUstream_st* stream) {
  const KnnParams& p = g.p;
  const int64_t queries = p.batch * p.m;
  const int k = static_cast<int>(p.k);
  int error = cudaSuccess;
  if (k > 0) {
    const unsigned grid = grid_for(g.plan.tiles * g.plan.parts, 1);
    if constexpr (Kind::one)
      error = launch(product_kernel<Kind, 2>, grid, kProductThreads, product_shared_bytes<128>(k), stream, g, kind);
    else if (g.plan.rows == 128)
      error = launch(product_kernel<Kind, 2>, grid, kProductThreads, product_shared_bytes<128>(k), stream, g, kind);
    else error = launch(product_kernel<Kind, 1>, grid, kProductThreads, product_shared_bytes<64>(k), stream, g, kind);
    constexpr int warps = 4;
    if (error == 0 && g.plan.parts > 1)
      error = launch(merge_ranked_kernel<warps>, grid_for(queries, warps), warps * kWarp,
                     warps * static_cast<size_t>(k) * sizeof(Ranked), stream, queries, k, g.plan.parts, g.neighbors);
  }
  if (error != 0) return error;
  return launch(store_ranked_kernel<Metric>, grid_for(queries * p.k_out, kThreads), kThreads, 0, stream, metric, p,
                g.neighbors, g.plan.parts * p.k);
}

}  // namespace fastcv::FASTCV_GPU
