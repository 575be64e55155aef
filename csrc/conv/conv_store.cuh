// The end of every CUDA convolution: from a sum to an element of y, with bias, residual and activation.
#pragma once
#include "common/ptx.cuh"
#include "conv/conv.h"

namespace fastcv::FASTCV_GPU {

template <class T>
__device__ __forceinline__ T activate(T v, const ConvParams& p) {
  switch (p.activation) {
    case Activation::none:
      return v;
    case Activation::relu:
      return v <= 0 ? T(0) : v;
    case Activation::relu6:
      return v <= 0 ? T(0) : v >= 6 ? T(6) : v;
    case Activation::silu:
      return v / (1 + exp(-v));
    case Activation::hardswish:
      return v <= -3 ? T(0) : v >= 3 ? v : v * (v + 3) / 6;
    case Activation::gelu:
      return v * (erfc(v * T(-0.70710678118654752440)) / 2);
    case Activation::leaky_relu:
      return v <= 0 ? v * static_cast<T>(p.slope) : v;
  }
  return v;
}

// y[at] of output channel k, from its sum.
template <class S>
__device__ __forceinline__ S finished(const ConvParams& p, acc_t<S> sum, int64_t k, int64_t at) {
  if (p.bias != nullptr) sum += widen(static_cast<const S*>(p.bias)[k]);
  if (p.residual != nullptr) sum += widen(static_cast<const S*>(p.residual)[at]);
  return narrow<S>(activate(sum, p));
}

// y[at], y[at + 1], ... of the output channels k, k + 1, ..., in one access.
template <class S, int n>
__device__ __forceinline__ void store_channels(const ConvParams& p, const acc_t<S> (&sums)[n], int64_t k, int64_t at) {
  Pack<S, n> bias{}, residual{}, y;
  if (p.bias != nullptr)
#pragma unroll
    for (int i = 0; i < n; ++i) bias.at[i] = static_cast<const S*>(p.bias)[k + i];
  if (p.residual != nullptr) residual = load_pack<Pack<S, n>>(static_cast<const S*>(p.residual) + at);
#pragma unroll
  for (int i = 0; i < n; ++i) {
    acc_t<S> sum = sums[i];
    if (p.bias != nullptr) sum += widen(bias.at[i]);
    if (p.residual != nullptr) sum += widen(residual.at[i]);
    y.at[i] = narrow<S>(activate(sum, p));
  }
  store_pack(static_cast<S*>(p.y) + at, y);
}

inline bool aligned_to(const void* pointer, size_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

}  // namespace fastcv::FASTCV_GPU
