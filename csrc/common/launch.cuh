// Launch shapes and thread numbering for grid-stride kernels.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace fastcv {

__device__ inline int64_t global_thread() { return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ inline int64_t global_threads() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

// Blocks for n elements, one per thread, capped: the kernel strides over the rest.
inline unsigned grid_for(int64_t n, int threads) {
  constexpr int64_t kMaxBlocks = 1 << 16;
  const int64_t blocks = (n + threads - 1) / threads;
  return static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks);
}

}  // namespace fastcv
