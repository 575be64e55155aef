// step_chain by wgmma: two groups of four warps, each of which adds to 64 x 128 sums the product of tiles that stay in
// shared memory, 16 times a quarter and a quarter. Four products are a step's group; one group is always on its way.
#include "roof/probes.h"

#include "common/ptx_sm90.cuh"

namespace fastcv::FASTCV_GPU {
namespace {

constexpr int kThreads = 256, kSums = 64, kDepth = 64, kRows = 64, kColumns = 128;
static_assert(kThreads * kSums == kChainTile);

__global__ void __launch_bounds__(kThreads, 1) chain_wgmma_kernel(const float* x, float* y, int64_t steps) {
  if constexpr (!kHasGroups) {
    trap("needs sm_90a");
  } else {
    FASTCV_DYNAMIC_SHARED(uint16_t, tiles);
    for (int i = threadIdx.x; i < (kRows + kColumns) * kDepth; i += kThreads) tiles[i] = 0x3e80;  // a quarter
    publish_shared();
    __syncthreads();
    const int64_t first = blockIdx.x * kChainTile + threadIdx.x;
    float v[kSums];
#pragma unroll
    for (int i = 0; i < kSums; ++i) v[i] = x[first + i * kThreads];
    const uint64_t a = operand(tiles), b = operand(tiles + kRows * kDepth);
    for (int64_t s = 0; s < steps; s += kDepth / 16) {
      group_begin();
#pragma unroll
      for (int k = 0; k < kDepth / 16; ++k) multiply_group<bf16, kColumns>(v, a + 2 * k, b + 2 * k, true);
      group_commit();
      group_wait<1>();
    }
    group_wait<0>();
#pragma unroll
    for (int i = 0; i < kSums; ++i) y[first + i * kThreads] = v[i];
  }
}

}  // namespace

int chain_wgmma_bf16(const StepChainParams& p, void*, CUstream_st* stream) {
  return launch(chain_wgmma_kernel, static_cast<unsigned>(p.n / kChainTile), kThreads,
                (kRows + kColumns) * kDepth * sizeof(uint16_t), stream, p.x, p.y, p.steps);
}

}  // namespace fastcv::FASTCV_GPU
