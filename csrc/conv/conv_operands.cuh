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
// float32 as the sum of two tf32 numbers; infinities and NaN have no low part.
struct Tf32Parts {
  uint32_t high, low;
};
__device__ __forceinline__ Tf32Parts tf32_parts(uint32_t bits) {
  constexpr uint32_t kInfinity = 0x7f800000u;
  const float x = __uint_as_float(bits);
  const bool finite = (bits & kInfinity) != kInfinity;
  uint32_t high = to_tf32(x);
  if (finite && (high & kInfinity) == kInfinity) high = bits & 0xffffe000u;  // the largest must not round up
  return {high, finite ? to_tf32(x - __uint_as_float(high)) : 0};
}
// float32 as two tf32 numbers, of whose four products the smallest is left out. Tensor cores truncate where they add:
// each step's sums are added up by ordinary arithmetic. Infinities come out as NaN (infinity times a low part of zero).
struct Tf32x3 {
  using S = float;
  static constexpr bool chunked = true;
  template <int n>
  struct Operand {
    uint32_t high[n], low[n];
    __device__ __forceinline__ void set(int i, uint32_t bits) {
      const Tf32Parts parts = tf32_parts(bits);
      high[i] = parts.high;
      low[i] = parts.low;
    }
  };
  __device__ static __forceinline__ void multiply(float (&d)[4], const Operand<4>& a, const Operand<2>& b) {
    multiply_add_tf32(d, a.low, b.high);
    multiply_add_tf32(d, a.high, b.low);
    multiply_add_tf32(d, a.high, b.high);
  }
};

// One step of a warp's tile, 32 bytes of the sum's length twice: rows(half, m) and columns(half, n) load the operands
// of 16 rows and of 16 columns, of which columns takes every other n.
template <class Kind, int subs_m, int subs_n, class Rows, class Columns>
__device__ __forceinline__ void multiply_step(float (&sum)[subs_m][subs_n][4], const Rows& rows,
                                              const Columns& columns) {
  float fresh[Kind::chunked ? subs_m : 1][Kind::chunked ? subs_n : 1][4] = {};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    typename Kind::template Operand<4> fa[subs_m];
    typename Kind::template Operand<2> fb[subs_n];
#pragma unroll
    for (int m = 0; m < subs_m; ++m) {
      const Fragment4 f = rows(half, m);
#pragma unroll
      for (int i = 0; i < 4; ++i) fa[m].set(i, f.at[i]);
    }
#pragma unroll
    for (int n = 0; n < subs_n; n += 2) {
      const Fragment4 f = columns(half, n);
#pragma unroll
      for (int i = 0; i < 4; ++i) fb[n + i / 2].set(i % 2, f.at[i]);
    }
#pragma unroll
    for (int m = 0; m < subs_m; ++m)
#pragma unroll
      for (int n = 0; n < subs_n; ++n) {
        if constexpr (Kind::chunked) Kind::multiply(fresh[m][n], fa[m], fb[n]);
        else Kind::multiply(sum[m][n], fa[m], fb[n]);
      }
  }
  if constexpr (Kind::chunked) {
#pragma unroll
    for (int m = 0; m < subs_m; ++m)
#pragma unroll
      for (int n = 0; n < subs_n; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[m][n][i] += fresh[m][n][i];
  }
}

}  // namespace fastcv::FASTCV_GPU
