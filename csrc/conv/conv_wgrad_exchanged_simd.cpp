// Weight gradient of few output channels, stride 1: the input and the gradient exchanged.
//
//   dW[k, c, r] = sum over n, p of dY[n, k, p] * X[n, c, p - pad + r * dilation]
//               = sum over n, i of X[n, c, i] * dY[n, k, i + pad - r * dilation]
//
// is the weight gradient, with the taps in reverse, of a layer that reads dY and whose gradient is X. Of the two
// factors of conv_wgrad_gemm.h the one that is seen through every tap is then dY, which has fewer channels.
#include "conv/conv_wgrad.h"

#include <utility>

#include "conv/conv_plan.h"

namespace fastcv::FASTCV_ISA {
namespace {

ConvWgradParams exchanged(ConvWgradParams p) {
  std::swap(p.input, p.grad_output);
  std::swap(p.in_channels, p.out_channels);
  std::swap(p.input_channels_last, p.grad_channels_last);
  for (int i = 0; i < 3; ++i) {
    std::swap(p.in[i], p.out[i]);
    p.pad[i] = (p.kernel[i] - 1) * p.dilation[i] - p.pad[i];
  }
  return p;
}

size_t weight_bytes(const ConvWgradParams& p) {
  const int64_t numbers = p.in_channels * p.out_channels * p.kernel[0] * p.kernel[1] * p.kernel[2];
  return static_cast<size_t>(round_up(numbers * 4, 64));
}

}  // namespace

size_t conv_wgrad_exchanged_workspace(const ConvWgradParams& p, int threads) {
  return weight_bytes(p) + conv_wgrad_workspace(exchanged(p), threads);
}

void conv_wgrad_exchanged(const ConvWgradParams& p, const Exec& exec) {
  ConvWgradParams other = exchanged(p);
  other.grad_weight = exec.workspace;
  Exec inner = exec;
  inner.workspace = static_cast<char*>(exec.workspace) + weight_bytes(p);
  conv_wgrad(other, inner);
  // [c][k][tap] or [c][tap][k] to [k][c][tap] or [k][tap][c], last tap first.
  const float* from = static_cast<const float*>(exec.workspace);
  float* to = static_cast<float*>(p.grad_weight);
  const int64_t taps = p.kernel[0] * p.kernel[1] * p.kernel[2], c = p.in_channels, k = p.out_channels;
  const int64_t tap_step = p.weight_channels_last ? k : 1, channel_step = p.weight_channels_last ? 1 : taps;
  parallel_for(exec, k, (1 << 14) / (c * taps + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t i = 0; i < c * taps; ++i) {
        const int64_t tap = p.weight_channels_last ? i / c : i % taps;
        const int64_t channel = p.weight_channels_last ? i % c : i / taps;
        to[row * c * taps + i] = from[channel * k * taps + row * channel_step + (taps - 1 - tap) * tap_step];
      }
  });
}

}  // namespace fastcv::FASTCV_ISA
