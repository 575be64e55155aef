// Convolution on Hopper's tensor cores with weights that two blocks bring to each other: a third less to read from the
// second-level cache at 128 pixels x 256 output channels.
#include "conv/conv.h"

#include "conv/conv_pipeline_sm90.cuh"

namespace fastcv::FASTCV_GPU {

int conv_igemm_multicast_sm90(const ConvParams& p, void* workspace, CUstream_st* stream) {
  return p.dtype == DType::bf16 ? launch_pipeline<Sm90Shape<bf16, 1, 2, 1, 256, 2>>(p, workspace, stream)
                                : launch_pipeline<Sm90Shape<f16, 1, 2, 1, 256, 2>>(p, workspace, stream);
}

}  // namespace fastcv::FASTCV_GPU
