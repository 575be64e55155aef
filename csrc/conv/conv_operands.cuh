// The number formats that tensor cores multiply.
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
// each step's sums are added up by ordinary arithmetic. Infinities come out as NaN (infinity times a low part of zero).
struct Tf32x3 {
  using S = float;
  static constexpr bool chunked = true;
  template <int n>
  struct Operand {
    uint32_t high[n], low[n];
    __device__ __forceinline__ void set(int i, uint32_t bits) {
      constexpr uint32_t kInfinity = 0x7f800000u;
      const float x = __uint_as_float(bits);
      const bool finite = (bits & kInfinity) != kInfinity;
      high[i] = to_tf32(x);
      if (finite && (high[i] & kInfinity) == kInfinity) high[i] = bits & 0xffffe000u;  // the largest must not round up
      low[i] = finite ? to_tf32(x - __uint_as_float(high[i])) : 0;
    }
  };
  __device__ static __forceinline__ void multiply(float (&d)[4], const Operand<4>& a, const Operand<2>& b) {
    multiply_add_tf32(d, a.low, b.high);
    multiply_add_tf32(d, a.high, b.low);
    multiply_add_tf32(d, a.high, b.high);
  }
};

}  // namespace fastcv::FASTCV_GPU
