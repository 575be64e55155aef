// What the CUDA kernels of the norm family share: vectors of any dtype, activations, and tensors whose elements move in
// packs of 16 bytes. norm_sums.cuh adds up sets of elements, norm_sweeps.cuh passes over all of them.
#pragma once
#include "common/divide.cuh"
#include "common/packs.cuh"
#include "norm/norm.h"
#include "norm/norm_sets.h"

namespace fastcv::FASTCV_GPU {

constexpr int kThreads = kNormThreads;

__device__ __forceinline__ double get(const NormVector& v, int64_t i, double absent) {
  if (v.data == nullptr) return absent;
  switch (v.dtype) {
    case DType::f32:
      return static_cast<const float*>(v.data)[i];
    case DType::f64:
      return static_cast<const double*>(v.data)[i];
    case DType::bf16:
      return widen(static_cast<const bf16*>(v.data)[i]);
    default:
      return widen(static_cast<const f16*>(v.data)[i]);
  }
}
__device__ __forceinline__ void put(const NormVector& v, int64_t i, double x) {
  void* data = const_cast<void*>(v.data);
  if (data == nullptr) return;
  switch (v.dtype) {
    case DType::f32:
      static_cast<float*>(data)[i] = static_cast<float>(x);
      return;
    case DType::f64:
      static_cast<double*>(data)[i] = x;
      return;
    case DType::bf16:
      static_cast<bf16*>(data)[i] = narrow<bf16>(static_cast<float>(x));
      return;
    default:
      static_cast<f16*>(data)[i] = narrow<f16>(static_cast<float>(x));
  }
}

// Elements i to i + n of a vector (i a multiple of n), or `absent` where there is none; `last` stands for those behind
// the end.
template <class D, class T, int n>
__device__ __forceinline__ void copy_run(const D* data, int64_t i, int64_t last, T (&to)[n]) {
  constexpr int most = 16 / static_cast<int>(sizeof(D)), m = most < n ? most : n;
  if (reinterpret_cast<uintptr_t>(data) % 16 == 0 && i + n - 1 <= last) {
#pragma unroll
    for (int k = 0; k < n; k += m) {
      const auto pack = load_pack<Pack<D, m>>(data + i + k);
#pragma unroll
      for (int h = 0; h < m; ++h) to[k + h] = static_cast<T>(widen(pack.at[h]));
    }
    return;
  }
#pragma unroll
  for (int k = 0; k < n; ++k) to[k] = static_cast<T>(widen(data[i + k < last ? i + k : last]));
}
template <class T, int n>
__device__ __forceinline__ void get_run(const NormVector& v, int64_t i, int64_t last, T absent, T (&to)[n]) {
  if (v.data == nullptr) {
#pragma unroll
    for (int k = 0; k < n; ++k) to[k] = absent;
  } else if (v.dtype == DType::f32) {
    copy_run(static_cast<const float*>(v.data), i, last, to);
  } else if (v.dtype == DType::f64) {
    copy_run(static_cast<const double*>(v.data), i, last, to);
  } else if (v.dtype == DType::bf16) {
    copy_run(static_cast<const bf16*>(v.data), i, last, to);
  } else {
    copy_run(static_cast<const f16*>(v.data), i, last, to);
  }
}

// The activation and its gradient, with constants of T.
template <class T>
struct Bend {
  T slope, cap;
  bool identity, zero, capped;
  explicit Bend(const Activation& a)
      : slope(static_cast<T>(a.slope)),
        cap(static_cast<T>(a.cap)),
        identity(a.slope == 1 && !(a.cap > 0)),
        zero(a.slope == 0),
        capped(a.cap > 0) {}
  __device__ __forceinline__ T activate(T v) const {
    const T bent = v <= 0 ? (zero ? T(0) : slope * v) : v;
    return capped && bent > cap ? cap : bent;
  }
  __device__ __forceinline__ T gate(T g, T v) const {
    if (identity) return g;
    if (capped && v >= cap) return 0;
    return v <= 0 ? (zero ? T(0) : slope * g) : g;
  }
};

// high + low is a double, so that x - mean is exact to T's precision where the mean is large.
template <class T>
__device__ __forceinline__ void split(double x, T& high, T& low) {
  high = static_cast<T>(x);
  low = static_cast<T>(x - static_cast<double>(high));
}

// The mean of a set and 1 over its standard deviation.
template <class T>
struct alignas(16) Spread {
  T high, low, invstd;
  __device__ __forceinline__ void set(double mean, double var, double eps) {
    split(mean, high, low);
    invstd = static_cast<T>(1 / sqrt(var + eps));
  }
  __device__ __forceinline__ T normal(T x) const { return ((x - high) - low) * invstd; }
};

// Packs at `offset` of each tensor; zeros where a tensor is null.
template <class S, int inputs>
__device__ __forceinline__ void load_all(const S* const (&from)[inputs], int64_t offset, int64_t count, int access,
                                         Pack<S, kPack<S>> (&to)[inputs]) {
#pragma unroll
  for (int k = 0; k < inputs; ++k)
    to[k] = from[k] != nullptr ? load_elements(from[k] + offset, count, access) : Pack<S, kPack<S>>{};
}
// Element i of each pack.
template <class S, int inputs>
__device__ __forceinline__ void element(const Pack<S, kPack<S>> (&packs)[inputs], int i, acc_t<S> (&to)[inputs]) {
#pragma unroll
  for (int k = 0; k < inputs; ++k) to[k] = widen(packs[k].at[i]);
}

}  // namespace fastcv::FASTCV_GPU
