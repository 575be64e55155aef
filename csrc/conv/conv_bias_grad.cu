// Bias gradient: a block adds up one segment of pixels, for 32 neighbouring channels or (row-major) for one.
#include "conv/conv_bias_grad.h"

#include "common/divide.cuh"
#include "conv/conv_sums.cuh"

namespace fastcv::FASTCV_GPU {
namespace {

template <class S, int wide>
__global__ void __launch_bounds__(kSumThreads)
    bias_grad_kernel(const ConvBiasGradParams p, const Segments segments, const Divider inner, double* partial) {
  constexpr int tall = kSumThreads / wide, chain = 16;
  FASTCV_SHARED(double, scratch, kSumThreads);
  const S* grad = static_cast<const S*>(p.grad_output);
  const int64_t blocks = (p.channels + wide - 1) / wide, pixels = p.batch * p.inner;
  for (int64_t i = blockIdx.x; i < blocks * segments.count; i += gridDim.x) {
    const int64_t segment = i / blocks, k = i % blocks * wide + threadIdx.x % wide;
    const int64_t end = min((segment + 1) * segments.length, pixels);
    double sum = 0;
    if (k < p.channels) {
      for (int64_t first = segment * segments.length + threadIdx.x / wide; first < end; first += tall * chain) {
        acc_t<S> few = 0;
        const int64_t last = min(first + tall * chain, end);
        for (int64_t e = first; e < last; e += tall) {
          int64_t at = e * p.channels + k;
          if (wide == 1) {
            at = e;
            const int64_t n = inner.split(at);
            at += (n * p.channels + k) * p.inner;
          }
          few += widen(grad[at]);
        }
        sum += static_cast<double>(few);
      }
    }
    sum = add_columns<wide>(sum, scratch);
    if (threadIdx.x < wide && k < p.channels) partial[segment * p.channels + k] = sum;
  }
}

}  // namespace

int conv_bias_grad(const ConvBiasGradParams& p, void* workspace, CUstream_st* stream) {
  const Segments segments = bias_grad_segments(p);
  double* partial = static_cast<double*>(workspace);
  return by_dtype(p.dtype, [&]<class S>() {
    const int error = p.channels_last
                          ? launch(bias_grad_kernel<S, 32>, grid_for((p.channels + 31) / 32 * segments.count, 1),
                                   kSumThreads, 0, stream, p, segments, Divider(p.inner), partial)
                          : launch(bias_grad_kernel<S, 1>, grid_for(p.channels * segments.count, 1), kSumThreads, 0,
                                   stream, p, segments, Divider(p.inner), partial);
    if (error != 0) return error;
    return add_segments<S>(partial, p.grad_bias, p.channels, segments.count, stream);
  });
}

}  // namespace fastcv::FASTCV_GPU
