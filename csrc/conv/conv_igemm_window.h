// The copy of a chunk's inputs that register tiles gather their pixels from where they cannot read x in place; what
// FlatWindow (conv_flat.h) is to matrix tiles. Pixels are of the arithmetic's type and padded with zeros, in one of
// three forms:
//   plain        [depth][line][column][channel]: what exists of the inputs that the chunk reads
//   merged       [depth][line][cell][tap, channel]: the taps along the width side by side, zeros beside the image
//   overlapping  [depth][line][column][channel], zeros beside the image: where taps are neighbours, those of a cell lie
//                side by side as they are, and those of the next cell overlap them
#pragma once
#include "conv/conv_plan.h"
#include "conv/conv_tile.h"

namespace fastcv::FASTCV_ISA {

template <class P, class S>
struct CopiedWindow {
  using X = typename P::X;
  using Acc = typename P::Acc;
  static constexpr int kLanes = Vec<Acc>::width;

  // What a chunk's window looks like: pixel (d, h, w) at origin + d * pitch[0] + h * pitch[1] + w * pitch[2] elements.
  struct Chunk {
    X* window;
    Range inputs[3];
    const X* origin;
    int64_t pitch[3];
  };

  const ConvParams* p;
  const Dim* d;
  int64_t channels, length;  // of a pixel; with its zeros, the longest where the taps are merged
  bool merged, overlapping;

  void plan(const ConvParams& params, const Dim* dims, int64_t pixel_channels, int64_t pixel_length, bool merge) {
    p = &params, d = dims, channels = pixel_channels, length = pixel_length, merged = merge;
    overlapping =
        merged && !d[2].transposed && d[2].dilation == 1 && merged_length(d[2].kernel) == d[2].kernel * channels;
  }

  int64_t elements(int64_t rows, int64_t cols) const {
    const int64_t lines = inputs_bound(d[0], 1) * inputs_bound(d[1], rows);
    if (overlapping) return lines * overlapping_columns(cols) * channels;
    return lines * (merged ? cols : inputs_bound(d[2], cols)) * length;
  }

  // first: the first input of image and group; cell, cells: of the chunk; tw: merged taps.
  void fill(Chunk& c, const S* first, const int64_t* cell, const int64_t* cells, const Taps& tw) const {
    if (!merged) fill_plain(c, first);
    else if (overlapping) fill_overlapping(c, first, cell[2], cells[2], tw);
    else fill_merged(c, first, cell[2], cells[2], tw);
  }

 private:
  int64_t merged_length(int64_t taps) const { return round_up(taps * channels, P::kPair); }
  int64_t overlapping_columns(int64_t cells) const { return (cells - 1) * d[2].in_step + d[2].kernel; }
  int64_t in_pixels() const { return p->in[0] * p->in[1] * p->in[2]; }
  const S* input(const S* first, int64_t id, int64_t ih, int64_t iw) const {
    return first + ((id * p->in[1] + ih) * p->in[2] + iw) * (p->channels_last ? p->c : 1);
  }

  // Pixels and lines so many elements apart; the first of a line is the one for `column`.
  void set_pitches(Chunk& c, int64_t pixel, int64_t line, int64_t column) const {
    c.pitch[2] = pixel;
    c.pitch[1] = line;
    c.pitch[0] = c.inputs[1].size * c.pitch[1];
    c.origin = c.window - (c.inputs[0].begin * c.pitch[0] + c.inputs[1].begin * c.pitch[1] + column * c.pitch[2]);
  }

  void fill_plain(Chunk& c, const S* first) const {
    const int64_t channels = this->channels, length = this->length;
    const Range *rd = &c.inputs[0], *rh = &c.inputs[1], *rw = &c.inputs[2];
    const bool whole_rows = rw->size == p->in[2];
    const int64_t lines = whole_rows ? 1 : rh->size;  // whole rows follow each other without a gap
    const int64_t run = whole_rows ? rh->size * rw->size : rw->size;
    set_pitches(c, length, rw->size * length, rw->begin);
    for (int64_t i = 0; i < rd->size; ++i)
      for (int64_t line = 0; line < lines; ++line) {
        X* out = c.window + i * c.pitch[0] + line * c.pitch[1];
        const S* from = input(first, rd->begin + i, rh->begin + line, rw->begin);
        if (!p->channels_last) {
          copy_transposed(out, from, run);
        } else if (channels == p->c && channels == length) {
          copy(out, from, run * channels);
        } else {
          for (int64_t j = 0; j < run; ++j) {
            copy(out + j * length, from + j * p->c, channels);
            for (int64_t k = channels; k < length; ++k) put(out + j * length + k, Acc(0));
          }
        }
      }
  }

  void fill_overlapping(Chunk& c, const S* x, int64_t cell, int64_t cells, const Taps& taps) const {
    const int64_t columns = overlapping_columns(cells), first = cell * d[2].in_step + taps.offset, cg = channels;
    const int64_t lo = least(columns, most(0, -first)), hi = most(lo, least(columns, d[2].in - first));
    const Range *rd = &c.inputs[0], *rh = &c.inputs[1];
    set_pitches(c, d[2].in_step * cg, columns * cg, cell);
    X* out = c.window;
    for (int64_t i = 0; i < rd->size; ++i)
      for (int64_t line = 0; line < rh->size; ++line, out += c.pitch[1]) {
        const S* from = input(x, rd->begin + i, rh->begin + line, first + lo);
        for (int64_t j = 0; j < lo * cg; ++j) put(out + j, Acc(0));
        if (!p->channels_last) interleave(out + lo * cg, from, hi - lo);
        else if (cg == p->c) copy(out + lo * cg, from, (hi - lo) * cg);
        else
          for (int64_t j = lo; j < hi; ++j) copy(out + j * cg, from + (j - lo) * p->c, cg);
        for (int64_t j = hi * cg; j < columns * cg; ++j) put(out + j, Acc(0));
      }
  }

  void fill_merged(Chunk& c, const S* x, int64_t cell, int64_t cells, const Taps& taps) const {
    const int64_t size = merged_length(taps.count), cg = channels;
    const Range *rd = &c.inputs[0], *rh = &c.inputs[1];
    const int64_t w_step = p->channels_last ? p->c : 1, c_step = p->channels_last ? 1 : in_pixels();
    set_pitches(c, size, cells * size, cell);
    for (int64_t i = 0; i < rd->size; ++i)
      for (int64_t line = 0; line < rh->size; ++line) {
        X* out = c.window + i * c.pitch[0] + line * c.pitch[1];
        const S* from = input(x, rd->begin + i, rh->begin + line, 0);
        for (int64_t tap = 0; tap < taps.count; ++tap) {
          const int64_t first = cell * d[2].in_step + taps.offset + tap * taps.offset_step;
          const Span exist = inside(first, d[2].in_step, d[2].in - 1, cells);
          for (int64_t k = 0; k < cg; ++k) {
            X* to = out + tap * cg + k;
            const S* s = from + k * c_step + first * w_step;
            const int64_t s_step = d[2].in_step * w_step;
            for (int64_t j = 0; j < exist.begin; ++j) put(to + j * size, Acc(0));
            for (int64_t j = exist.begin; j < exist.end; ++j) move(to + j * size, s + j * s_step);
            for (int64_t j = exist.end; j < cells; ++j) put(to + j * size, Acc(0));
          }
        }
        for (int64_t k = taps.count * cg; k < size; ++k)
          for (int64_t j = 0; j < cells; ++j) put(out + j * size + k, Acc(0));
      }
  }

  FASTCV_INLINE void put(X* out, Acc v) {
    if constexpr (std::is_same_v<X, Acc>) *out = v;
    else store_one(out, v);
  }

  FASTCV_INLINE void move(X* out, const S* from) {
    if constexpr (std::is_same_v<X, S>) *out = *from;
    else put(out, load_one(from));
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
  void copy_transposed(X* out, const S* from, int64_t pixels) const {
    const int64_t plane = in_pixels(), channels = this->channels, length = this->length;
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

  // [channels][plane] -> [pixels][channels] for a run of pixels of few channels.
  void interleave(X* out, const S* from, int64_t pixels) const {
    const int64_t plane = in_pixels(), cg = channels;
    int64_t j = 0;
    if constexpr (std::is_same_v<X, Acc>)
      if (cg == 3)
        for (; j + kLanes <= pixels; j += kLanes)
          store_threes(out + 3 * j, load(from + j), load(from + plane + j), load(from + 2 * plane + j));
    for (; j < pixels; ++j)
      for (int64_t k = 0; k < cg; ++k) move(out + j * cg + k, from + k * plane + j);
  }
};

}  // namespace fastcv::FASTCV_ISA
