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
    TileSum s{};
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
    if (p.channels_last) return multiply_rows(c, f, s, places, first);
    for (int64_t panel = c.first_panel; panel < c.last_panel; ++panel) {
      read_weights(s, c, f, panel);
      if (plan.many_phases) {
        collect(s, c, panel, 0, table.count, places, sums.of(panel));
      } else {
        for (int64_t t = 0; t < table.count; t += kBlockTiles) {
          const int64_t end = least(table.count, t + kBlockTiles), before = table.before[t];
          collect(s, c, panel, t, end, places, sums.of(panel) - before * plan.panel_vectors(panel) * kLanes);
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

  void read_weights(TileSum& s, const IgemmChunk& c, const IgemmPhase& f, int64_t panel) const {
    s.weights = weights.panel(c.group, panel, f.row);
    s.clean = weights.clean(c.group, panel, f.row);
  }

  // To a channels_last y, some pixels of one panel at a time; while their sums are finished, the next are multiplied.
  // Few weights stay in the second-level cache: then all panels of some pixels follow each other, which fills lines of
  // y in order. Many are fetched ahead, a panel while the one before it is multiplied.
  void multiply_rows(const IgemmChunk& c, const IgemmPhase& f, TileSum& s, const int64_t* places, int64_t first) {
    constexpr int64_t kNear = 256 << 10, kLine = 64;
    const int64_t panel_bytes = s.count * kRound * P::kParts * plan.panel_width * kLanes * 2;
    const int64_t panels = c.last_panel - c.first_panel;
    alignas(64) Acc tile[2][4 * kTilePixels * 32];
    int64_t last_t = 0, last_n = 0, last_panel = 0;
    int now = 0;
    const auto finish = [&] {
      if (last_n == 0) return;
      sums.finish_rows(c, last_panel, tile[1 - now], weights.bias(c.group, last_panel), places + last_t * kTilePixels,
                       last_n * kTilePixels, first);
    };
    const auto multiply = [&](int64_t panel, int64_t t) {
      const int vectors = plan.panel_vectors(panel);
      const int64_t n = P::tiles_at_once(table.count - t, vectors);
      sums.fetch_rows(c, panel, places + t * kTilePixels, n * kTilePixels, first);
      P::multiply(s, special(), table.tiles + t, n, vectors, tile[now]);
      finish();
      last_t = t, last_n = n, last_panel = panel;
      now = 1 - now;
      return n;
    };
    if (panels * panel_bytes <= kNear && plan.panel_vectors(c.last_panel - 1) == plan.panel_width) {
      for (int64_t t = 0, n; t < table.count; t += n)
        for (int64_t panel = c.first_panel; panel < c.last_panel; ++panel) {
          read_weights(s, c, f, panel);
          n = multiply(panel, t);
        }
    } else {
      const int64_t strips = ceil_div(table.count, 2);
      for (int64_t panel = c.first_panel; panel < c.last_panel; ++panel) {
        read_weights(s, c, f, panel);
        s.ahead = nullptr;
        if (panel + 1 < c.last_panel && s.count > 0) {  // a stride wider than the kernel leaves phases without taps
          s.ahead = reinterpret_cast<const char*>(weights.panel(c.group, panel + 1, f.row));
          s.ahead_lines = ceil_div(panel_bytes, kLine * strips * s.count);
        }
        for (int64_t t = 0; t < table.count;) {
          t += multiply(panel, t);
          if (s.ahead != nullptr) s.ahead += s.ahead_lines * kLine * s.count;
        }
      }
    }
    finish();
  }

  bool special() const { return P::kStored > 1 && table.flat.special; }

  // The sums of one panel with their bias to out[place][vectors][16].
  void collect(const TileSum& s, const IgemmChunk& c, int64_t panel, int64_t t, int64_t end, const int64_t* places,
               Acc* out) const {
    alignas(64) Acc tile[4 * kTilePixels * 32];
    const int vectors = plan.panel_vectors(panel);
    const Acc* bias = weights.bias(c.group, panel);
    while (t < end) {
      const int64_t n = P::tiles_at_once(end - t, vectors);
      P::multiply(s, special(), table.tiles + t, n, vectors, tile);
      for (int64_t r = 0; r < n * kTilePixels; ++r) {
        const int64_t place = places[t * kTilePixels + r];
        if (place < 0) continue;
        for (int v = 0; v < vectors; ++v)
          store(out + (place * vectors + v) * kLanes, load(tile + r * 32 + v * kLanes) + load(bias + v * kLanes));
      }
      t += n;
    }
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
