// Bias gradient of convolution: db[k] = sum over n, p of dY[n, k, p].
//
// Contract: grad_output [batch, channels, inner] (row-major) or [batch, inner, channels] (channels_last), dense;
// grad_bias [channels] is overwritten, with zeros where there is nothing to add. f32 f64 bf16 f16; short runs are added
// in float (f64: double), runs in double, one rounding at the end. The bits do not depend on the number of threads.
#pragma once
#include "common/parallel.h"
#include "common/types.h"
#include "common/variant.h"

namespace fastcv {

struct ConvBiasGradParams {
  const void* grad_output;
  void* grad_bias;
  int64_t batch, channels, inner;
  bool channels_last;
  DType dtype;
};

extern const VariantTable<ConvBiasGradParams> conv_bias_grad_table;

void conv_bias_grad_ref(const ConvBiasGradParams&, const Exec&);
#define FASTCV_CONV_BIAS_GRAD(isa)                                 \
  namespace isa {                                                  \
  size_t conv_bias_grad_workspace(const ConvBiasGradParams&, int); \
  void conv_bias_grad(const ConvBiasGradParams&, const Exec&);     \
  }
FASTCV_CONV_BIAS_GRAD(portable)
FASTCV_CONV_BIAS_GRAD(avx2)
FASTCV_CONV_BIAS_GRAD(avx512)
#undef FASTCV_CONV_BIAS_GRAD

#define FASTCV_CONV_BIAS_GRAD(gpu)                                                                      \
  namespace gpu {                                                                                       \
  FASTCV_IF_LINKED int conv_bias_grad(const ConvBiasGradParams&, void* workspace, CUstream_st* stream); \
  }
FASTCV_CONV_BIAS_GRAD(cuda)
FASTCV_CONV_BIAS_GRAD(emulated)
#undef FASTCV_CONV_BIAS_GRAD

}  // namespace fastcv
