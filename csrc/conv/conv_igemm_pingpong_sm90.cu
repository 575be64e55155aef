// Convolution on Hopper's tensor cores in turns: each of the two groups of four warps has a tile of its own, 128 pixels
// x 128 output channels, and multiplies while the other stores. It is for short sums, 1x1 kernels above all, where the
// store takes as long as the products. A group begins its products when the other's last step has landed, so that steps
// are taken in the order in which they are copied.
#include "conv/conv.h"

#include "conv/conv_pipeline_sm90.cuh"

namespace fastcv::FASTCV_GPU {
namespace {

constexpr int kThreads = kGroupThreads * (kGroups + 1);
template <class S>
using Shape = Sm90Shape<S, 1, 1, 2, 128, 1>;

template <class S>
__global__ void __launch_bounds__(kThreads, 1)
    igemm_pingpong_kernel(const Sm90Problem g, const __grid_constant__ TensorMap images,
                          const __grid_constant__ TensorMap weights) {
  if constexpr (!kHasGroups) {
    trap("needs sm_90a");
  } else {
    using Tile = Shape<S>;
    FASTCV_DYNAMIC_SHARED(uint8_t, shared);
    FASTCV_SHARED(uint64_t, full, Tile::stages);
    FASTCV_SHARED(uint64_t, empty, Tile::stages);
    FASTCV_SHARED(uint64_t, begin, kGroups);
    const int t = threadIdx.x, group = t / kGroupThreads;
    if (t == 0) {
      for (int i = 0; i < Tile::stages; ++i) {
        barrier_init(full + i, 1);
        barrier_init(empty + i, 4);
      }
      for (int i = 0; i < kGroups; ++i) barrier_init(begin + i, 4);
      barriers_ready();
    }
    __syncthreads();

    Turn<Tile::stages> turn;
    if (group == kGroups) {
      registers_give<40>();
      if (t != kGroups * kGroupThreads) return;
      for (int64_t tile = blockIdx.x; tile < g.units; tile += gridDim.x) {
        int64_t n = tile;
        const int64_t m = g.by_tiles_n.split(n);
        const TileCopies<Tile> copies(g, images, weights, m * Tile::pixels, n * Tile::outputs);
        bring_tile<Tile>(g, copies, shared, full, empty, turn, 0);
      }
      return;
    }
    registers_take<232>();
    const Shared<float> sums = shared_cast<float>(shared + Tile::stages * Tile::stage_bytes + group * Tile::slab_bytes);
    const int other = 1 - group;
    uint32_t parity = group == 0;  // the first group finds the way free
    turn.skip(group * g.steps());
    for (int64_t tile = blockIdx.x + group * int64_t{gridDim.x}; tile < g.units;
         tile += kGroups * int64_t{gridDim.x}, parity ^= 1) {
      int64_t n = tile;
      const int64_t m = g.by_tiles_n.split(n);
      barrier_wait(begin + group, parity);
      Sums<Tile> d;
      multiply_tile<Tile>(d, g.steps(), shared, full, empty, turn, 0, [&] {
        __syncwarp();  // every lane has seen this turn begin, before the other's end may begin the next
        if (t % 32 == 0) barrier_arrive(begin + other);
      });
      turn.skip(g.steps());
      store_tile<Tile>(g, d, m * Tile::pixels, n * Tile::outputs, sums, 1 + group);
    }
  }
}

}  // namespace

int conv_igemm_pingpong_sm90(const ConvParams& p, void* workspace, CUstream_st* stream) {
  return p.dtype == DType::bf16 ? launch_sm90<Shape<bf16>>(igemm_pingpong_kernel<bf16>, kThreads, kSm90Multiprocessors,
                                                           p, workspace, stream)
                                : launch_sm90<Shape<f16>>(igemm_pingpong_kernel<f16>, kThreads, kSm90Multiprocessors, p,
                                                          workspace, stream);
}

}  // namespace fastcv::FASTCV_GPU
