// Gradients of knn's distances on CUDA. grad_x: a thread per coordinate adds up its k neighbours. grad_y: the chosen
// pairs are sorted by the chosen point (a stable radix sort: no atomics, the same order on every run), and a thread per
// coordinate adds up its point's pairs. Both 32 terms at a time, in order.
#include "neighbors/knn_backward.h"

#include "common/divide.cuh"
#include "common/ptx.cuh"
#include "common/reduce.cuh"
#include "neighbors/knn_backward_plan.h"
#include "neighbors/slope.cuh"

namespace fastcv::FASTCV_GPU {
namespace {

constexpr int kWarps = kThreads / kWarp;
constexpr int kRounds = ChosenPairs::kChunk / kThreads;  // elements of a thread in its chunk
constexpr int kDigits = ChosenPairs::kDigits;
constexpr int kAtATime = 32;

template <class T>
struct Sum32 {
  T total = 0, part = 0;
  int terms = 0;
  __device__ __forceinline__ void add(T term) {
    part += term;
    if (++terms < kAtATime) return;
    total += part;
    part = 0;
    terms = 0;
  }
  __device__ __forceinline__ T value() const { return total + part; }
};

__device__ __forceinline__ int64_t chosen(const KnnBackwardParams& p, int64_t pair) {
  const int64_t n = p.index[pair];
  if (n < -1 || n >= p.n) trap("knn_backward: an index outside of y");
  return n;
}

template <class Slope>
__global__ void __launch_bounds__(kThreads)
    grad_x_kernel(const Slope slope, const KnnBackwardParams p, const Divider depth, const Divider m) {
  using T = typename Slope::T;
  for (int64_t i = global_thread(); i < p.batch * p.m * p.depth; i += global_threads()) {
    int64_t d = i;
    const int64_t q = depth.split(d), b = m.divide(q);
    const T x = static_cast<const T*>(p.x)[b * p.x_batch + (q - b * p.m) * p.depth + d];
    const T* y = static_cast<const T*>(p.y) + b * p.y_batch;
    Sum32<T> sum;
    for (int64_t pair = q * p.k; pair < (q + 1) * p.k; ++pair) {
      const int64_t n = chosen(p, pair);
      if (n < 0) continue;
      const T distance = static_cast<const T*>(p.distance)[pair];
      const T w = slope.weight(static_cast<const T*>(p.grad)[pair], distance);
      sum.add(slope.term(x - y[n * p.depth + d], w, distance));
    }
    static_cast<T*>(p.grad_x)[i] = sum.value();
  }
}

// Key of a pair: the number of the chosen point, counted through the batch; padding comes last.
__global__ void __launch_bounds__(kThreads)
    keys_kernel(const KnnBackwardParams p, const Divider per_item, int64_t pairs, int64_t* keys, int64_t* values) {
  for (int64_t i = global_thread(); i < pairs; i += global_threads()) {
    const int64_t n = chosen(p, i);
    keys[i] = n < 0 ? p.batch * p.n : per_item.divide(i) * p.n + n;
    values[i] = i;
  }
}

// counts[warp][digit] of this block's chunk, and how many of the same digit came before each element in its warp.
// A warp takes 32 kRounds elements in a row, 32 at a time. Returns after a barrier.
__device__ __forceinline__ void rank_chunk(const int64_t* keys, int64_t pairs, int shift, Shared<int> counts,
                                           int (&digit)[kRounds], int (&rank)[kRounds]) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  for (int i = threadIdx.x; i < kWarps * kDigits; i += kThreads) counts[i] = 0;
  __syncthreads();
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const int64_t i = blockIdx.x * ChosenPairs::kChunk + (warp * kRounds + round) * kWarp + lane;
    const bool there = i < pairs;
    digit[round] = there ? static_cast<int>(keys[i] >> shift & (kDigits - 1)) : 0;
    unsigned same = __ballot_sync(kAllLanes, there);  // lanes of this digit
#pragma unroll
    for (int bit = 0; bit < 8; ++bit) {
      const bool one = digit[round] >> bit & 1;
      const unsigned ones = __ballot_sync(kAllLanes, one);
      same &= one ? ones : ~ones;
    }
    const int mine = warp * kDigits + digit[round];
    const int before = counts[mine];
    rank[round] = there ? before + __popc(same & ((1u << lane) - 1)) : -1;
    __syncwarp();
    if (there && __ffs(same) - 1 == lane) counts[mine] = before + __popc(same);
    __syncwarp();
  }
  __syncthreads();
}

// counted[digit][chunk]
__global__ void __launch_bounds__(kThreads)
    count_kernel(const int64_t* keys, int64_t pairs, int shift, int64_t* counted) {
  FASTCV_SHARED(int, counts, kWarps* kDigits);
  int digit[kRounds], rank[kRounds];
  rank_chunk(keys, pairs, shift, counts, digit, rank);
  for (int d = threadIdx.x; d < kDigits; d += kThreads) {
    int64_t sum = 0;
    for (int warp = 0; warp < kWarps; ++warp) sum += counts[warp * kDigits + d];
    counted[static_cast<int64_t>(d) * gridDim.x + blockIdx.x] = sum;
  }
}

// Each count becomes the sum of those before it. One block.
__global__ void __launch_bounds__(kThreads) scan_kernel(int64_t* counted, int64_t n) {
  FASTCV_SHARED(int64_t, sums, kThreads);
  const int64_t length = (n + kThreads - 1) / kThreads, begin = threadIdx.x * length;
  const int64_t end = begin + length < n ? begin + length : n;
  int64_t sum = 0;
  for (int64_t i = begin; i < end; ++i) sum += counted[i];
  sums[threadIdx.x] = sum;
  __syncthreads();
  sum = 0;
  for (unsigned t = 0; t < threadIdx.x; ++t) sum += sums[t];
  for (int64_t i = begin; i < end; ++i) {
    const int64_t count = counted[i];
    counted[i] = sum;
    sum += count;
  }
}

__global__ void __launch_bounds__(kThreads)
    scatter_kernel(const int64_t* keys, const int64_t* values, int64_t pairs, int shift, const int64_t* counted,
                   int64_t* new_keys, int64_t* new_values) {
  FASTCV_SHARED(int, counts, kWarps* kDigits);
  int digit[kRounds], rank[kRounds];
  rank_chunk(keys, pairs, shift, counts, digit, rank);
  for (int d = threadIdx.x; d < kDigits; d += kThreads) {
    int sum = 0;
    for (int warp = 0; warp < kWarps; ++warp) {
      const int count = counts[warp * kDigits + d];
      counts[warp * kDigits + d] = sum;
      sum += count;
    }
  }
  __syncthreads();
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    if (rank[round] < 0) continue;
    const int64_t i = blockIdx.x * ChosenPairs::kChunk + (warp * kRounds + round) * kWarp + lane;
    const int64_t to = counted[static_cast<int64_t>(digit[round]) * gridDim.x + blockIdx.x] +
                       static_cast<int>(counts[warp * kDigits + digit[round]]) + rank[round];
    new_keys[to] = keys[i];
    new_values[to] = values[i];
  }
}

// first[point] = the first pair whose key is not below it.
__global__ void __launch_bounds__(kThreads)
    bounds_kernel(const int64_t* keys, int64_t pairs, int64_t points, int64_t* first) {
  for (int64_t point = global_thread(); point <= points; point += global_threads()) {
    int64_t low = 0, high = pairs;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (keys[middle] < point) low = middle + 1;
      else high = middle;
    }
    first[point] = low;
  }
}

template <class Slope>
__global__ void __launch_bounds__(kThreads)
    grad_y_kernel(const Slope slope, const KnnBackwardParams p, const Divider depth, const Divider k, const Divider n,
                  const int64_t* pairs, const int64_t* first) {
  using T = typename Slope::T;
  for (int64_t i = global_thread(); i < p.batch * p.n * p.depth; i += global_threads()) {
    int64_t d = i;
    const int64_t point = depth.split(d), b = n.divide(point);
    const T y = static_cast<const T*>(p.y)[b * p.y_batch + (point - b * p.n) * p.depth + d];
    Sum32<T> sum;
    for (int64_t at = first[point]; at < first[point + 1]; ++at) {
      const int64_t pair = pairs[at], row = k.divide(pair) - b * p.m;
      const T x = static_cast<const T*>(p.x)[b * p.x_batch + row * p.depth + d];
      const T distance = static_cast<const T*>(p.distance)[pair];
      const T w = slope.weight(static_cast<const T*>(p.grad)[pair], distance);
      sum.add(-slope.term(x - y, w, distance));
    }
    static_cast<T*>(p.grad_y)[i] = sum.value();
  }
}

}  // namespace

int knn_backward(const KnnBackwardParams& p, void* workspace, CUstream_st* stream) {
  const ChosenPairs plan(p);
  const int64_t all_x = p.batch * p.m * p.depth, all_y = p.batch * p.n * p.depth;
  if ((p.p == 0 && !p.squared) || plan.pairs == 0) {
    if (const int error = clear(p.grad_x, p.dtype, all_x, stream)) return error;
    return clear(p.grad_y, p.dtype, all_y, stream);
  }
  const Divider depth(p.depth), m(p.m);
  int64_t *keys = static_cast<int64_t*>(workspace), *values = keys + plan.pairs, *new_keys = values + plan.pairs;
  int64_t *new_values = new_keys + plan.pairs, *counted = new_values + plan.pairs;
  int64_t* first = counted + plan.kDigits * plan.chunks;
  if (p.grad_y != nullptr && all_y > 0) {
    const Divider per_item(p.m * p.k);
    int error =
        launch(keys_kernel, grid_for(plan.pairs, kThreads), kThreads, 0, stream, p, per_item, plan.pairs, keys, values);
    const auto blocks = static_cast<unsigned>(plan.chunks);
    for (int pass = 0; pass < plan.passes && error == 0; ++pass) {
      error = launch(count_kernel, blocks, kThreads, 0, stream, keys, plan.pairs, 8 * pass, counted);
      if (error == 0) error = launch(scan_kernel, 1, kThreads, 0, stream, counted, plan.kDigits * plan.chunks);
      if (error == 0)
        error = launch(scatter_kernel, blocks, kThreads, 0, stream, keys, values, plan.pairs, 8 * pass, counted,
                       new_keys, new_values);
      std::swap(keys, new_keys);
      std::swap(values, new_values);
    }
    if (error == 0)
      error = launch(bounds_kernel, grid_for(plan.points + 1, kThreads), kThreads, 0, stream, keys, plan.pairs,
                     plan.points, first);
    if (error != 0) return error;
  }
  return with_slope(p.dtype, p.p, p.squared, [&](const auto& slope) {
    using Slope = std::decay_t<decltype(slope)>;
    int error = cudaSuccess;
    if (p.grad_x != nullptr && all_x > 0)
      error = launch(grad_x_kernel<Slope>, grid_for(all_x, kThreads), kThreads, 0, stream, slope, p, depth, m);
    if (error == 0 && p.grad_y != nullptr && all_y > 0)
      error = launch(grad_y_kernel<Slope>, grid_for(all_y, kThreads), kThreads, 0, stream, slope, p, depth,
                     Divider(p.k), Divider(p.n), values, first);
    return error;
  });
}

}  // namespace fastcv::FASTCV_GPU
