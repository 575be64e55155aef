// Neighbours in the order of their distances on CUDA: sums as integer keys, and a key and an index in one number.
#pragma once
#include "common/reduce.cuh"
#include "neighbors/knn.h"
#include "neighbors/pairs.cuh"

namespace fastcv::FASTCV_GPU {

// Keys of sums of type T: a number >= 0 as an integer of the same order, NaN above them and ~0 above all.
template <class T>
struct Keys;
template <>
struct Keys<float> {
  using Key = uint32_t;
  static constexpr Key nan = ~Key{0} - 1;
  __device__ static __forceinline__ Key of(float sum) { return sum != sum ? nan : __float_as_uint(sum); }
  __device__ static __forceinline__ float sum(Key key) { return key == nan ? NAN : __uint_as_float(key); }
};
template <>
struct Keys<double> {
  using Key = uint64_t;
  static constexpr Key nan = ~Key{0} - 1;
  __device__ static __forceinline__ Key of(double sum) {
    return sum != sum ? nan : static_cast<Key>(__double_as_longlong(sum));
  }
  __device__ static __forceinline__ double sum(Key key) {
    return key == nan ? static_cast<double>(NAN) : __longlong_as_double(static_cast<int64_t>(key));
  }
};
template <>
struct Keys<uint32_t> {
  using Key = uint32_t;
  __device__ static __forceinline__ Key of(uint32_t sum) { return sum; }
  __device__ static __forceinline__ uint32_t sum(Key key) { return key; }
};

// A key above an index: of two neighbours the smaller number is the nearer one, or the first of equally near ones.
// Lists of them are the same whatever the order in which they are offered.
using Ranked = uint64_t;
constexpr Ranked kNobody = ~Ranked{0};

__device__ __forceinline__ Ranked ranked(uint32_t key, int32_t index) {
  return Ranked{key} << 32 | static_cast<uint32_t>(index);
}
__device__ __forceinline__ uint32_t key_of(Ranked ranked) { return static_cast<uint32_t>(ranked >> 32); }

// Sorted lists of k neighbours in shared memory, one behind the other. Whole warps call this, one for each list.
struct RankedLists {
  Shared<Ranked> all;
  int k;

  __device__ __forceinline__ Ranked last(int list) const { return all[list * k + k - 1]; }
  __device__ void clear(int list) const {
    for (int i = threadIdx.x % kWarp; i < k; i += kWarp) all[list * k + i] = kNobody;
  }
  // Puts a neighbour in its place; the last one falls out. The list's end is moved first.
  __device__ __forceinline__ void insert(int list, Ranked neighbor) const {
    const Shared<Ranked> at = all + list * k;
    for (int begin = (k - 1) / kWarp * kWarp; begin >= 0; begin -= kWarp) {
      const int i = begin + static_cast<int>(threadIdx.x % kWarp);
      Ranked mine = 0, before = 0;
      if (i < k) mine = at[i];
      if (i > 0 && i < k) before = at[i - 1];
      __syncwarp();
      const bool moves = i < k && mine > neighbor, lands = moves && (i == 0 || before < neighbor);
      if (moves) at[i] = lands ? neighbor : before;
      __syncwarp();
      if (__any_sync(kAllLanes, lands)) return;
    }
  }
  // Every lane's neighbour to its list, if there is one.
  __device__ __forceinline__ void offer(int list, Ranked neighbor, bool there) const {
    unsigned better = __ballot_sync(kAllLanes, there && neighbor < last(list));
    while (better != 0) {
      const int from = __ffs(better) - 1;
      better &= better - 1;
      const Ranked candidate = __shfl_sync(kAllLanes, neighbor, from);
      const int its_list = __shfl_sync(kAllLanes, list, from);
      if (candidate < last(its_list)) insert(its_list, candidate);
    }
    __syncwarp();
  }
};

// A warp per query merges its `parts` lists of k; the result takes the place of the first one.
template <int warps>
__global__ void __launch_bounds__(warps* kWarp)
    merge_ranked_kernel(int64_t queries, int k, int64_t parts, Ranked* neighbors) {
  FASTCV_DYNAMIC_SHARED(Ranked, memory);
  const RankedLists lists{memory, k};
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t count = parts * k;
  for (int64_t q = global_thread() / kWarp; q < queries; q += global_threads() / kWarp) {
    lists.clear(warp);
    __syncwarp();
    for (int64_t i = 0; i < count; i += kWarp)
      lists.offer(warp, i + lane < count ? neighbors[q * count + i + lane] : kNobody, true);
    for (int i = lane; i < k; i += kWarp) neighbors[q * count + i] = memory[warp * k + i];
    __syncwarp();
  }
}

// Distances and indices of all queries from their sorted lists, `step` places apart.
template <class Metric>
__global__ void __launch_bounds__(kThreads)
    store_ranked_kernel(const Metric metric, const KnnParams p, const Ranked* neighbors, int64_t step) {
  const int64_t queries = p.batch * p.m;
  for (int64_t i = global_thread(); i < queries * p.k_out; i += global_threads()) {
    const int64_t q = i / p.k_out, place = i % p.k_out;
    if (place < p.k) {
      const Ranked neighbor = neighbors[q * step + place];
      const auto sum = Keys<typename Metric::T>::sum(key_of(neighbor));
      store_distance(p.distances, p.out_dtype, i, metric.root(sum, p.squared));
      p.indices[i] = static_cast<int64_t>(neighbor & 0xffffffffu);
    } else {
      store_distance(p.distances, p.out_dtype, i, INFINITY);
      p.indices[i] = -1;
    }
  }
}

}  // namespace fastcv::FASTCV_GPU
