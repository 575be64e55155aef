// Convolution on Hopper's tensor cores by copying and multiplying warps, 128 pixels x 128 output channels at a time; a
// tile to a block, or blocks that stay.
#include "conv/conv.h"

#include "conv/conv_pipeline_sm90.cuh"

namespace fastcv::FASTCV_GPU {
namespace {

template <class S>
using Shape = Sm90Shape<S, 1, 2, 1, 128, 1>;

int run(const ConvParams& p, int64_t most_blocks, void* workspace, CUstream_st* stream) {
  return p.dtype == DType::bf16 ? launch_pipeline<Shape<bf16>>(p, workspace, stream, most_blocks)
                                : launch_pipeline<Shape<f16>>(p, workspace, stream, most_blocks);
}

}  // namespace

int conv_igemm_specialised_sm90(const ConvParams& p, void* workspace, CUstream_st* stream) {
  return run(p, INT32_MAX, workspace, stream);
}
int conv_igemm_sm90(const ConvParams& p, void* workspace, CUstream_st* stream) {
  return run(p, kSm90Multiprocessors, workspace, stream);
}

}  // namespace fastcv::FASTCV_GPU
