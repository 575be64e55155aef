// Convolution of float32 on Hopper's tensor cores: rounded to tf32 by the copies, or in two tf32 parts.
#include "conv/conv.h"

#include "conv/conv_pipeline_sm90.cuh"

namespace fastcv::FASTCV_GPU {

int conv_igemm_tf32_sm90(const ConvParams& p, void* workspace, CUstream_st* stream) {
  return launch_pipeline<Sm90Shape<float, 1, 2, 1, 128, 1>>(p, workspace, stream);
}
int conv_igemm_tf32x3_sm90(const ConvParams& p, void* workspace, CUstream_st* stream) {
  return launch_pipeline<Sm90Shape<float, 2, 2, 1, 128, 1>>(p, workspace, stream);
}

}  // namespace fastcv::FASTCV_GPU
