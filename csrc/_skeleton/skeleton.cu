#include "_skeleton/skeleton.h"

#include "common/numbers.cuh"

namespace fastcv::FASTCV_GPU {
namespace {

template <class S>
__global__ void skeleton_kernel(const S* __restrict__ x, S* __restrict__ y, int64_t n) {
  for (int64_t i = global_thread(); i < n; i += global_threads()) y[i] = x[i];
}

}  // namespace

int skeleton(const SkeletonParams& p, void*, CUstream_st* stream) {
  if (p.n == 0) return cudaSuccess;
  constexpr int kThreads = 256;
  return by_dtype(p.dtype, [&]<class S>() {
    return launch(skeleton_kernel<S>, grid_for(p.n, kThreads), kThreads, 0, stream, static_cast<const S*>(p.x),
                  static_cast<S*>(p.y), p.n);
  });
}

}  // namespace fastcv::FASTCV_GPU
