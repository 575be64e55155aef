// tile_product by wgmma: threads store both tiles swizzled, as copies would have brought them, and one group of warps
// multiplies them through descriptors, or loads the rows into registers. Needs no copy, so that a wrong result says
// "descriptor" or "registers" and not "copy". Rows of float, rounded to tf32, are 256 bytes: two tiles of each operand
// stand behind each other.
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
    constexpr int kWidth = 128 / sizeof(S), kChunk = 16 / sizeof(S), kTile = (kRows + kColumns) * kWidth;
    FASTCV_DYNAMIC_SHARED(S, tiles);
    for (int i = threadIdx.x; i < (kRows + kColumns) * kDepth; i += kThreads) {
      const int row = i / kDepth, k = i % kDepth;
      S value = row < kRows ? a[i] : b[i - kRows * kDepth];
      if constexpr (sizeof(S) == 4) value = __uint_as_float(to_tf32(value));
      tiles[k / kWidth * kTile + row * kWidth + (k % kWidth ^ row % 8 * kChunk)] = value;
    }
    publish_shared();
    __syncthreads();
    float sums[kColumns / 2] = {};
    group_begin();
#pragma unroll
    for (int tile = 0; tile < kDepth / kWidth; ++tile)
#pragma unroll
      for (int k = 0; k < 4; ++k)
        multiply_group<S, kColumns>(sums, operand(tiles + tile * kTile) + 2 * k,
                                    operand(tiles + tile * kTile + kRows * kWidth) + 2 * k, tile > 0 || k > 0);
    group_commit();
    group_wait<0>();
    const int lane = threadIdx.x % 32, row0 = threadIdx.x / 32 * 16 + lane / 4;
#pragma unroll
    for (int i = 0; i < kColumns / 2; ++i)
      d[(row0 + i / 2 % 2 * 8) * kColumns + i / 4 * 8 + lane % 4 * 2 + i % 2] = sums[i];
  }
}

// The rows of A from registers: 64 columns at a time.
template <class S>
__global__ void __launch_bounds__(kThreads, 1) wgmma_registers_kernel(const S* a, const S* b, float* d) {
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
    const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane % 16;
    const int row0 = threadIdx.x / 32 * 16 + lane / 4;
    Fragment4 rows[kDepth / 16];
#pragma unroll
    for (int k = 0; k < kDepth / 16; ++k)
      rows[k] = load_matrix_x4(tiles + row * kDepth + ((16 * k + lane / 16 * 8) ^ row % 8 * 8));
#pragma unroll
    for (int column0 = 0; column0 < kColumns; column0 += 64) {
      float sums[32] = {};
      group_begin();
#pragma unroll
      for (int k = 0; k < kDepth / 16; ++k)
        multiply_group<S, 64>(sums, rows[k], operand(tiles + (kRows + column0) * kDepth) + 2 * k, k > 0);
      group_commit();
      group_wait<0>();
#pragma unroll
      for (int i = 0; i < 32; ++i)
        d[(row0 + i / 2 % 2 * 8) * kColumns + column0 + i / 4 * 8 + lane % 4 * 2 + i % 2] = sums[i];
    }
  }
}

template <class S>
int run(void (*kernel)(const S*, const S*, float*), const TileProductParams& p, CUstream_st* stream) {
  return launch(kernel, 1, kThreads, (kRows + kColumns) * kDepth * sizeof(S), stream, static_cast<const S*>(p.a),
                static_cast<const S*>(p.b), p.d);
}

}  // namespace

int tile_product_wgmma(const TileProductParams& p, void*, CUstream_st* stream) {
  if (p.dtype == DType::f32) return run(wgmma_kernel<float>, p, stream);
  return p.dtype == DType::bf16 ? run(wgmma_kernel<bf16>, p, stream) : run(wgmma_kernel<f16>, p, stream);
}
int tile_product_wgmma_registers(const TileProductParams& p, void*, CUstream_st* stream) {
  return p.dtype == DType::bf16 ? run(wgmma_registers_kernel<bf16>, p, stream)
                                : run(wgmma_registers_kernel<f16>, p, stream);
}

}  // namespace fastcv::FASTCV_GPU
