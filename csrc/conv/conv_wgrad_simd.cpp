// Weight gradient as a matrix product of every dtype, one pixel at a time.
#include "conv/conv_wgrad_gemm.h"

#include "common/dispatch.h"

namespace fastcv::FASTCV_ISA {

size_t conv_wgrad_workspace(const ConvWgradParams& p, int threads) {
  return p.dtype == DType::f64 ? workspace<PlainSteps<double>>(p, threads) : workspace<PlainSteps<float>>(p, threads);
}

void conv_wgrad(const ConvWgradParams& p, const Exec& exec) {
  dispatch_float(p.dtype, [&](auto zero) { run<PlainSteps<decltype(zero)>>(p, exec); });
}

}  // namespace fastcv::FASTCV_ISA
