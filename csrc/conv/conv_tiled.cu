// Convolution and its input gradient as tiled products (conv_tiled.cuh): rows are the pixels of a phase, columns the
// output channels of a group, and the sum runs over taps, then channels. Every layout, dtype and geometry.
#include "conv/conv.h"

#include "conv/conv_axis.cuh"
#include "conv/conv_store.cuh"
#include "conv/conv_tiled.cuh"

namespace fastcv::FASTCV_GPU {
namespace {

template <class S>
struct TiledConv {
  ConvParams p;
  Axis d, h, w;
  Steps x, y;
  const S *a, *b;
  int64_t in[3];
  int64_t cg, kg, weight_row, weight_column, weight_tap;
  int64_t rows, tiles_m, tiles_n;
  Divider by_cells_d, by_cells_h, by_cells_w, by_phases_d, by_phases_h, by_phases_w, by_tiles_m, by_tiles_n, by_cg;
  bool a_rows_fast, b_columns_fast, c_rows_fast;

  explicit TiledConv(const ConvParams& params)
      : p(params),
        d(p, 0),
        h(p, 1),
        w(p, 2),
        x(p.c, p.in, p.channels_last),
        y(p.k, p.out, p.channels_last),
        a(static_cast<const S*>(p.x)),
        b(static_cast<const S*>(p.w)),
        in{p.in[0], p.in[1], p.in[2]},
        cg(p.c / p.groups),
        kg(p.k / p.groups),
        rows(p.n * d.cells * h.cells * w.cells),
        tiles_m((rows + kTile - 1) / kTile),
        tiles_n((kg + kTile - 1) / kTile),
        by_cells_d(d.cells),
        by_cells_h(h.cells),
        by_cells_w(w.cells),
        by_phases_d(d.phases),
        by_phases_h(h.phases),
        by_phases_w(w.phases),
        by_tiles_m(tiles_m),
        by_tiles_n(tiles_n),
        by_cg(cg),
        a_rows_fast(!p.channels_last),
        b_columns_fast(p.transposed),
        c_rows_fast(!p.channels_last) {
    const int64_t taps = p.kernel[0] * p.kernel[1] * p.kernel[2], columns = p.transposed ? kg : cg;
    weight_row = taps * columns;
    weight_column = p.weight_channels_last ? 1 : taps;
    weight_tap = p.weight_channels_last ? columns : 1;
  }
  __host__ __device__ int64_t tiles() const { return tiles_m * tiles_n * d.phases * h.phases * w.phases * p.groups; }

  struct Tile {
    const TiledConv& g;
    int64_t m0 = 0, n0 = 0, group = 0, phase_d = 0, phase_h = 0, phase_w = 0;
    TapTable taps{};
    int rows = 0, columns = 0;
    int64_t begin = 0, end = 0;

    // The place of row m's cell.
    __device__ __forceinline__ int64_t split(int m, int64_t& cd, int64_t& ch, int64_t& cw) const {
      cw = m0 + m;
      ch = g.by_cells_w.split(cw);
      cd = g.by_cells_h.split(ch);
      return g.by_cells_d.split(cd);
    }
    __device__ __forceinline__ Point row(int m) const {
      int64_t cd, ch, cw;
      const int64_t n = split(m, cd, ch, cw);
      const int64_t id = cd * g.d.in_step + taps.offset(0), ih = ch * g.h.in_step + taps.offset(1);
      const int64_t iw = cw * g.w.in_step + taps.offset(2);
      return {n * g.x.n + group * g.cg * g.x.c + id * g.x.at[0] + ih * g.x.at[1] + iw * g.x.at[2], id, ih, iw};
    }
    __device__ __forceinline__ Depth depth(int64_t k) const {
      int64_t c = k;
      int64_t e = g.by_cg.split(c);
      const int64_t b = e / taps.count(2);  // the counts vary with the phase: no divider is fixed for the launch
      e -= b * taps.count(2);
      const int64_t j = b / taps.count(1), i = b - j * taps.count(1);
      const int64_t d = taps.shift(0, j), h = taps.shift(1, i), w = taps.shift(2, e);
      const Point at{c * g.x.c + d * g.x.at[0] + h * g.x.at[1] + w * g.x.at[2], d, h, w};
      const int64_t tap = (taps.index(0, j) * g.h.kernel + taps.index(1, i)) * g.w.kernel + taps.index(2, e);
      return {at, c * (g.p.transposed ? g.weight_row : g.weight_column) + tap * g.weight_tap};
    }
    __device__ __forceinline__ int64_t column(int n) const {
      const int64_t k = n0 + n;
      return g.p.transposed ? group * g.cg * g.weight_row + k * g.weight_column : (group * g.kg + k) * g.weight_row;
    }
    __device__ __forceinline__ int64_t spot(int m) const {
      int64_t cd, ch, cw;
      const int64_t image = split(m, cd, ch, cw);
      const int64_t od = cd * g.d.out_step + phase_d, oh = ch * g.h.out_step + phase_h;
      const int64_t ow = cw * g.w.out_step + phase_w;
      if (od >= g.d.out || oh >= g.h.out || ow >= g.w.out) return -1;
      return image * g.y.n + od * g.y.at[0] + oh * g.y.at[1] + ow * g.y.at[2];
    }
    __device__ __forceinline__ void store(int64_t spot, int n, acc_t<S> sum) const {
      const int64_t k = group * g.kg + n0 + n, to = spot + k * g.y.c;
      static_cast<S*>(g.p.y)[to] = finished<S>(g.p, sum, k, to);
    }
  };

  // What the first threads note down about a tile before the others look at it.
  __device__ __forceinline__ void note(int64_t i, int thread, Shared<int64_t> notes) const {
    const Tile t = place(i);
    if (thread == 0) TapTable{notes}.set(0, d.taps(t.phase_d));
    if (thread == 1) TapTable{notes}.set(1, h.taps(t.phase_h));
    if (thread == 2) TapTable{notes}.set(2, w.taps(t.phase_w));
  }
  __device__ __forceinline__ Tile tile(int64_t i, Shared<int64_t> notes) const {
    Tile t = place(i);
    t.taps = TapTable{notes};
    t.end = t.taps.count(0) * t.taps.count(1) * t.taps.count(2) * cg;
    return t;
  }

 private:
  __device__ __forceinline__ Tile place(int64_t i) const {
    Tile t{*this};
    t.n0 = i;  // first, so that blocks which read the same pixels run together
    i = by_tiles_n.split(t.n0);
    t.m0 = i;
    i = by_tiles_m.split(t.m0);
    t.phase_w = i;
    i = by_phases_w.split(t.phase_w);
    t.phase_h = i;
    i = by_phases_h.split(t.phase_h);
    t.phase_d = i;
    t.group = by_phases_d.split(t.phase_d);
    t.m0 *= kTile;
    t.n0 *= kTile;
    t.rows = static_cast<int>(min(rows - t.m0, static_cast<int64_t>(kTile)));
    t.columns = static_cast<int>(min(kg - t.n0, static_cast<int64_t>(kTile)));
    return t;
  }
};

}  // namespace

int conv_tiled(const ConvParams& p, void*, CUstream_st* stream) {
  return by_dtype(p.dtype, [&]<class S>() { return launch_tiled<S>(TiledConv<S>(p), stream); });
}

}  // namespace fastcv::FASTCV_GPU
