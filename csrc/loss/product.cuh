// A matrix product on CUDA, C(i, j) = sum over k of A(i, k) B(k, j), for operands of any dtype and strides of which one
// is 1: a block takes 128 x 64 of C, a thread 8 x 4, and both operands pass through shared memory, widened, 16 k at a
// time. A sum runs over k in order within blocks of 128, blocks in order.
#pragma once
#include "common/numbers.cuh"

namespace fastcv::FASTCV_GPU {

constexpr int kProductThreads = 256;
constexpr int kTall = 128, kWide = 64, kDeep = 16;         // of a block's tile
constexpr int kMyTall = 8, kMyWide = 4;                    // of a thread's
constexpr int kTallRow = kTall + 4, kWideRow = kWide + 4;  // in shared memory: aligned, and few share a bank
constexpr int kSumDeep = 128;                              // k summed before the sum joins the total

// Element (line, k) at data[line * step + k * deep].
template <class S>
struct Operand {
  const S* data;
  int64_t lines, step, deep;
};

// tile[k][line], zeros where there is nothing. Neighbouring threads read neighbouring addresses.
template <int lines, int row, class T, class S>
__device__ __forceinline__ void read_operand(const Operand<S>& from, int64_t first, int64_t k0, int64_t depth,
                                             Shared<T> tile) {
  const bool along_k = from.deep == 1;
#pragma unroll
  for (int i = threadIdx.x; i < lines * kDeep; i += kProductThreads) {
    const int line = along_k ? i / kDeep : i % lines, k = along_k ? i % kDeep : i / lines;
    const bool there = first + line < from.lines && k0 + k < depth;
    tile[k * row + line] =
        there ? static_cast<T>(widen(from.data[(first + line) * from.step + (k0 + k) * from.deep])) : T(0);
  }
}

// store(i, j, sum) for every element.
template <class T, class A, class B, class Store>
__global__ void __launch_bounds__(kProductThreads)
    product_kernel(const Operand<A> a, const Operand<B> b, int64_t depth, const Store store) {
  FASTCV_SHARED(T, as, kDeep * kTallRow);
  FASTCV_SHARED(T, bs, kDeep * kWideRow);
  const int64_t across = (b.lines + kWide - 1) / kWide, down = (a.lines + kTall - 1) / kTall;
  const int row = threadIdx.x / (kWide / kMyWide) * kMyTall, column = threadIdx.x % (kWide / kMyWide) * kMyWide;
  for (int64_t tile = blockIdx.x; tile < across * down; tile += gridDim.x) {
    const int64_t i0 = tile % down * kTall, j0 = tile / down * kWide;  // neighbours share the columns of B
    T sum[kMyTall][kMyWide] = {}, total[kMyTall][kMyWide] = {};
    for (int64_t k0 = 0; k0 < depth; k0 += kDeep) {
      __syncthreads();
      read_operand<kTall, kTallRow>(a, i0, k0, depth, as);
      read_operand<kWide, kWideRow>(b, j0, k0, depth, bs);
      __syncthreads();
#pragma unroll
      for (int k = 0; k < kDeep; ++k) {
        T left[kMyTall];
#pragma unroll
        for (int half = 0; half < kMyTall; half += kMyWide) {
          const auto pack = load_shared<Pack<T, kMyWide>>(as + (k * kTallRow + row + half));
#pragma unroll
          for (int i = 0; i < kMyWide; ++i) left[half + i] = pack.at[i];
        }
        const auto right = load_shared<Pack<T, kMyWide>>(bs + (k * kWideRow + column));
#pragma unroll
        for (int i = 0; i < kMyTall; ++i)
#pragma unroll
          for (int j = 0; j < kMyWide; ++j) sum[i][j] = fma(left[i], right.at[j], sum[i][j]);
      }
      if ((k0 + kDeep) % kSumDeep != 0 && k0 + kDeep < depth) continue;
#pragma unroll
      for (int i = 0; i < kMyTall * kMyWide; ++i) {
        total[i / kMyWide][i % kMyWide] += sum[i / kMyWide][i % kMyWide];
        sum[i / kMyWide][i % kMyWide] = 0;
      }
    }
#pragma unroll
    for (int i = 0; i < kMyTall; ++i)
#pragma unroll
      for (int j = 0; j < kMyWide; ++j)
        if (i0 + row + i < a.lines && j0 + column + j < b.lines) store(i0 + row + i, j0 + column + j, total[i][j]);
  }
}

template <class T, class A, class B, class Store>
int product(const Operand<A>& a, const Operand<B>& b, int64_t depth, const Store& store, CUstream_st* stream) {
  const int64_t tiles = ((a.lines + kTall - 1) / kTall) * ((b.lines + kWide - 1) / kWide);
  if (tiles == 0) return cudaSuccess;
  return launch(product_kernel<T, A, B, Store>, grid_for(tiles, 1), kProductThreads, 0, stream, a, b, depth, store);
}

}  // namespace fastcv::FASTCV_GPU
