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
  }

  // Makes the inputs of a chunk readable; tw: merged taps.
  void read(const IgemmChunk& c, const Taps& tw) {
    for (int i = 0; i < 3; ++i) table.flat.inputs[i] = c.inputs[i];
    if (plan.copied) plan.window.fill(table.flat, plan.input(c), c.cell, c.cells, tw);
  }

  void run(const IgemmChunk& c, const IgemmPhase& f) {
    const ConvParams& p = plan.p;
    const Dim* d = plan.d;
    const int64_t nh = d[1].outputs(f.fh, c.cell[1], c.cells[1]), nw = d[2].outputs(f.fw, c.cell[2], c.cells[2]);
    if (nh * nw == 0) return;
    TileStrip s;
    s.steps = tabulate_steps(c, f);
    s.pixel_steps = table.pixel_steps;
    s.weight_steps = table.weight_steps;
    if (plan.copied) {
      table.cut(table.flat.window, plan.window.pixel(), nh, nw, false, 0);
    } else if constexpr (std::is_same_v<S, X>) {
      table.flat.columns = p.in[2];
      const int64_t pixel = (f.od * p.in[1] + c.cell[1]) * p.in[2] + c.cell[2];
      table.cut(plan.input(c) + pixel * p.c, p.c, nh, nw, true, plan.cg);
    }
    int64_t tabulated_pitch = -1;
    for (int64_t panel = c.first_panel; panel < c.last_panel; ++panel) {
      const int nv = plan.panel_vectors(panel);
      const bool direct = plan.direct(panel);
      s.weights = weights.panel(c.group, panel, f.row);
      s.bias = weights.bias(c.group, panel);
      s.tiles = table.tiles;
      s.first_place = 0;
      s.out = sums.of(panel);
      s.out_pitch = nv * kLanes;
      if (!direct && !plan.many_phases) {
        for (int64_t t = 0; t < table.count; t += kBlockTiles) {
          const int64_t end = least(table.count, t + kBlockTiles), first = table.before[t];
          s.tiles = table.tiles + t;
          s.places = table.outputs + t * kTilePixels;
          s.first_place = first;
          P::run(s, end - t, nv);
          sums.finish_run(c, panel, s.out, plan.first_output(c, f.od) + first, table.before[end] - first);
        }
        continue;
      }
      const int64_t pitch = direct ? d[2].out : c.columns;
      if (pitch != tabulated_pitch)
        table.tabulate_places(nw, d[1].out_step * pitch, d[2].out_step, f.fh * pitch + f.fw);
      tabulated_pitch = pitch;
      s.places = table.places;
      if (direct) {
        s.out = static_cast<Acc*>(p.y) + plan.first_output(c, f.od) * p.k + c.group * plan.kg +
                panel * plan.panel_width * kLanes;
        s.out_pitch = p.k;
      }
      P::run(s, table.count, nv);
    }
  }

 private:
  static TileLimits limits(const Plan& plan) {
    return {plan.window.table_entries(plan.rows, plan.cols),
            plan.most_taps() * (plan.window_pixel() / kRound) * P::kProducts,
            plan.rows * ceil_div(plan.cols, kTilePixels), plan.copied ? 0 : kTilePixels * plan.cg};
  }

  // Where the products of a phase find their pixels and weights, 32 channels at a time; returns their number. The
  // products of smaller parts all come first: while sums are small they round little.
  int64_t tabulate_steps(const IgemmChunk& c, const IgemmPhase& f) {
    const Dim* d = plan.d;
    const bool merged = plan.merged;
    const int64_t width_taps = merged ? least(1, f.tw.count) : f.tw.count,
                  length = merged ? plan.row_length(f.tw.count) : plan.pixel_length;
    int64_t n = 0;
    for (int i = 0; i < P::kProducts; ++i) {
      const auto parts = P::product(i);
      const int64_t x_part = plan.copied ? P::stored(parts.x, parts.w, table.flat.special) * plan.window.length : 0;
      const int64_t w_part = P::stored(parts.w, parts.x, weights.any_special()) * (kRound / P::kPair);
      int64_t row = 0;
      for (int64_t jd = 0; jd < f.td.count; ++jd) {
        const int64_t id = c.cell[0] * d[0].in_step + f.td.offset + jd * f.td.offset_step;
        if (id < 0 || id >= d[0].in) {  // which taps are left out depends on the output's depth alone
          row += f.th.count * plan.row_length(f.tw.count);
          continue;
        }
        for (int64_t jh = 0; jh < f.th.count; ++jh)
          for (int64_t jw = 0; jw < width_taps; ++jw) {
            const int64_t at = (plan.copied ? plan.window.offset(table.flat, id, f.th, jh, f.tw, jw) : 0) + x_part;
            for (int64_t k = 0; k < length; k += kRound, row += kRound) {
              table.pixel_steps[n] = (at + k) * static_cast<int64_t>(sizeof(X));
              table.weight_steps[n++] = Plan::packed_row(row) + w_part;
            }
          }
      }
    }
    return n;
  }

  const Plan& plan;
  const IgemmWeights<P, S>& weights;
  const IgemmSums<P, S>& sums;
  TileTable<P, S> table;
};

}  // namespace fastcv::FASTCV_ISA
