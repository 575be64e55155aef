// nll_loss on CUDA: a gather and a sum; its gradient: zeros, then one store a sample.
#include "loss/nll.h"

#include "common/divide.cuh"
#include "loss/loss.cuh"

namespace fastcv::FASTCV_GPU {
namespace {

// Where the score of class t of sample r lies.
__device__ __forceinline__ int64_t place(const CrossEntropyParams& p, const Divider& inner, int64_t r, int64_t t) {
  const int64_t o = inner.split(r);
  return (o * p.classes + t) * p.inner + r;
}

template <class S>
struct Terms {
  CrossEntropyParams p;
  Divider inner;
  __device__ __forceinline__ void operator()(int64_t r, double& a, double& b) const {
    const int64_t t = counted_target(p, r);
    acc_t<S> loss = 0;
    if (t >= 0) {
      const acc_t<S> w = p.weight == nullptr ? acc_t<S>(1) : widen(static_cast<const S*>(p.weight)[t]);
      loss = -w * widen(static_cast<const S*>(p.x)[place(p, inner, r, t)]);
      b += w;
    }
    a += loss;
    if (p.reduction == Reduction::none) static_cast<S*>(p.loss)[r] = narrow<S>(loss);
  }
};
template <class S>
struct Finish {
  S* loss;
  bool mean;
  __device__ __forceinline__ void operator()(double a, double b) const {
    *loss = narrow<S>(static_cast<acc_t<S>>(mean ? a / b : a));
  }
};

template <class S>
__global__ void __launch_bounds__(kThreads)
    scatter_kernel(const CrossEntropyParams p, const Divider inner, const SampleCount sample_count) {
  using T = acc_t<S>;
  FASTCV_SHARED(double, sums, kThreads / kWarp);
  const T scale = mean_scale<T>(p, sample_count, sums);
  for (int64_t r = global_thread(); r < p.outer * p.inner; r += global_threads()) {
    const int64_t t = counted_target(p, r);
    if (t < 0) continue;
    const T g = widen(static_cast<const S*>(p.grad_loss)[p.reduction == Reduction::none ? r : 0]);
    const T w = p.weight == nullptr ? T(1) : widen(static_cast<const S*>(p.weight)[t]);
    static_cast<S*>(p.grad)[place(p, inner, r, t)] = narrow<S>(-w * g * scale);
  }
}

}  // namespace

int nll(const CrossEntropyParams& p, void* workspace, CUstream_st* stream) {
  double* partial = static_cast<double*>(workspace);
  const int64_t samples = p.outer * p.inner;
  return by_dtype(p.dtype, [&]<class S>() {
    if (p.reduction == Reduction::none) return sum_chunks(samples, Terms<S>{p, Divider(p.inner)}, partial, stream);
    return sum_all(samples, Terms<S>{p, Divider(p.inner)},
                   Finish<S>{static_cast<S*>(p.loss), p.reduction == Reduction::mean}, partial, stream);
  });
}

int nll_backward(const CrossEntropyParams& p, void* workspace, CUstream_st* stream) {
  double* counts = static_cast<double*>(workspace);
  const int64_t samples = p.outer * p.inner;
  if (samples == 0) return cudaSuccess;
  return by_dtype(p.dtype, [&]<class S>() {
    if (const int error = count_targets<S>(p, counts, stream)) return error;
    if (const int error = clear(static_cast<S*>(p.grad), samples * p.classes, stream)) return error;
    return launch(scatter_kernel<S>, grid_for(samples, kThreads), kThreads, 0, stream, p, Divider(p.inner),
                  SampleCount(counts, samples));
  });
}

}  // namespace fastcv::FASTCV_GPU
