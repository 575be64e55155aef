// Max unpooling and its gradient. scatter runs in two steps, so that of several values for one place the last one
// stays, on every run: each place learns the last small element that names it (an integer maximum, which knows no
// order), then fetches its value. With `accumulate` one thread adds up a plane in order. gather is one load an element.
#include "pool/max_unpool2d.h"

#include "common/divide.cuh"
#include "common/numbers.cuh"
#include "common/ptx.cuh"

namespace fastcv::FASTCV_GPU {
namespace {

constexpr int kThreads = 256;

// Maps as [outer, size, inner]: planes are outer in row-major maps, channels inner in channels_last ones.
struct Planes {
  int64_t outer, inner;
  explicit Planes(const MaxUnpool2dParams& p)
      : outer(p.channels_last ? p.n : p.n * p.c), inner(p.channels_last ? p.c : 1) {}
};

// True if the index at `at` lies in the big map. Else notes the element, or, where nobody can be told, ends the kernel.
__device__ __forceinline__ bool valid(const MaxUnpool2dParams& p, int64_t at) {
  if (p.index[at] >= 0 && p.index[at] < p.big) return true;
  if (p.bad == nullptr) trap("max_unpool2d: an index outside of the map");
  atomicMin(reinterpret_cast<unsigned long long*>(p.bad), static_cast<unsigned long long>(at));
  return false;
}

__global__ void __launch_bounds__(kThreads) clear_kernel(int64_t* owner, int64_t total) {
  for (int64_t i = global_thread(); i < total; i += global_threads()) owner[i] = -1;
}

__global__ void __launch_bounds__(kThreads)
    own_kernel(const MaxUnpool2dParams p, const Planes m, const Divider inner, const Divider small, int64_t* owner) {
  const int64_t total = m.outer * p.small * m.inner;
  for (int64_t i = global_thread(); i < total; i += global_threads()) {
    if (!valid(p, i)) continue;
    int64_t k = i, place = inner.split(k);
    const int64_t o = small.split(place);
    atomicMax(reinterpret_cast<long long*>(&owner[(o * p.big + p.index[i]) * m.inner + k]), static_cast<long long>(i));
  }
}

template <class S>
__global__ void __launch_bounds__(kThreads) fetch_kernel(const S* x, const int64_t* owner, S* y, int64_t total) {
  for (int64_t i = global_thread(); i < total; i += global_threads()) y[i] = owner[i] < 0 ? S{} : x[owner[i]];
}

template <class S>
__global__ void __launch_bounds__(kThreads)
    accumulate_kernel(const MaxUnpool2dParams p, const Planes m, const Divider inner, acc_t<S>* sums) {
  const S* x = static_cast<const S*>(p.x);
  S* y = static_cast<S*>(p.y);
  for (int64_t plane = global_thread(); plane < m.outer * m.inner; plane += global_threads()) {
    int64_t k = plane;
    const int64_t o = inner.split(k);
    for (int64_t j = 0; j < p.big; ++j) sums[(o * p.big + j) * m.inner + k] = 0;
    for (int64_t i = 0; i < p.small; ++i) {
      const int64_t at = (o * p.small + i) * m.inner + k;
      if (valid(p, at)) sums[(o * p.big + p.index[at]) * m.inner + k] += widen(x[at]);
    }
    for (int64_t j = 0; j < p.big; ++j) {
      const int64_t at = (o * p.big + j) * m.inner + k;
      y[at] = narrow<S>(sums[at]);
    }
  }
}

template <class S>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(const MaxUnpool2dParams p, const Planes m, const Divider inner, const Divider small) {
  const S* x = static_cast<const S*>(p.x);
  const int64_t total = m.outer * p.small * m.inner;
  for (int64_t i = global_thread(); i < total; i += global_threads()) {
    int64_t k = i, place = inner.split(k);
    const int64_t o = small.split(place);
    static_cast<S*>(p.y)[i] = valid(p, i) ? x[(o * p.big + p.index[i]) * m.inner + k] : S{};
  }
}

}  // namespace

int max_unpool2d(const MaxUnpool2dParams& p, void* workspace, CUstream_st* stream) {
  const Planes m(p);
  const int64_t big = p.n * p.c * p.big, small = p.n * p.c * p.small;
  if (p.accumulate)
    return by_dtype(p.dtype, [&]<class S>() {
      return launch(accumulate_kernel<S>, grid_for(p.n * p.c, kThreads), kThreads, 0, stream, p, m, Divider(m.inner),
                    static_cast<acc_t<S>*>(workspace));
    });
  int64_t* owner = static_cast<int64_t*>(workspace);
  if (const int error = launch(clear_kernel, grid_for(big, kThreads), kThreads, 0, stream, owner, big)) return error;
  if (const int error = launch(own_kernel, grid_for(small, kThreads), kThreads, 0, stream, p, m, Divider(m.inner),
                               Divider(p.small), owner))
    return error;
  return by_dtype(p.dtype, [&]<class S>() {
    return launch(fetch_kernel<S>, grid_for(big, kThreads), kThreads, 0, stream, static_cast<const S*>(p.x),
                  static_cast<const int64_t*>(owner), static_cast<S*>(p.y), big);
  });
}

int max_unpool2d_backward(const MaxUnpool2dParams& p, void*, CUstream_st* stream) {
  const Planes m(p);
  return by_dtype(p.dtype, [&]<class S>() {
    return launch(gather_kernel<S>, grid_for(p.n * p.c * p.small, kThreads), kThreads, 0, stream, p, m,
                  Divider(m.inner), Divider(p.small));
  });
}

}  // namespace fastcv::FASTCV_GPU
