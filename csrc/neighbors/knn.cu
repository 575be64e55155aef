// knn on CUDA, exact, ties to the lowest index.
//
// lists: the tiles of cdist, but a tile's sums go to shared memory, where a warp per query puts those that beat its
// k-th best into a sorted list; the lists of y's parts are merged afterwards. select, for any k: the sums of some
// queries to all of y go to memory; a block per query finds the k-th smallest by bisection, takes the k in order, and
// sorts them. Sums are compared as unsigned keys of the same order, NaN above infinity.
#include "neighbors/knn.h"

#include "common/reduce.cuh"
#include "neighbors/knn_plan.h"
#include "neighbors/pairs.cuh"
#include "neighbors/ranked.cuh"

namespace fastcv::FASTCV_GPU {
namespace {

constexpr int kWarps = kThreads / kWarp;

// A query's best so far, sorted, in shared memory. Whole warps call this.
template <class Key>
struct List {
  Shared<Key> keys;
  Shared<int32_t> indices;
  int k;

  __device__ void clear() const {
    for (int i = threadIdx.x % kWarp; i < k; i += kWarp) {
      keys[i] = ~Key{0};
      indices[i] = -1;
    }
    __syncwarp();
  }
  // Puts a pair behind all that are not larger; the last one falls out. The list's end is moved first.
  __device__ void insert(Key key, int32_t index) const {
    const int lane = threadIdx.x % kWarp;
    for (int begin = (k - 1) / kWarp * kWarp; begin >= 0; begin -= kWarp) {
      const int i = begin + lane;
      Key mine = 0, before = 0;
      int32_t before_index = 0;
      if (i < k) mine = keys[i];
      if (i > 0 && i < k) {
        before = keys[i - 1];
        before_index = indices[i - 1];
      }
      __syncwarp();
      const bool moves = i < k && mine > key, lands = moves && (i == 0 || before <= key);
      if (moves) {
        keys[i] = lands ? key : before;
        indices[i] = lands ? index : before_index;
      }
      __syncwarp();
      if (__any_sync(kAllLanes, lands)) return;
    }
  }
  // Every lane's candidate in lane order, if there is one. Equal keys must come in the order of their indices.
  __device__ void offer(Key key, int32_t index, bool there) const {
    Key worst = keys[k - 1];
    unsigned better = __ballot_sync(kAllLanes, there && key < worst);
    while (better != 0) {
      const int from = __ffs(better) - 1;
      better &= better - 1;
      const Key candidate = __shfl_sync(kAllLanes, key, from);
      const int32_t its_index = __shfl_sync(kAllLanes, index, from);
      worst = keys[k - 1];
      if (candidate < worst) insert(candidate, its_index);
    }
    __syncwarp();
  }
};

template <class Metric, class Key = typename Keys<typename Metric::T>::Key>
__global__ void __launch_bounds__(kThreads)
    lists_kernel(const Metric metric, const KnnParams p, const KnnLists plan, Key* out_keys, int32_t* out_indices) {
  using T = typename Metric::T;
  const int k = static_cast<int>(p.k);
  FASTCV_DYNAMIC_SHARED(Key, keys);  // [64][k] of the lists, then [64][kRow] of the tile
  const auto tile_keys = keys + kTile * k;
  const auto indices = shared_cast<int32_t>(tile_keys + kTile * kRow);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t down = tiles(p.m);
  for (int64_t job = blockIdx.x; job < plan.tiles * plan.parts; job += gridDim.x) {
    const int64_t part = job % plan.parts, b = job / plan.parts / down, x0 = job / plan.parts % down * kTile;
    const PointRows x = PointRows{p.x, p.m, p.depth, p.dtype}.from(b * p.x_batch);
    const PointRows y = PointRows{p.y, p.n, p.depth, p.dtype}.from(b * p.y_batch);
    const int64_t end = (part + 1) * plan.length < p.n ? (part + 1) * plan.length : p.n;
    const auto list_of = [&](int query) { return List<Key>{keys + query * k, indices + query * k, k}; };
    for (int query = warp; query < kTile; query += kWarps) list_of(query).clear();
    for (int64_t y0 = part * plan.length; y0 < end; y0 += kTile) {
      T sums[kMine][kMine];
      sum_tile(metric, x, y, x0, y0, sums);
      __syncthreads();  // the tile before may still be read
#pragma unroll
      for (int i = 0; i < kMine; ++i) {
        Pack<Key, kMine> row;
#pragma unroll
        for (int j = 0; j < kMine; ++j) row.at[j] = Keys<T>::of(sums[i][j]);
        store_shared(tile_keys + ((my_row() + i) * kRow + my_column()), row);
      }
      __syncthreads();
      for (int query = warp; query < kTile && x0 + query < p.m; query += kWarps)
#pragma unroll
        for (int half = 0; half < kTile; half += kWarp)
          list_of(query).offer(tile_keys[query * kRow + half + lane], static_cast<int32_t>(y0 + half + lane),
                               y0 + half + lane < end);
    }
    for (int query = warp; query < kTile && x0 + query < p.m; query += kWarps) {
      const int64_t to = ((b * p.m + x0 + query) * plan.parts + part) * k;
      for (int i = lane; i < k; i += kWarp) {
        out_keys[to + i] = keys[query * k + i];
        out_indices[to + i] = indices[query * k + i];
      }
    }
    __syncwarp();
  }
}

// A warp per query merges the lists of y's parts; the result takes the place of the first one.
template <class Key>
__global__ void __launch_bounds__(kThreads)
    merge_kernel(int64_t queries, int k, int64_t parts, Key* keys, int32_t* indices) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  FASTCV_DYNAMIC_SHARED(Key, list_keys);
  const auto list_indices = shared_cast<int32_t>(list_keys + kWarps * k);
  const List<Key> list{list_keys + warp * k, list_indices + warp * k, k};
  const int64_t count = parts * k;
  for (int64_t q = global_thread() / kWarp; q < queries; q += global_threads() / kWarp) {
    list.clear();
    for (int64_t i = 0; i < count; i += kWarp) {
      const int64_t at = q * count + i + lane;
      const bool there = i + lane < count && indices[at] >= 0;
      list.offer(there ? keys[at] : Key{0}, there ? indices[at] : 0, there);
    }
    for (int i = lane; i < k; i += kWarp) {
      keys[q * count + i] = list.keys[i];
      indices[q * count + i] = list.indices[i];
    }
    __syncwarp();
  }
}

// Distances and indices of queries [first, first + queries) from their sorted lists, `step` places apart.
template <class Metric, class Stored>
__global__ void __launch_bounds__(kThreads)
    store_kernel(const Metric metric, const KnnParams p, int64_t first, int64_t queries, const Stored* keys,
                 const int32_t* indices, int64_t step) {
  using Of = Keys<typename Metric::T>;
  for (int64_t i = global_thread(); i < queries * p.k_out; i += global_threads()) {
    const int64_t q = i / p.k_out, place = i % p.k_out, to = first * p.k_out + i;
    if (place < p.k) {
      const auto sum = Of::sum(static_cast<typename Of::Key>(keys[q * step + place]));
      store_distance(p.distances, p.out_dtype, to, metric.root(sum, p.squared));
    } else {
      store_distance(p.distances, p.out_dtype, to, INFINITY);
    }
    p.indices[to] = place < p.k ? indices[q * step + place] : -1;
  }
}

// keys[query - first][n] for queries [first, first + count) of all batch items.
template <class Metric>
__global__ void __launch_bounds__(kThreads)
    keys_kernel(const Metric metric, const KnnParams p, int64_t first, int64_t count, uint64_t* keys) {
  using T = typename Metric::T;
  const int64_t across = tiles(p.n), down = tiles(p.m), first_tile = first / p.m * down + first % p.m / kTile;
  const int64_t last = first + count - 1, last_tile = last / p.m * down + last % p.m / kTile;
  for (int64_t job = blockIdx.x; job < (last_tile - first_tile + 1) * across; job += gridDim.x) {
    const int64_t tile = first_tile + job / across, b = tile / down, x0 = tile % down * kTile,
                  y0 = job % across * kTile;
    const PointRows x = PointRows{p.x, p.m, p.depth, p.dtype}.from(b * p.x_batch);
    const PointRows y = PointRows{p.y, p.n, p.depth, p.dtype}.from(b * p.y_batch);
    T sums[kMine][kMine];
    sum_tile(metric, x, y, x0, y0, sums);
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int64_t m = x0 + my_row() + i, q = b * p.m + m - first, n = y0 + my_column();
      if (m >= p.m || q < 0 || q >= count) continue;
#pragma unroll
      for (int j = 0; j < kMine; ++j)
        if (n + j < p.n) keys[q * p.n + n + j] = static_cast<uint64_t>(Keys<T>::of(sums[i][j]));
    }
  }
}

// How many threads of the block before this one say yes, and how many do in all. scratch: an int per warp.
struct Count {
  int before, all;
};
__device__ __forceinline__ Count count_block(bool yes, Shared<int> scratch) {
  const unsigned votes = __ballot_sync(kAllLanes, yes);
  const int warp = threadIdx.x / kWarp;
  __syncthreads();
  if (threadIdx.x % kWarp == 0) scratch[warp] = __popc(votes);
  __syncthreads();
  Count count{__popc(votes & ((1u << threadIdx.x % kWarp) - 1)), 0};
  for (int w = 0; w < kWarps; ++w) {
    const int n = scratch[w];
    if (w < warp) count.before += n;
    count.all += n;
  }
  return count;
}

// The k smallest of each query's n keys, sorted. A block per query; see KnnSelect for what lies in memory.
__global__ void __launch_bounds__(kThreads)
    select_kernel(int64_t queries, int64_t n, int64_t k, int64_t sorted, uint64_t* memory) {
  FASTCV_SHARED(uint64_t, extremes, kWarps);
  FASTCV_SHARED(int64_t, sums, kWarps);
  FASTCV_SHARED(int, votes, kWarps);
  for (int64_t q = blockIdx.x; q < queries; q += gridDim.x) {
    const uint64_t* keys = memory + q * n;
    uint64_t* best = memory + queries * n + q * sorted;
    int32_t* index = reinterpret_cast<int32_t*>(memory + queries * (n + sorted)) + q * sorted;
    // The k-th smallest key, between the smallest and the largest.
    uint64_t low = ~uint64_t{0}, high = 0;
    for (int64_t i = threadIdx.x; i < n; i += kThreads) {
      low = keys[i] < low ? keys[i] : low;
      high = keys[i] > high ? keys[i] : high;
    }
    low = reduce_block(low, extremes, [](uint64_t a, uint64_t b) { return a < b ? a : b; });
    high = reduce_block(high, extremes, [](uint64_t a, uint64_t b) { return a > b ? a : b; });
    while (low < high) {
      const uint64_t middle = low + (high - low) / 2;
      int64_t count = 0;
      for (int64_t i = threadIdx.x; i < n; i += kThreads) count += keys[i] <= middle;
      if (reduce_block(count, sums, Sum()) >= k) high = middle;
      else low = middle + 1;
    }
    int64_t less = 0;
    for (int64_t i = threadIdx.x; i < n; i += kThreads) less += keys[i] < low;
    const int64_t ties = k - reduce_block(less, sums, Sum());
    // All that are smaller, and the first of those that are equal.
    int64_t taken = 0, equal = 0;
    for (int64_t i0 = 0; i0 < n && taken < k; i0 += kThreads) {
      const int64_t i = i0 + threadIdx.x;
      const uint64_t key = i < n ? keys[i] : ~uint64_t{0};
      const Count same = count_block(i < n && key == low, votes);
      const bool take = i < n && (key < low || (key == low && equal + same.before < ties));
      const Count mine = count_block(take, votes);
      if (take) {
        best[taken + mine.before] = key;
        index[taken + mine.before] = static_cast<int32_t>(i);
      }
      taken += mine.all;
      equal += same.all;
    }
    for (int64_t i = k + threadIdx.x; i < sorted; i += kThreads) {
      best[i] = ~uint64_t{0};
      index[i] = INT32_MAX;
    }
    // Bitonic sort of pairs, no two of which are equal but the padding's.
    for (int64_t size = 2; size <= sorted; size *= 2)
      for (int64_t step = size / 2; step > 0; step /= 2) {
        __syncthreads();
        for (int64_t i = threadIdx.x; i < sorted; i += kThreads) {
          const int64_t j = i ^ step;
          if (j < i) continue;
          const bool greater = best[i] != best[j] ? best[i] > best[j] : index[i] > index[j];
          if (greater != ((i & size) == 0)) continue;
          const uint64_t key = best[i];
          const int32_t at = index[i];
          best[i] = best[j];
          index[i] = index[j];
          best[j] = key;
          index[j] = at;
        }
      }
    __syncthreads();
  }
}

}  // namespace

int knn_lists(const KnnParams& p, void* workspace, CUstream_st* stream) {
  const int64_t queries = p.batch * p.m;
  if (queries == 0) return cudaSuccess;
  const KnnLists plan(p);
  return with_metric(p.dtype, p.p, p.depth, [&](const auto& metric) {
    using Metric = std::decay_t<decltype(metric)>;
    using Key = typename Keys<typename Metric::T>::Key;
    const int64_t step = plan.parts * p.k;
    const int k = static_cast<int>(p.k);
    Key* keys = static_cast<Key*>(workspace);
    int32_t* indices = reinterpret_cast<int32_t*>(keys + queries * step);
    int error = cudaSuccess;
    if (k > 0)
      error = launch(lists_kernel<Metric>, grid_for(plan.tiles * plan.parts, 1), kThreads, KnnLists::shared_bytes(p),
                     stream, metric, p, plan, keys, indices);
    if (error == 0 && k > 0 && plan.parts > 1)
      error = launch(merge_kernel<Key>, grid_for(queries, kWarps), kThreads, kWarps * k * (sizeof(Key) + 4), stream,
                     queries, k, plan.parts, keys, indices);
    if (error != 0) return error;
    return launch(store_kernel<Metric, Key>, grid_for(queries * p.k_out, kThreads), kThreads, 0, stream, metric, p,
                  int64_t{0}, queries, keys, indices, step);
  });
}

int knn_select(const KnnParams& p, void* workspace, CUstream_st* stream) {
  const int64_t all = p.batch * p.m;
  if (all == 0) return cudaSuccess;
  const KnnSelect plan(p);
  uint64_t* memory = static_cast<uint64_t*>(workspace);
  return with_metric(p.dtype, p.p, p.depth, [&](const auto& metric) {
    using Metric = std::decay_t<decltype(metric)>;
    for (int64_t first = 0; first < all; first += plan.queries) {
      const int64_t queries = all - first < plan.queries ? all - first : plan.queries;
      const uint64_t* best = memory + queries * p.n;
      const int32_t* indices = reinterpret_cast<const int32_t*>(best + queries * plan.sorted);
      // The first and the last tile of a batch item may be cut.
      const int64_t jobs = (tiles(queries) + 2 * p.batch) * tiles(p.n);
      int error = cudaSuccess;
      if (p.k > 0)
        error = launch(keys_kernel<Metric>, grid_for(jobs, 1), kThreads, 0, stream, metric, p, first, queries, memory);
      if (error == 0 && p.k > 0)
        error =
            launch(select_kernel, grid_for(queries, 1), kThreads, 0, stream, queries, p.n, p.k, plan.sorted, memory);
      if (error == 0)
        error = launch(store_kernel<Metric, uint64_t>, grid_for(queries * p.k_out, kThreads), kThreads, 0, stream,
                       metric, p, first, queries, best, indices, plan.sorted);
      if (error != 0) return error;
    }
    return static_cast<int>(cudaSuccess);
  });
}

}  // namespace fastcv::FASTCV_GPU
