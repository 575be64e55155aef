// What conv_igemm_sm90.cu does for others.
#pragma once
#include "conv/conv_axis.cuh"
#include "conv/conv_gpu.h"

namespace fastcv::FASTCV_GPU {

// A convolution of operands in chunks (conv_gpu.h) whose y and residual have steps of their own.
int multiply_sm90(const ConvParams& p, const IgemmPlan& plan, const void* x, const void* w, const Steps& y,
                  CUstream_st* stream);

}  // namespace fastcv::FASTCV_GPU
