// tile_product by wgmma: threads store both tiles swizzled, as copies would have brought them, and one group of warps
// multiplies them through descriptors. Needs no copy, so that a wrong result says "descriptor" and not "copy".
#include "roof/probes.h"

#include "common/ptx_sm90.cuh"

namespace fastcv::FASTCV_GPU {
namespace {

constexpr int kThreads = 128, kRows = 64, kColumns = 128, kDepth = 64;

template <class S>
__global__ void __launch_bounds__(kThreads, 1) wgmma_kernel(const S* a, const S* b, float* d) {
  if constexpr (!kHasGroups) {
    trap("needs sm_90a");
  } else {
    FASTCV_DYNAMIC_SHARED(S, tiles);
    for (int i = threadIdx.x; i < (kRows + kColumns) * kDepth; i += kThreads) {
      const int row = i / kDepth, k = i % kDepth;
      tiles[row * kDepth + (k ^ row % 8 * 8)] = row < kRows ? a[i] : b[i - kRows * kDepth];
    }
    publish_shared();
    __syncthreads();
    float sums[kColumns / 2] = {};
    group_begin();
#pragma unroll
    for (int k = 0; k < kDepth / 16; ++k)
      multiply_group<S, kColumns>(sums, operand(tiles) + 2 * k, operand(tiles + kRows * kDepth) + 2 * k, k > 0);
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
  return launch(wgmma_kernel<S>, 1, kThreads, (kRows + kColumns) * kDepth * sizeof(S), stream,
                static_cast<const S*>(p.a), static_cast<const S*>(p.b), p.d);
}

}  // namespace

int tile_product_wgmma(const TileProductParams& p, void*, CUstream_st* stream) {
  return p.dtype == DType::bf16 ? run<bf16>(p, stream) : run<f16>(p, stream);
}

}  // namespace fastcv::FASTCV_GPU
