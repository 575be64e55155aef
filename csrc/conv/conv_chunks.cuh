// Images and weights in the layout that tensor cores read: channels_last, a whole number of 16-byte chunks of channels
// per group (conv_gpu.h). With parts = 2, float as the high and the low tf32 parts of its numbers, in two planes.
#pragma once
#include "conv/conv_gpu.h"
#include "conv/conv_operands.cuh"

namespace fastcv::FASTCV_GPU {

constexpr int kConvertThreads = 256;

template <class S, int parts>
__device__ __forceinline__ void put_parts(S* to, int64_t plane, S value) {
  if constexpr (parts == 2) {
    const Tf32Parts split = tf32_parts(__float_as_uint(value));
    to[0] = __uint_as_float(split.high);
    to[plane] = __uint_as_float(split.low);
  } else {
    *to = value;
  }
}

// x [n][c][pixels] or [n][pixels][c] to [n][pixels][groups][padded], the padding being zeros. Blocks take 32 pixels of
// 32 channels.
template <class S, int parts>
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
        put_parts<S, parts>(to + (image * pixels + pixel0 + row) * channels + channel0 + fast, n * pixels * channels,
                            box[row * (kSide + 1) + fast]);
  }
}

template <class S, int parts = 1>
int to_chunks(const S* x, S* to, int64_t n, int64_t c, int64_t pixels, int64_t groups, int64_t padded,
              bool channels_last, CUstream_st* stream) {
  const int64_t blocks = n * ((pixels + 31) / 32) * ((groups * padded + 31) / 32);
  return launch(to_chunks_kernel<S, parts>, grid_for(blocks, 1), kConvertThreads, 0, stream, x, to, n, c, pixels,
                groups, padded, channels_last);
}

// Weights to [groups * kg][taps][padded].
template <class S, int parts>
__global__ void __launch_bounds__(kConvertThreads)
    pack_weights_kernel(const ConvParams p, const IgemmPlan plan, S* to) {
  const S* from = static_cast<const S*>(p.w);
  const int64_t columns = p.transposed ? plan.kg : plan.cg, size = p.k * plan.taps * plan.padded;
  for (int64_t i = global_thread(); i < size; i += global_threads()) {
    const int64_t c = i % plan.padded, tap = i / plan.padded % plan.taps, k = i / plan.padded / plan.taps;
    const int64_t row = p.transposed ? k / plan.kg * plan.cg + c : k, column = p.transposed ? k % plan.kg : c;
    const int64_t at = p.weight_channels_last ? (row * plan.taps + tap) * columns + column
                                              : (row * columns + column) * plan.taps + tap;
    put_parts<S, parts>(to + i, size, c < plan.cg ? from[at] : S{});
  }
}

// x and w as the plan wants them: themselves, or copies in the workspace.
template <class S, int parts = 1>
int chunked_operands(const ConvParams& p, const IgemmPlan& plan, void* workspace, const void*& x, const void*& w,
                     CUstream_st* stream) {
  x = p.x;
  w = p.w;
  if (plan.convert_x) {
    S* to = static_cast<S*>(workspace);
    const int error = to_chunks<S, parts>(static_cast<const S*>(p.x), to, p.n, p.c, p.in[0] * p.in[1] * p.in[2],
                                          p.groups, plan.padded, p.channels_last, stream);
    if (error != 0) return error;
    x = to;
  }
  if (plan.convert_w) {
    S* to = reinterpret_cast<S*>(static_cast<char*>(workspace) + plan.x_bytes);
    const int error = launch(pack_weights_kernel<S, parts>, grid_for(p.k * plan.taps * plan.padded, kConvertThreads),
                             kConvertThreads, 0, stream, p, plan, to);
    if (error != 0) return error;
    w = to;
  }
  return cudaSuccess;
}

// The same for a weight gradient.
template <class S>
int chunked_gradients(const ConvWgradParams& p, const WgradPlan& plan, void* workspace, const S*& x, const S*& grad,
                      CUstream_st* stream) {
  x = static_cast<const S*>(p.input);
  grad = static_cast<const S*>(p.grad_output);
  if (plan.convert_x) {
    S* to = static_cast<S*>(workspace);
    const int error = to_chunks(x, to, p.batch, p.in_channels, p.in[0] * p.in[1] * p.in[2], p.groups, plan.padded_c,
                                p.input_channels_last, stream);
    if (error != 0) return error;
    x = to;
  }
  if (plan.convert_y) {
    S* to = reinterpret_cast<S*>(static_cast<char*>(workspace) + plan.x_bytes);
    const int error = to_chunks(grad, to, p.batch, p.out_channels, p.out[0] * p.out[1] * p.out[2], p.groups,
                                plan.padded_k, p.grad_channels_last, stream);
    if (error != 0) return error;
    grad = to;
  }
  return cudaSuccess;
}

}  // namespace fastcv::FASTCV_GPU
