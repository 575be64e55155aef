#include "neighbors/knn_backward_partials.h"

#include "common/dispatch.h"
#include "neighbors/slope.h"

namespace fastcv::FASTCV_ISA {
namespace {

constexpr int64_t kMostBlocks = 64, kLeastQueries = 2048;

template <class T>
struct Plan {
  int64_t queries, blocks, stride,
      partial;  // of a block; per batch item; of a row of partial, and partial, in elements

  explicit Plan(const KnnBackwardParams& p) {
    constexpr int64_t w = Vec<T>::width;
    queries = (p.m + kMostBlocks - 1) / kMostBlocks;
    if (queries < kLeastQueries) queries = kLeastQueries;
    blocks = (p.m + queries - 1) / queries;
    stride = (p.depth + w - 1) / w * w;
    partial = p.n * stride;
  }
  size_t bytes(const KnnBackwardParams& p) const {
    return p.grad_y == nullptr ? 0 : static_cast<size_t>(p.batch * blocks * partial) * sizeof(T);
  }
};

template <class T, class Slope>
void add_block(const KnnBackwardParams& p, const Plan<T>& plan, const Slope& slope, int64_t b, int64_t begin,
               int64_t end, T* sums) {
  constexpr int w = Vec<T>::width;
  const T* y = static_cast<const T*>(p.y) + b * p.y_batch;
  __builtin_memset(sums, 0, plan.partial * sizeof(T));
  for (int64_t q = begin; q < end; ++q) {
    const T* x = static_cast<const T*>(p.x) + b * p.x_batch + q * p.depth;
    for (int64_t at = (b * p.m + q) * p.k, last = at + p.k; at < last; ++at) {
      const int64_t chosen = p.index[at];
      if (chosen < 0) continue;
      const T distance = static_cast<const T*>(p.distance)[at];
      const Vec<T> far(distance), weight(slope.weight(static_cast<const T*>(p.grad)[at], distance));
      const T* own = y + chosen * p.depth;
      T* to = sums + chosen * plan.stride;
      int64_t d = 0;
      for (; d + w <= p.depth; d += w) {
        const Vec<T> difference = detail::load_raw(own + d) - detail::load_raw(x + d);
        detail::store_raw(to + d, slope.add(detail::load_raw(to + d), difference, weight, far));
      }
      if (d < p.depth) {
        const int left = static_cast<int>(p.depth - d);
        const Vec<T> difference = detail::load_raw_n(own + d, left) - detail::load_raw_n(x + d, left);
        detail::store_raw(to + d, slope.add(detail::load_raw(to + d), difference, weight, far));
      }
    }
  }
}

template <class T, class Slope>
void run(const KnnBackwardParams& p, const Slope& slope, const Exec& exec) {
  const Plan<T> plan(p);
  T* partials = static_cast<T*>(exec.workspace);  // [B][blocks][N][stride]
  parallel_for(exec, p.batch * plan.blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t b = task / plan.blocks, begin = task % plan.blocks * plan.queries;
      const int64_t end = p.m - begin < plan.queries ? p.m : begin + plan.queries;
      add_block(p, plan, slope, b, begin, end, partials + task * plan.partial);
    }
  });
  constexpr int64_t kGrainSteps = 1 << 16;
  constexpr int w = Vec<T>::width;
  parallel_for(exec, p.batch * p.n, 1 + kGrainSteps / (plan.blocks * plan.stride + 1),
               [&](int64_t first, int64_t last) {
                 for (int64_t row = first; row < last; ++row) {
                   const T* from = partials + row / p.n * plan.blocks * plan.partial + row % p.n * plan.stride;
                   T* to = static_cast<T*>(p.grad_y) + row * p.depth;
                   for (int64_t d = 0; d < p.depth; d += w) {
                     Vec<T> sum(T(0));
                     for (int64_t block = 0; block < plan.blocks; ++block)
                       sum += detail::load_raw(from + block * plan.partial + d);
                     if (d + w <= p.depth) detail::store_raw(to + d, sum);
                     else detail::store_raw_n(to + d, sum, static_cast<int>(p.depth - d));
                   }
                 }
               });
}

}  // namespace

size_t knn_backward_partials_workspace(const KnnBackwardParams& p, int threads) {
  KnnBackwardParams other = p;  // grad_x is gathered
  other.grad_y = nullptr;
  const size_t gathered = knn_backward_workspace(other, threads);
  const size_t own = p.dtype == DType::f64 ? Plan<double>(p).bytes(p) : Plan<float>(p).bytes(p);
  return own > gathered ? own : gathered;
}

void knn_backward_partials(const KnnBackwardParams& p, const Exec& exec) {
  KnnBackwardParams other = p;
  other.grad_y = nullptr;
  if (p.grad_x != nullptr) knn_backward(other, exec);
  if (p.grad_y == nullptr) return;
  dispatch_wide(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (p.squared) run<T>(p, SlopeSquare<T>(p.p), exec);
    else run<T>(p, SlopeL2<T>(p.p), exec);
  });
}

}  // namespace fastcv::FASTCV_ISA
