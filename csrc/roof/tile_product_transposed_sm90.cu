// tile_product by wgmma of transposed operands: threads store both tiles with a row per k, swizzled, as copies of
// pixels would have brought them, and one group of warps multiplies them through descriptors.
#include "roof/probes.h"

#include "common/ptx_wgmma_transposed.cuh"

namespace fastcv::FASTCV_GPU {
namespace {

constexpr int kThreads = 128, kRows = 64, kColumns = 128, kDepth = 64, kTile = 64 * kDepth;

template <class S>
__global__ void __launch_bounds__(kThreads, 1) wgmma_transposed_kernel(const S* a, const S* b, float* d) {
  if constexpr (!kHasGroups) {
    trap("needs sm_90a");
  } else {
    FASTCV_DYNAMIC_SHARED(S, tiles);  // of 64 rows or columns each
    for (int i = threadIdx.x; i < (kRows + kColumns) * kDepth; i += kThreads) {
      const int row = i / kDepth, k = i % kDepth;
      tiles[row / 64 * kTile + k * 64 + (row % 64 ^ k % 8 * 8)] = row < kRows ? a[i] : b[i - kRows * kDepth];
    }
    publish_shared();
    __syncthreads();
    float sums[kColumns / 2] = {};
    const uint64_t from_a = operand_transposed(tiles, kTile * 2), from_b = operand_transposed(tiles + kTile, kTile * 2);
    group_begin();
#pragma unroll
    for (int k = 0; k < kDepth / 16; ++k)
      multiply_group_transposed<S, kColumns>(sums, from_a + 128 * k, from_b + 128 * k, k > 0);
    group_commit();
    group_wait<0>();
    const int lane = threadIdx.x % 32, row0 = threadIdx.x / 32 * 16 + lane / 4;
#pragma unroll
    for (int i = 0; i < kColumns / 2; ++i)
      d[(row0 + i / 2 % 2 * 8) * kColumns + i / 4 * 8 + lane % 4 * 2 + i % 2] = sums[i];
  }
}

template <class S>
int run(const TileProductParams& p, CUstream_st* stream) {
  return launch(wgmma_transposed_kernel<S>, 1, kThreads, (kRows + kColumns) * kDepth * sizeof(S), stream,
                static_cast<const S*>(p.a), static_cast<const S*>(p.b), p.d);
}

}  // namespace

int tile_product_wgmma_transposed(const TileProductParams& p, void*, CUstream_st* stream) {
  return p.dtype == DType::bf16 ? run<bf16>(p, stream) : run<f16>(p, stream);
}

}  // namespace fastcv::FASTCV_GPU
