// Gradients of knn: vectors lie along the coordinates. grad_x gathers, one query after another; grad_y scatters, each
// thread owning a band of coordinates of a batch item and adding to it in the order of the queries.
#include "neighbors/knn_backward.h"

#include "neighbors/slope.h"

namespace fastcv::FASTCV_ISA {
namespace {

constexpr int64_t kBand = 64;  // coordinates: whole cache lines

template <class T>
struct Item {
  const T *grad, *x, *y, *distance;
  const int64_t* index;

  Item(const KnnBackwardParams& p, int64_t b)
      : grad(static_cast<const T*>(p.grad) + b * p.m * p.k),
        x(static_cast<const T*>(p.x) + b * p.x_batch),
        y(static_cast<const T*>(p.y) + b * p.y_batch),
        distance(static_cast<const T*>(p.distance) + b * p.m * p.k),
        index(p.index + b * p.m * p.k) {}
};

// to[d] = to[d] + (or -) the slope of coordinate d, for `count` coordinates.
template <bool kMinus, class T, class Slope>
FASTCV_INLINE void add_slopes(const Slope& slope, const T* x, const T* y, T weight, T distance, int64_t count, T* to) {
  constexpr int w = Vec<T>::width;
  // The slope is odd in the difference: swapping the sides negates it.
  const Vec<T> wv(weight), dv(distance);
  for (int64_t d = 0; d < count; d += w) {
    const int n = static_cast<int>(count - d < w ? count - d : w);
    const bool full = n == w;
    const Vec<T> a = full ? detail::load_raw(x + d) : detail::load_raw_n(x + d, n);
    const Vec<T> b = full ? detail::load_raw(y + d) : detail::load_raw_n(y + d, n);
    const Vec<T> sum = full ? detail::load_raw(to + d) : detail::load_raw_n(to + d, n);
    const Vec<T> result = slope.add(sum, kMinus ? b - a : a - b, wv, dv);
    if (full) detail::store_raw(to + d, result);
    else detail::store_raw_n(to + d, result, n);
  }
}

template <class T, class Slope>
void run(const KnnBackwardParams& p, const Slope& slope, const Exec& exec) {
  if (p.grad_x != nullptr) {
    const int64_t work = p.k * p.depth < 1 ? 1 : p.k * p.depth;
    parallel_for(exec, p.batch * p.m, 1 + (1 << 16) / work, [&](int64_t begin, int64_t end) {
      for (int64_t query = begin; query < end; ++query) {
        const Item<T> item(p, query / p.m);
        const int64_t m = query % p.m;
        T* to = static_cast<T*>(p.grad_x) + query * p.depth;
        __builtin_memset(to, 0, p.depth * sizeof(T));
        for (int64_t j = m * p.k; j < (m + 1) * p.k; ++j)
          if (item.index[j] >= 0)
            add_slopes<false>(slope, item.x + m * p.depth, item.y + item.index[j] * p.depth,
                              slope.weight(item.grad[j], item.distance[j]), item.distance[j], p.depth, to);
      }
    });
  }
  if (p.grad_y == nullptr) return;
  const int64_t bands = (p.depth + kBand - 1) / kBand;
  const int64_t steps = (p.m * p.k + p.n + 1) * (p.depth < kBand ? p.depth : kBand);
  parallel_for(exec, p.batch * bands, 1 + (1 << 16) / (steps < 1 ? 1 : steps), [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / bands, d = task % bands * kBand;
      const int64_t width = p.depth - d < kBand ? p.depth - d : kBand;
      const Item<T> item(p, b);
      T* grad_y = static_cast<T*>(p.grad_y) + b * p.n * p.depth + d;
      for (int64_t n = 0; n < p.n; ++n) __builtin_memset(grad_y + n * p.depth, 0, width * sizeof(T));
      for (int64_t j = 0; j < p.m * p.k; ++j)
        if (item.index[j] >= 0)
          add_slopes<true>(slope, item.x + j / p.k * p.depth + d, item.y + item.index[j] * p.depth + d,
                           slope.weight(item.grad[j], item.distance[j]), item.distance[j], width,
                           grad_y + item.index[j] * p.depth);
    }
  });
}

}  // namespace

void knn_backward(const KnnBackwardParams& p, const Exec& exec) {
  const auto as = [&](auto zero) {
    using T = decltype(zero);
    if (p.p == 0) {
      if (p.grad_x != nullptr) __builtin_memset(p.grad_x, 0, p.batch * p.m * p.depth * sizeof(T));
      if (p.grad_y != nullptr) __builtin_memset(p.grad_y, 0, p.batch * p.n * p.depth * sizeof(T));
      return;
    }
    with_slope<T>(p.p, p.squared, [&](const auto& slope) { run<T>(p, slope, exec); });
  };
  if (p.dtype == DType::f64) as(double{});
  else as(float{});
}

}  // namespace fastcv::FASTCV_ISA
