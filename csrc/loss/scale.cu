// y = x * factor on CUDA. The factor is read by the kernel, so that nobody waits for it; in place and by 1 it ends
// there.
#include "loss/scale.h"

#include "loss/loss.cuh"

namespace fastcv::FASTCV_GPU {
namespace {

template <class S>
__global__ void __launch_bounds__(kThreads) scale_kernel(const ScaleParams p, int access) {
  constexpr int n = kPack<S>;
  const acc_t<S> factor = widen(*static_cast<const S*>(p.factor));
  if (factor == 1 && p.x == p.y) return;
  for (int64_t at = global_thread() * n; at < p.n; at += global_threads() * n) {
    acc_t<S> v[n];
    load_widened(static_cast<const S*>(p.x) + at, p.n - at, access, v);
#pragma unroll
    for (int i = 0; i < n; ++i) v[i] *= factor;
    store_narrowed(static_cast<S*>(p.y) + at, p.n - at, access, v);
  }
}

}  // namespace

int scale(const ScaleParams& p, void*, CUstream_st* stream) {
  if (p.n == 0) return cudaSuccess;
  return by_dtype(p.dtype, [&]<class S>() {
    return launch(scale_kernel<S>, grid_for(packs<S>(p.n), kThreads), kThreads, 0, stream, p, access_bytes({p.x, p.y}));
  });
}

}  // namespace fastcv::FASTCV_GPU
