// Tensor-core convolution for few pixels and long sums, which are cut into segments (conv_igemm.cuh): bfloat16,
// float16, and float32 rounded to tf32.
#include "conv/conv.h"

#include "conv/conv_igemm.cuh"

namespace fastcv::FASTCV_GPU {

int conv_igemm_splitk(const ConvParams& p, void* workspace, CUstream_st* stream) {
  switch (p.dtype) {
    case DType::bf16:
      return launch_segmented_igemm<Halves<bf16>>(p, workspace, stream);
    case DType::f16:
      return launch_segmented_igemm<Halves<f16>>(p, workspace, stream);
    case DType::f32:
      return launch_segmented_igemm<Tf32>(p, workspace, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace fastcv::FASTCV_GPU
