// Gradients of knn: both gather. For grad_y the choices (query, j) are first sorted by the reference that was chosen;
// then each row of either gradient is the sum over its partners, with vectors along the coordinates.
#include "neighbors/knn_backward.h"

#include "common/dispatch.h"
#include "neighbors/slope.h"

namespace fastcv::FASTCV_ISA {
namespace {

constexpr int kSegment = 32;  // partners summed in registers before they join the total: hubs have hundreds
constexpr int kVectors = 4;   // of coordinates at a time
constexpr int64_t kGrainSteps = 1 << 16;

// The partners of one row: those it chose, or was chosen by.
template <class T>
struct Segment {
  const T* other[kSegment];
  T weight[kSegment], distance[kSegment];
  int count = 0;
};

// V vectors of coordinates; of the last, `last` lanes. first: nothing stands in `to` yet.
template <int V, class T, class Slope>
FASTCV_INLINE void add_vectors(const Slope& slope, const Segment<T>& s, const T* own, int64_t d, int last, bool first,
                               T* to) {
  constexpr int w = Vec<T>::width;
  const auto read = [&](const T* from, int v) {
    return v + 1 < V || last == w ? detail::load_raw(from + v * w) : detail::load_raw_n(from + v * w, last);
  };
  Vec<T> mine[V], sum[V];
  for (int v = 0; v < V; ++v) {
    mine[v] = read(own + d, v);
    sum[v] = Vec<T>(T(0));
  }
  for (int i = 0; i < s.count; ++i) {
    const Vec<T> weight(s.weight[i]), distance(s.distance[i]);
    // The slope is odd in the difference: with the sides swapped it is the other gradient's.
    for (int v = 0; v < V; ++v) sum[v] = slope.add(sum[v], mine[v] - read(s.other[i] + d, v), weight, distance);
  }
  for (int v = 0; v < V; ++v) {
    const Vec<T> total = first ? sum[v] : read(to + d, v) + sum[v];
    if (v + 1 < V || last == w) detail::store_raw(to + d + v * w, total);
    else detail::store_raw_n(to + d + v * w, total, last);
  }
}

template <class T, class Slope>
void add_segment(const Slope& slope, const Segment<T>& s, const T* own, int64_t depth, bool first, T* to) {
  constexpr int w = Vec<T>::width;
  int64_t d = 0;
  for (; d + kVectors * w <= depth; d += kVectors * w) add_vectors<kVectors>(slope, s, own, d, w, first, to);
  for (; d < depth; d += w)
    add_vectors<1>(slope, s, own, d, static_cast<int>(depth - d < w ? depth - d : w), first, to);
}

struct Plan {
  size_t starts, order, bytes;  // of the sorted choices: [B][N + 1] where each reference's begin, [B][M * K] which

  explicit Plan(const KnnBackwardParams& p) : starts(0), order(0), bytes(0) {
    if (p.grad_y == nullptr || p.p == 0) return;
    order = static_cast<size_t>(p.batch * (p.n + 1)) * sizeof(int64_t);
    bytes = order + static_cast<size_t>(p.batch * p.m * p.k) * sizeof(int64_t);
  }
};

// The choices of one batch item, stably sorted by reference: those of n are order[starts[n] ... starts[n + 1]).
void sort_choices(const int64_t* index, int64_t count, int64_t n, int64_t* starts, int64_t* order) {
  __builtin_memset(starts, 0, static_cast<size_t>(n + 1) * sizeof(int64_t));
  for (int64_t i = 0; i < count; ++i)
    if (index[i] >= 0) ++starts[index[i]];
  int64_t total = 0;
  for (int64_t r = 0; r <= n; ++r) {
    total += starts[r];
    starts[r] = total;  // the end of r: counted down to its beginning
  }
  for (int64_t i = count; i-- > 0;)
    if (index[i] >= 0) order[--starts[index[i]]] = i;
}

template <class T, class Slope>
void run(const KnnBackwardParams& p, const Slope& slope, const Exec& exec) {
  const int64_t choices = p.m * p.k;
  // One row of a gradient: partner(i) gives the place of its i-th choice in the item and the other side's row, or null.
  const auto gather = [&](int64_t b, const T* own, int64_t count, T* to, auto&& partner) {
    const T* grad = static_cast<const T*>(p.grad) + b * choices;
    const T* distance = static_cast<const T*>(p.distance) + b * choices;
    Segment<T> segment;
    bool first = true;
    const auto flush = [&] {
      add_segment(slope, segment, own, p.depth, first, to);
      segment.count = 0;
      first = false;
    };
    for (int64_t i = 0; i < count; ++i) {
      int64_t at = 0;
      const T* other = partner(i, at);
      if (other == nullptr) continue;
      segment.other[segment.count] = other;
      segment.weight[segment.count] = slope.weight(grad[at], distance[at]);
      segment.distance[segment.count] = distance[at];
      if (++segment.count == kSegment) flush();
    }
    if (segment.count > 0 || first) flush();
  };
  const int64_t row_steps = p.depth + 16;
  if (p.grad_x != nullptr)
    parallel_for(exec, p.batch * p.m, 1 + kGrainSteps / (p.k * row_steps + 1), [&](int64_t begin, int64_t end) {
      for (int64_t query = begin; query < end; ++query) {
        const int64_t b = query / p.m, m = query % p.m;
        const T* y = static_cast<const T*>(p.y) + b * p.y_batch;
        const int64_t* index = p.index + query * p.k;
        gather(b, static_cast<const T*>(p.x) + b * p.x_batch + m * p.depth, p.k,
               static_cast<T*>(p.grad_x) + query * p.depth, [&](int64_t i, int64_t& at) -> const T* {
                 at = m * p.k + i;
                 return index[i] < 0 ? nullptr : y + index[i] * p.depth;
               });
      }
    });
  if (p.grad_y == nullptr) return;
  const Plan plan(p);
  char* memory = static_cast<char*>(exec.workspace);
  int64_t* starts = reinterpret_cast<int64_t*>(memory + plan.starts);
  int64_t* order = reinterpret_cast<int64_t*>(memory + plan.order);
  parallel_for(exec, p.batch, 1 + kGrainSteps / (choices + p.n + 1), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      sort_choices(p.index + b * choices, choices, p.n, starts + b * (p.n + 1), order + b * choices);
  });
  const int64_t mean = 1 + choices / (p.n + 1);  // choices per reference
  parallel_for(exec, p.batch * p.n, 1 + kGrainSteps / (mean * row_steps), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t b = row / p.n, n = row % p.n;
      const T* x = static_cast<const T*>(p.x) + b * p.x_batch;
      const int64_t* from = starts + b * (p.n + 1) + n;
      const int64_t* mine = order + b * choices + from[0];
      gather(b, static_cast<const T*>(p.y) + b * p.y_batch + n * p.depth, from[1] - from[0],
             static_cast<T*>(p.grad_y) + row * p.depth, [&](int64_t i, int64_t& at) {
               at = mine[i];
               return x + at / p.k * p.depth;
             });
    }
  });
}

}  // namespace

size_t knn_backward_workspace(const KnnBackwardParams& p, int) { return Plan(p).bytes; }

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
  dispatch_wide(p.dtype, as);
}

}  // namespace fastcv::FASTCV_ISA
