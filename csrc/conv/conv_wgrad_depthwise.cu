// Weight gradient with one input channel per group: a block adds up one segment of pixels and up to nine taps, for 32
// neighbouring channels or (row-major) for one. The output's gradient is read once per nine taps.
#include "conv/conv_wgrad.h"

#include "conv/conv_axis.cuh"
#include "conv/conv_sums.cuh"

namespace fastcv::FASTCV_GPU {
namespace {

constexpr int kTaps = kDepthwiseTaps;

struct DepthwiseWgrad {
  ConvWgradParams p;
  Steps x, y;
  Segments segments;
  int64_t taps, parts, pixels, multiplier;
  Divider by_d, by_h, by_w;
  double* partial;
  DepthwiseWgrad(const ConvWgradParams& params, void* workspace)
      : p(params),
        x(p.in_channels, p.in, p.input_channels_last),
        y(p.out_channels, p.out, p.grad_channels_last),
        segments(wgrad_depthwise_segments(p)),
        taps(taps_of(p.kernel)),
        parts((taps + kTaps - 1) / kTaps),
        pixels(pixels_of(p)),
        multiplier(p.out_channels / p.groups),
        by_d(p.out[0]),
        by_h(p.out[1]),
        by_w(p.out[2]),
        partial(static_cast<double*>(workspace)) {}
  __host__ __device__ int64_t blocks(int wide) const {
    return (p.out_channels + wide - 1) / wide * parts * segments.count;
  }
};

template <class S, int wide>
__global__ void __launch_bounds__(kSumThreads) wgrad_depthwise_kernel(const DepthwiseWgrad g) {
  using T = acc_t<S>;
  constexpr int tall = kSumThreads / wide, chain = 32;
  FASTCV_SHARED(double, scratch, kSumThreads);
  const ConvWgradParams& p = g.p;
  const S* x = static_cast<const S*>(p.input);
  const S* dy = static_cast<const S*>(p.grad_output);
  const int64_t columns = (p.out_channels + wide - 1) / wide;
  for (int64_t i = blockIdx.x; i < g.blocks(wide); i += gridDim.x) {
    const int64_t segment = i / columns / g.parts, first_tap = i / columns % g.parts * kTaps;
    const int64_t k = i % columns * wide + threadIdx.x % wide;
    const int64_t end = min((segment + 1) * g.segments.length, g.pixels);
    // Where the taps of this block look, from the place of the first.
    int64_t off[kTaps][3], delta[kTaps];
#pragma unroll
    for (int t = 0; t < kTaps; ++t) {
      const int64_t tap = min(first_tap + t, g.taps - 1), row = tap / p.kernel[2];
      off[t][0] = row / p.kernel[1] * p.dilation[0] - p.pad[0];
      off[t][1] = row % p.kernel[1] * p.dilation[1] - p.pad[1];
      off[t][2] = tap % p.kernel[2] * p.dilation[2] - p.pad[2];
      delta[t] = off[t][0] * g.x.at[0] + off[t][1] * g.x.at[1] + off[t][2] * g.x.at[2];
    }
    double sum[kTaps] = {};
    T few[kTaps] = {};
    int in_chain = 0;
    if (k < p.out_channels) {
      const int64_t c = k / g.multiplier;
      for (int64_t e = segment * g.segments.length + threadIdx.x / wide; e < end; e += tall) {
        int64_t w = e;
        int64_t h = g.by_w.split(w);
        int64_t d = g.by_h.split(h);
        const int64_t n = g.by_d.split(d);
        const T grad = widen(dy[n * g.y.n + k * g.y.c + d * g.y.at[0] + h * g.y.at[1] + w * g.y.at[2]]);
        d *= p.stride[0];
        h *= p.stride[1];
        w *= p.stride[2];
        const int64_t from = n * g.x.n + c * g.x.c + d * g.x.at[0] + h * g.x.at[1] + w * g.x.at[2];
#pragma unroll
        for (int t = 0; t < kTaps; ++t) {
          const int64_t id = d + off[t][0], ih = h + off[t][1], iw = w + off[t][2];
          if (id < 0 || id >= p.in[0] || ih < 0 || ih >= p.in[1] || iw < 0 || iw >= p.in[2]) continue;
          few[t] = fma(grad, widen(x[from + delta[t]]), few[t]);
        }
        if (++in_chain < chain) continue;
        in_chain = 0;
#pragma unroll
        for (int t = 0; t < kTaps; ++t) sum[t] += static_cast<double>(few[t]), few[t] = 0;
      }
    }
#pragma unroll
    for (int t = 0; t < kTaps; ++t) {
      const double total = add_columns<wide>(sum[t] + static_cast<double>(few[t]), scratch);
      if (threadIdx.x < wide && k < p.out_channels && first_tap + t < g.taps)
        g.partial[(segment * p.out_channels + k) * g.taps + first_tap + t] = total;
    }
  }
}

}  // namespace

int conv_wgrad_depthwise(const ConvWgradParams& p, void* workspace, CUstream_st* stream) {
  const DepthwiseWgrad g(p, workspace);
  return by_dtype(p.dtype, [&]<class S>() {
    const int error = p.input_channels_last
                          ? launch(wgrad_depthwise_kernel<S, 32>, grid_for(g.blocks(32), 1), kSumThreads, 0, stream, g)
                          : launch(wgrad_depthwise_kernel<S, 1>, grid_for(g.blocks(1), 1), kSumThreads, 0, stream, g);
    if (error != 0) return error;
    return add_segments<S>(g.partial, p.grad_weight, weight_size(p), g.segments.count, stream);
  });
}

}  // namespace fastcv::FASTCV_GPU
