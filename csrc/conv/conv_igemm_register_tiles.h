// An implicit GEMM's products on register tiles (conv_tile.h). For each phase of a chunk the address of every pixel's
// input is tabulated for each tap, a row of zeros standing for what lies outside of the image, and strips run over the
// table. A dense channels_last x whose storage is the arithmetic's is read in place, anything else through a window
// (conv_igemm_window.h).
//
// One object per thread; what the threads make of a chunk does not depend on who makes it.
#pragma once
#include "conv/conv_igemm_plan.h"
#include "conv/conv_igemm_sums.h"
#include "conv/conv_igemm_weights.h"

namespace fastcv::FASTCV_ISA {

template <class P, class S>
class RegisterTiles {
  using Plan = IgemmPlan<P, S>;
  using X = typename P::X;
  using Acc = typename P::Acc;
  static constexpr int kLanes = Plan::kLanes;
  static constexpr int64_t kBlock = Plan::kBlock;

 public:
  static size_t scratch(const Plan& plan) { return Layout(plan).bytes; }

  RegisterTiles(const Plan& layer, const IgemmWeights<P, S>& panels, const IgemmSums<P, S>& ends, char* scratch)
      : plan(layer), weights(panels), sums(ends) {
    const Layout at(plan);
    zeros = reinterpret_cast<X*>(scratch);
    view.window = reinterpret_cast<X*>(scratch + at.window);
    table = reinterpret_cast<const X**>(scratch + at.table);
    places = reinterpret_cast<int64_t*>(scratch + at.places);
    std::memset(static_cast<void*>(zeros), 0, static_cast<size_t>(zero_length(plan)) * sizeof(X));
  }

  // Makes the inputs of a chunk readable; tw: merged taps.
  void read(const IgemmChunk& c, const Taps& tw) {
    const ConvParams& p = plan.p;
    for (int i = 0; i < 3; ++i) view.inputs[i] = c.inputs[i];
    if (plan.copied) return plan.window.fill(view, plan.input(c), c.cell, c.cells, tw);
    if constexpr (std::is_same_v<S, X>) {
      view.pitch[2] = p.c;
      view.pitch[1] = p.in[2] * p.c;
      view.pitch[0] = p.in[1] * view.pitch[1];
      view.origin = static_cast<const X*>(p.x) + c.n * p.in[0] * view.pitch[0];
    }
  }

  void run(const IgemmChunk& c, const IgemmPhase& f) {
    const ConvParams& p = plan.p;
    const Dim* d = plan.d;
    const int64_t nh = d[1].outputs(f.fh, c.cell[1], c.cells[1]), nw = d[2].outputs(f.fw, c.cell[2], c.cells[2]);
    const int64_t pixels = nh * nw;
    if (pixels == 0) return;
    Strip<P> s;
    cut_bands(c, f, nw);
    s.taps = tabulate(c, f, nh, nw);
    s.zeros = zeros;
    s.row_pitch = pixels;
    s.steps = (plan.merged ? plan.row_length(f.tw.count) : round_up(plan.cg, P::kPair)) / P::kPair;
    s.segment = P::kRounds ? s.taps * s.steps + 1 : segment_of(s.taps * s.steps);
    s.group_in = static_cast<int>(plan.cg);
    s.group_out = static_cast<int>(p.k / p.groups);
    s.channel = plan.copied ? 0 : c.group * plan.cg;
    s.places = places;
    int64_t tabulated_pitch = -1;
    for (int64_t panel = c.first_panel; panel < c.last_panel; ++panel) {
      const int64_t k0 = panel * plan.panel_width * kLanes;
      const int nv = plan.panel_vectors(panel);
      const bool direct = plan.direct(panel);
      const int64_t pitch = direct ? d[2].out : c.columns;
      if (pitch != tabulated_pitch) {
        tabulate_places(f, nh, pitch);
        tabulated_pitch = pitch;
      }
      s.rows = table;
      s.weights = weights.panel(c.group, panel, f.row);
      s.ahead = panel + 1 < plan.panels ? weights.panel(c.group, panel + 1, f.row) : nullptr;
      s.bias = weights.bias(c.group, panel);
      if (plan.folded) s.channel = k0 / s.group_out * plan.cg;
      s.rounded = nullptr;
      s.out = sums.of(panel);
      s.out_pitch = nv * kLanes;
      if (direct) {
        const int64_t first = plan.first_output(c, f.od) * p.k + c.group * plan.kg + k0;
        if constexpr (P::kRounds) s.rounded = static_cast<X*>(p.y) + first;
        else s.out = static_cast<Acc*>(p.y) + first;
        s.out_pitch = p.k;
      }
      if (direct || plan.many_phases || plan.banded) {
        multiply(s, pixels, nv);
        if (!direct && !plan.many_phases) sums.finish(c, f.od, panel);
        continue;
      }
      // One phase: pixels and places are consecutive, and few sums at a time stay in the first-level cache.
      for (int64_t i = 0; i < pixels; i += kBlock) {
        const int64_t n = least(kBlock, pixels - i);
        s.rows = table + i;
        multiply(s, n, nv);
        s.ahead = nullptr;
        sums.finish_run(c, panel, s.out, plan.first_output(c, f.od) + i, n);
      }
    }
  }

 private:
  // Where the arrays stand in the scratch, in bytes; the zeros come first.
  struct Layout {
    size_t window, table, places, bytes;

    explicit Layout(const Plan& plan) {
      const int64_t pixels = plan.rows * plan.cols;
      window = aligned_bytes(zero_length(plan) * static_cast<int64_t>(sizeof(X)));
      table = window + static_cast<size_t>(plan.window_bytes());
      places = table + aligned_bytes(pixels * plan.most_taps() * 8);
      bytes = places + aligned_bytes(pixels * 8);
    }
  };

  // As long as any row that they stand for; a folded one is read in whole vectors.
  static int64_t zero_length(const Plan& plan) {
    return most(most(plan.p.c, plan.pixel_length), plan.longest_row()) + kLanes;
  }

  void multiply(const Strip<P>& s, int64_t pixels, int nv) const {
    if (!plan.folded) {
      run_strip<P>(s, pixels, nv);
    } else if constexpr (P::kPair == 1) {
      if (nv == 1) run_group_strip<Acc, 1>(s, pixels);
      else run_group_strip<Acc, kGroupPanelVectors>(s, pixels);
    }
  }

  // Cuts a phase's nw columns where a tap enters or leaves the image; not at all unless the plan asks for it.
  void cut_bands(const IgemmChunk& c, const IgemmPhase& f, int64_t nw) {
    bands = 1;
    edges[0] = 0;
    edges[1] = nw;
    if (!plan.banded) return;
    const auto cut_at = [&](int64_t column) {
      int64_t at = bands;
      while (at > 0 && edges[at - 1] >= column) --at;
      if (edges[at] == column) return;
      for (int64_t i = ++bands; i > at; --i) edges[i] = edges[i - 1];
      edges[at] = column;
    };
    const Dim& d = plan.d[2];
    for (int64_t jw = 0; jw < f.tw.count; ++jw) {
      const int64_t first = c.cell[2] * d.in_step + f.tw.offset + jw * f.tw.offset_step;
      const Span exist = inside(first, d.in_step, d.in - 1, nw);
      cut_at(exist.begin);
      cut_at(exist.end);
    }
  }

  // Fills the table with the address of each pixel's input for each tap, pixels band by band, then line by line;
  // returns the number of taps.
  int64_t tabulate(const IgemmChunk& c, const IgemmPhase& f, int64_t nh, int64_t nw) const {
    const Dim* d = plan.d;
    const X* const none = zeros;
    const X** out = table;
    const int64_t width_taps = plan.merged ? least(1, f.tw.count) : f.tw.count;
    for (int64_t jd = 0; jd < f.td.count; ++jd) {
      const int64_t id = c.cell[0] * d[0].in_step + f.td.offset + jd * f.td.offset_step;
      for (int64_t jh = 0; jh < f.th.count; ++jh)
        for (int64_t jw = 0; jw < width_taps; ++jw) {
          int64_t first = c.cell[2], step = 1;
          Span exist{0, nw};
          if (!plan.merged) {
            step = d[2].in_step;
            first = c.cell[2] * step + f.tw.offset + jw * f.tw.offset_step;
            exist = inside(first, step, d[2].in - 1, nw);
          }
          for (int64_t band = 0; band < bands; ++band) {
            const int64_t left = edges[band], right = edges[band + 1];
            const int64_t begin = most(left, least(exist.begin, right)), end = most(begin, least(exist.end, right));
            for (int64_t i = 0; i < nh; ++i) {
              const int64_t ih = (c.cell[1] + i) * d[1].in_step + f.th.offset + jh * f.th.offset_step;
              if (id < 0 || id >= d[0].in || ih < 0 || ih >= d[1].in) {
                for (int64_t j = left; j < right; ++j) *out++ = none;
                continue;
              }
              const X* x = view.origin + id * view.pitch[0] + ih * view.pitch[1] + first * view.pitch[2];
              const int64_t x_step = step * view.pitch[2];
              for (int64_t j = left; j < begin; ++j) *out++ = none;
              for (int64_t j = begin; j < end; ++j) *out++ = x + j * x_step;
              for (int64_t j = end; j < right; ++j) *out++ = none;
            }
          }
        }
    }
    return f.td.count * f.th.count * width_taps;
  }

  // Where each pixel's sums go: lines `pitch` pixels apart.
  void tabulate_places(const IgemmPhase& f, int64_t nh, int64_t pitch) const {
    const int64_t down = plan.d[1].out_step, across = plan.d[2].out_step;
    int64_t* place = places;
    for (int64_t band = 0; band < bands; ++band)
      for (int64_t i = 0; i < nh; ++i) {
        const int64_t first = (i * down + f.fh) * pitch + f.fw;
        for (int64_t j = edges[band]; j < edges[band + 1]; ++j) *place++ = first + j * across;
      }
  }

  const Plan& plan;
  const IgemmWeights<P, S>& weights;
  const IgemmSums<P, S>& sums;
  typename Plan::Window::Chunk view;
  X* zeros;
  const X** table;                              // [taps][pixels]
  int64_t* places;                              // [pixels]
  int64_t bands, edges[2 * kMostBandTaps + 2];  // of columns: from edges[i] to edges[i + 1]
};

}  // namespace fastcv::FASTCV_ISA
