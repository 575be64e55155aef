#include "_skeleton/skeleton.h"
#include "common/launch.cuh"

namespace fastcv {
namespace {

template <class S>
__global__ void skeleton_kernel(const S* __restrict__ x, S* __restrict__ y, int64_t n) {
  for (int64_t i = global_thread(); i < n; i += global_threads()) y[i] = x[i];
}

template <class S>
int launch(const SkeletonParams& p, cudaStream_t stream) {
  if (p.n == 0) return cudaSuccess;
  constexpr int kThreads = 256;
  skeleton_kernel<S>
      <<<grid_for(p.n, kThreads), kThreads, 0, stream>>>(static_cast<const S*>(p.x), static_cast<S*>(p.y), p.n);
  return cudaGetLastError();
}

}  // namespace

int skeleton_cuda(const SkeletonParams& p, CUstream_st* stream) {
  switch (p.dtype) {
    case DType::f32:
      return launch<float>(p, stream);
    case DType::f64:
      return launch<double>(p, stream);
    case DType::bf16:
      return launch<bf16>(p, stream);
    case DType::f16:
      return launch<f16>(p, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace fastcv
