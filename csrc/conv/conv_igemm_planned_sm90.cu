// Convolution on Hopper's tensor cores in the tile and cluster that a model of the layer's time picks (conv_sm90.h).
#include "conv/conv.h"

#include "conv/conv_pipeline_sm90.cuh"

namespace fastcv::FASTCV_GPU {
namespace {

template <class S, int cluster>
int run(const Sm90Tile& tile, const ConvParams& p, void* workspace, CUstream_st* stream) {
  if (tile.outputs == 64) return launch_pipeline<Sm90Shape<S, 1, 2, 2, 64, cluster>>(p, workspace, stream);
  if (tile.outputs == 256) return launch_pipeline<Sm90Shape<S, 1, 2, 1, 256, cluster>>(p, workspace, stream);
  if (tile.pixels == 256) return launch_pipeline<Sm90Shape<S, 1, 2, 2, 128, cluster>>(p, workspace, stream);
  return launch_pipeline<Sm90Shape<S, 1, 2, 1, 128, cluster>>(p, workspace, stream);
}

template <class S>
int run(const ConvParams& p, void* workspace, CUstream_st* stream) {
  const IgemmPlan plan(p);
  const Sm90Tile tile = sm90_tile(p.n * p.out[1] * p.out[2], p.k, plan.taps * ((plan.padded + 63) / 64));
  return tile.cluster == 1 ? run<S, 1>(tile, p, workspace, stream) : run<S, 2>(tile, p, workspace, stream);
}

}  // namespace

int conv_igemm_planned_sm90(const ConvParams& p, void* workspace, CUstream_st* stream) {
  return p.dtype == DType::bf16 ? run<bf16>(p, workspace, stream) : run<f16>(p, workspace, stream);
}

}  // namespace fastcv::FASTCV_GPU
