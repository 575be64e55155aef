// The formula of conv.h as it stands, summed in double.
#include "conv/conv.h"

#include <cmath>
#include <type_traits>

#include "common/dispatch.h"
#include "common/scalar.h"

namespace fastcv {
namespace {

constexpr double kRootHalf = 0.70710678118654752440;

double activate(double v, const ConvParams& p) {
  switch (p.activation) {
    case Activation::none:
      return v;
    case Activation::relu:
      return v <= 0 ? 0 : v;
    case Activation::relu6:
      return v <= 0 ? 0 : v >= 6 ? 6 : v;
    case Activation::silu:
      return v / (1 + std::exp(-v));
    case Activation::hardswish:
      return v <= -3 ? 0 : v >= 3 ? v : v * (v + 3) / 6;
    case Activation::gelu:
      return v * std::erfc(-v * kRootHalf) / 2;
    case Activation::leaky_relu:
      return v <= 0 ? v * p.slope : v;
  }
  __builtin_unreachable();
}

// The position along one dim that tap r of output o reads, or -1.
int64_t source(const ConvParams& p, int dim, int64_t o, int64_t r) {
  int64_t i;
  if (p.transposed) {
    i = o + p.pad[dim] - r * p.dilation[dim];
    if (i < 0 || i % p.stride[dim] != 0) return -1;
    i /= p.stride[dim];
  } else {
    i = o * p.stride[dim] - p.pad[dim] + r * p.dilation[dim];
  }
  return i >= 0 && i < p.in[dim] ? i : -1;
}

template <class S>
double at(const void* base, int64_t i) {
  return widen(static_cast<const S*>(base)[i]);
}

template <class S>
void run(const ConvParams& p) {
  const int64_t in_pixels = p.in[0] * p.in[1] * p.in[2], out_pixels = p.out[0] * p.out[1] * p.out[2];
  const int64_t taps = p.kernel[0] * p.kernel[1] * p.kernel[2], cg = p.c / p.groups, kg = p.k / p.groups;
  const int64_t columns = p.transposed ? kg : cg;
  const auto index = [&](int64_t n, int64_t channel, int64_t pixel, int64_t channels, int64_t pixels) {
    return p.channels_last ? (n * pixels + pixel) * channels + channel : (n * channels + channel) * pixels + pixel;
  };
  for (int64_t n = 0; n < p.n; ++n)
    for (int64_t k = 0; k < p.k; ++k)
      for (int64_t pixel = 0; pixel < out_pixels; ++pixel) {
        const int64_t o[3] = {pixel / (p.out[2] * p.out[1]), pixel / p.out[2] % p.out[1], pixel % p.out[2]};
        double sum = p.bias == nullptr ? 0 : at<S>(p.bias, k);
        for (int64_t tap = 0; tap < taps; ++tap) {
          const int64_t r[3] = {tap / (p.kernel[2] * p.kernel[1]), tap / p.kernel[2] % p.kernel[1], tap % p.kernel[2]};
          int64_t from = 0;
          for (int dim = 0; dim < 3 && from >= 0; ++dim) {
            const int64_t i = source(p, dim, o[dim], r[dim]);
            from = i < 0 ? -1 : from * p.in[dim] + i;
          }
          if (from < 0) continue;
          for (int64_t c = 0; c < cg; ++c) {
            const int64_t channel = k / kg * cg + c;
            const int64_t row = p.transposed ? channel : k, column = p.transposed ? k % kg : c;
            const int64_t weight =
                p.weight_channels_last ? (row * taps + tap) * columns + column : (row * columns + column) * taps + tap;
            sum += at<S>(p.x, index(n, channel, from, p.c, in_pixels)) * at<S>(p.w, weight);
          }
        }
        const int64_t to = index(n, k, pixel, p.k, out_pixels);
        if (p.residual != nullptr) sum += at<S>(p.residual, to);
        narrow(activate(sum, p), static_cast<S*>(p.y) + to);
      }
}

}  // namespace

void conv_ref(const ConvParams& p, const Exec&) {
  dispatch_float(p.dtype, [&](auto zero) { run<decltype(zero)>(p); });
}

}  // namespace fastcv
