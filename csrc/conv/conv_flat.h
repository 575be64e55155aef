// A window of a convolution's inputs in which the pixels that 16 consecutive outputs read lie at even distances, for
// every tap: what matrix tiles are loaded from. It holds the zeros around the image, and with a stride the inputs are
// sorted by their residue, so that neighbouring outputs read neighbours:
//   [depth][residue of the line][residue of the column][line][column][part][channel]
// Outputs are counted through whole lines of the window; those that fall into its margin are computed and dropped.
// With few channels the taps along the width are laid side by side ("merged"), one column per output.
#pragma once
#include "conv/conv_plan.h"
#include "conv/conv_tile.h"

namespace fastcv::FASTCV_ISA {

inline constexpr int64_t kTilePixels = 16, kTileChannels = 32;

// From one pixel of a tile to the next, of so many elements, whole cache lines: an odd number of lines, so that 16
// pixels lie in 16 sets of the first-level cache.
template <class X>
static inline int64_t tile_pixel_pitch(int64_t elements) {
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(X));
  const int64_t lines = elements / kLine;
  return (lines > 2 ? lines | 1 : lines) * kLine;
}

// How one dim of the window is sorted.
struct Sorted {
  int64_t step, slots, period, reach;  // reach: lines beyond the number of cells
  int64_t slot_of[kMostTileStride];    // of each residue; -1: no tap meets it

  void set(const Dim& d) {
    step = d.in_step;
    int64_t a = d.stride, b = d.dilation;
    while (b != 0) {
      const int64_t t = a % b;
      a = b, b = t;
    }
    period = d.transposed ? 1 : step / a;
    slots = least(d.kernel, period);
    reach = (d.high - d.low) / step;
    for (int64_t i = 0; i < step; ++i) slot_of[i] = -1;
    for (int64_t i = 0; i < slots; ++i) slot_of[d.transposed ? 0 : i * d.dilation % step] = i;
  }
  // Where tap j of a phase finds its input for the first cell: slot and line in it.
  int64_t slot(int64_t j) const { return j % period; }
  int64_t line(const Dim& d, const Taps& taps, int64_t j) const {
    return (taps.offset + j * taps.offset_step - d.low) / step;
  }
};

template <class P, class S>
struct FlatWindow {
  using X = typename P::X;
  using Acc = typename P::Acc;
  static constexpr int kLanes = Vec<Acc>::width;
  static constexpr bool kPlain = std::is_same_v<S, X>;  // copied as it is

  // What a chunk's window looks like.
  struct Chunk {
    X* window;
    int64_t* line_at;    // [inputs]: offset of each input line that the chunk reads, in elements
    int64_t* column_at;  // [inputs]
    int64_t lines, columns;
    Range inputs[3];
    int64_t stored;  // parts of a number: the last of P::kStored only where there are infinities or NaN
    bool special;    // there are, here or among the weights
  };

  const ConvParams* p;
  const Dim* d;
  Sorted h, w;
  int64_t cg, length;  // channels; with what rounds them up, or taps times channels
  bool merged;

  void plan(const ConvParams& params, const Dim* dims, int64_t channels, int64_t pixel_length, bool merge) {
    p = &params, d = dims, cg = channels, length = pixel_length, merged = merge;
    h.set(d[1]);
    w.set(d[2]);
    if (merged) w.slots = w.period = 1, w.reach = 0;
  }

  int64_t pixel(const Chunk& c) const { return pixel_pitch(c.stored); }
  int64_t slot_size(const Chunk& c) const { return c.lines * c.columns * pixel(c); }
  int64_t plane_size(const Chunk& c) const { return h.slots * w.slots * slot_size(c); }
  // A tile may begin at the last pixel.
  int64_t elements(int64_t rows, int64_t cols, int64_t stored = P::kStored) const {
    return (inputs_bound(d[0], 1) * h.slots * w.slots * (rows + h.reach) * (cols + w.reach) + kTilePixels) *
           pixel_pitch(stored);
  }
  int64_t table_entries(int64_t rows, int64_t cols) const {
    return inputs_bound(d[1], rows) + inputs_bound(d[2], cols);
  }

  // Elements from a pixel of the window to what a tap reads for it. `id` must exist.
  int64_t offset(const Chunk& c, int64_t id, const Taps& th, int64_t jh, const Taps& tw, int64_t jw) const {
    const int64_t column = merged ? 0 : w.line(d[2], tw, jw), slot_w = merged ? 0 : w.slot(jw);
    return (id - c.inputs[0].begin) * plane_size(c) + (h.slot(jh) * w.slots + slot_w) * slot_size(c) +
           (h.line(d[1], th, jh) * c.columns + column) * pixel(c);
  }

  // first: the first input of image and group; cell, cells: of the chunk; tw: merged taps; special_weights: there are
  // infinities or NaN among the weights.
  void fill(Chunk& c, const S* first, const int64_t* cell, const int64_t* cells, const Taps& tw,
            bool special_weights) const {
    c.special = special_weights;
    c.stored = special_weights ? P::kStored : P::kParts;
    fill_parts(c, first, cell, cells, tw);
    if (c.special && c.stored < P::kStored) c.stored = P::kStored, fill_parts(c, first, cell, cells, tw);
  }

 private:
  int64_t pixel_pitch(int64_t stored) const { return tile_pixel_pitch<X>(length * stored); }

  void fill_parts(Chunk& c, const S* first, const int64_t* cell, const int64_t* cells, const Taps& tw) const {
    c.lines = cells[1] + h.reach;
    c.columns = cells[2] + w.reach;
    sort(h, d[1], cell[1], c.inputs[1], w.slots * slot_size(c), c.columns * pixel(c), c.line_at);
    if (!merged) sort(w, d[2], cell[2], c.inputs[2], slot_size(c), pixel(c), c.column_at);
    for (int64_t i = 0; i < c.inputs[0].size; ++i) {
      X* out = c.window + i * plane_size(c);
      clear(c, out);
      const int64_t from = (c.inputs[0].begin + i) * p->in[1];
      if (c.inputs[1].size == 0 || c.inputs[2].size == 0) continue;
      if (merged) fill_merged(c, out, first, from, cell[2], cells[2], tw);
      else if (p->channels_last) fill_channels_last(c, out, first, from);
      else fill_row_major(c, out, first, from);
    }
  }

  // Zeros wherever no input will be written, or everywhere if that is in many places.
  void clear(const Chunk& c, X* plane) const {
    const auto zeros = [](X* from, int64_t n) {
      std::memset(static_cast<void*>(from), 0, static_cast<size_t>(n) * sizeof(X));
    };
    const auto covers = [](const Dim& dim, Range inputs, int64_t cells) {
      return inputs.size == (cells - 1) * dim.in_step + dim.high - dim.low + 1;
    };
    const bool whole_pixels = p->channels_last || round_up(cg, kLanes) == length;
    const Range rh = c.inputs[1], rw = c.inputs[2];
    const bool full =
        !p->transposed && h.reach == 0 && w.reach == 0 && covers(d[1], rh, c.lines) && covers(d[2], rw, c.columns);
    if (merged || !whole_pixels || rh.size == 0 || rw.size == 0 || (!full && (h.step > 1 || w.step > 1)))
      return zeros(plane, plane_size(c));
    if (full) return;
    const int64_t line = c.columns * pixel(c), begin = c.column_at[0], end = c.column_at[rw.size - 1] + pixel(c);
    zeros(plane, c.line_at[0]);
    for (int64_t i = 0; i < rh.size; ++i) {
      zeros(plane + c.line_at[i], begin);
      zeros(plane + c.line_at[i] + end, line - end);
    }
    const int64_t written = c.line_at[rh.size - 1] + line;
    zeros(plane + written, c.lines * line - written);
  }

  static void sort(const Sorted& s, const Dim& dim, int64_t cell, Range inputs, int64_t slot_size, int64_t step,
                   int64_t* at) {
    const int64_t first = inputs.begin - (cell * dim.in_step + dim.low);
    int64_t residue = first % s.step, line = first / s.step;
    for (int64_t i = 0; i < inputs.size; ++i) {
      at[i] = s.slot_of[residue] < 0 ? -1 : s.slot_of[residue] * slot_size + line * step;
      if (++residue == s.step) residue = 0, ++line;
    }
  }

  // One pixel's channels, consecutive in memory, and zeros up to a multiple of 32; returns whether one is not finite.
  [[gnu::always_inline]] bool put_pixel(const Chunk& c, X* out, const S* from, int64_t n) const {
    bool special = false;
    if constexpr (kPlain) {
      P::copy(out, from, n);
    } else {
      const int64_t pitch = length, stored = c.stored;
      int64_t k = 0;
      for (; k + kTileChannels <= n; k += kTileChannels)
        special |= P::put(out + k, pitch, stored, load(from + k), load(from + k + kLanes));
      for (; k < n; k += kTileChannels) {
        const int left = static_cast<int>(n - k), high = static_cast<int>(most(0, left - kLanes));
        special |= P::put(out + k, pitch, stored, load_n(from + k, static_cast<int>(least(kLanes, left))),
                          load_n(from + k + (high > 0 ? kLanes : 0), high));
      }
    }
    return special;
  }

  void put(Chunk& c, X* out, Vec<Acc> v) const {
    if constexpr (kPlain) store(out, v);
    else c.special |= P::put(out, length, c.stored, v);
  }

  void fill_channels_last(Chunk& c, X* out, const S* first, int64_t line) const {
    const Range rh = c.inputs[1], rw = c.inputs[2];
    bool special = false;
    for (int64_t i = 0; i < rh.size; ++i) {
      if (c.line_at[i] < 0) continue;
      const S* from = first + ((line + rh.begin + i) * p->in[2] + rw.begin) * p->c;
      X* to = out + c.line_at[i];
      if constexpr (kPlain)
        if (w.step == 1 && pixel(c) == p->c) {
          std::memcpy(static_cast<void*>(to + c.column_at[0]), from, static_cast<size_t>(rw.size * length) * sizeof(X));
          continue;
        }
      for (int64_t j = 0; j < rw.size; ++j)
        if (c.column_at[j] >= 0) special |= put_pixel(c, to + c.column_at[j], from + j * p->c, cg);
    }
    c.special |= special;
  }

  void fill_row_major(Chunk& c, X* out, const S* first, int64_t line) const {
    const Range rh = c.inputs[1], rw = c.inputs[2];
    const int64_t plane = p->in[0] * p->in[1] * p->in[2];
    // Whole lines follow each other without a gap.
    const bool whole = rw.size == p->in[2] && h.step == 1;
    const int64_t run = whole ? rh.size * rw.size : rw.size;
    for (int64_t i = 0; i < (whole ? least(1, rh.size) : rh.size); ++i) {
      if (c.line_at[i] < 0) continue;
      const S* from = first + (line + rh.begin + i) * p->in[2] + rw.begin;
      for (int64_t k = 0; k < cg; k += kLanes) {
        int64_t row = i, column = 0;
        for (int64_t q = 0; q < run; q += kLanes) {
          const int n = static_cast<int>(least(kLanes, run - q));
          Vec<Acc> square[kLanes];
          load_square(square, from + k * plane + q, plane, static_cast<int>(least(kLanes, cg - k)), n);
          for (int j = 0; j < n; ++j) {
            if (c.column_at[column] >= 0) put(c, out + c.line_at[row] + c.column_at[column] + k, square[j]);
            if (++column == rw.size) column = 0, ++row;
          }
        }
      }
    }
  }

  void fill_merged(Chunk& c, X* out, const S* first, int64_t line, int64_t cell, int64_t cells, const Taps& tw) const {
    const Range rh = c.inputs[1];
    const int64_t pixel_step = p->channels_last ? p->c : 1;
    const int64_t channel_step = p->channels_last ? 1 : p->in[0] * p->in[1] * p->in[2];
    // Cells all of whose taps exist, and stand side by side.
    const int64_t reach = (tw.count - 1) * tw.offset_step, at = cell * d[2].in_step + tw.offset;
    const bool side_by_side = tw.count > 0 && tw.offset_step == 1 && pixel_step == cg;
    const Span inner = side_by_side ? inside(at, d[2].in_step, d[2].in - 1 - reach, cells) : Span{cells, cells};
    const int64_t n = tw.count * cg, step = d[2].in_step * pixel_step, pixel = this->pixel(c);
    bool special = false;
    for (int64_t i = 0; i < rh.size; ++i) {
      if (c.line_at[i] < 0) continue;
      const S* from = first + (line + rh.begin + i) * p->in[2] * pixel_step;
      X* to = out + c.line_at[i];
      const auto gather = [&](int64_t j) {
        put_taps(c, to + j * pixel, from, at + j * d[2].in_step, tw, pixel_step, channel_step);
      };
      for (int64_t j = 0; j < inner.begin; ++j) gather(j);
      for (int64_t j = inner.begin; j < inner.end; ++j)
        special |= put_pixel(c, to + j * pixel, from + at * pixel_step + j * step, n);
      for (int64_t j = inner.end; j < cells; ++j) gather(j);
    }
    c.special |= special;
  }

  // The taps of one output from position `at` on, channel by channel.
  void put_taps(Chunk& c, X* to, const S* line, int64_t at, const Taps& tw, int64_t pixel_step,
                int64_t channel_step) const {
    int64_t tap = 0, channel = 0;
    for (int64_t k = 0; k < tw.count * cg; k += kLanes) {
      Acc lanes[kLanes] = {};
      for (int64_t l = 0; l < kLanes && tap < tw.count; ++l) {
        if (at >= 0 && at < d[2].in) lanes[l] = load_one(line + at * pixel_step + channel * channel_step);
        if (++channel == cg) channel = 0, ++tap, at += tw.offset_step;
      }
      put(c, to + k, load(lanes));
    }
  }
};

// 16 pixels, `pitch` bytes apart.
struct PixelTile {
  const void* at;
  int64_t pitch;
};

// What 32 channels of a tap add: how many bytes behind a pixel they begin, and at which row of the weights theirs.
struct TileStep {
  int64_t pixel, row;
};

// One panel's sums over `count` steps. Parts of a pixel follow each other x_part bytes apart.
struct TileSum {
  const TileStep* steps;
  int64_t count;
  int64_t x_part;
  const uint32_t* weights;  // [step][part][16 pairs of channels][vectors][16]
  const uint32_t* clean;    // [step][16 pairs of channels][vectors][16]: their highest parts with zeros for inf and NaN
  const char* ahead;        // lines to fetch into the second-level cache, so many at each step; nullptr: none
  int64_t ahead_lines;
  int64_t rows = 16;  // pixels of a tile
  bool add = false;   // to the sums that stand there
};

// The most that a chunk needs of each.
struct TileLimits {
  int64_t inputs, steps, tiles, tail;
};

// What a chunk's pixels are read through: its window, or x itself where no pixel has a neighbour, and the tiles in it.
template <class P, class S>
struct TileTable {
  using X = typename P::X;
  typename FlatWindow<P, S>::Chunk flat;
  PixelTile* tiles;
  TileStep* steps;
  int64_t *outputs, *places;  // [tiles][16]: number of each pixel's output, or -1; its place where that is another
  int64_t* before;            // [tiles]: outputs in earlier tiles
  X* tail;                    // copy of the last pixels, where x ends before their tile does
  int64_t count;
  struct Cut {
    int64_t nh, nw, columns;
    bool operator==(const Cut&) const = default;
  };
  Cut numbered{};  // what outputs and before are for

  // Lays the arrays out from `base` on; returns how many bytes they take.
  size_t place(char* base, const TileLimits& most) {
    size_t at = 0;
    const auto array = [&](auto*& pointer, int64_t n) {
      pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(base + at);
      at += static_cast<size_t>(round_up(n * static_cast<int64_t>(sizeof *pointer), 64));
    };
    array(flat.line_at, most.inputs);
    array(flat.column_at, most.inputs);
    array(steps, most.steps);
    array(tiles, most.tiles);
    array(before, most.tiles + 1);
    array(outputs, most.tiles * kTilePixels);
    array(places, most.tiles * kTilePixels);
    array(tail, most.tail);
    return at;
  }

  // Cuts nh x nw outputs, whose first reads `first`, into tiles: line by line, or through the margins between lines if
  // that makes fewer. Steps are in elements; `whole`: nothing may be read behind the last output's pixel, whose first
  // `channels` elements are what counts.
  void cut(const X* first, int64_t pixel_step, int64_t nh, int64_t nw, bool whole, int64_t channels) {
    const int64_t per_line = ceil_div(nw, kTilePixels), through = ceil_div((nh - 1) * flat.columns + nw, kTilePixels);
    const bool by_line = nh * per_line < through;
    const int64_t last = (nh - 1) * flat.columns + nw;
    count = by_line ? nh * per_line : through;
    const Cut now{nh, nw, flat.columns};
    const bool same = now == numbered;
    numbered = now;
    int64_t total = 0;
    for (int64_t t = 0; t < count; ++t) {
      const int64_t start = by_line ? t / per_line * flat.columns + t % per_line * kTilePixels : t * kTilePixels;
      tiles[t] = {first + start * pixel_step, pixel_step * static_cast<int64_t>(sizeof(X))};
      if (whole && start + kTilePixels > last) {
        for (int64_t i = 0; i < kTilePixels; ++i) {
          const X* from = first + least(start + i, last - 1) * pixel_step;
          std::memcpy(static_cast<void*>(tail + i * channels), from, static_cast<size_t>(channels) * sizeof(X));
        }
        tiles[t] = {tail, channels * static_cast<int64_t>(sizeof(X))};
      }
      if (same) continue;
      before[t] = total;
      int64_t line = start / flat.columns, column = start % flat.columns;
      for (int64_t i = 0; i < kTilePixels; ++i) {
        const bool exists = line < nh && column < nw;
        outputs[t * kTilePixels + i] = exists ? line * nw + column : -1;
        total += exists;
        if (++column == flat.columns && !by_line) column = 0, ++line;
      }
    }
    if (!same) before[count] = total;
  }

  // Output (i, j) of nw in a line to place i * line_pitch + j * step + first.
  void tabulate_places(int64_t nw, int64_t line_pitch, int64_t step, int64_t first) {
    for (int64_t i = 0; i < count * kTilePixels; ++i)
      places[i] = outputs[i] < 0 ? -1 : outputs[i] / nw * line_pitch + outputs[i] % nw * step + first;
  }
};

}  // namespace fastcv::FASTCV_ISA
