// Weight gradient as tiled products (conv_tiled.cuh): rows are the taps and input channels of a group, columns its
// output channels, and the sum runs over the pixels of the batch, in segments. Every layout, dtype and geometry.
#include "conv/conv_wgrad.h"

#include "conv/conv_axis.cuh"
#include "conv/conv_sums.cuh"
#include "conv/conv_tiled.cuh"

namespace fastcv::FASTCV_GPU {
namespace {

static_assert(kTile == kWgradTile && kWgradStep % kStep == 0);

int64_t tiles_of(int64_t n) { return (n + kTile - 1) / kTile; }

template <class S>
struct TiledWgrad {
  ConvWgradParams p;
  Steps x, y;
  const S *a, *b;
  acc_t<S>* partial;  // nullptr: one segment, straight to the gradient
  int64_t in[3];
  int64_t cg, kg, taps, rows, tiles_m, tiles_n, pixels;
  Segments segments;
  Divider by_cg, by_kernel_h, by_kernel_w, by_out_d, by_out_h, by_out_w, by_tiles_m, by_tiles_n, by_groups;
  bool a_rows_fast, b_columns_fast, c_rows_fast;

  TiledWgrad(const ConvWgradParams& params, void* workspace)
      : p(params),
        x(p.in_channels, p.in, p.input_channels_last),
        y(p.out_channels, p.out, p.grad_channels_last),
        a(static_cast<const S*>(p.input)),
        b(static_cast<const S*>(p.grad_output)),
        in{p.in[0], p.in[1], p.in[2]},
        cg(p.in_channels / p.groups),
        kg(p.out_channels / p.groups),
        taps(p.kernel[0] * p.kernel[1] * p.kernel[2]),
        rows(taps * cg),
        tiles_m(tiles_of(rows)),
        tiles_n(tiles_of(kg)),
        pixels(pixels_of(p)),
        segments(wgrad_segments(p)),
        by_cg(cg),
        by_kernel_h(p.kernel[1]),
        by_kernel_w(p.kernel[2]),
        by_out_d(p.out[0]),
        by_out_h(p.out[1]),
        by_out_w(p.out[2]),
        by_tiles_m(tiles_m),
        by_tiles_n(tiles_n),
        by_groups(p.groups),
        a_rows_fast(p.input_channels_last),
        b_columns_fast(p.grad_channels_last),
        c_rows_fast(true) {
    partial = segments.count > 1 ? static_cast<acc_t<S>*>(workspace) : nullptr;
  }
  __host__ __device__ int64_t tiles() const { return tiles_m * tiles_n * p.groups * segments.count; }

  struct Tile {
    const TiledWgrad& g;
    int64_t m0 = 0, n0 = 0, group = 0, segment = 0;
    int rows = 0, columns = 0;
    int64_t begin = 0, end = 0;

    __device__ __forceinline__ Point row(int m) const {
      int64_t c = m0 + m;
      int64_t w = g.by_cg.split(c);
      int64_t h = g.by_kernel_w.split(w);
      int64_t d = g.by_kernel_h.split(h);
      d = d * g.p.dilation[0] - g.p.pad[0];
      h = h * g.p.dilation[1] - g.p.pad[1];
      w = w * g.p.dilation[2] - g.p.pad[2];
      return {(group * g.cg + c) * g.x.c + d * g.x.at[0] + h * g.x.at[1] + w * g.x.at[2], d, h, w};
    }
    __device__ __forceinline__ Depth depth(int64_t k) const {
      int64_t w = k;
      int64_t h = g.by_out_w.split(w);
      int64_t d = g.by_out_h.split(h);
      const int64_t n = g.by_out_d.split(d);
      const int64_t plain = n * g.y.n + d * g.y.at[0] + h * g.y.at[1] + w * g.y.at[2];
      d *= g.p.stride[0];
      h *= g.p.stride[1];
      w *= g.p.stride[2];
      return {{n * g.x.n + d * g.x.at[0] + h * g.x.at[1] + w * g.x.at[2], d, h, w}, plain};
    }
    __device__ __forceinline__ int64_t column(int n) const { return (group * g.kg + n0 + n) * g.y.c; }
    __device__ __forceinline__ int64_t spot(int m) const {
      int64_t c = m0 + m;
      const int64_t tap = g.by_cg.split(c);
      return g.p.weight_channels_last ? tap * g.cg + c : c * g.taps + tap;
    }
    __device__ __forceinline__ void store(int64_t spot, int n, acc_t<S> sum) const {
      const int64_t to = (group * g.kg + n0 + n) * g.rows + spot;
      if (g.partial != nullptr) g.partial[segment * g.p.out_channels * g.rows + to] = sum;
      else static_cast<S*>(g.p.grad_weight)[to] = narrow<S>(sum);
    }
  };

  __device__ __forceinline__ void note(int64_t, int, Shared<int64_t>) const {}
  __device__ __forceinline__ Tile tile(int64_t i, Shared<int64_t>) const {
    Tile t{*this};
    t.m0 = i;
    i = by_tiles_m.split(t.m0);
    t.n0 = i;
    i = by_tiles_n.split(t.n0);
    t.group = i;
    t.segment = by_groups.split(t.group);
    t.m0 *= kTile;
    t.n0 *= kTile;
    t.rows = static_cast<int>(min(rows - t.m0, static_cast<int64_t>(kTile)));
    t.columns = static_cast<int>(min(kg - t.n0, static_cast<int64_t>(kTile)));
    t.begin = t.segment * segments.length;
    t.end = min(t.begin + segments.length, pixels);
    return t;
  }
};

}  // namespace

int conv_wgrad_tiled(const ConvWgradParams& p, void* workspace, CUstream_st* stream) {
  return by_dtype(p.dtype, [&]<class S>() {
    const TiledWgrad<S> g(p, workspace);
    const int error = launch_tiled<S>(g, stream);
    if (error != 0 || g.partial == nullptr) return error;
    return add_segments<S>(g.partial, p.grad_weight, weight_size(p), g.segments.count, stream);
  });
}

}  // namespace fastcv::FASTCV_GPU
