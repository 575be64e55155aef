// An implicit GEMM's products on matrix tiles (conv_amx.h): 16 pixels by 32 channels by 16 output channels at a time. A
// chunk's pixels lie at even distances in a window with margins (conv_flat.h), or in x itself where no pixel has a
// neighbour; a phase is a list of steps, each of 32 channels of a tap and the rows of the packed weights for them.
//
// One object per thread; what the threads make of a chunk does not depend on who makes it.
#pragma once
#include "conv/conv_flat.h"
#include "conv/conv_igemm_plan.h"
#include "conv/conv_igemm_sums.h"
#include "conv/conv_igemm_weights.h"

namespace fastcv::FASTCV_ISA {

template <class P, class S>
class MatrixTiles {
  using Plan = IgemmPlan<P, S>;
  using X = typename P::X;
  using Acc = typename P::Acc;
  static constexpr int kLanes = Plan::kLanes;
  static constexpr int64_t kRound = Plan::kRound, kBlockTiles = Plan::kBlock / kTilePixels;

 public:
  static size_t scratch(const Plan& plan) {
    TileTable<P, S> measured;
    return static_cast<size_t>(plan.window_bytes()) + measured.place(nullptr, limits(plan));
  }

  MatrixTiles(const Plan& layer, const IgemmWeights<P, S>& panels, const IgemmSums<P, S>& ends, char* scratch)
      : plan(layer), weights(panels), sums(ends) {
    table.place(scratch + plan.window_bytes(), limits(plan));
    table.flat.window = reinterpret_cast<X*>(scratch);
    table.flat.special = false;
  }

  // Makes the inputs of a chunk readable; tw: merged taps.
  void read(const IgemmChunk& c, const Taps& tw) {
    for (int i = 0; i < 3; ++i) table.flat.inputs[i] = c.inputs[i];
    const Filled now{c.n, c.group, c.cell[0], c.cell[1], c.cell[2], tw.first, tw.offset};
    if (plan.copied && now != filled) {
      plan.window.fill(table.flat, plan.input(c), c.cell, c.cells, tw, weights.any_special());
      filled = now;
    }
  }

  void run(const IgemmChunk& c, const IgemmPhase& f) {
    const ConvParams& p = plan.p;
    const Dim* d = plan.d;
    const int64_t nh = d[1].outputs(f.fh, c.cell[1], c.cells[1]), nw = d[2].outputs(f.fw, c.cell[2], c.cells[2]);
    if (nh * nw == 0) return;
    TileSum s;
    s.count = tabulate_steps(c, f);
    s.steps = table.steps;
    s.x_part = plan.window.length * static_cast<int64_t>(sizeof(X));
    if (plan.copied) {
      table.cut(table.flat.window, plan.window.pixel(table.flat), nh, nw, false, 0);
    } else if constexpr (std::is_same_v<S, X>) {
      table.flat.columns = p.in[2];
      const int64_t pixel = (f.od * p.in[1] + c.cell[1]) * p.in[2] + c.cell[2];
      table.cut(plan.input(c) + pixel * p.c, p.c, nh, nw, true, plan.cg);
    }
    const int64_t* places = table.outputs;
    if (plan.many_phases) {
      const int64_t pitch = p.channels_last ? d[2].out : c.columns;
      table.tabulate_places(nw, d[1].out_step * pitch, d[2].out_step, f.fh * pitch + f.fw);
      places = table.places;
    }
    const int64_t first = plan.first_output(c, f.od);
    for (int64_t panel = c.first_panel; panel < c.last_panel; ++panel) {
      s.weights = weights.panel(c.group, panel, f.row);
      s.clean = weights.clean(c.group, panel, f.row);
      const int vectors = plan.panel_vectors(panel);
      const Acc* bias = weights.bias(c.group, panel);
      if (p.channels_last) {
        multiply(s, 0, table.count, vectors, [&](int64_t t, int64_t n, const Acc* tile) {
          sums.finish_rows(c, panel, tile, bias, places + t * kTilePixels, n * kTilePixels, first);
        });
      } else if (plan.many_phases) {
        collect(s, 0, table.count, vectors, bias, places, sums.of(panel));
      } else {
        for (int64_t t = 0; t < table.count; t += kBlockTiles) {
          const int64_t end = least(table.count, t + kBlockTiles), before = table.before[t];
          collect(s, t, end, vectors, bias, places, sums.of(panel) - before * vectors * kLanes);
          sums.finish_run(c, panel, sums.of(panel), first + before, table.before[end] - before);
        }
      }
    }
  }

 private:
  struct Filled {
    int64_t n, group, cell[3], tap, offset;
    bool operator==(const Filled&) const = default;
  };

  static TileLimits limits(const Plan& plan) {
    return {plan.window.table_entries(plan.rows, plan.cols), plan.most_taps() * (plan.window_pixel() / kRound),
            plan.rows * ceil_div(plan.cols, kTilePixels), plan.copied ? 0 : kTilePixels * plan.cg};
  }

  // finish(tile, tiles, sums[tiles * 16][32]) for all tiles from t to end; while the sums of some are finished, those
  // of the next are being multiplied.
  template <class Finish>
  void multiply(const TileSum& s, int64_t t, int64_t end, int vectors, Finish&& finish) {
    alignas(64) Acc tile[2][4 * kTilePixels * 32];
    const bool special = P::kStored > 1 && table.flat.special;
    int64_t before = 0, n_before = 0;
    int now = 0;
    while (t < end) {
      const int64_t n = P::tiles_at_once(end - t, vectors);
      P::multiply(s, special, table.tiles + t, n, vectors, tile[now]);
      if (n_before > 0) finish(before, n_before, tile[1 - now]);
      before = t, n_before = n;
      now = 1 - now;
      t += n;
    }
    if (n_before > 0) finish(before, n_before, tile[1 - now]);
  }

  // The sums with their bias to out[place][vectors][16].
  void collect(const TileSum& s, int64_t t, int64_t end, int vectors, const Acc* bias, const int64_t* places,
               Acc* out) {
    multiply(s, t, end, vectors, [&](int64_t from, int64_t n, const Acc* tile) {
      for (int64_t r = 0; r < n * kTilePixels; ++r) {
        const int64_t place = places[from * kTilePixels + r];
        if (place < 0) continue;
        for (int v = 0; v < vectors; ++v)
          store(out + (place * vectors + v) * kLanes, load(tile + r * 32 + v * kLanes) + load(bias + v * kLanes));
      }
    });
  }

  // Where a phase finds its pixels and weights, 32 channels at a time; returns their number.
  int64_t tabulate_steps(const IgemmChunk& c, const IgemmPhase& f) {
    const Dim* d = plan.d;
    const bool merged = plan.merged;
    const int64_t width_taps = merged ? least(1, f.tw.count) : f.tw.count,
                  length = merged ? plan.row_length(f.tw.count) : plan.pixel_length;
    int64_t n = 0, row = 0;
    for (int64_t jd = 0; jd < f.td.count; ++jd) {
      const int64_t id = c.cell[0] * d[0].in_step + f.td.offset + jd * f.td.offset_step;
      if (id < 0 || id >= d[0].in) {  // which taps are left out depends on the output's depth alone
        row += f.th.count * plan.row_length(f.tw.count);
        continue;
      }
      for (int64_t jh = 0; jh < f.th.count; ++jh)
        for (int64_t jw = 0; jw < width_taps; ++jw) {
          const int64_t at = plan.copied ? plan.window.offset(table.flat, id, f.th, jh, f.tw, jw) : 0;
          for (int64_t k = 0; k < length; k += kRound, row += kRound)
            table.steps[n++] = {(at + k) * static_cast<int64_t>(sizeof(X)), row / P::kPair};
        }
    }
    return n;
  }

  const Plan& plan;
  const IgemmWeights<P, S>& weights;
  const IgemmSums<P, S>& sums;
  TileTable<P, S> table;
  Filled filled{-1, 0, {}, 0, 0};  // what stands in the window
};

}  // namespace fastcv::FASTCV_ISA
