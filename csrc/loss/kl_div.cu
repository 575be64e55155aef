// kl_div and its gradients on CUDA, 16 bytes of each tensor a thread at a time.
#include "loss/kl_div.h"

#include "loss/loss.cuh"

namespace fastcv::FASTCV_GPU {
namespace {

template <class T>
__device__ __forceinline__ T divergence(T x, T t, bool log_target) {
  if (log_target) return exp(t) * (t - x);
  return (t == 0 ? T(0) : t * log(t)) - t * x;
}

template <class S>
__global__ void __launch_bounds__(kThreads) each_kernel(const KlDivParams p, int access) {
  constexpr int n = kPack<S>;
  for (int64_t at = global_thread() * n; at < p.n; at += global_threads() * n) {
    acc_t<S> x[n], t[n];
    load_widened(static_cast<const S*>(p.x) + at, p.n - at, access, x);
    load_widened(static_cast<const S*>(p.target) + at, p.n - at, access, t);
#pragma unroll
    for (int i = 0; i < n; ++i) x[i] = divergence(x[i], t[i], p.log_target);
    store_narrowed(static_cast<S*>(p.loss) + at, p.n - at, access, x);
  }
}

// Of pack i.
template <class S>
struct Terms {
  KlDivParams p;
  int access;
  __device__ __forceinline__ void operator()(int64_t i, double& a, double&) const {
    constexpr int n = kPack<S>;
    const int64_t at = i * n;
    acc_t<S> x[n], t[n], sum = 0;
    load_widened(static_cast<const S*>(p.x) + at, p.n - at, access, x);
    load_widened(static_cast<const S*>(p.target) + at, p.n - at, access, t);
#pragma unroll
    for (int k = 0; k < n; ++k)
      if (at + k < p.n) sum += divergence(x[k], t[k], p.log_target);
    a += sum;
  }
};
template <class S>
struct Finish {
  S* loss;
  double divisor;
  __device__ __forceinline__ void operator()(double a, double) const {
    *loss = narrow<S>(static_cast<acc_t<S>>(a / divisor));
  }
};

template <class S>
__global__ void __launch_bounds__(kThreads) backward_kernel(const KlDivParams p, int access) {
  using T = acc_t<S>;
  constexpr int n = kPack<S>;
  const S* grad_loss = static_cast<const S*>(p.grad_loss);
  for (int64_t at = global_thread() * n; at < p.n; at += global_threads() * n) {
    T x[n], t[n], g[n], slope[n];
    load_widened(static_cast<const S*>(p.x) + at, p.n - at, access, x);
    load_widened(static_cast<const S*>(p.target) + at, p.n - at, access, t);
    if (!p.reduce) load_widened(grad_loss + at, p.n - at, access, g);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      if (p.reduce) g[i] = widen(*grad_loss) / static_cast<T>(p.divisor);
      const T e = p.log_target ? exp(t[i]) : t[i];
      slope[i] = -e * g[i];
      t[i] = g[i] * (p.log_target ? e * (t[i] - x[i] + 1) : t[i] == 0 ? static_cast<T>(NAN) : log(t[i]) + 1 - x[i]);
    }
    if (p.grad_x != nullptr) store_narrowed(static_cast<S*>(p.grad_x) + at, p.n - at, access, slope);
    if (p.grad_target != nullptr) store_narrowed(static_cast<S*>(p.grad_target) + at, p.n - at, access, t);
  }
}

}  // namespace

int kl_div(const KlDivParams& p, void* workspace, CUstream_st* stream) {
  return by_dtype(p.dtype, [&]<class S>() {
    if (p.reduce)
      return sum_all(packs<S>(p.n), Terms<S>{p, access_bytes({p.x, p.target})},
                     Finish<S>{static_cast<S*>(p.loss), p.divisor}, static_cast<double*>(workspace), stream);
    if (p.n == 0) return static_cast<int>(cudaSuccess);
    return launch(each_kernel<S>, grid_for(packs<S>(p.n), kThreads), kThreads, 0, stream, p,
                  access_bytes({p.x, p.target, p.loss}));
  });
}

int kl_div_backward(const KlDivParams& p, void*, CUstream_st* stream) {
  if (p.n == 0) return cudaSuccess;
  const int access = access_bytes({p.x, p.target, p.reduce ? nullptr : p.grad_loss, p.grad_x, p.grad_target});
  return by_dtype(p.dtype, [&]<class S>() {
    return launch(backward_kernel<S>, grid_for(packs<S>(p.n), kThreads), kThreads, 0, stream, p, access);
  });
}

}  // namespace fastcv::FASTCV_GPU
