// Storage types and arithmetic types in kernels: widen to float (double for double), narrow back to nearest even.
#pragma once
#include "common/gpu.cuh"

#if !FASTCV_EMULATOR
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace fastcv::FASTCV_GPU {

template <class S>
struct Arithmetic {
  using type = float;
};
template <>
struct Arithmetic<double> {
  using type = double;
};
// What arithmetic on storage type S happens in.
template <class S>
using acc_t = typename Arithmetic<S>::type;

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }

template <class S, class T>
__device__ __forceinline__ S narrow(T x);
template <>
__device__ __forceinline__ float narrow<float, float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ double narrow<double, double>(double x) {
  return x;
}

#if FASTCV_EMULATOR

inline float widen(bf16 x) { return std::bit_cast<float>(uint32_t{x.bits} << 16); }
inline float widen(f16 x) {
  const uint32_t sign = uint32_t{x.bits & 0x8000u} << 16, rest = x.bits & 0x7fffu;
  if (rest >= 0x7c00) return std::bit_cast<float>(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  const float magnitude = rest >= 0x400 ? std::bit_cast<float>((rest << 13) + (112u << 23)) : rest * 0x1p-24f;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
}
template <>
inline bf16 narrow<bf16, float>(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if (x != x) return {static_cast<uint16_t>(bits >> 16 | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
template <>
inline f16 narrow<f16, float>(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x), sign = bits >> 16 & 0x8000u;
  const float magnitude = std::bit_cast<float>(bits & 0x7fffffffu);
  uint32_t half;
  if (x != x) half = 0x7e00;
  else if (magnitude >= 65520.0f) half = 0x7c00;
  else if (magnitude < 0x1p-14f) half = static_cast<uint32_t>(std::nearbyint(magnitude * 0x1p24f));
  else half = (((bits & 0x7fffffffu) - (112u << 23)) + 0xfff + (bits >> 13 & 1)) >> 13;
  return {static_cast<uint16_t>(sign | half)};
}

#else

__device__ __forceinline__ float widen(bf16 x) { return __bfloat162float(__ushort_as_bfloat16(x.bits)); }
__device__ __forceinline__ float widen(f16 x) { return __half2float(__ushort_as_half(x.bits)); }
template <>
__device__ __forceinline__ bf16 narrow<bf16, float>(float x) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
}
template <>
__device__ __forceinline__ f16 narrow<f16, float>(float x) {
  return {__half_as_ushort(__float2half_rn(x))};
}

#endif

// f<S>() for the storage type of a floating dtype; cudaErrorInvalidValue for any other.
template <class F>
int by_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32:
      return f.template operator()<float>();
    case DType::f64:
      return f.template operator()<double>();
    case DType::bf16:
      return f.template operator()<bf16>();
    case DType::f16:
      return f.template operator()<f16>();
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace fastcv::FASTCV_GPU
