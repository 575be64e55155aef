// Convolution with one input channel per group, and the input gradient with one output channel per group's channel: a
// thread makes four outputs of a column of a map, in channels_last maps for one 16-byte pack of channels. Neighbouring
// threads read neighbouring addresses; what taps share comes from the caches.
#include "conv/conv.h"

#include "conv/conv_axis.cuh"
#include "conv/conv_gpu.h"
#include "conv/conv_store.cuh"

namespace fastcv::FASTCV_GPU {
namespace {

constexpr int kThreads = 128, kStrip = 4;

struct Depthwise {
  ConvParams p;
  Axis d, h, w;
  Steps x, y;
  int64_t taps, multiplier, strips, items;
  Divider by_k, by_w, by_strips, by_d, by_phases_w, by_phases_h, by_phases_d;
  Depthwise(const ConvParams& params, int width)
      : p(params),
        d(p, 0),
        h(p, 1),
        w(p, 2),
        x(p.c, p.in, p.channels_last),
        y(p.k, p.out, p.channels_last),
        taps(taps_of(p.kernel)),
        multiplier(p.k / p.groups),
        strips((h.cells + kStrip - 1) / kStrip),
        items(p.n * (p.k / width) * d.phases * d.cells * h.phases * strips * w.phases * w.cells),
        by_k(p.k / width),
        by_w(w.cells),
        by_strips(strips),
        by_d(d.cells),
        by_phases_w(w.phases),
        by_phases_h(h.phases),
        by_phases_d(d.phases) {}
};

// weights: element (k, tap) at k * weight_k + tap * weight_tap.
template <class S, int width>
__global__ void __launch_bounds__(kThreads)
    depthwise_kernel(const Depthwise g, const S* weights, int64_t weight_k, int64_t weight_tap) {
  using T = acc_t<S>;
  using Channels = Pack<S, width>;
  const ConvParams& p = g.p;
  for (int64_t i = global_thread(); i < g.items; i += global_threads()) {
    int64_t k, cd, ch, cw, pd, ph, pw, n = i;
    if (p.channels_last) k = n, n = g.by_k.split(k);
    cw = n, n = g.by_w.split(cw);
    pw = n, n = g.by_phases_w.split(pw);
    ch = n, n = g.by_strips.split(ch);
    ph = n, n = g.by_phases_h.split(ph);
    cd = n, n = g.by_d.split(cd);
    pd = n, n = g.by_phases_d.split(pd);
    if (!p.channels_last) k = n, n = g.by_k.split(k);
    k *= width;
    ch *= kStrip;
    const Taps td = g.d.taps(pd), th = g.h.taps(ph), tw = g.w.taps(pw);
    const S* x = static_cast<const S*>(p.x) + n * g.x.n + (width == 1 ? k / g.multiplier : k) * g.x.c;
    T sum[kStrip][width] = {};
    for (int64_t a = 0; a < td.count; ++a) {
      const int64_t id = cd * g.d.in_step + td.offset + a * td.offset_step;
      if (id < 0 || id >= g.d.in) continue;
      for (int64_t b = 0; b < th.count; ++b) {
        const int64_t ih = ch * g.h.in_step + th.offset + b * th.offset_step;
        for (int64_t e = 0; e < tw.count; ++e) {
          const int64_t iw = cw * g.w.in_step + tw.offset + e * tw.offset_step;
          if (iw < 0 || iw >= g.w.in) continue;
          const int64_t tap =
              ((td.first + a * td.step) * g.h.kernel + th.first + b * th.step) * g.w.kernel + tw.first + e * tw.step;
          const Channels weight = load_pack<Channels>(weights + k * weight_k + tap * weight_tap);
#pragma unroll
          for (int j = 0; j < kStrip; ++j) {
            const int64_t row = ih + j * g.h.in_step;
            if (row < 0 || row >= g.h.in) continue;
            const Channels from = load_pack<Channels>(x + id * g.x.at[0] + row * g.x.at[1] + iw * g.x.at[2]);
#pragma unroll
            for (int q = 0; q < width; ++q) sum[j][q] = fma(widen(from.at[q]), widen(weight.at[q]), sum[j][q]);
          }
        }
      }
    }
    const int64_t od = cd * g.d.out_step + pd, ow = cw * g.w.out_step + pw;
    if (od >= g.d.out || ow >= g.w.out) continue;
#pragma unroll
    for (int j = 0; j < kStrip; ++j) {
      const int64_t oh = (ch + j) * g.h.out_step + ph;
      if (oh < g.h.out)
        store_channels<S, width>(p, sum[j], k,
                                 n * g.y.n + k * g.y.c + od * g.y.at[0] + oh * g.y.at[1] + ow * g.y.at[2]);
    }
  }
}

// to[tap][k] = from[k][tap]
template <class S>
__global__ void __launch_bounds__(kThreads) by_taps_kernel(const S* from, S* to, int64_t k, int64_t taps) {
  for (int64_t i = global_thread(); i < k * taps; i += global_threads()) to[i] = from[i % k * taps + i / k];
}

}  // namespace

int conv_depthwise(const ConvParams& p, void* workspace, CUstream_st* stream) {
  return by_dtype(p.dtype, [&]<class S>() {
    constexpr int width = 16 / sizeof(S);
    const S* weights = static_cast<const S*>(p.w);
    const int64_t taps = taps_of(p.kernel);
    if (p.channels_last && p.k == p.groups && p.k % width == 0 && aligned_to(p.x, 16) && aligned_to(p.y, 16) &&
        aligned_to(p.residual, 16)) {
      S* by_taps = static_cast<S*>(workspace);
      const int error =
          launch(by_taps_kernel<S>, grid_for(p.k * taps, kThreads), kThreads, 0, stream, weights, by_taps, p.k, taps);
      if (error != 0) return error;
      const Depthwise g(p, width);
      return launch(depthwise_kernel<S, width>, grid_for(g.items, kThreads), kThreads, 0, stream, g,
                    static_cast<const S*>(by_taps), int64_t{1}, p.k);
    }
    const Depthwise g(p, 1);
    return launch(depthwise_kernel<S, 1>, grid_for(g.items, kThreads), kThreads, 0, stream, g, weights, taps,
                  int64_t{1});
  });
}

}  // namespace fastcv::FASTCV_GPU
