// Convolution and its input gradient as the formula reads: a thread per output. Every layout, dtype and geometry.
#include "conv/conv.h"

#include "conv/conv_axis.cuh"
#include "conv/conv_store.cuh"

namespace fastcv::FASTCV_GPU {
namespace {

constexpr int kThreads = 256;

struct Direct {
  ConvParams p;
  Axis d, h, w;
  Steps x, y;
  int64_t weight_row, weight_column, weight_tap, outputs;
  Divider by_k, by_d, by_h, by_w, by_group;

  explicit Direct(const ConvParams& params)
      : p(params),
        d(p, 0),
        h(p, 1),
        w(p, 2),
        x(p.c, p.in, p.channels_last),
        y(p.k, p.out, p.channels_last),
        outputs(p.n * p.k * p.out[0] * p.out[1] * p.out[2]),
        by_k(p.k),
        by_d(p.out[0]),
        by_h(p.out[1]),
        by_w(p.out[2]),
        by_group(p.k / p.groups) {
    const int64_t taps = p.kernel[0] * p.kernel[1] * p.kernel[2], columns = (p.transposed ? p.k : p.c) / p.groups;
    weight_row = taps * columns;
    weight_column = p.weight_channels_last ? 1 : taps;
    weight_tap = p.weight_channels_last ? columns : 1;
  }
};

// The taps of output o along a dim.
__device__ __forceinline__ Taps taps_of(const Axis& a, int64_t o, int64_t& cell) {
  if (!a.transposed) {
    cell = o;
    return a.taps(0);
  }
  cell = o / a.stride;
  return a.taps(o - cell * a.stride);
}

template <class S>
__global__ void __launch_bounds__(kThreads) direct_kernel(const Direct g) {
  using T = acc_t<S>;
  const ConvParams& p = g.p;
  const int64_t cg = p.c / p.groups, kg = p.k / p.groups;
  for (int64_t i = global_thread(); i < g.outputs; i += global_threads()) {
    // Neighbouring threads take neighbouring addresses.
    int64_t k, od, oh, ow, rest = i;
    if (p.channels_last) k = rest, rest = g.by_k.split(k);
    ow = rest, rest = g.by_w.split(ow);
    oh = rest, rest = g.by_h.split(oh);
    od = rest, rest = g.by_d.split(od);
    if (!p.channels_last) k = rest, rest = g.by_k.split(k);
    int64_t cell_d, cell_h, cell_w, column = k;
    const Taps td = taps_of(g.d, od, cell_d), th = taps_of(g.h, oh, cell_h), tw = taps_of(g.w, ow, cell_w);
    const int64_t group = g.by_group.split(column);
    const S* x = static_cast<const S*>(p.x) + rest * g.x.n + group * cg * g.x.c;
    const S* weight = static_cast<const S*>(p.w) + (p.transposed ? group * cg * g.weight_row + column * g.weight_column
                                                                 : (group * kg + column) * g.weight_row);
    const int64_t weight_step = p.transposed ? g.weight_row : g.weight_column;
    T sum = 0;
    for (int64_t a = 0; a < td.count; ++a) {
      const int64_t id = cell_d * g.d.in_step + td.offset + a * td.offset_step;
      if (id < 0 || id >= g.d.in) continue;
      for (int64_t b = 0; b < th.count; ++b) {
        const int64_t ih = cell_h * g.h.in_step + th.offset + b * th.offset_step;
        if (ih < 0 || ih >= g.h.in) continue;
        for (int64_t e = 0; e < tw.count; ++e) {
          const int64_t iw = cell_w * g.w.in_step + tw.offset + e * tw.offset_step;
          if (iw < 0 || iw >= g.w.in) continue;
          const int64_t tap =
              ((td.first + a * td.step) * g.h.kernel + th.first + b * th.step) * g.w.kernel + tw.first + e * tw.step;
          const S* from = x + id * g.x.at[0] + ih * g.x.at[1] + iw * g.x.at[2];
          const S* factor = weight + tap * g.weight_tap;
          T of_tap = 0;
          for (int64_t c = 0; c < cg; ++c) of_tap = fma(widen(from[c * g.x.c]), widen(factor[c * weight_step]), of_tap);
          sum += of_tap;
        }
      }
    }
    const int64_t to = rest * g.y.n + k * g.y.c + od * g.y.at[0] + oh * g.y.at[1] + ow * g.y.at[2];
    static_cast<S*>(p.y)[to] = finished<S>(p, sum, k, to);
  }
}

}  // namespace

int conv_direct(const ConvParams& p, void*, CUstream_st* stream) {
  const Direct g(p);
  if (g.outputs == 0) return cudaSuccess;
  return by_dtype(p.dtype, [&]<class S>() {
    return launch(direct_kernel<S>, grid_for(g.outputs, kThreads), kThreads, 0, stream, g);
  });
}

}  // namespace fastcv::FASTCV_GPU
