// The first convolution of a network on tensor cores: images of up to four channels, with a stride of 2 along rows, as
// images of half as many pixels of eight (PairPlan in conv_gpu.h). bfloat16 and float16.
#include "conv/conv.h"

#include "conv/conv_igemm.cuh"

namespace fastcv::FASTCV_GPU {
namespace {

constexpr int kThreads = 256, kPixel = 4;

// x to [image][row][pair][2 pixels][4 channels]; zeros where there is no pixel or channel.
template <class S>
__global__ void __launch_bounds__(kThreads)
    pack_pairs_kernel(const ConvParams p, const PairPlan plan, const Steps from, S* to) {
  const S* x = static_cast<const S*>(p.x);
  const int64_t size = p.n * p.in[1] * plan.pairs;
  for (int64_t i = global_thread(); i < size; i += global_threads()) {
    const int64_t row = i / plan.pairs, w = i % plan.pairs * 2 - plan.before;
    const S* line = x + row / p.in[1] * from.n + row % p.in[1] * from.at[1];
    Pack<S, 2 * kPixel> pair{};
#pragma unroll
    for (int e = 0; e < 2 * kPixel; ++e)
      if (w + e / kPixel >= 0 && w + e / kPixel < p.in[2] && e % kPixel < p.c)
        pair.at[e] = line[(w + e / kPixel) * from.at[2] + e % kPixel * from.c];
    store_pack(to + i * (2 * kPixel), pair);
  }
}

// w to [output channel][row][pair][2 taps][4 channels].
template <class S>
__global__ void __launch_bounds__(kThreads) pack_pair_weights_kernel(const ConvParams p, const PairPlan plan, S* to) {
  const S* w = static_cast<const S*>(p.w);
  const int64_t taps = p.kernel[1] * p.kernel[2], size = p.k * p.kernel[1] * plan.taps;
  for (int64_t i = global_thread(); i < size; i += global_threads()) {
    const int64_t s = i % plan.taps * 2, r = i / plan.taps % p.kernel[1], k = i / plan.taps / p.kernel[1];
    Pack<S, 2 * kPixel> pair{};
#pragma unroll
    for (int e = 0; e < 2 * kPixel; ++e) {
      const int64_t tap = r * p.kernel[2] + s + e / kPixel, c = e % kPixel;
      if (s + e / kPixel < p.kernel[2] && c < p.c)
        pair.at[e] = w[p.weight_channels_last ? (k * taps + tap) * p.c + c : (k * p.c + c) * taps + tap];
    }
    store_pack(to + i * (2 * kPixel), pair);
  }
}

template <class S>
int run(const ConvParams& p, void* workspace, CUstream_st* stream) {
  const PairPlan plan(p);
  S* x = static_cast<S*>(workspace);
  S* w = reinterpret_cast<S*>(static_cast<char*>(workspace) + plan.x_bytes);
  int error = launch(pack_pairs_kernel<S>, grid_for(p.n * p.in[1] * plan.pairs, kThreads), kThreads, 0, stream, p, plan,
                     Steps(p.c, p.in, p.channels_last), x);
  if (error != 0) return error;
  error = launch(pack_pair_weights_kernel<S>, grid_for(p.k * p.kernel[1] * plan.taps, kThreads), kThreads, 0, stream, p,
                 plan, w);
  if (error != 0) return error;
  const ConvParams q = plan.of(p);
  return multiply_igemm<Halves<S>, true>(q, IgemmPlan(q), x, w, nullptr, stream, p.kernel[2] % 2 == 1);
}

}  // namespace

int conv_igemm_pairs(const ConvParams& p, void* workspace, CUstream_st* stream) {
  return p.dtype == DType::bf16 ? run<bf16>(p, workspace, stream) : run<f16>(p, workspace, stream);
}

}  // namespace fastcv::FASTCV_GPU
