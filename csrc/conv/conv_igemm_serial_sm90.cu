// Convolution on Hopper's tensor cores in its simplest form: a block copies a step, waits, multiplies, waits, and
// copies the next. What hides the waiting is the block that shares the multiprocessor.
#include "conv/conv.h"

#include "conv/conv_pipeline_sm90.cuh"

namespace fastcv::FASTCV_GPU {
namespace {

template <class S>
using Shape = Sm90Shape<S, 1, 2, 1, 128, 1, 1>;
constexpr int kThreads = kGroupThreads * kGroups;

template <class S>
__global__ void __launch_bounds__(kThreads, 2)
    igemm_serial_kernel(const Sm90Problem g, const __grid_constant__ TensorMap images,
                        const __grid_constant__ TensorMap weights) {
  if constexpr (!kHasGroups) {
    trap("needs sm_90a");
  } else {
    using Tile = Shape<S>;
    FASTCV_DYNAMIC_SHARED(uint8_t, shared);
    FASTCV_SHARED(uint64_t, full, 1);
    const int t = threadIdx.x, group = t / kGroupThreads;
    if (t == 0) {
      barrier_init(full, 1);
      barriers_ready();
    }
    __syncthreads();
    int64_t n = blockIdx.x;
    const int64_t m0 = g.by_tiles_n.split(n) * Tile::pixels, n0 = n * Tile::outputs;
    const TileCopies<Tile> copies(g, images, weights, m0, n0);
    Sums<Tile> d;
    uint32_t parity = 0;
    for (int tap = 0; tap < g.taps; ++tap)
      for (int c = 0; c < g.steps_c; ++c, parity ^= 1) {
        if (t == 0) copies.bring(tap, c, shared, full, 0);
        barrier_wait(full, parity);
        multiply_stage<Tile>(d, shared, group, tap > 0 || c > 0);
        group_wait<0>();
        __syncthreads();  // before the next step takes this one's place
      }
    const Shared<float> sums = shared_cast<float>(shared + Tile::stage_bytes + group * Tile::slab_bytes);
    store_tile<Tile>(g, d, m0 + group * 64, n0, sums, 1 + group);
  }
}

}  // namespace

int conv_igemm_serial_sm90(const ConvParams& p, void* workspace, CUstream_st* stream) {
  return p.dtype == DType::bf16
             ? launch_sm90<Shape<bf16>>(igemm_serial_kernel<bf16>, kThreads, INT32_MAX, p, workspace, stream)
             : launch_sm90<Shape<f16>>(igemm_serial_kernel<f16>, kThreads, INT32_MAX, p, workspace, stream);
}

}  // namespace fastcv::FASTCV_GPU
