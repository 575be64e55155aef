// What an implicit GEMM decides before it runs (conv_igemm.h has the whole). From the layer alone: how pixels are
// stored, how weights are packed, which way sums take to y. From the layer and the number of threads: the chunks that
// the output is cut into, which never changes the order of a sum. Reads no element and needs no memory.
//
// Groups run one after the other. Groups so small that several share a vector of output channels ("folded", depthwise
// above all) run together as if they were one, each lane picking its own group's channels. With few channels the taps
// along the width are laid side by side ("merged"), which makes one long tap of them.
#pragma once
#include "conv/conv_flat.h"
#include "conv/conv_igemm_window.h"
#include "conv/conv_plan.h"
#include "conv/conv_tile.h"

namespace fastcv::FASTCV_ISA {

inline constexpr int64_t kMostBandTaps = 8;  // along the width, where pixels are taken by bands of columns

FASTCV_INLINE size_t aligned_bytes(int64_t bytes) { return static_cast<size_t>(round_up(bytes, 64)); }

// A unit of work: a block of cells of one image and group, and some panels of its output channels.
struct IgemmChunk {
  int64_t n, group, cell[3], cells[3];
  int64_t first_panel, last_panel;
  Range inputs[3];
  int64_t columns;  // of y, in the chunk
};

// The outputs of a chunk that share their taps: depth, residues along the height and the width, taps, and the packed
// row at which their weights begin.
struct IgemmPhase {
  int64_t od, fh, fw;
  Taps td, th, tw;
  int64_t row;
};

// P: what is multiplied (conv_tile.h). S: storage of x, w, bias, residual and y.
template <class P, class S>
struct IgemmPlan {
  using X = typename P::X;
  using Acc = typename P::Acc;
  using Window = std::conditional_t<P::kTiles, FlatWindow<P, S>, CopiedWindow<P, S>>;
  static constexpr int kLanes = Vec<Acc>::width;
  static constexpr int64_t kRound = P::kTiles ? 32 : P::kPair;  // channels are padded with zeros to a multiple of it
  static constexpr int64_t kBlock = 96;  // pixels; a multiple of the rows of every tile and of every vector's width

  const ConvParams& p;
  Dim d[3];
  bool folded;              // small groups run together
  int64_t cg, kg, groups;   // channels per group; folded, kg is of all groups, which count as one
  int64_t pixel_length;     // of an input pixel, in the window or in x
  int64_t panel_width;      // vectors of a whole panel
  int64_t vectors, panels;  // of output channels, per group
  int64_t rows_w, kdim;     // packed rows: of one (d, h) tap, of all
  bool copied, merged;      // inputs are read from a window; with the taps along the width side by side
  bool many_phases;         // in a plane: sums of all panels wait until all phases are done
  bool banded;              // pixels are taken by the band of columns whose taps meet the same edges of the image
  Window window;
  int64_t rows, cols;  // cells of a chunk
  int64_t row_chunks, col_chunks, kparts, items;
  bool panels_outside;  // all chunks of some panels come before other panels, not all panels of a chunk before others

  IgemmPlan(const ConvParams& params, int threads) : p(params) {
    arrange();
    cut(threads);
  }
  IgemmPlan(const IgemmPlan&) = delete;  // the window points to the dims

  int64_t row_length(int64_t taps_w) const {
    return merged ? round_up(taps_w * cg, kRound) : taps_w * (folded ? cg : round_up(cg, kRound));
  }
  // The longest pixel of the window.
  int64_t window_pixel() const { return merged ? longest_row() : pixel_length; }
  int64_t longest_row() const { return row_length(ceil_div(d[2].kernel, d[2].tap_step)); }
  int64_t window_bytes() const {
    return copied ? round_up((window.elements(rows, cols) + kLanes) * static_cast<int64_t>(sizeof(X)), 64) : 0;
  }
  // The most taps that a phase looks up one by one.
  int64_t most_taps() const {
    int64_t taps = 1;
    for (int i = 0; i < (merged ? 2 : 3); ++i) taps *= ceil_div(d[i].kernel, d[i].tap_step);
    return taps;
  }
  // The most outputs of a chunk's plane.
  int64_t most_outputs() const { return most_outputs(d[1], rows) * most_outputs(d[2], cols); }

  int panel_vectors(int64_t panel) const { return static_cast<int>(least(panel_width, vectors - panel * panel_width)); }
  // Rows of the packed weights; the parts of 32 channels stand one after the other, the last stored one behind all.
  int64_t packed_rows() const { return kdim / P::kPair * P::kStored; }
  static int64_t packed_row(int64_t row) {
    if constexpr (P::kStored == 1) return row / P::kPair;
    else return row / kRound * (kRound / P::kPair) * (P::kStored - 1) + row % kRound / P::kPair;
  }
  // Do the tile's sums of this panel go straight into y?
  bool direct(int64_t panel) const {
    if constexpr (P::kTiles) return p.channels_last;
    return (std::is_same_v<S, Acc> || (P::kRounds && std::is_same_v<S, X>)) && p.channels_last &&
           p.residual == nullptr && p.activation == Activation::none &&
           (panel * panel_width + panel_vectors(panel)) * kLanes <= kg;
  }

  IgemmChunk chunk(int64_t item) const {
    IgemmChunk c;
    const int64_t part = panels_outside ? item / (items / kparts) : item % kparts;
    item = panels_outside ? item % (items / kparts) : item / kparts;
    c.group = item % groups;
    item /= groups;
    c.cell[2] = item % col_chunks * cols;
    item /= col_chunks;
    c.cell[1] = item % row_chunks * rows;
    item /= row_chunks;
    c.cell[0] = item % d[0].cells;
    c.n = item / d[0].cells;
    c.cells[0] = 1;
    c.cells[1] = least(rows, d[1].cells - c.cell[1]);
    c.cells[2] = least(cols, d[2].cells - c.cell[2]);
    c.first_panel = panels * part / kparts;
    c.last_panel = panels * (part + 1) / kparts;
    c.columns = least(c.cells[2] * d[2].out_step, d[2].out - c.cell[2] * d[2].out_step);
    for (int i = 0; i < 3; ++i) c.inputs[i] = inputs_of(d[i], c.cell[i], c.cells[i]);
    return c;
  }
  // The first input of the chunk's image and group.
  const S* input(const IgemmChunk& c) const {
    const int64_t pixels = p.in[0] * p.in[1] * p.in[2], channel = c.group * cg;
    return static_cast<const S*>(p.x) + c.n * pixels * p.c + (p.channels_last ? channel : channel * pixels);
  }
  // The chunk's first pixel in y, counted through all images.
  int64_t first_output(const IgemmChunk& c, int64_t od) const {
    return ((c.n * d[0].out + od) * d[1].out + c.cell[1] * d[1].out_step) * d[2].out + c.cell[2] * d[2].out_step;
  }

 private:
  static int64_t most_outputs(const Dim& dim, int64_t cells) { return least(cells * dim.out_step, dim.out); }

  void arrange() {
    for (int i = 0; i < 3; ++i) d[i] = make_dim(p, i);
    cg = p.c / p.groups;
    kg = p.k / p.groups;
    folded = P::kPair == 1 && p.groups > 1 && groups_fit<Acc>(cg, kg);
    groups = folded ? 1 : p.groups;
    if (folded) kg = p.k;
    panel_width = folded ? kGroupPanelVectors : P::kTiles ? 2 : kPanelVectors;
    vectors = ceil_div(kg, kLanes);
    panels = ceil_div(vectors, panel_width);
    merged = !folded && d[2].kernel > 1 &&
             (P::kTiles ? ceil_div(d[2].kernel * cg, kRound) < d[2].kernel && cg < kRound : cg < 8);
    // A folded pixel is read in whole vectors.
    pixel_length = folded ? round_up(p.c, kLanes) + (p.c == p.k ? 0 : kLanes) : round_up(cg, kRound);
    copied = merged || !std::is_same_v<S, X> || !p.channels_last || pixel_length != (folded ? p.c : cg);
    if constexpr (P::kTiles)
      for (int i = 0; i < 3; ++i) copied |= p.kernel[i] > 1 || p.pad[i] > 0 || p.stride[i] > 1 || p.in[i] != p.out[i];
    window.plan(p, d, folded ? p.c : cg, window_pixel(), merged);
    rows_w = 0;
    for (int64_t r = 0; r < least(d[2].kernel, d[2].transposed ? d[2].tap_step : 1); ++r)
      rows_w += row_length(d[2].transposed ? ceil_div(d[2].kernel - r, d[2].tap_step) : d[2].kernel);
    kdim = d[0].kernel * d[1].kernel * rows_w;
    many_phases = d[1].phases * d[2].phases > 1;
    // Where taps reach far, whole tiles of pixels have the same taps outside of the image.
    banded = !P::kTiles && !folded && !merged && d[2].kernel > 1 && d[2].kernel <= kMostBandTaps &&
             4 * (d[2].high - d[2].low) >= d[2].in;
  }

  void cut(int threads) {
    constexpr int64_t kWindow = 512 << 10;
    // Taller windows copy fewer rows twice.
    const int64_t pixel_limit = copied && d[1].kernel > 1 ? 1024 : 384;
    cols = d[2].cells <= 512 ? d[2].cells : ceil_div(d[2].cells, ceil_div(d[2].cells, 256));
    rows = cols < d[2].cells ? 1 : most(1, least(d[1].cells, pixel_limit / cols));
    const auto too_much = [&](int64_t limit) {
      const int64_t sums = many_phases ? most_outputs() * vectors * kLanes : 0;
      if constexpr (P::kTiles)  // of the cache's 2 MB, with the weights of a panel
        return window.elements(rows, cols, P::kParts) * static_cast<int64_t>(sizeof(X)) + sums * 4 > 2 * limit;
      return (window.elements(rows, cols) + sums) * static_cast<int64_t>(sizeof(Acc)) > limit;
    };
    // Under a kernel that reaches over much of the image half the cells need nearly as many inputs.
    const auto halves = [&] { return 4 * window.elements((rows + 1) / 2, cols) <= 3 * window.elements(rows, cols); };
    while (rows > 1 && too_much(kWindow) && (halves() || !copied)) rows = (rows + 1) / 2;
    while (rows == 1 && cols > 48 && too_much(4 * kWindow)) cols = (cols + 1) / 2;
    col_chunks = ceil_div(d[2].cells, cols);
    const int64_t others = p.n * d[0].cells * col_chunks * groups;
    const int64_t pieces = copied && too_much(4 * kWindow) ? threads : 4 * threads;  // each copies the window
    const auto parts = [&](int64_t units) {
      return copied || P::kTiles ? least(panels, ceil_div(pieces, units)) : panels;
    };
    while (rows > 1 && rows * cols > 32 && others * ceil_div(d[1].cells, rows) * panels < 2 * threads)
      rows = (rows + 1) / 2;
    // Among the cuts near this size, the one that gives the busiest thread the least.
    int64_t best = 0, best_load = INT64_MAX;
    const int64_t first = ceil_div(d[1].cells, rows);
    for (int64_t n = first; n <= least(d[1].cells, first + most(first, 2)); ++n) {
      const int64_t r = ceil_div(d[1].cells, n), units = others * ceil_div(d[1].cells, r), k = parts(units);
      const int64_t load = ceil_div(units * k, threads) * r * ceil_div(panels, k);
      if (load < best_load) best_load = load, best = n;
    }
    rows = ceil_div(d[1].cells, best);
    row_chunks = ceil_div(d[1].cells, rows);
    kparts = parts(others * row_chunks);
    items = others * row_chunks * kparts;
    // What leaves the second-level cache comes again: the weights with every chunk, or the inputs with every panel.
    const int64_t all_weights = kdim * vectors * kLanes, inputs = p.n * p.in[0] * p.in[1] * p.in[2] * cg;
    panels_outside = !copied && !P::kTiles && all_weights > (int64_t{1} << 18) &&
                     all_weights * (items / kparts) > inputs * groups * kparts;
  }
};

}  // namespace fastcv::FASTCV_ISA
