// The phases of a convolution or of its input gradient, dim by dim, for hosts and GPUs.
//
// Outputs whose places agree modulo the stride of an input gradient form a phase: within it the gradient is an ordinary
// convolution of stride 1 whose taps are those kernel indices that meet whole input positions. An ordinary convolution
// is one phase. Output cell * out_step + phase reads the inputs cell * in_step + taps.offset + j * taps.offset_step
// with the kernel indices taps.first + j * taps.step, for j < taps.count.
#pragma once
#include "conv/conv.h"

#if defined(__CUDACC__)
#define FASTCV_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FASTCV_HOST_DEVICE
#endif

namespace fastcv {

struct Taps {
  int64_t count, first, step, offset, offset_step;
};

struct Axis {
  int64_t in, out, kernel, stride, dilation, pad;
  int64_t in_step, out_step, cells, phases;
  int64_t common, tap_step, inverse;  // gcd(stride, dilation); stride / common; of dilation / common modulo tap_step
  bool transposed;

  Axis(const ConvParams& p, int dim)
      : in(p.in[dim]),
        out(p.out[dim]),
        kernel(p.kernel[dim]),
        stride(p.stride[dim]),
        dilation(p.dilation[dim]),
        pad(p.pad[dim]),
        in_step(p.transposed ? 1 : stride),
        out_step(p.transposed ? stride : 1),
        cells((out + out_step - 1) / out_step),
        phases(out_step < out ? out_step : out),
        common(1),
        tap_step(1),
        inverse(0),
        transposed(p.transposed) {
    if (!transposed) return;
    // Extended Euclid: x * dilation = a modulo stride, all the way.
    int64_t a = stride, b = dilation, x = 0, y = 1;
    while (b != 0) {
      const int64_t q = a / b, r = a % b, z = x - q * y;
      a = b, b = r, x = y, y = z;
    }
    common = a;
    tap_step = stride / a;
    inverse = (x % tap_step + tap_step) % tap_step;
  }

  // The most taps that any phase has.
  int64_t most_taps() const { return (kernel + tap_step - 1) / tap_step; }

  FASTCV_HOST_DEVICE Taps taps(int64_t phase) const {
    if (!transposed) return {kernel, 0, 1, -pad, dilation};
    // first * dilation = phase + pad modulo stride
    const int64_t target = phase + pad;
    if (target % common != 0) return {0, 0, 1, 0, 0};
    const int64_t first = target / common % tap_step * inverse % tap_step;
    const int64_t count = first < kernel ? (kernel - 1 - first) / tap_step + 1 : 0;
    return {count, first, tap_step, (target - first * dilation) / stride, -(dilation / common)};
  }
};

// A phase of an input gradient as a convolution of its own: `cells` outputs, stride 1, and `count` taps, of which tap t
// is the kernel index first + (count - 1 - t) * step, so that inputs come in rising order.
struct PhaseConv {
  int64_t cells, count, first, step, pad, dilation;
};
inline PhaseConv phase_conv(const Axis& axis, int64_t phase) {
  const Taps taps = axis.taps(phase);
  const int64_t cells = (axis.out - phase + axis.out_step - 1) / axis.out_step;
  if (taps.count == 0) return {cells, 0, 0, 1, 0, 1};
  return {cells,
          taps.count,
          taps.first,
          taps.step,
          -(taps.offset + (taps.count - 1) * taps.offset_step),
          -taps.offset_step};
}

// All phases of the last two dims. `before`: the taps of earlier phases.
inline constexpr int64_t kMostPhases = 8;  // of a dim
struct PhasePlan {
  struct Dim {
    int64_t phases, taps;  // of all phases
    PhaseConv of[kMostPhases];
    int64_t before[kMostPhases];
  } dims[2];

  explicit PhasePlan(const ConvParams& p) {
    for (int i = 0; i < 2; ++i) {
      const Axis axis(p, i + 1);
      Dim& dim = dims[i];
      dim = {};
      dim.phases = axis.phases < kMostPhases ? axis.phases : kMostPhases;
      for (int64_t phase = 0; phase < dim.phases; ++phase) {
        dim.of[phase] = phase_conv(axis, phase);
        dim.before[phase] = dim.taps;
        dim.taps += dim.of[phase].count;
      }
    }
  }
};

}  // namespace fastcv
