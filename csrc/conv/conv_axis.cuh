// One dim of a convolution or of its input gradient, as the CUDA kernels gather it (conv_phases.h): what they keep of
// it in shared memory, and where elements lie.
#pragma once
#include "common/divide.cuh"
#include "conv/conv_phases.h"

namespace fastcv::FASTCV_GPU {

// The taps of three dims in shared memory: too many registers for what is looked at once in a while.
struct TapTable {
  static constexpr int kNumbers = 15;
  Shared<int64_t> at;
  __device__ __forceinline__ void set(int dim, const Taps& taps) const {
    at[dim * 5] = taps.count;
    at[dim * 5 + 1] = taps.first;
    at[dim * 5 + 2] = taps.step;
    at[dim * 5 + 3] = taps.offset;
    at[dim * 5 + 4] = taps.offset_step;
  }
  __device__ __forceinline__ int64_t count(int dim) const { return at[dim * 5]; }
  __device__ __forceinline__ int64_t index(int dim, int64_t j) const { return at[dim * 5 + 1] + j * at[dim * 5 + 2]; }
  __device__ __forceinline__ int64_t offset(int dim) const { return at[dim * 5 + 3]; }
  __device__ __forceinline__ int64_t shift(int dim, int64_t j) const { return j * at[dim * 5 + 4]; }
};

// Elements from one image, channel or position to the next, in a dense tensor of either layout.
struct Steps {
  int64_t n, c, at[3];
  Steps(int64_t channels, const int64_t* size, bool channels_last) {
    at[2] = channels_last ? channels : 1;
    at[1] = at[2] * size[2];
    at[0] = at[1] * size[1];
    c = channels_last ? 1 : at[0] * size[0];
    n = channels * size[0] * size[1] * size[2];
  }
};

}  // namespace fastcv::FASTCV_GPU
