// Local response norm on CUDA: a thread makes one element and adds up its window of channels in order. Neighbouring
// threads share their windows through the caches.
#include "norm/local_response_norm.h"

#include "common/divide.cuh"
#include "common/numbers.cuh"

namespace fastcv::FASTCV_GPU {
namespace {

constexpr int kThreads = 256;

// Element i lies in channel `c`; the element of channel j in its place is at i + (j - c) * step.
struct Channels {
  bool channels_last;
  int64_t step;
  Divider s, by_c;
  explicit Channels(const LocalResponseNormParams& p)
      : channels_last(p.channels_last), step(p.channels_last ? 1 : p.s), s(p.s), by_c(p.c) {}
  __device__ __forceinline__ int64_t of(int64_t i) const {
    int64_t c = channels_last ? i : s.divide(i);
    by_c.split(c);
    return c;
  }
};

template <class S>
__device__ __forceinline__ acc_t<S> base(const LocalResponseNormParams& p, int64_t step, int64_t i, int64_t c) {
  using T = acc_t<S>;
  const int64_t first = c - p.before > 0 ? c - p.before : 0, last = c + p.after < p.c - 1 ? c + p.after : p.c - 1;
  T sum = 0;
  for (int64_t j = first; j <= last; ++j) {
    const T x = widen(static_cast<const S*>(p.x)[i + (j - c) * step]);
    sum += x * x;
  }
  return static_cast<T>(p.k) + static_cast<T>(p.scale) * sum;
}

template <class S>
__global__ void __launch_bounds__(kThreads)
    local_response_norm_kernel(const LocalResponseNormParams p, const Channels at) {
  using T = acc_t<S>;
  for (int64_t i = global_thread(); i < p.n * p.c * p.s; i += global_threads()) {
    const T x = widen(static_cast<const S*>(p.x)[i]);
    static_cast<S*>(p.y)[i] = narrow<S>(x * pow(base<S>(p, at.step, i, at.of(i)), static_cast<T>(-p.beta)));
  }
}

template <class S>
__global__ void __launch_bounds__(kThreads)
    local_response_norm_backward_kernel(const LocalResponseNormParams p, const Channels at) {
  using T = acc_t<S>;
  const S *x = static_cast<const S*>(p.x), *grad = static_cast<const S*>(p.grad);
  for (int64_t i = global_thread(); i < p.n * p.c * p.s; i += global_threads()) {
    const int64_t c = at.of(i);
    const int64_t first = c - p.after > 0 ? c - p.after : 0, last = c + p.before < p.c - 1 ? c + p.before : p.c - 1;
    T sum = 0;
    for (int64_t j = first; j <= last; ++j) {
      const int64_t other = i + (j - c) * at.step;
      sum += static_cast<T>(widen(grad[other])) * static_cast<T>(widen(x[other])) *
             pow(base<S>(p, at.step, other, j), static_cast<T>(-p.beta - 1));
    }
    const T own = static_cast<T>(widen(grad[i])) * pow(base<S>(p, at.step, i, c), static_cast<T>(-p.beta));
    static_cast<S*>(p.y)[i] = narrow<S>(own - static_cast<T>(2 * p.scale * p.beta) * static_cast<T>(widen(x[i])) * sum);
  }
}

}  // namespace

int local_response_norm(const LocalResponseNormParams& p, void*, CUstream_st* stream) {
  if (p.n * p.c * p.s == 0) return cudaSuccess;
  return by_dtype(p.dtype, [&]<class S>() {
    return launch(local_response_norm_kernel<S>, grid_for(p.n * p.c * p.s, kThreads), kThreads, 0, stream, p,
                  Channels(p));
  });
}
int local_response_norm_backward(const LocalResponseNormParams& p, void*, CUstream_st* stream) {
  if (p.n * p.c * p.s == 0) return cudaSuccess;
  return by_dtype(p.dtype, [&]<class S>() {
    return launch(local_response_norm_backward_kernel<S>, grid_for(p.n * p.c * p.s, kThreads), kThreads, 0, stream, p,
                  Channels(p));
  });
}

}  // namespace fastcv::FASTCV_GPU
