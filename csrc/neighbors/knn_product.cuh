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

// The direct sum of one pair, with the bits of sum_tile. Its loops stay loops: a tile's products are in registers.
template <class S>
__device__ __forceinline__ uint32_t direct_key(const S* a, const S* b, int depth, int access) {
  constexpr int n = kPack<S>;
  static_assert(kSumUnits % n == 0);
  float total = 0, sum = 0;
#pragma unroll 1
  for (int d = 0; d < depth; d += n) {
    const auto u = load_elements(a + d, depth - d, access), v = load_elements(b + d, depth - d, access);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const float difference = widen(u.at[i]) - widen(v.at[i]);
      sum = fma(difference, difference, sum);
    }
    if ((d + n) % kSumUnits != 0) continue;
    total += sum;
    sum = 0;
  }
  return Keys<float>::of(total + sum);
}
template <>
__device__ __forceinline__ uint32_t direct_key(const uint8_t* a, const uint8_t* b, int depth, int access) {
  uint32_t sum = 0;
#pragma unroll 1
  for (int d = 0; d < depth; d += kPack<uint8_t>) {
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

// A block for each 64 or 128 queries and part of y. Kind: S, the points' type; Sum, of products; multiply(sum, a, b);
// segments, of a product of pieces; and Rows<groups>, what a thread knows of its `groups` queries: start, after_sums,
// scan, may_pass, passing (knn_filter.cu). one: k is 1.
template <class Kind, int subs_m>
__global__ void __launch_bounds__(kProductThreads) product_kernel(const Operands g, const Kind kind) {
  using S = typename Kind::S;
  using Sum = typename Kind::Sum;
  using Half = uint16_t;  // shared memory is addressed in 16-bit elements, whatever they hold
  constexpr int rows = kProductWarps * 16 * subs_m, groups = 2 * subs_m, stage = kStageBytes<rows> / 2;
  constexpr int kTermsAt = (rows + kColumns) * 32, kRowsApart = kProductThreads / 4, kRowBytes = KnnProduct::kStep;
  FASTCV_DYNAMIC_SHARED(Half, shared);
  const KnnParams& p = g.p;
  const int t = threadIdx.x, lane = t % kWarp, first_row = t / kWarp * 16 * subs_m;
  const RankedLists lists{shared_cast<Ranked>(shared + kStages * stage), static_cast<int>(p.k)};
  const auto queue = shared_cast<int32_t>(lists.all + rows * lists.k) + t / kWarp * 2 * kQueue;  // queries, then points
  // Rows that are a multiple of eight apart have their chunks in the same order.
  const auto place = [](int row, int chunk) { return row * 32 + (chunk ^ row / 2 % 4) * 8; };
  const int my_chunk = t % 4, my_row = t / 4, my_place = place(my_row, my_chunk);
  const int of_rows = place(first_row + lane % 16, lane / 16),
            of_columns = place(lane % 8 + lane / 16 * 8, lane / 8 % 2);

  const int64_t down = g.plan.tiles / p.batch, job = blockIdx.x;
  const int64_t part = job % g.plan.parts, b = job / g.plan.parts / down, x0 = job / g.plan.parts % down * rows;
  const int begin = static_cast<int>(part * g.plan.length);
  const int end = static_cast<int>(begin + g.plan.length < p.n ? begin + g.plan.length : p.n);
  const int queries = static_cast<int>(p.m - x0 < rows ? p.m - x0 : rows);
  const int tiles = (end - begin + kColumns - 1) / kColumns;
  const int64_t x_row = (g.plan.x_items == 1 ? 0 : b) * g.plan.x_rows + x0;
  const int64_t y_row = (g.plan.y_items == 1 ? 0 : b) * g.plan.y_rows + begin;
  const int row_bytes = static_cast<int>(g.plan.row_bytes), rows_apart = kRowsApart * row_bytes;
  const int piece = row_bytes / Kind::pieces, tile_bytes = piece * Kind::segments;

  const char* const x = g.x + (x_row + my_row) * row_bytes + my_chunk * 16;
  const char* y = g.y + (y_row + my_row) * row_bytes + my_chunk * 16;
  int fetched = 0, at_byte = 0, to_stage = 0;  // tiles; bytes of the next one's rows; where they go
  const auto fetch = [&] {
    if (fetched < tiles) {
      const Shared<Half> to = shared + to_stage;
      // Pieces high and low: high with high, high with low, low with high.
      const char* from_x = x + (Kind::pieces == 1 || at_byte < piece ? at_byte : at_byte - piece);
      const char* from_y = y + (Kind::pieces == 1 || at_byte < 2 * piece ? at_byte : at_byte - 2 * piece);
#pragma unroll
      for (int j = 0; j < rows / kRowsApart; ++j)
        copy_async(to + (my_place + j * kRowsApart * 32), reinterpret_cast<const Half*>(from_x + j * rows_apart), true);
#pragma unroll
      for (int j = 0; j < kColumns / kRowsApart; ++j)
        copy_async(to + (my_place + (rows + j * kRowsApart) * 32),
                   reinterpret_cast<const Half*>(from_y + j * rows_apart), true);
      at_byte += kRowBytes;
      if (at_byte == tile_bytes) {  // what selection needs comes with the tile's last step
        constexpr int kChunks = kColumns / 4;
        const int64_t tile_row = y_row + fetched * kColumns;
        if (t < KnnProduct::kTerms * kChunks)
          copy_async(to + (kTermsAt + t * 8),
                     reinterpret_cast<const Half*>(g.y_terms + t / kChunks * (g.plan.y_items * g.plan.y_rows) +
                                                   tile_row + t % kChunks * 4),
                     true);
        if (t == kProductThreads - 1)
          copy_async(to + (kTermsAt + kTermBytes / 2),
                     reinterpret_cast<const Half*>(g.y_tiles + tile_row / kColumns * KnnProduct::kTileTerms), true);
        at_byte = 0;
        y += int64_t{kColumns} * row_bytes;
        ++fetched;
      }
      to_stage = to_stage == (kStages - 1) * stage ? 0 : to_stage + stage;
    }
    commit_async();
  };

  for (int row = first_row; row < first_row + 16 * subs_m; ++row) lists.clear(row);
  __syncwarp();
  const auto row_of = [&](int group) { return first_row + group / 2 * 16 + group % 2 * 8 + lane / 4; };
  typename Kind::template Rows<groups> mine;
#pragma unroll
  for (int i = 0; i < groups; ++i)
    mine.start(kind, i, g.x_terms + x_row + row_of(i), g.plan.x_items * g.plan.x_rows, row_of(i) < queries);
  int waiting = 0;  // pairs in the queue
  const S* const points_x = static_cast<const S*>(p.x) + b * p.x_batch + x0 * p.depth;
  const S* const points_y = static_cast<const S*>(p.y) + b * p.y_batch;
  // Sums the last pairs of the queue, up to one per lane.
  const auto sum_pairs = [&] {
    const int count = waiting < kWarp ? waiting : kWarp, at = waiting - count + lane;
    __syncwarp();
    int query = first_row;
    Ranked neighbor = kNobody;
    if (lane < count) {
      query = queue[at];
      const int32_t point = queue[kQueue + at];
      neighbor = ranked(
          direct_key(points_x + query * p.depth, points_y + point * p.depth, static_cast<int>(p.depth), g.access),
          point);
    }
    waiting -= count;
    lists.offer(query, neighbor, lane < count);
#pragma unroll
    for (int i = 0; i < groups; ++i)
      if (row_of(i) < queries) mine.after_sums(kind, i, key_of(lists.last(row_of(i))));
  };

  const bool busy = first_row < queries;
  int from_stage = 0;
#pragma unroll 1
  for (int i = 0; i < kStages - 1; ++i) fetch();
  for (int column0 = begin; column0 < end; column0 += kColumns) {
    Sum sum[subs_m][kColumnTiles][4] = {};
    Shared<Half> here;
#pragma unroll 1
    for (int step = 0; step < tile_bytes; step += kRowBytes) {
      wait_async<kStages - 2>();
      __syncthreads();
      fetch();
      here = shared + from_stage;
      from_stage = from_stage == (kStages - 1) * stage ? 0 : from_stage + stage;
      if (!busy) continue;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        Fragment4 rows_here[subs_m];
#pragma unroll
        for (int m = 0; m < subs_m; ++m) rows_here[m] = load_matrix_x4(here + ((of_rows ^ half * 16) + m * 16 * 32));
#pragma unroll
        for (int n = 0; n < kColumnTiles; n += 2) {
          const Fragment4 columns = load_matrix_x4(here + ((of_columns ^ half * 16) + (rows + n * 8) * 32));
          const uint32_t left[2] = {columns.at[0], columns.at[1]}, right[2] = {columns.at[2], columns.at[3]};
#pragma unroll
          for (int m = 0; m < subs_m; ++m) {
            Kind::multiply(sum[m][n], rows_here[m].at, left);
            Kind::multiply(sum[m][n + 1], rows_here[m].at, right);
          }
        }
      }
    }
    if (!busy) continue;
    const auto terms = shared_cast<uint32_t>(here + kTermsAt);
    if (!__any_sync(kAllLanes, mine.scan(kind, sum, terms))) continue;
    uint32_t seen[groups] = {};
    for (bool again = true; again;) {
      again = false;
      uint32_t bits[groups];
#pragma unroll
      for (int i = 0; i < groups; ++i) {
        bits[i] = 0;
        if (!__any_sync(kAllLanes, mine.may_pass(i))) continue;
        const uint32_t passing = mine.passing(kind, i, sum[i / 2], terms, column0, end, lists.last(row_of(i)));
        if (row_of(i) < queries) bits[i] = passing & ~seen[i];
      }
      for (;;) {  // one pair of each lane at a time
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
          queue[kQueue + at] = column0 + bit / 2 * 8 + lane % 4 * 2 + bit % 2;
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
  while (waiting > 0) sum_pairs();
  wait_async<0>();
  for (int row = first_row; row < first_row + 16 * subs_m && row < queries; ++row) {
    const int64_t to = ((b * p.m + x0 + row) * g.plan.parts + part) * lists.k;
    for (int i = lane; i < lists.k; i += kWarp) g.neighbors[to + i] = lists.all[row * lists.k + i];
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
    const auto grid = static_cast<unsigned>(g.plan.tiles * g.plan.parts);
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
