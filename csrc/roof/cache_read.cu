// cache_read: every block adds up the whole of x, `steps` times, each block and each time from another place on, so
// that the blocks of a multiprocessor do not find in its own cache what a neighbour has just read.
#include "roof/probes.h"

#include "common/reduce.cuh"

namespace fastcv::FASTCV_GPU {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) read_kernel(const float* x, float* y, int64_t n, int64_t steps) {
  using Four = Pack<float, 4>;
  const int64_t pieces = n / kReadStep;
  float sum = 0;
  for (int64_t s = 0; s < steps; ++s) {
    const int64_t start = (blockIdx.x * 97 + s * 31) % pieces;
#pragma unroll 8
    for (int64_t i = 0; i < pieces; ++i) {
      const int64_t piece = start + i < pieces ? start + i : start + i - pieces;
      const Four four = load_pack<Four>(x + piece * kReadStep + threadIdx.x * 4);
      sum += (four.at[0] + four.at[1]) + (four.at[2] + four.at[3]);
    }
  }
  FASTCV_SHARED(float, sums, kThreads);
  sums[threadIdx.x] = sum;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (static_cast<int>(threadIdx.x) < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) y[blockIdx.x] = sums[0];
}

}  // namespace

int cache_read(const CacheReadParams& p, void*, CUstream_st* stream) {
  return launch(read_kernel, static_cast<unsigned>(p.readers), kThreads, 0, stream, p.x, p.y, p.n, p.steps);
}

}  // namespace fastcv::FASTCV_GPU
