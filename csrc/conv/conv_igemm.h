// Convolution as a product of gathered pixels and packed weights, without forming the matrix of patches.
//
// Weights are packed, once per call or once for many (Packing), into panels [panel][phase, tap, channel][up to 4
// vectors of output channels]. The output is cut into chunks of cells; for each the addresses of its input pixels are
// tabulated per tap (outside the image: a row of zeros), and register tiles (conv_tile.h) run over the table. A dense
// channels_last x whose storage is the arithmetic's is read in place. Otherwise the inputs of a chunk are first copied
// to a channels_last window of the arithmetic's type; with few channels the taps along the width are laid side by side
// there, which makes one long tap of them (in place in the copied line where they are neighbours). Sums that are the
// final values are stored by the tile; others pass through a scratch to an epilogue that adds the residual, activates,
// converts and, for row-major y, transposes.
//
// Groups run one after the other. Groups so small that several share a vector of output channels ("folded", depthwise
// above all) run together as if they were one, each lane picking its own group's channels.
#pragma once
#include "conv/conv_flat.h"
#include "conv/conv_store.h"
#include "conv/conv_tile.h"

namespace fastcv::FASTCV_ISA {

// P: what is multiplied (conv_tile.h). S: storage of x, w, bias, residual and y.
template <class P, class S>
class Igemm {
  using X = typename P::X;
  using W = typename P::W;
  using Acc = typename P::Acc;
  static constexpr int kLanes = Vec<Acc>::width;
  static constexpr int kPair = P::kPair;
  static constexpr bool kTiles = P::kTiles;
  static constexpr int64_t kRound = kTiles ? 32 : kPair;  // channels are padded with zeros to a multiple of it
  static constexpr int64_t kStored = P::kStored;

 public:
  Igemm(const ConvParams& params, int threads) : p(params) { plan(threads); }
  size_t workspace() const { return shared_bytes + slots * slot_bytes; }
  size_t kept() const { return packed_bytes; }

  void run(const Exec& exec) {
    char* base = static_cast<char*>(exec.workspace);
    char* kept = p.packing == Packing::none ? base : static_cast<char*>(p.packed);
    packed = reinterpret_cast<W*>(kept);
    special_weights = kept + special_at;
    bias = reinterpret_cast<Acc*>(base + bias_at);
    zeros = reinterpret_cast<X*>(base + zeros_at);
    tap_rows = reinterpret_cast<int64_t*>(base + tap_rows_at);
    char* slot_base = base + shared_bytes;
    std::memset(static_cast<void*>(zeros), 0, static_cast<size_t>(zero_length) * sizeof(X));
    tabulate_tap_rows();
    constexpr int64_t kGrain = 1 << 16;  // multiply-adds: below this, waking a thread costs more than it saves
    const int64_t pack_units = groups * vectors;
    if (p.packing != Packing::ready)
      parallel_slots(exec, pack_units, most(1, kGrain / (kdim * kLanes)), [&](int slot, int64_t begin, int64_t end) {
        for (int64_t u = begin; u < end; ++u)
          pack(u / vectors, u % vectors, reinterpret_cast<Acc*>(slot_base + slot * slot_bytes));
      });
    if (p.packing == Packing::fill) return;
    for (int64_t u = 0; u < pack_units; ++u) load_bias(u / vectors, u % vectors);
    any_special_weight = false;
    if constexpr (kStored > 1)
      for (int64_t u = 0; u < pack_units; ++u) any_special_weight |= special_weights[u] != 0;
    const int64_t item_cost = rows * cols * kdim * (folded ? p.k : kg) / kparts;
    parallel_slots(exec, items, most(1, kGrain / most(1, item_cost)), [&](int slot, int64_t begin, int64_t end) {
      Chunk chunk;
      char* scratch = slot_base + slot * slot_bytes;
      chunk.window = reinterpret_cast<X*>(scratch);
      chunk.places = reinterpret_cast<int64_t*>(scratch + places_at);
      chunk.sums = reinterpret_cast<Acc*>(scratch + sums_at);
      [[maybe_unused]] const typename P::Session session{};
      if constexpr (kTiles) {
        chunk.table.place(scratch + table_at, limits);
        chunk.table.flat.window = chunk.window;
      } else {
        chunk.table = reinterpret_cast<const X**>(scratch + table_at);
      }
      for (int64_t i = begin; i < end; ++i) run_item(chunk, i);
    });
  }

 private:
  struct Chunk {
    X* window;
    // Where the pixels are.
    std::conditional_t<kTiles, TileTable<P, S>, const X**> table;
    int64_t* places;
    Acc* sums;
    int64_t n, group, cell[3], cells[3];
    Range inputs[3];
    int64_t first_panel, last_panel;
    // Address of input pixel (d, h, w): origin + d * pitch[0] + h * pitch[1] + w * pitch[2] elements.
    const X* origin;
    int64_t pitch[3];
    int64_t columns;  // of y, local
  };

  int64_t in_pixels() const { return p.in[0] * p.in[1] * p.in[2]; }
  int64_t row_length(int64_t taps_w) const {
    return merged ? round_up(taps_w * cg, kRound) : taps_w * (folded ? cg : round_up(cg, kRound));
  }
  int panel_vectors(int64_t panel) const { return static_cast<int>(least(panel_width, vectors - panel * panel_width)); }
  // Do the tile's sums of this panel go straight into y?
  bool direct(int64_t panel) const {
    return (std::is_same_v<S, Acc> || (P::kRounds && std::is_same_v<S, X>)) && p.channels_last &&
           p.residual == nullptr && p.activation == Activation::none &&
           (panel * panel_width + panel_vectors(panel)) * kLanes <= kg;
  }

  int64_t overlapping_columns(int64_t cells) const { return (cells - 1) * d[2].in_step + d[2].kernel; }

  // ---- plan: everything that follows from the layer, and the cut that follows from the threads too ----------------

  int64_t window_elements(int64_t r, int64_t c) const {
    const int64_t length = merged ? row_length(ceil_div(d[2].kernel, d[2].tap_step)) : pixel_length;
    if constexpr (kTiles) return flat.elements(r, c);
    const int64_t lines = inputs_bound(d[0], 1) * inputs_bound(d[1], r);
    if (overlapping) return lines * overlapping_columns(c) * cg;
    return lines * (merged ? c : inputs_bound(d[2], c)) * length;
  }

  void plan(int threads) {
    for (int i = 0; i < 3; ++i) d[i] = make_dim(p, i);
    cg = p.c / p.groups;
    kg = p.k / p.groups;
    folded = kPair == 1 && p.groups > 1 && groups_fit<Acc>(cg, kg);
    groups = folded ? 1 : p.groups;
    if (folded) kg = p.k;
    panel_width = folded ? kGroupPanelVectors : kPanelVectors;
    vectors = ceil_div(kg, kLanes);
    panels = ceil_div(vectors, panel_width);
    merged = !folded && d[2].kernel > 1 &&
             (kTiles ? ceil_div(d[2].kernel * cg, kRound) < d[2].kernel && cg < kRound : cg < 8);
    overlapping =
        merged && !kTiles && !d[2].transposed && d[2].dilation == 1 && row_length(d[2].kernel) == d[2].kernel * cg;
    // A folded pixel is read in whole vectors.
    pixel_length = folded ? round_up(p.c, kLanes) + (p.c == p.k ? 0 : kLanes) : round_up(cg, kRound);
    window = merged || !std::is_same_v<S, X> || !p.channels_last || pixel_length != (folded ? p.c : cg);
    if constexpr (kTiles) {
      for (int i = 0; i < 3; ++i) window |= p.kernel[i] > 1 || p.pad[i] > 0 || p.stride[i] > 1 || p.in[i] != p.out[i];
      flat.plan(p, d, cg, merged ? row_length(ceil_div(d[2].kernel, d[2].tap_step)) : pixel_length, merged);
    }
    rows_w = 0;
    for (int64_t r = 0; r < least(d[2].kernel, d[2].transposed ? d[2].tap_step : 1); ++r)
      rows_w += row_length(d[2].transposed ? ceil_div(d[2].kernel - r, d[2].tap_step) : d[2].kernel);
    kdim = d[0].kernel * d[1].kernel * rows_w;
    many_phases = d[1].phases * d[2].phases > 1;
    cut(threads);
    lay_out(threads);
  }

  static int64_t most_outputs(const Dim& dim, int64_t cells) { return least(cells * dim.out_step, dim.out); }

  void cut(int threads) {
    constexpr int64_t kWindow = 512 << 10;
    // Taller windows copy fewer rows twice.
    const int64_t pixel_limit = window && d[1].kernel > 1 ? 1024 : 384;
    cols = d[2].cells <= 512 ? d[2].cells : ceil_div(d[2].cells, ceil_div(d[2].cells, 256));
    rows = cols < d[2].cells ? 1 : most(1, least(d[1].cells, pixel_limit / cols));
    const auto too_much = [&](int64_t limit) {
      const int64_t outputs = most_outputs(d[1], rows) * most_outputs(d[2], cols);
      const int64_t sums = many_phases ? outputs * vectors * kLanes : 0;
      return (window_elements(rows, cols) + sums) * static_cast<int64_t>(sizeof(Acc)) > limit;
    };
    while (rows > 1 && too_much(kWindow)) rows = (rows + 1) / 2;
    while (rows == 1 && cols > 48 && too_much(4 * kWindow)) cols = (cols + 1) / 2;
    const int64_t col_chunks = ceil_div(d[2].cells, cols), others = p.n * d[0].cells * col_chunks * groups;
    const auto parts = [&](int64_t units) {
      return window || kTiles ? least(panels, ceil_div(4 * threads, units)) : panels;
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
    this->col_chunks = col_chunks;
    kparts = parts(others * row_chunks);
    items = others * row_chunks * kparts;
  }

  void lay_out(int threads) {
    const auto aligned = [](int64_t bytes) { return static_cast<size_t>(round_up(bytes, 64)); };
    const int64_t taps = p.kernel[0] * p.kernel[1] * p.kernel[2];
    zero_length = most(most(p.c, pixel_length), row_length(ceil_div(d[2].kernel, d[2].tap_step))) + kLanes;
    special_at = aligned(groups * vectors * kLanes * packed_rows() * static_cast<int64_t>(sizeof(W)));
    packed_bytes = special_at + (kStored > 1 ? aligned(groups * vectors) : 0);
    bias_at = p.packing == Packing::none ? packed_bytes : 0;
    zeros_at = bias_at + aligned(groups * vectors * kLanes * static_cast<int64_t>(sizeof(Acc)));
    tap_rows_at = zeros_at + aligned(zero_length * static_cast<int64_t>(sizeof(X)));
    shared_bytes = tap_rows_at + aligned(taps * 8);
    slots = static_cast<size_t>(threads);
    int64_t most_taps = 1;
    for (int i = 0; i < (merged ? 2 : 3); ++i) most_taps *= ceil_div(d[i].kernel, d[i].tap_step);
    const int64_t pixels = rows * cols;
    table_at = window ? aligned((window_elements(rows, cols) + kLanes) * static_cast<int64_t>(sizeof(X))) : 0;
    if constexpr (kTiles) {
      const int64_t blocks = (merged ? row_length(ceil_div(d[2].kernel, d[2].tap_step)) : pixel_length) / kRound;
      limits = {inputs_bound(d[1], rows) + inputs_bound(d[2], cols), most_taps * blocks * P::kProducts,
                rows * ceil_div(cols, kTilePixels), window ? 0 : kTilePixels * cg};
      TileTable<P, S> measured;
      places_at = table_at + measured.place(nullptr, limits);
    } else {
      places_at = table_at + aligned(pixels * most_taps * 8);
    }
    sums_at = places_at + aligned(pixels * 8);
    const int64_t sums = many_phases ? most_outputs(d[1], rows) * most_outputs(d[2], cols) : kBlock;
    sum_panel = sums * panel_width * kLanes;
    slot_bytes = sums_at + aligned(sum_panel * (many_phases ? panels : 1) * static_cast<int64_t>(sizeof(Acc)));
    const size_t staging = kPair == 1 ? 0 : aligned(kdim * kLanes * static_cast<int64_t>(sizeof(Acc)));
    if (slot_bytes < staging) slot_bytes = staging;
  }

  // ---- packing weights ---------------------------------------------------------------------------------------------

  // Rows of the packed weights; parts of 32 channels stand one after the other.
  int64_t packed_rows() const { return kdim / kPair * kStored; }
  static int64_t packed_row(int64_t row) {
    return kStored == 1 ? row / kPair : row / kRound * (kRound / kPair) * kStored + row % kRound / kPair;
  }

  // The row of a panel at which each tap starts; phase by phase, so that a phase's weights are consecutive.
  void tabulate_tap_rows() {
    const auto before = [](const Dim& dim, int64_t phase) {  // taps of earlier phases
      int64_t count = 0;
      if (dim.transposed)
        for (int64_t r = 0; r < dim.kernel; ++r) count += dim.phase_of(r) < phase;
      return count;
    };
    const auto rows_before = [&](int64_t phase) {
      int64_t count = 0;
      if (d[2].transposed)
        for (int64_t r = 0; r < least(d[2].tap_step, d[2].kernel); ++r)
          if (d[2].phase_of(r) < phase) count += row_length(ceil_div(d[2].kernel - r, d[2].tap_step));
      return count;
    };
    int64_t* row = tap_rows;
    for (int64_t rd = 0; rd < d[0].kernel; ++rd) {
      const int64_t fd = d[0].phase_of(rd), jd = rd / d[0].tap_step, before_d = before(d[0], fd);
      const int64_t nd = d[0].taps(fd).count;
      for (int64_t rh = 0; rh < d[1].kernel; ++rh) {
        const int64_t fh = d[1].phase_of(rh), jh = rh / d[1].tap_step, before_h = before(d[1], fh);
        const int64_t nh = d[1].taps(fh).count;
        for (int64_t rw = 0; rw < d[2].kernel; ++rw) {
          const int64_t fw = d[2].phase_of(rw), jw = rw / d[2].tap_step;
          const int64_t length = row_length(d[2].taps(fw).count);
          *row++ = before_d * d[1].kernel * rows_w + nd * (before_h * rows_w + nh * rows_before(fw)) +
                   (jd * nh + jh) * length + jw * (merged || folded ? cg : round_up(cg, kRound));
        }
      }
    }
  }

  // Packs one vector of output channels of one group.
  void pack(int64_t group, int64_t vector, Acc* staging) {
    const int64_t k0 = vector * kLanes, panel = vector / panel_width;
    const int nk = static_cast<int>(least(kLanes, kg - k0));
    const int64_t pitch = panel_vectors(panel) * kLanes;
    W* out = packed + (group * vectors + panel * panel_width) * kLanes * packed_rows() + vector % panel_width * kLanes;
    if constexpr (kPair == 1) {
      if (folded) pack_folded(k0, nk, out, pitch);
      else pack_rows(group, k0, nk, out, pitch);
    } else {
      std::memset(static_cast<void*>(staging), 0, static_cast<size_t>(kdim) * kLanes * sizeof(Acc));
      pack_rows(group, k0, nk, staging, kLanes);
      [[maybe_unused]] bool special = false;
      for (int64_t row = 0; row < kdim; row += kPair) {
        const Vec<Acc> even = load(staging + row * kLanes), odd = load(staging + (row + 1) * kLanes);
        if constexpr (kTiles) special |= P::pack_pair(out + packed_row(row) * pitch, 16 * pitch, even, odd);
        else P::pack_pair(out + packed_row(row) * pitch, even, odd);
      }
      if constexpr (kStored > 1) special_weights[group * vectors + vector] = special;
    }
  }

  void load_bias(int64_t group, int64_t vector) {
    const int64_t k0 = vector * kLanes;
    const int nk = static_cast<int>(least(kLanes, kg - k0));
    const Vec<Acc> b =
        p.bias == nullptr ? Vec<Acc>(Acc(0)) : load_n(static_cast<const S*>(p.bias) + group * kg + k0, nk);
    store(bias + (group * vectors + vector) * kLanes, b);
  }

  // Rows (tap, channel) of one vector of output channels, `pitch` apart.
  void pack_rows(int64_t group, int64_t k0, int nk, Acc* out, int64_t pitch) {
    const int64_t taps = p.kernel[0] * p.kernel[1] * p.kernel[2], columns = p.transposed ? kg : cg;
    const int64_t row_step = columns * taps, column_step = p.weight_channels_last ? 1 : taps;
    const int64_t tap_step = p.weight_channels_last ? columns : 1;
    const int64_t k_step = p.transposed ? column_step : row_step, c_step = p.transposed ? row_step : column_step;
    const S* w = static_cast<const S*>(p.w) + group * (p.transposed ? cg * row_step : kg * row_step) + k0 * k_step;
    if (k_step == 1) {
      for (int64_t tap = 0; tap < taps; ++tap)
        for (int64_t c = 0; c < cg; ++c)
          store(out + (tap_rows[tap] + c) * pitch, load_n(w + c * c_step + tap * tap_step, nk));
    } else if (p.transposed) {
      for (int64_t c = 0; c < cg; ++c) transpose_run(w + c * c_step, k_step, nk, taps, taps, c, 0, out, pitch);
    } else if (p.weight_channels_last) {
      for (int64_t tap = 0; tap < taps; ++tap) transpose_run(w + tap * tap_step, k_step, nk, cg, 1, 0, tap, out, pitch);
    } else {
      transpose_run(w, k_step, nk, cg * taps, taps, 0, 0, out, pitch);
    }
  }

  void pack_folded(int64_t k0, int nk, Acc* out, int64_t pitch) {
    const int64_t taps = p.kernel[0] * p.kernel[1] * p.kernel[2], group_out = p.k / p.groups;
    for (int64_t tap = 0; tap < taps; ++tap)
      for (int64_t c = 0; c < cg; ++c)
        for (int i = 0; i < kLanes; ++i) {
          const int64_t k = k0 + i, row = p.transposed ? k / group_out * cg + c : k;
          const int64_t columns = p.transposed ? group_out : cg, column = p.transposed ? k % group_out : c;
          const int64_t at =
              p.weight_channels_last ? (row * taps + tap) * columns + column : (row * columns + column) * taps + tap;
          out[(tap_rows[tap] + c) * pitch + i] = i < nk ? load_one(static_cast<const S*>(p.w) + at) : Acc(0);
        }
  }

  // A run of `length` weights that are consecutive in each of nk output channels; they walk through `taps` taps, then
  // on to the next channel, from (channel, tap).
  void transpose_run(const S* w, int64_t k_step, int nk, int64_t length, int64_t taps, int64_t channel, int64_t tap,
                     Acc* out, int64_t pitch) {
    const int64_t first_tap = tap;
    for (int64_t q = 0; q < length; q += kLanes) {
      const int m = static_cast<int>(least(kLanes, length - q));
      Vec<Acc> square[kLanes];
      load_square(square, w + q, k_step, nk, m);
      for (int i = 0; i < m; ++i) {
        store(out + (tap_rows[tap] + channel) * pitch, square[i]);
        if (++tap == first_tap + taps) tap = first_tap, ++channel;
      }
    }
  }

  // ---- copying the inputs of a chunk
  // ---------------------------------------------------------------------------------

  FASTCV_INLINE void put(X* out, Acc v) {
    if constexpr (std::is_same_v<X, Acc>) *out = v;
    else store_one(out, v);
  }

  // n consecutive elements.
  static void copy(X* out, const S* from, int64_t n) {
    if constexpr (std::is_same_v<X, S>) {
      for (int64_t i = 0; i < n; ++i) out[i] = from[i];
    } else {
      int64_t i = 0;
      for (; i + kLanes <= n; i += kLanes) store(out + i, load(from + i));
      if (i < n) store_n(out + i, load_n(from + i, static_cast<int>(n - i)), static_cast<int>(n - i));
    }
  }

  // [channels][plane] -> [pixels][length] for a run of pixels.
  static void copy_transposed(X* out, int64_t length, const S* from, int64_t plane, int64_t channels, int64_t pixels) {
    for (int64_t c = 0; c < channels; c += kLanes) {
      const int nc = static_cast<int>(least(kLanes, channels - c));
      const int stored = static_cast<int>(least(kLanes, length - c));  // with the zeros that pad the pixel
      for (int64_t i = 0; i < pixels; i += kLanes) {
        const int ni = static_cast<int>(least(kLanes, pixels - i));
        Vec<Acc> square[kLanes];
        load_square(square, from + c * plane + i, plane, nc, ni);
        X* to = out + i * length + c;
        if (stored == kLanes && ni == kLanes) {
#pragma GCC unroll 16
          for (int j = 0; j < kLanes; ++j) store(to + j * length, square[j]);
        } else {
          for (int j = 0; j < ni; ++j) store_n(to + j * length, square[j], stored);
        }
      }
    }
  }

  const S* input(const Chunk& c, int64_t id, int64_t ih, int64_t iw) const {
    const S* x = static_cast<const S*>(p.x);
    const int64_t pixel = (id * p.in[1] + ih) * p.in[2] + iw;
    return p.channels_last ? x + (c.n * in_pixels() + pixel) * p.c + c.group * cg
                           : x + (c.n * p.c + c.group * cg) * in_pixels() + pixel;
  }

  void fill_window(Chunk& c) {
    const int64_t length = pixel_length, channels = folded ? p.c : cg;
    const Range *rd = &c.inputs[0], *rh = &c.inputs[1], *rw = &c.inputs[2];
    const bool whole_rows = rw->size == p.in[2];
    const int64_t lines = whole_rows ? 1 : rh->size;  // whole rows follow each other without a gap
    const int64_t run = whole_rows ? rh->size * rw->size : rw->size;
    c.pitch[2] = length;
    c.pitch[1] = rw->size * length;
    c.pitch[0] = rh->size * c.pitch[1];
    c.origin = c.window - (rd->begin * c.pitch[0] + rh->begin * c.pitch[1] + rw->begin * c.pitch[2]);
    for (int64_t i = 0; i < rd->size; ++i)
      for (int64_t line = 0; line < lines; ++line) {
        X* out = c.window + i * c.pitch[0] + line * c.pitch[1];
        const S* from = input(c, rd->begin + i, rh->begin + line, rw->begin);
        if (!p.channels_last) {
          copy_transposed(out, length, from, in_pixels(), channels, run);
        } else if (channels == p.c && channels == length) {
          copy(out, from, run * channels);
        } else {
          for (int64_t j = 0; j < run; ++j) {
            copy(out + j * length, from + j * p.c, channels);
            for (int64_t k = channels; k < length; ++k) put(out + j * length + k, Acc(0));
          }
        }
      }
  }

  // The lines as they are, [column][channel], with the zeros beside the image: where taps are neighbours, those of a
  // cell lie side by side, and those of the next cell overlap them.
  void fill_overlapping(Chunk& c, const Taps& taps) {
    const int64_t columns = overlapping_columns(c.cells[2]), first = c.cell[2] * d[2].in_step + taps.offset;
    const int64_t lo = least(columns, most(0, -first)), hi = most(lo, least(columns, d[2].in - first));
    const Range *rd = &c.inputs[0], *rh = &c.inputs[1];
    c.pitch[2] = d[2].in_step * cg;
    c.pitch[1] = columns * cg;
    c.pitch[0] = rh->size * c.pitch[1];
    c.origin = c.window - (rd->begin * c.pitch[0] + rh->begin * c.pitch[1] + c.cell[2] * c.pitch[2]);
    X* out = c.window;
    for (int64_t i = 0; i < rd->size; ++i)
      for (int64_t line = 0; line < rh->size; ++line, out += c.pitch[1]) {
        const S* from = input(c, rd->begin + i, rh->begin + line, first + lo);
        for (int64_t j = 0; j < lo * cg; ++j) put(out + j, Acc(0));
        if (!p.channels_last) interleave(out + lo * cg, from, hi - lo);
        else if (cg == p.c) copy(out + lo * cg, from, (hi - lo) * cg);
        else
          for (int64_t j = lo; j < hi; ++j) copy(out + j * cg, from + (j - lo) * p.c, cg);
        for (int64_t j = hi * cg; j < columns * cg; ++j) put(out + j, Acc(0));
      }
  }
  // cg planes -> [pixels][cg]
  void interleave(X* out, const S* from, int64_t pixels) {
    const int64_t plane = in_pixels();
    int64_t j = 0;
    if constexpr (std::is_same_v<X, Acc>)
      if (cg == 3)
        for (; j + kLanes <= pixels; j += kLanes)
          store_threes(out + 3 * j, load(from + j), load(from + plane + j), load(from + 2 * plane + j));
    for (; j < pixels; ++j)
      for (int64_t k = 0; k < cg; ++k) put(out + j * cg + k, load_one(from + k * plane + j));
  }

  // The taps along the width side by side: one pixel per cell, [tap][channel].
  void fill_merged(Chunk& c, const Taps& taps) {
    const int64_t length = row_length(taps.count), cells = c.cells[2];
    const Range *rd = &c.inputs[0], *rh = &c.inputs[1];
    const int64_t w_step = p.channels_last ? p.c : 1, c_step = p.channels_last ? 1 : in_pixels();
    c.pitch[2] = length;
    c.pitch[1] = cells * length;
    c.pitch[0] = rh->size * c.pitch[1];
    c.origin = c.window - (rd->begin * c.pitch[0] + rh->begin * c.pitch[1] + c.cell[2] * length);
    for (int64_t i = 0; i < rd->size; ++i)
      for (int64_t line = 0; line < rh->size; ++line) {
        X* out = c.window + i * c.pitch[0] + line * c.pitch[1];
        const S* from = input(c, rd->begin + i, rh->begin + line, 0);
        for (int64_t tap = 0; tap < taps.count; ++tap) {
          int64_t lo, hi;
          const int64_t first = c.cell[2] * d[2].in_step + taps.offset + tap * taps.offset_step;
          valid(d[2], first, cells, lo, hi);
          for (int64_t k = 0; k < cg; ++k) {
            X* to = out + tap * cg + k;
            const S* s = from + k * c_step + first * w_step;
            const int64_t s_step = d[2].in_step * w_step;
            for (int64_t j = 0; j < lo; ++j) put(to + j * length, Acc(0));
            for (int64_t j = lo; j < hi; ++j) put(to + j * length, load_one(s + j * s_step));
            for (int64_t j = hi; j < cells; ++j) put(to + j * length, Acc(0));
          }
        }
        for (int64_t k = taps.count * cg; k < length; ++k)
          for (int64_t j = 0; j < cells; ++j) put(out + j * length + k, Acc(0));
      }
  }

  // Which of the inputs first, first + in_step, ... (n of them) exist: [lo, hi).
  FASTCV_INLINE void valid(const Dim& dim, int64_t first, int64_t n, int64_t& lo, int64_t& hi) {
    lo = first >= 0 ? 0 : least(n, ceil_div(-first, dim.in_step));
    hi = first >= dim.in ? lo : most(lo, least(n, ceil_div(dim.in - first, dim.in_step)));
  }

  // ---- running a chunk
  // -----------------------------------------------------------------------------------------------

  void run_item(Chunk& c, int64_t item) {
    const int64_t part = item % kparts;
    item /= kparts;
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
    if constexpr (kTiles) {
      for (int i = 0; i < 3; ++i) c.table.flat.inputs[i] = c.inputs[i];
      if (window && !merged) flat.fill(c.table.flat, input(c, 0, 0, 0), c.cell, c.cells, {});
    } else if (!window) {
      c.pitch[2] = p.c;
      c.pitch[1] = p.in[2] * p.c;
      c.pitch[0] = p.in[1] * c.pitch[1];
      c.origin = static_cast<const X*>(p.x) + c.n * p.in[0] * c.pitch[0];
    } else if (!merged) {
      fill_window(c);
    }
    int64_t row = 0, merged_phase = -1;
    for (int64_t fd = 0; fd < d[0].phases; ++fd) {
      const Taps td = d[0].taps(fd);
      const int64_t od = c.cell[0] * d[0].out_step + fd;
      if (od >= d[0].out) break;
      int64_t rows_before = 0;
      for (int64_t fw = 0; fw < d[2].phases; ++fw) {
        const Taps tw = d[2].taps(fw);
        if (merged && merged_phase != fw) {
          if constexpr (kTiles) flat.fill(c.table.flat, input(c, 0, 0, 0), c.cell, c.cells, tw);
          else if (overlapping) fill_overlapping(c, tw);
          else fill_merged(c, tw);
          merged_phase = fw;
        }
        int64_t taps_before = 0;
        for (int64_t fh = 0; fh < d[1].phases; ++fh) {
          const Taps th = d[1].taps(fh);
          const int64_t first_row = row + td.count * (taps_before * rows_w + th.count * rows_before);
          if constexpr (kTiles) run_tile_phase(c, od, fh, fw, td, th, tw, first_row);
          else run_phase(c, od, fh, fw, td, th, tw, first_row);
          taps_before += th.count;
        }
        rows_before += row_length(tw.count);
      }
      if (many_phases)
        for (int64_t panel = c.first_panel; panel < c.last_panel; ++panel)
          if (!direct(panel)) finish(c, od, panel);
      row += td.count * d[1].kernel * rows_w;
    }
  }

  void run_phase(Chunk& c, int64_t od, int64_t fh, int64_t fw, const Taps& td, const Taps& th, const Taps& tw,
                 int64_t row) {
    const int64_t nh = d[1].outputs(fh, c.cell[1], c.cells[1]), nw = d[2].outputs(fw, c.cell[2], c.cells[2]);
    const int64_t pixels = nh * nw;
    if (pixels == 0) return;
    const int64_t taps = tabulate(c, nh, nw, td, th, tw);
    Strip<P> s;
    s.zeros = zeros;
    s.row_pitch = pixels;
    s.taps = taps;
    s.steps = (merged ? row_length(tw.count) : round_up(cg, kPair)) / kPair;
    s.segment = P::kRounds ? s.taps * s.steps + 1 : segment_of(s.taps * s.steps);
    s.group_in = static_cast<int>(cg);
    s.group_out = static_cast<int>(p.k / p.groups);
    s.channel = window ? 0 : c.group * cg;
    s.places = c.places;
    int64_t tabulated_pitch = -1;
    for (int64_t panel = c.first_panel; panel < c.last_panel; ++panel) {
      const int64_t v0 = panel * panel_width;
      const int nv = panel_vectors(panel);
      const int64_t pitch = direct(panel) ? d[2].out : c.columns;
      if (pitch != tabulated_pitch) {
        int64_t* place = c.places;
        for (int64_t i = 0; i < nh; ++i)
          for (int64_t j = 0; j < nw; ++j) *place++ = (i * d[1].out_step + fh) * pitch + j * d[2].out_step + fw;
        tabulated_pitch = pitch;
      }
      s.rows = c.table;
      s.weights = packed + (c.group * vectors + v0) * kLanes * (kdim / kPair) + row / kPair * nv * kLanes;
      s.bias = bias + (c.group * vectors + v0) * kLanes;
      if (folded) s.channel = v0 * kLanes / s.group_out * cg;
      s.rounded = nullptr;
      if (direct(panel)) {
        const int64_t first = first_output(c, od) * p.k + c.group * kg + v0 * kLanes;
        if constexpr (P::kRounds) s.rounded = static_cast<X*>(p.y) + first;
        else s.out = static_cast<Acc*>(p.y) + first;
        s.out_pitch = p.k;
        multiply(s, pixels, nv);
      } else if (many_phases) {
        s.out = sums_of(c, panel);
        s.out_pitch = nv * kLanes;
        multiply(s, pixels, nv);
      } else {
        // One phase: pixels and places are consecutive, and few sums at a time stay in the first-level cache.
        s.out = c.sums;
        s.out_pitch = nv * kLanes;
        for (int64_t i = 0; i < pixels; i += kBlock) {
          const int64_t n = least(kBlock, pixels - i);
          s.rows = c.table + i;
          multiply(s, n, nv);
          finish_run(c, panel, c.sums, first_output(c, od) + i, n);
        }
      }
    }
  }
  // The same on matrix tiles.
  void run_tile_phase(Chunk& c, int64_t od, int64_t fh, int64_t fw, const Taps& td, const Taps& th, const Taps& tw,
                      int64_t row) {
    const int64_t nh = d[1].outputs(fh, c.cell[1], c.cells[1]), nw = d[2].outputs(fw, c.cell[2], c.cells[2]);
    if (nh * nw == 0) return;
    TileTable<P, S>& table = c.table;
    TileStrip s;
    s.steps = tabulate_steps(c, td, th, tw);
    s.pixel_steps = table.pixel_steps;
    s.weight_steps = table.weight_steps;
    if (window) {
      table.cut(c.window, flat.pixel(), nh, nw, false, 0);
    } else if constexpr (std::is_same_v<S, X>) {
      table.flat.columns = p.in[2];
      table.cut(input(c, od, c.cell[1], c.cell[2]), p.c, nh, nw, true, cg);
    }
    int64_t tabulated_pitch = -1;
    for (int64_t panel = c.first_panel; panel < c.last_panel; ++panel) {
      const int64_t v0 = panel * panel_width;
      const int nv = panel_vectors(panel);
      s.weights = packed + ((c.group * vectors + v0) * packed_rows() + packed_row(row) * nv) * kLanes;
      s.bias = bias + (c.group * vectors + v0) * kLanes;
      s.tiles = table.tiles;
      s.first_place = 0;
      if (!direct(panel) && !many_phases) {
        s.out = c.sums;
        s.out_pitch = nv * kLanes;
        for (int64_t t = 0; t < table.count; t += kBlock / kTilePixels) {
          const int64_t end = least(table.count, t + kBlock / kTilePixels), first = table.before[t];
          s.tiles = table.tiles + t;
          s.places = table.outputs + t * kTilePixels;
          s.first_place = first;
          P::run(s, end - t, nv);
          finish_run(c, panel, c.sums, first_output(c, od) + first, table.before[end] - first);
        }
        continue;
      }
      const int64_t pitch = direct(panel) ? d[2].out : c.columns;
      if (pitch != tabulated_pitch) table.tabulate_places(nw, d[1].out_step * pitch, d[2].out_step, fh * pitch + fw);
      tabulated_pitch = pitch;
      s.places = table.places;
      s.out = sums_of(c, panel);
      s.out_pitch = nv * kLanes;
      if (direct(panel)) {
        s.out = static_cast<Acc*>(p.y) + first_output(c, od) * p.k + c.group * kg + v0 * kLanes;
        s.out_pitch = p.k;
      }
      P::run(s, table.count, nv);
    }
  }

  // Where the products of a phase find their pixels and weights, 32 channels at a time; returns their number. The
  // products of smaller parts all come first: while sums are small they round little.
  int64_t tabulate_steps(Chunk& c, const Taps& td, const Taps& th, const Taps& tw) {
    TileTable<P, S>& table = c.table;
    const int64_t width_taps = merged ? least(1, tw.count) : tw.count,
                  length = merged ? row_length(tw.count) : pixel_length;
    int64_t n = 0;
    for (int i = 0; i < P::kProducts; ++i) {
      const auto parts = P::product(i);
      const int64_t x_part = window ? P::stored(parts.x, parts.w, table.flat.special) * flat.length : 0;
      const int64_t w_part = P::stored(parts.w, parts.x, any_special_weight) * (kRound / kPair);
      int64_t row = 0;
      for (int64_t jd = 0; jd < td.count; ++jd) {
        const int64_t id = c.cell[0] * d[0].in_step + td.offset + jd * td.offset_step;
        if (id < 0 || id >= d[0].in) {  // which taps are left out depends on the output's depth alone
          row += th.count * row_length(tw.count);
          continue;
        }
        for (int64_t jh = 0; jh < th.count; ++jh)
          for (int64_t jw = 0; jw < width_taps; ++jw) {
            const int64_t at = (window ? flat.offset(table.flat, id, th, jh, tw, jw) : 0) + x_part;
            for (int64_t k = 0; k < length; k += kRound, row += kRound) {
              table.pixel_steps[n] = (at + k) * static_cast<int64_t>(sizeof(X));
              table.weight_steps[n++] = packed_row(row) + w_part;
            }
          }
      }
    }
    return n;
  }

  static constexpr int64_t kBlock = 96;  // pixels; a multiple of the rows of every tile and of every vector's width

  void multiply(const Strip<P>& s, int64_t pixels, int nv) const {
    if (!folded) {
      run_strip<P>(s, pixels, nv);
    } else if constexpr (kPair == 1) {
      if (nv == 1) run_group_strip<Acc, 1>(s, pixels);
      else run_group_strip<Acc, kGroupPanelVectors>(s, pixels);
    }
  }

  Acc* sums_of(const Chunk& c, int64_t panel) const { return c.sums + (many_phases ? panel * sum_panel : 0); }
  // The chunk's first pixel in y.
  int64_t first_output(const Chunk& c, int64_t od) const {
    return ((c.n * d[0].out + od) * d[1].out + c.cell[1] * d[1].out_step) * d[2].out + c.cell[2] * d[2].out_step;
  }

  // Fills the table with the address of each pixel's input for each tap; returns the number of taps.
  int64_t tabulate(Chunk& c, int64_t nh, int64_t nw, const Taps& td, const Taps& th, const Taps& tw) {
    const X** out = c.table;
    const int64_t width_taps = merged ? least(1, tw.count) : tw.count;
    for (int64_t jd = 0; jd < td.count; ++jd) {
      const int64_t id = c.cell[0] * d[0].in_step + td.offset + jd * td.offset_step;
      for (int64_t jh = 0; jh < th.count; ++jh)
        for (int64_t jw = 0; jw < width_taps; ++jw) {
          int64_t first = c.cell[2], step = 1, lo = 0, hi = nw;
          if (!merged) {
            step = d[2].in_step;
            first = c.cell[2] * step + tw.offset + jw * tw.offset_step;
            valid(d[2], first, nw, lo, hi);
          }
          for (int64_t i = 0; i < nh; ++i) {
            const int64_t ih = (c.cell[1] + i) * d[1].in_step + th.offset + jh * th.offset_step;
            if (id < 0 || id >= d[0].in || ih < 0 || ih >= d[1].in) {
              for (int64_t j = 0; j < nw; ++j) *out++ = zeros;
              continue;
            }
            const X* x = c.origin + id * c.pitch[0] + ih * c.pitch[1] + first * c.pitch[2];
            const int64_t x_step = step * c.pitch[2];
            for (int64_t j = 0; j < lo; ++j) *out++ = zeros;
            for (int64_t j = lo; j < hi; ++j) *out++ = x + j * x_step;
            for (int64_t j = hi; j < nw; ++j) *out++ = zeros;
          }
        }
    }
    return td.count * th.count * width_taps;
  }

  // ---- from sums to y
  // ------------------------------------------------------------------------------------------------

  // All sums of a chunk's plane.
  void finish(const Chunk& c, int64_t od, int64_t panel) {
    const int64_t lines = least(c.cells[1] * d[1].out_step, d[1].out - c.cell[1] * d[1].out_step);
    const int64_t pitch = panel_vectors(panel) * kLanes, first = first_output(c, od);
    if (c.columns == d[2].out) return finish_run(c, panel, sums_of(c, panel), first, lines * c.columns);
    for (int64_t i = 0; i < lines; ++i)
      finish_run(c, panel, sums_of(c, panel) + i * c.columns * pitch, first + i * d[2].out, c.columns);
  }

  // Sums of consecutive pixels of y, of which `pixel` is the first (counted through all images).
  void finish_run(const Chunk& c, int64_t panel, const Acc* sums, int64_t pixel, int64_t pixels) {
    const int64_t k0 = panel * panel_width * kLanes, pitch = panel_vectors(panel) * kLanes;
    const int64_t nk = least(pitch, kg - k0), channel = c.group * kg + k0;
    if (p.channels_last) {
      store_pixels(sums, pitch, pixel * p.k + channel, nk, pixels);
    } else {
      const int64_t plane = d[0].out * d[1].out * d[2].out;
      store_planes(sums, pitch, (c.n * p.k + channel) * plane + pixel - c.n * plane, plane, nk, pixels);
    }
  }

  void store_pixels(const Acc* sums, int64_t pitch, int64_t at, int64_t nk, int64_t pixels) const {
    for (int64_t i = 0; i < pixels; ++i, sums += pitch, at += p.k)
      for (int64_t k = 0; k < nk; k += kLanes)
        store_final<S>(p, at + k, load(sums + k), static_cast<int>(least(kLanes, nk - k)));
  }

  void store_planes(const Acc* sums, int64_t pitch, int64_t at, int64_t plane, int64_t nk, int64_t pixels) const {
    for (int64_t k = 0; k < nk; k += kLanes)
      for (int64_t i = 0; i < pixels; i += kLanes) {
        const int n = static_cast<int>(least(kLanes, pixels - i));
        const int m = static_cast<int>(least(kLanes, nk - k));
        Vec<Acc> square[kLanes];
        load_square(square, sums + i * pitch + k, pitch, n, kLanes);
        store_final_square<S>(p, at + k * plane + i, plane, square, m, n);
      }
  }

  const ConvParams& p;
  Dim d[3];
  bool folded;              // small groups run together
  int64_t cg, kg, groups;   // channels per group; folded, kg is of all groups, which count as one
  int64_t pixel_length;     // of an input pixel, in the window or in x
  int64_t panel_width;      // vectors of a whole panel
  int64_t vectors, panels;  // of output channels, per group
  int64_t rows_w, kdim;     // packed rows: of one (d, h) tap, of all
  bool window, merged;      // inputs are copied; with the taps along the width side by side
  bool overlapping;         // merged, and neighbours share what they read
  bool many_phases;         // in a plane: sums of all panels wait until all phases are done
  int64_t rows, cols;       // cells of a chunk
  int64_t row_chunks, col_chunks, kparts, items;
  std::conditional_t<kTiles, FlatWindow<P, S>, int> flat;
  TileLimits limits;
  bool any_special_weight;
  size_t special_at, packed_bytes, bias_at, zeros_at, tap_rows_at, shared_bytes, table_at, places_at, sums_at,
      slot_bytes, slots;
  int64_t zero_length, sum_panel;
  W* packed;
  Acc* bias;
  X* zeros;
  int64_t* tap_rows;
  char* special_weights;
};

}  // namespace fastcv::FASTCV_ISA
