// How a convolution is cut into work, for the kernels that run it as a product of gathered pixels and packed weights.
//
// A transposed convolution writes the outputs of every residue modulo the stride ("phase") separately: within a phase
// it is an ordinary convolution with stride 1 and those taps that meet whole input positions, so no zeros are inserted.
// An ordinary convolution has one phase. Along each dim, output o = cell * out_step + phase reads the inputs
// cell * in_step + offset; the offsets of a phase's taps form an arithmetic progression.
#pragma once
#include "common/simd.h"
#include "conv/conv.h"

namespace fastcv::FASTCV_ISA {

FASTCV_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
FASTCV_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
FASTCV_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
FASTCV_INLINE int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }
FASTCV_INLINE int64_t round_up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }

// The taps of one phase of one dim: kernel index first + j * step at input offset offset + j * offset_step.
struct Taps {
  int64_t count, first, step, offset, offset_step;
};

struct Dim {
  int64_t in, out, kernel, stride, dilation, pad;
  bool transposed;
  int64_t in_step, out_step;  // per cell
  int64_t cells, phases;      // phases that have a cell
  int64_t tap_step;           // between the kernel indices of a phase
  int64_t low, high;          // least and greatest offset of any tap of any phase

  // The phase that kernel index r belongs to.
  int64_t phase_of(int64_t r) const {
    if (!transposed) return 0;
    const int64_t f = (r * dilation - pad) % stride;
    return f < 0 ? f + stride : f;
  }
  // Outputs of a phase among `n` cells that start at `cell`.
  int64_t outputs(int64_t phase, int64_t cell, int64_t n) const {
    return most(0, least(n, ceil_div(out - phase, out_step) - cell));
  }
  Taps taps(int64_t phase) const {
    if (!transposed) return {kernel, 0, 1, -pad, dilation};
    for (int64_t r = 0; r < least(tap_step, kernel); ++r)
      if (phase_of(r) == phase)
        return {ceil_div(kernel - r, tap_step), r, tap_step, (phase + pad - r * dilation) / stride,
                -(dilation * tap_step / stride)};
    return {0, 0, 1, 0, 0};
  }
};

static inline Dim make_dim(const ConvParams& p, int i) {
  Dim d{p.in[i], p.out[i], p.kernel[i], p.stride[i], p.dilation[i], p.pad[i], p.transposed, 1, 1, 0, 1, 1, 0, 0};
  if (d.transposed) {
    d.out_step = d.stride;
    int64_t a = d.stride, b = d.dilation;
    while (b != 0) {
      const int64_t t = a % b;
      a = b;
      b = t;
    }
    d.tap_step = d.stride / a;
    d.low = floor_div(d.pad - (d.kernel - 1) * d.dilation, d.stride);
    d.high = (d.stride - 1 + d.pad) / d.stride;
  } else {
    d.in_step = d.stride;
    d.low = -d.pad;
    d.high = (d.kernel - 1) * d.dilation - d.pad;
  }
  d.cells = ceil_div(d.out, d.out_step);
  d.phases = least(d.out_step, d.out);
  return d;
}

// Which of the positions first, first + step, ... lie in [0, last]: those numbered from begin to end; of the first n.
struct Span {
  int64_t begin, end;
};
FASTCV_INLINE Span inside(int64_t first, int64_t step, int64_t last) {
  const int64_t begin = first >= 0 ? 0 : ceil_div(-first, step);
  return {begin, last < first ? begin : most(begin, (last - first) / step + 1)};
}
FASTCV_INLINE Span inside(int64_t first, int64_t step, int64_t last, int64_t n) {
  const Span all = inside(first, step, last);
  const int64_t begin = least(n, all.begin);
  return {begin, most(begin, least(n, all.end))};
}

// A range of inputs along a dim, clipped to what exists.
struct Range {
  int64_t begin, size;
};
static inline Range inputs_of(const Dim& d, int64_t cell, int64_t cells) {
  const int64_t begin = most(0, cell * d.in_step + d.low);
  const int64_t end = least(d.in, (cell + cells - 1) * d.in_step + d.high + 1);
  return {begin, most(0, end - begin)};
}
// The largest such range of `cells` cells.
static inline int64_t inputs_bound(const Dim& d, int64_t cells) {
  return least(d.in, (cells - 1) * d.in_step + d.high - d.low + 1);
}

}  // namespace fastcv::FASTCV_ISA
