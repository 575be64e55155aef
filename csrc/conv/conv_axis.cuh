// One dim of a convolution or of its input gradient, as the CUDA kernels gather it.
//
// Outputs whose places agree modulo the stride of an input gradient form a phase: within it the gradient is an ordinary
// convolution of stride 1 whose taps are those kernel indices that meet whole input positions. An ordinary convolution
// is one phase. Output cell * out_step + phase reads the inputs cell * in_step + taps.offset + j * taps.offset_step
// with the kernel indices taps.first + j * taps.step, for j < taps.count.
#pragma once
#include "common/divide.cuh"
#include "conv/conv.h"

namespace fastcv::FASTCV_GPU {

struct Taps {
  int64_t count, first, step, offset, offset_step;
};

struct Axis {
  int64_t in, out, kernel, stride, dilation, pad;
  int64_t in_step, out_step, cells, phases;
  int64_t common, tap_step, inverse;  // gcd(stride, dilation); stride / common; of dilation / common modulo tap_step
  bool transposed;

  Axis(const ConvParams& p, int dim)
      : in(p.in[dim]),
        out(p.out[dim]),
        kernel(p.kernel[dim]),
        stride(p.stride[dim]),
        dilation(p.dilation[dim]),
        pad(p.pad[dim]),
        in_step(p.transposed ? 1 : stride),
        out_step(p.transposed ? stride : 1),
        cells((out + out_step - 1) / out_step),
        phases(out_step < out ? out_step : out),
        common(1),
        tap_step(1),
        inverse(0),
        transposed(p.transposed) {
    if (!transposed) return;
    // Extended Euclid: x * dilation = a modulo stride, all the way.
    int64_t a = stride, b = dilation, x = 0, y = 1;
    while (b != 0) {
      const int64_t q = a / b, r = a % b, z = x - q * y;
      a = b, b = r, x = y, y = z;
    }
    common = a;
    tap_step = stride / a;
    inverse = (x % tap_step + tap_step) % tap_step;
  }

  // The most taps that any phase has.
  int64_t most_taps() const { return (kernel + tap_step - 1) / tap_step; }

  __device__ __forceinline__ Taps taps(int64_t phase) const {
    if (!transposed) return {kernel, 0, 1, -pad, dilation};
    // first * dilation = phase + pad modulo stride
    const int64_t target = phase + pad;
    if (target % common != 0) return {0, 0, 1, 0, 0};
    const int64_t first = target / common % tap_step * inverse % tap_step;
    const int64_t count = first < kernel ? (kernel - 1 - first) / tap_step + 1 : 0;
    return {count, first, tap_step, (target - first * dilation) / stride, -(dilation / common)};
  }
};

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
