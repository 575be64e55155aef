// What tensor cores multiply: the number formats, and images laid out in 16-byte chunks of channels.
#pragma once
#include "common/ptx.cuh"

namespace fastcv::FASTCV_GPU {

// What the operands are multiplied as. prepare() makes operands of four loaded registers.
template <class Storage>
struct Halves {
  using S = Storage;
  static constexpr bool chunked = false;
  template <int n>
  struct Operand {
    uint32_t at[n];
    __device__ __forceinline__ void set(int i, uint32_t bits) { at[i] = bits; }
  };
  __device__ static __forceinline__ void multiply(float (&d)[4], const Operand<4>& a, const Operand<2>& b) {
    multiply_add<S>(d, a.at, b.at);
  }
};
struct Tf32 {
  using S = float;
  static constexpr bool chunked = false;
  template <int n>
  struct Operand {
    uint32_t at[n];
    __device__ __forceinline__ void set(int i, uint32_t bits) { at[i] = to_tf32(__uint_as_float(bits)); }
  };
  __device__ static __forceinline__ void multiply(float (&d)[4], const Operand<4>& a, const Operand<2>& b) {
    multiply_add_tf32(d, a.at, b.at);
  }
};
// float32 as two tf32 numbers, of whose four products the smallest is left out. Tensor cores truncate where they add:
// each step's sums are added up by ordinary arithmetic.
struct Tf32x3 {
  using S = float;
  static constexpr bool chunked = true;
  template <int n>
  struct Operand {
    uint32_t high[n], low[n];
    __device__ __forceinline__ void set(int i, uint32_t bits) {
      const float x = __uint_as_float(bits);
      const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
      high[i] = finite ? bits & 0xffffe000u : to_tf32(x);
      low[i] = finite ? to_tf32(x - __uint_as_float(high[i])) : 0;
    }
  };
  __device__ static __forceinline__ void multiply(float (&d)[4], const Operand<4>& a, const Operand<2>& b) {
    multiply_add_tf32(d, a.low, b.high);
    multiply_add_tf32(d, a.high, b.low);
    multiply_add_tf32(d, a.high, b.high);
  }
};

constexpr int kConvertThreads = 256;

// x [n][c][pixels] or [n][pixels][c] to [n][pixels][groups][padded], the padding being zeros. Blocks take 32 pixels of
// 32 channels.
template <class S>
__global__ void __launch_bounds__(kConvertThreads)
    to_chunks_kernel(const S* x, S* to, int64_t n, int64_t c, int64_t pixels, int64_t groups, int64_t padded,
                     bool channels_last) {
  constexpr int kSide = 32, kRows = kConvertThreads / kSide;
  FASTCV_SHARED(S, box, kSide * (kSide + 1));
  const int64_t channels = groups * padded, across = (channels + kSide - 1) / kSide, cg = c / groups;
  const int64_t down = (pixels + kSide - 1) / kSide;
  const int fast = threadIdx.x % kSide, slow = threadIdx.x / kSide;
  for (int64_t i = blockIdx.x; i < n * across * down; i += gridDim.x) {
    const int64_t image = i / across / down, pixel0 = i / across % down * kSide, channel0 = i % across * kSide;
    __syncthreads();
    for (int row = slow; row < kSide; row += kRows) {
      const int64_t pixel = pixel0 + (channels_last ? row : fast), channel = channel0 + (channels_last ? fast : row);
      const int64_t group = channel / padded, in_group = channel - group * padded;
      S value{};
      if (pixel < pixels && channel < channels && in_group < cg) {
        const int64_t from = group * cg + in_group;
        value = x[channels_last ? (image * pixels + pixel) * c + from : (image * c + from) * pixels + pixel];
      }
      box[channels_last ? row * (kSide + 1) + fast : fast * (kSide + 1) + row] = value;
    }
    __syncthreads();
    for (int row = slow; row < kSide; row += kRows)
      if (pixel0 + row < pixels && channel0 + fast < channels)
        to[(image * pixels + pixel0 + row) * channels + channel0 + fast] = box[row * (kSide + 1) + fast];
  }
}

template <class S>
int to_chunks(const S* x, S* to, int64_t n, int64_t c, int64_t pixels, int64_t groups, int64_t padded,
              bool channels_last, CUstream_st* stream) {
  const int64_t blocks = n * ((pixels + 31) / 32) * ((groups * padded + 31) / 32);
  return launch(to_chunks_kernel<S>, grid_for(blocks, 1), kConvertThreads, 0, stream, x, to, n, c, pixels, groups,
                padded, channels_last);
}

}  // namespace fastcv::FASTCV_GPU
