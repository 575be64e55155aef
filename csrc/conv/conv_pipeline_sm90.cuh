// The warp-specialised convolution of Hopper's ladder, in every tile and cluster: one warp copies, two groups of four
// warps multiply. Blocks stay for several tiles, so that the copies of the next begin under the end of the last. The
// blocks of a cluster make tiles that stand below each other and take the same weights: each copies its part of them to
// all, and a stage is empty when the groups of all blocks are done with it.
#pragma once
#include "conv/conv_sm90.cuh"

namespace fastcv::FASTCV_GPU {

template <class Shape>
__global__ void __launch_bounds__(kGroupThreads*(kGroups + 1), 1)
    igemm_pipeline_kernel(const Sm90Problem g, const __grid_constant__ TensorMap images,
                          const __grid_constant__ TensorMap weights) {
  if constexpr (!kHasGroups) {
    trap("needs sm_90a");
  } else {
    FASTCV_DYNAMIC_SHARED(uint8_t, shared);
    FASTCV_SHARED(uint64_t, full, Shape::stages);
    FASTCV_SHARED(uint64_t, empty, Shape::stages);
    const int t = threadIdx.x, group = t / kGroupThreads;
    if (t == 0) {
      for (int i = 0; i < Shape::stages; ++i) {
        barrier_init(full + i, 1);
        barrier_init(empty + i, Shape::sharing * 4 * Shape::cluster);
      }
      barriers_ready();
    }
    unsigned rank = 0;
    if constexpr (Shape::cluster > 1) {
      rank = cluster_rank();
      cluster_sync();
    } else {
      __syncthreads();
    }

    Turn<Shape::stages> turn;
    const int64_t first = blockIdx.x / Shape::cluster, apart = gridDim.x / Shape::cluster;
    if (group == kGroups) {
      registers_give<40>();
      if (t == kGroups * kGroupThreads)
        for (int64_t unit = first; unit < g.units; unit += apart) {
          int64_t n = unit;
          const int64_t m = g.by_tiles_n.split(n) * Shape::cluster + rank;
          const TileCopies<Shape> copies(g, images, weights, m * Shape::pixels, n * Shape::outputs);
          bring_tile<Shape>(g, copies, shared, full, empty, turn, rank);
        }
    } else {
      registers_take<232>();
      const Shared<float> sums =
          shared_cast<float>(shared + Shape::stages * Shape::stage_bytes + group * Shape::slab_bytes);
      for (int64_t unit = first; unit < g.units; unit += apart) {
        int64_t n = unit;
        const int64_t m = g.by_tiles_n.split(n) * Shape::cluster + rank;
        Sums<Shape> d;
        multiply_tile<Shape>(d, g.steps(), shared, full, empty, turn, group, [] {});
        store_tile<Shape>(g, d, m * Shape::pixels + group * 64 * Shape::subs, n * Shape::outputs, sums, 1 + group);
      }
    }
    if constexpr (Shape::cluster > 1) {
      __syncwarp();
      cluster_sync();  // no block leaves while others copy to it or arrive at its barriers
    }
  }
}

using Sm90Kernel = void(const Sm90Problem, const TensorMap, const TensorMap);

// Operands in chunks (conv_gpu.h) to y, whose steps are its own: `kernel` in `most_blocks` blocks or as many as there
// are tiles.
template <class Shape>
int multiply_sm90(Sm90Kernel kernel, unsigned threads, int64_t most_blocks, const ConvParams& p, const IgemmPlan& plan,
                  const void* x, const void* w, const Steps& y, CUstream_st* stream) {
  const Sm90Problem g = Sm90Problem::of<Shape>(p, plan, y);
  TensorMap images, weights;
  if (!sm90_maps<Shape>(p, plan, g, x, w, images, weights)) return cudaErrorInvalidValue;
  const int64_t clusters = std::min(g.units, most_blocks / Shape::cluster);
  return launch_clusters(kernel, static_cast<unsigned>(clusters * Shape::cluster), Shape::cluster, threads,
                         Shape::shared_bytes, stream, g, images, weights);
}

// The same after converting what the copies cannot read.
template <class Shape>
int launch_sm90(Sm90Kernel kernel, unsigned threads, int64_t most_blocks, const ConvParams& p, void* workspace,
                CUstream_st* stream) {
  const IgemmPlan plan = Shape::parts == 2 ? split_plan(p) : IgemmPlan(p);
  const void *x, *w;
  const int error = chunked_operands<typename Shape::S, Shape::parts>(p, plan, workspace, x, w, stream);
  if (error != 0) return error;
  return multiply_sm90<Shape>(kernel, threads, most_blocks, p, plan, x, w, Steps(p.k, p.out, p.channels_last), stream);
}

template <class Shape>
int launch_pipeline(const ConvParams& p, void* workspace, CUstream_st* stream,
                    int64_t most_blocks = kSm90Multiprocessors) {
  return launch_sm90<Shape>(igemm_pipeline_kernel<Shape>, kGroupThreads * (kGroups + 1), most_blocks, p, workspace,
                            stream);
}
template <class Shape>
int multiply_pipeline(const ConvParams& p, const IgemmPlan& plan, const void* x, const void* w, const Steps& y,
                      CUstream_st* stream) {
  return multiply_sm90<Shape>(igemm_pipeline_kernel<Shape>, kGroupThreads * (kGroups + 1), kSm90Multiprocessors, p,
                              plan, x, w, y, stream);
}

}  // namespace fastcv::FASTCV_GPU
