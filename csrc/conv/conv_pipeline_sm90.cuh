// The warp-specialised convolution of Hopper's ladder, in every tile and cluster: one warp copies, two groups of four
// warps multiply. Blocks stay for several tiles, so that the copies of the next begin under the end of the last. The
// blocks of a cluster make tiles that stand below each other and take the same weights: each copies its part of them to
// all, and a stage is empty when the groups of all blocks are done with it.
#pragma once
#include "conv/conv_sm90.cuh"

namespace fastcv::FASTCV_GPU {

// A convolution, and what a launch makes: one, or several whose units follow each other.
struct Sm90Call {
  const Sm90Problem& g;
  const TensorMap &images, &weights;
  __device__ __forceinline__ int64_t units() const { return g.units; }
  // The convolution of a unit, which becomes that one's.
  __device__ __forceinline__ const Sm90Call& at(int64_t&) const { return *this; }
};

template <class Shape, class Calls>
__device__ __forceinline__ void run_pipeline(const Calls& calls) {
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
        for (int64_t unit = first; unit < calls.units(); unit += apart) {
          int64_t n = unit;
          const Sm90Call& call = calls.at(n);
          const int64_t m = call.g.by_tiles_n.split(n) * Shape::cluster + rank;
          const TileCopies<Shape> copies(call.g, call.images, call.weights, m * Shape::pixels, n * Shape::outputs);
          bring_tile<Shape>(call.g, copies, shared, full, empty, turn, rank);
        }
    } else {
      registers_take<232>();
      const Shared<float> sums =
          shared_cast<float>(shared + Shape::stages * Shape::stage_bytes + group * Shape::slab_bytes);
      for (int64_t unit = first; unit < calls.units(); unit += apart) {
        int64_t n = unit;
        const Sm90Problem& g = calls.at(n).g;
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

constexpr unsigned kPipelineThreads = kGroupThreads * (kGroups + 1);

template <class Shape>
__global__ void __launch_bounds__(kPipelineThreads, 1)
    igemm_pipeline_kernel(const Sm90Problem g, const __grid_constant__ TensorMap images,
                          const __grid_constant__ TensorMap weights) {
  run_pipeline<Shape>(Sm90Call{g, images, weights});
}

using Sm90Kernel = void(const Sm90Problem, const TensorMap, const TensorMap);

// A convolution by `kernel` in `most_blocks` blocks or as many as there are tiles, after converting what the copies
// cannot read.
template <class Shape>
int launch_sm90(Sm90Kernel kernel, unsigned threads, int64_t most_blocks, const ConvParams& p, void* workspace,
                CUstream_st* stream) {
  const IgemmPlan plan = Shape::parts == 2 ? split_plan(p) : IgemmPlan(p);
  const void *x, *w;
  int error = chunked_operands<typename Shape::S, Shape::parts>(p, plan, workspace, x, w, stream);
  if (error != 0) return error;
  Sm90Problem g = Sm90Problem::of<Shape>(p, plan, Steps(p.k, p.out, p.channels_last));
  if (p.statistics != nullptr)
    g.moments = reinterpret_cast<double*>(static_cast<char*>(workspace) + plan.x_bytes + plan.w_bytes);
  TensorMap images, weights;
  if (!sm90_maps<Shape>(p, plan, g, x, w, images, weights)) return cudaErrorInvalidValue;
  const int64_t clusters = std::min(g.units, most_blocks / Shape::cluster);
  error = launch_clusters(kernel, static_cast<unsigned>(clusters * Shape::cluster), Shape::cluster, threads,
                          Shape::shared_bytes, stream, g, images, weights);
  if (error != 0 || g.moments == nullptr) return error;
  return merge_moments(g.moments, kLeastTileRows, g.rows, p.k, *p.statistics, stream);
}

template <class Shape>
int launch_pipeline(const ConvParams& p, void* workspace, CUstream_st* stream,
                    int64_t most_blocks = kSm90Multiprocessors) {
  return launch_sm90<Shape>(igemm_pipeline_kernel<Shape>, kPipelineThreads, most_blocks, p, workspace, stream);
}

}  // namespace fastcv::FASTCV_GPU
