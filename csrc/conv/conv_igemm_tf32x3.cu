// Tensor-core convolution of float32 in two tf32 parts.
#include "conv/conv.h"

#include "conv/conv_igemm.cuh"

namespace fastcv::FASTCV_GPU {

int conv_igemm_tf32x3(const ConvParams& p, void* workspace, CUstream_st* stream) {
  return launch_igemm<Tf32x3>(p, workspace, stream);
}

}  // namespace fastcv::FASTCV_GPU
