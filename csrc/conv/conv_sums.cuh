// Sums over the pixels of a batch: what segments (conv_gpu.h) left is added up in their order.
#pragma once
#include "common/numbers.cuh"
#include "conv/conv_gpu.h"

namespace fastcv::FASTCV_GPU {

constexpr int kSumThreads = 256;

// to[i] = the sum of partial[segment][i], in double.
template <class S, class T>
__global__ void __launch_bounds__(kSumThreads)
    add_segments_kernel(const T* partial, S* to, int64_t size, int64_t segments) {
  for (int64_t i = global_thread(); i < size; i += global_threads()) {
    double sum = 0;
    for (int64_t s = 0; s < segments; ++s) sum += static_cast<double>(partial[s * size + i]);
    to[i] = narrow<S>(static_cast<acc_t<S>>(sum));
  }
}
template <class S, class T>
int add_segments(const T* partial, void* to, int64_t size, int64_t segments, CUstream_st* stream) {
  return launch(add_segments_kernel<S, T>, grid_for(size, kSumThreads), kSumThreads, 0, stream, partial,
                static_cast<S*>(to), size, segments);
}

// The sum of `value` over the threads of a block whose numbers are equal modulo `wide`, in the first `wide` threads;
// zero in the others.
// scratch: one double per thread; it may be used again right away.
template <int wide>
__device__ __forceinline__ double add_columns(double value, Shared<double> scratch) {
  __syncthreads();
  scratch[threadIdx.x] = value;
  for (int half = kSumThreads / wide / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < static_cast<unsigned>(half * wide)) scratch[threadIdx.x] += scratch[threadIdx.x + half * wide];
  }
  return threadIdx.x < wide ? static_cast<double>(scratch[threadIdx.x]) : 0;
}

}  // namespace fastcv::FASTCV_GPU
