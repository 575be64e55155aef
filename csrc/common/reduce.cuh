// Reductions over a warp and over a block, in an order that depends on the number of threads only.
#pragma once
#include "common/gpu.cuh"

namespace fastcv::FASTCV_GPU {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kWarp = 32;

// The combination of every lane's value, in every lane. combine must be commutative.
template <class T, class Combine>
__device__ __forceinline__ T reduce_warp(T value, Combine combine) {
  for (int step = kWarp / 2; step > 0; step /= 2) value = combine(value, __shfl_xor_sync(kAllLanes, value, step));
  return value;
}

// The combination of every thread's value, in every thread of a one-dimensional block of whole warps.
// scratch: one T per warp; it may be used again right away.
template <class T, class Combine>
__device__ T reduce_block(T value, Shared<T> scratch, Combine combine) {
  value = reduce_warp(value, combine);
  __syncthreads();  // scratch may still be read from the reduction before
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = value;
  __syncthreads();
  value = scratch[0];
  for (unsigned warp = 1; warp < blockDim.x / kWarp; ++warp) value = combine(value, static_cast<T>(scratch[warp]));
  return value;
}

struct Sum {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Max {  // a NaN loses on either side
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a > b || b != b ? a : b;
  }
};

}  // namespace fastcv::FASTCV_GPU
