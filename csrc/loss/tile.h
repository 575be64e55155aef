// Tiles for losses over rows or columns, for files compiled per instruction set.
//
// A "column tile" holds the class scores of `width` samples, class after class, so that one vector is one class of many
// samples: what a (N, C, H, W) tensor already looks like in memory, and what short rows are turned into.
#pragma once
#include "common/simd.h"

namespace fastcv::FASTCV_ISA {

// n elements from p, the rest 0; `n` may reach a whole vector.
template <class S>
FASTCV_INLINE Vec<acc_t<S>> load_up_to(const S* p, int n) {
  return n >= Vec<acc_t<S>>::width ? load(p) : load_n(p, n);
}
template <class S>
FASTCV_INLINE void store_up_to(S* p, Vec<acc_t<S>> a, int n) {
  if (n >= Vec<acc_t<S>>::width) store(p, a);
  else store_n(p, a, n);
}

// tile[c * step + i] = x[i * classes + c] for i < rows <= width; lanes from `rows` to the width hold zeros.
// `readable`: elements that may be read from x on; whole vectors are read where they fit, junk lanes are dropped.
template <class S>
static inline void load_transposed(const S* x, int rows, int64_t classes, int64_t readable, acc_t<S>* tile,
                                   int64_t step = Vec<acc_t<S>>::width) {
  using V = Vec<acc_t<S>>;
  constexpr int w = V::width;
  if (classes == 2 && rows == w) {
    V first, second;
    unzip(load(x), load(x + w), first, second);
    store(tile, first);
    store(tile + step, second);
    return;
  }
  for (int64_t c0 = 0; c0 < classes; c0 += w) {
    const int columns = static_cast<int>(classes - c0 < w ? classes - c0 : w);
    V block[w];
    if (rows == w && (w - 1) * classes + c0 + w <= readable) {
#pragma GCC unroll 16
      for (int i = 0; i < w; ++i) block[i] = load(x + i * classes + c0);
    } else {
      for (int i = 0; i < w; ++i) {
        const int64_t at = i * classes + c0;
        if (i >= rows) block[i] = V(acc_t<S>(0));
        else block[i] = at + w <= readable ? load(x + at) : load_n(x + at, columns);
      }
    }
    transpose<w>(block);
    for (int j = 0; j < columns; ++j) store(tile + (c0 + j) * step, block[j]);
  }
}

// y[i * classes + c] = tile[c * width + i] for i < rows. Rows are written in order, so that a whole vector may spill
// into the next row, which is written after it; the last row of a tile never spills.
template <class S>
static inline void store_transposed(const acc_t<S>* tile, int rows, int64_t classes, S* y) {
  using V = Vec<acc_t<S>>;
  constexpr int w = V::width;
  if (classes == 2 && rows == w) {
    V low, high;
    zip(load(tile), load(tile + w), low, high);
    store(y, low);
    store(y + w, high);
    return;
  }
  if (classes <= w) {
    V block[w];
    for (int j = 0; j < w; ++j) block[j] = j < classes ? load(tile + j * w) : V(acc_t<S>(0));
    transpose<w>(block);
    const int64_t end = rows * classes;
    for (int i = 0; i < rows; ++i) {
      if (i * classes + w <= end) store(y + i * classes, block[i]);
      else store_up_to(y + i * classes, block[i], static_cast<int>(classes));
    }
    return;
  }
  for (int64_t c0 = 0; c0 < classes; c0 += w) {
    const int columns = static_cast<int>(classes - c0 < w ? classes - c0 : w);
    V block[w];
    for (int j = 0; j < w; ++j) block[j] = j < columns ? load(tile + (c0 + j) * w) : V(acc_t<S>(0));
    transpose<w>(block);
    for (int i = 0; i < rows; ++i) store_up_to(y + i * classes + c0, block[i], columns);
  }
}

}  // namespace fastcv::FASTCV_ISA
