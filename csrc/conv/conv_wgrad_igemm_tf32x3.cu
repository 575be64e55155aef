// Tensor-core weight gradient of float32 in two tf32 parts.
#include "conv/conv_wgrad.h"

#include "conv/conv_wgrad_igemm.cuh"

namespace fastcv::FASTCV_GPU {

int conv_wgrad_igemm_tf32x3(const ConvWgradParams& p, void* workspace, CUstream_st* stream) {
  return launch_wgrad_igemm<Tf32x3>(p, workspace, stream);
}

}  // namespace fastcv::FASTCV_GPU
