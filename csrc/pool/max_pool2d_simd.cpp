// Max pooling forward. NCHW: each output row from whole input rows, by vectors along the row; NHWC: by vectors over
// the channels of one pixel.
#include "pool/pool.h"

#include "common/dispatch.h"
#include "pool/pool_simd.h"

namespace fastcv::FASTCV_ISA {
namespace {

template <class T>
constexpr T kLowest = -T(__builtin_inf());

// ---- NCHW, values only: maxima down the columns first (contiguous loads), then along the split row ---------------

template <class S>
FASTCV_INLINE Vec<acc_t<S>> column_max(const S* x, int64_t step, int64_t rows, int64_t n) {
  if constexpr (sizeof(S) == 4) ask(x + (rows - 1) * step);
  Vec<acc_t<S>> best = load_some(x, n);
  for (int64_t r = 1; r < rows; ++r) {
    best = larger(best, load_some(x + r * step, n));
    if constexpr (sizeof(S) == 4) ask(x + (r - 1) * step);
  }
  return best;
}

template <int kStride, int kTaps, class S>
void values_row(const PoolParams& p, const S* top, int64_t rows, S* y, acc_t<S>* phase, const int64_t* place) {
  using T = acc_t<S>;
  constexpr int w = Vec<T>::width;
  const int64_t pitch = row_pitch(p), step = p.h.dilation * p.w.in, taps = kTaps > 0 ? kTaps : p.w.kernel;
  split_row<kStride>(
      [&](int64_t x, int64_t n) __attribute__((always_inline)) {
        if (rows <= 0) return Vec<T>(kLowest<T>);
        return column_max(top + x, step, rows, n);
      },
      p.w.in, p.w.padding, phase_count(p.w), phase, pitch, kLowest<T>);
  for (int64_t ow = 0; ow < p.w.out; ow += w) {
    Vec<T> best = detail::load_raw(phase + place[0] + ow);
    for (int64_t j = 1; j < taps; ++j) best = larger(best, detail::load_raw(phase + place[j] + ow));
    store_some(y + ow, best, p.w.out - ow);
  }
}

template <int kStride, class S>
[[gnu::noinline]] void values_rows(const PoolParams& p, int64_t begin, int64_t end, Scratch scratch) {
  using T = acc_t<S>;
  const int64_t pitch = row_pitch(p);
  T* phase = scratch.take<T>(2 * pitch);
  int64_t* place = scratch.take<int64_t>(p.w.kernel);
  for (int64_t j = 0; j < p.w.kernel; ++j) place[j] = tap_place(p.w, j, pitch);
  for (int64_t row = begin; row < end; ++row) {
    const Window v = window(p, p.h, row % p.h.out);
    const S* top = static_cast<const S*>(p.x) + (row / p.h.out * p.h.in + v.begin) * p.w.in;
    const int64_t rows = (v.end - v.begin + p.h.dilation - 1) / p.h.dilation;
    S* y = static_cast<S*>(p.y) + row * p.w.out;
    if (std::is_same_v<T, float> && p.w.kernel == 2) values_row<kStride, 2>(p, top, rows, y, phase, place);
    else if (std::is_same_v<T, float> && p.w.kernel == 3) values_row<kStride, 3>(p, top, rows, y, phase, place);
    else values_row<kStride, 0>(p, top, rows, y, phase, place);
  }
}

// ---- NCHW with codes: maxima along each input row first, kept in a ring, then down the rows: torch's scan order ---

// The map entries of one output row from its codes, which are relative to the window's corner.
template <class I>
FASTCV_INLINE void store_codes(const PoolParams& p, int64_t row, const I* code) {
  if (p.where_is_offset) {
    uint8_t* out = static_cast<uint8_t*>(p.where) + row * p.w.out;
    for (int64_t ow = 0; ow < p.w.out; ++ow) out[ow] = static_cast<uint8_t>(code[ow]);
  } else {
    int64_t* out = static_cast<int64_t*>(p.where) + row * p.w.out;
    const int64_t corner = (row % p.h.out * p.h.stride - p.h.padding) * p.w.in - p.w.padding;
    for (int64_t ow = 0; ow < p.w.out; ++ow) out[ow] = corner + ow * p.w.stride + code[ow];
  }
}

template <int kStride, class S>
[[gnu::noinline]] void coded_rows(const PoolParams& p, int64_t begin, int64_t end, Scratch scratch) {
  using T = acc_t<S>;
  using I = int_of<T>;
  constexpr int w = Vec<T>::width;
  const int64_t pitch = row_pitch(p), ring = input_ring(p);
  const Code unit = code_of(p);
  T* phase = scratch.take<T>(2 * pitch);
  I* first = scratch.take<I>(pitch);  // the code column of each window's first element
  I* code = scratch.take<I>(pitch);
  T* ring_value = scratch.take<T>(ring * pitch);
  I* ring_code = scratch.take<I>(ring * pitch);
  int64_t* ring_row = scratch.take<int64_t>(ring);
  int64_t* place = scratch.take<int64_t>(p.w.kernel);
  for (int64_t j = 0; j < p.w.kernel; ++j) place[j] = tap_place(p.w, j, pitch);
  for (int64_t r = 0; r < ring; ++r) ring_row[r] = -1;
  for (int64_t ow = 0; ow < p.w.out; ++ow) first[ow] = static_cast<I>(window(p, p.w, ow).tap * unit.column);
  for (int64_t ow = p.w.out; ow < p.w.out + w; ++ow) first[ow] = 0;

  for (int64_t row = begin; row < end; ++row) {
    const Window v = window(p, p.h, row % p.h.out);
    for (int64_t h = v.begin; h < v.end; h += p.h.dilation) {
      const int64_t input_row = row / p.h.out * p.h.in + h, slot = h % ring;
      if (ring_row[slot] == input_row) continue;
      ring_row[slot] = input_row;
      const S* x = static_cast<const S*>(p.x) + input_row * p.w.in;
      split_row<kStride>([&](int64_t i, int64_t n) __attribute__((always_inline)) { return load_some(x + i, n); },
                         p.w.in, p.w.padding, phase_count(p.w), phase, pitch, kLowest<T>);
      for (int64_t ow = 0; ow < p.w.out; ow += w) {
        Vec<T> best(kLowest<T>);
        Vec<I> best_code = load_int(first + ow);
        for (int64_t j = 0; j < p.w.kernel; ++j)
          keep_larger(best, best_code, detail::load_raw(phase + place[j] + ow),
                      Vec<I>(static_cast<I>(j * unit.column)));
        detail::store_raw(ring_value + slot * pitch + ow, best);
        store_int(ring_code + slot * pitch + ow, best_code);
      }
    }
    S* y = static_cast<S*>(p.y) + row * p.w.out;
    for (int64_t ow = 0; ow < p.w.out; ow += w) {
      Vec<T> best(kLowest<T>);
      int64_t i = v.tap;
      Vec<I> best_code = load_int(first + ow) + Vec<I>(static_cast<I>(i * unit.row));
      for (int64_t h = v.begin; h < v.end; h += p.h.dilation, ++i) {
        const int64_t at = h % ring * pitch + ow;
        keep_larger(best, best_code, detail::load_raw(ring_value + at),
                    load_int(ring_code + at) + Vec<I>(static_cast<I>(i * unit.row)));
      }
      store_some(y + ow, best, p.w.out - ow);
      store_int(code + ow, best_code);
    }
    store_codes(p, row, code);
  }
}

// Windows of two by two that touch, in rows of at least a vector: what coded_rows does, without its way through memory.
template <class S>
[[gnu::noinline]] void coded_quarters(const PoolParams& p, int64_t begin, int64_t end) {
  using T = acc_t<S>;
  using I = int_of<T>;
  constexpr int w = Vec<T>::width;
  const int64_t in = p.w.in, out = p.w.out;
  const Code unit = code_of(p);
  const Vec<I> right(static_cast<I>(unit.column)), below(static_cast<I>(unit.row)), both = right + below;
  const Vec<I> twice = iota<I>() + iota<I>();
  for (int64_t row = begin; row < end; ++row) {
    const S* x = static_cast<const S*>(p.x) + 2 * row * in;
    const int64_t corner = 2 * (row % p.h.out) * in;
    for (int64_t next = 0; next < out; next += w) {
      const int64_t ow = min64(next, out - w);  // the last vector again with some columns of before: the same answer
      Vec<T> best, other, lower, lower_other;
      unzip(load(x + 2 * ow), load(x + 2 * ow + w), best, other);
      unzip(load(x + in + 2 * ow), load(x + in + 2 * ow + w), lower, lower_other);
      Vec<I> code(I(0)), lower_code = below;
      keep_larger(best, code, other, right);
      keep_larger(lower, lower_code, lower_other, both);
      keep_larger(best, code, lower, lower_code);
      const int64_t at = row * out + ow;
      store(static_cast<S*>(p.y) + at, best);
      I codes[w];
      if (p.where_is_offset) {
        store_int(codes, code);
        uint8_t* to = static_cast<uint8_t*>(p.where) + at;
        for (int k = 0; k < w; ++k) to[k] = static_cast<uint8_t>(codes[k]);
      } else {
        store_int(codes, code + twice);
        int64_t* to = static_cast<int64_t*>(p.where) + at;
        for (int k = 0; k < w; ++k) to[k] = corner + 2 * ow + codes[k];
      }
    }
  }
}

// ---- NCHW, windows of any width and place (stride above 2, adaptive): columns by vectors, then one by one ---------

template <class S>
[[gnu::noinline]] void window_rows(const PoolParams& p, int64_t begin, int64_t end, Scratch scratch) {
  using T = acc_t<S>;
  using I = int_of<T>;
  constexpr int w = Vec<T>::width;
  const int64_t pitch = row_pitch(p), step = p.adaptive ? 1 : p.h.dilation, across = p.adaptive ? 1 : p.w.dilation;
  T* line = scratch.take<T>(pitch);
  I* line_tap = scratch.take<I>(pitch);  // which of the window's rows holds the column's maximum
  for (int64_t row = begin; row < end; ++row) {
    const int64_t oh = row % p.h.out;
    const Window v = window(p, p.h, oh);
    const S* x = static_cast<const S*>(p.x) + row / p.h.out * p.h.in * p.w.in;
    for (int64_t i = 0; i < p.w.in; i += w) {
      Vec<T> best(kLowest<T>);
      Vec<I> tap(I(0));
      I r = 0;
      for (int64_t h = v.begin; h < v.end; h += step, ++r)
        keep_larger(best, tap, load_some(x + h * p.w.in + i, p.w.in - i), Vec<I>(r));
      detail::store_raw(line + i, best);
      store_int(line_tap + i, tap);
    }
    for (int64_t ow = 0; ow < p.w.out; ++ow) {
      const Window u = window(p, p.w, ow);
      T best = kLowest<T>;
      I best_tap = 0;
      int64_t at = u.begin;
      for (int64_t i = u.begin; i < u.end; i += across) {
        const T x_i = line[i];
        const I tap = line_tap[i];
        // In scan order: rows before columns; the first of equal numbers, the last NaN.
        const bool take = x_i != x_i ? best == best || tap >= best_tap : x_i > best || (x_i == best && tap < best_tap);
        if (take) best = x_i, best_tap = tap, at = i;
      }
      store_one(static_cast<S*>(p.y) + row * p.w.out + ow, best);
      if (p.where == nullptr) continue;
      if (p.where_is_offset) {
        const int64_t column = u.tap + (at - u.begin) / across;
        static_cast<uint8_t*>(p.where)[row * p.w.out + ow] =
            static_cast<uint8_t>((v.tap + best_tap) * p.w.kernel + column);
      } else {
        static_cast<int64_t*>(p.where)[row * p.w.out + ow] = (v.begin + best_tap * step) * p.w.in + at;
      }
    }
  }
}

// ---- NHWC --------------------------------------------------------------------------------------------------------

// kVectors vectors of channels of one output pixel, from the input pixel x on.
template <int kVectors, class S>
FASTCV_INLINE void pixel_values(const PoolParams& p, const Window& v, const Window& u, const S* x, S* y) {
  using T = acc_t<S>;
  constexpr int w = Vec<T>::width;
  const int64_t step_h = p.adaptive ? 1 : p.h.dilation, step_w = p.adaptive ? 1 : p.w.dilation;
  Vec<T> best[kVectors];
#pragma GCC unroll 4
  for (int k = 0; k < kVectors; ++k) best[k] = Vec<T>(kLowest<T>);
  for (int64_t h = v.begin; h < v.end; h += step_h) {
    const S* at = x + (h * p.w.in + u.begin) * p.c;
    for (int64_t i = u.begin; i < u.end; i += step_w, at += step_w * p.c) {
#pragma GCC unroll 4
      for (int k = 0; k < kVectors; ++k) best[k] = larger(best[k], load(at + k * w));
    }
  }
#pragma GCC unroll 4
  for (int k = 0; k < kVectors; ++k) store(y + k * w, best[k]);
}

template <int kVectors, class S>
FASTCV_INLINE void pixel_coded(const PoolParams& p, const Window& v, const Window& u, const S* x, S* y, int64_t corner,
                               int64_t out) {
  using T = acc_t<S>;
  using I = int_of<T>;
  constexpr int w = Vec<T>::width;
  const int64_t step_h = p.adaptive ? 1 : p.h.dilation, step_w = p.adaptive ? 1 : p.w.dilation;
  const Code unit = p.adaptive ? Code{p.w.in, 1} : code_of(p);
  Vec<T> best[kVectors];
  Vec<I> code[kVectors];
  int64_t row_code = v.tap * unit.row;
#pragma GCC unroll 4
  for (int k = 0; k < kVectors; ++k) {
    best[k] = Vec<T>(kLowest<T>);
    code[k] = Vec<I>(static_cast<I>(row_code + u.tap * unit.column));
  }
  for (int64_t h = v.begin; h < v.end; h += step_h, row_code += unit.row) {
    const S* at = x + (h * p.w.in + u.begin) * p.c;
    int64_t here = row_code + u.tap * unit.column;
    for (int64_t i = u.begin; i < u.end; i += step_w, at += step_w * p.c, here += unit.column) {
      const Vec<I> code_here(static_cast<I>(here));
#pragma GCC unroll 4
      for (int k = 0; k < kVectors; ++k) keep_larger(best[k], code[k], load(at + k * w), code_here);
    }
  }
  I codes[kVectors * w];
#pragma GCC unroll 4
  for (int k = 0; k < kVectors; ++k) {
    store(y + k * w, best[k]);
    store_int(codes + k * w, code[k]);
  }
  if (p.where_is_offset) {
    for (int64_t k = 0; k < kVectors * w; ++k) static_cast<uint8_t*>(p.where)[out + k] = static_cast<uint8_t>(codes[k]);
  } else {
    for (int64_t k = 0; k < kVectors * w; ++k) static_cast<int64_t*>(p.where)[out + k] = corner + codes[k];
  }
}

// Fewer channels than a vector: one by one.
template <class S>
[[gnu::noinline]] void narrow_pixel(const PoolParams& p, const Window& v, const Window& u, const S* x, S* y,
                                    int64_t corner, int64_t out) {
  const int64_t step_h = p.adaptive ? 1 : p.h.dilation, step_w = p.adaptive ? 1 : p.w.dilation;
  const Code unit = p.adaptive ? Code{p.w.in, 1} : code_of(p);
  for (int64_t c = 0; c < p.c; ++c) {
    acc_t<S> best = kLowest<acc_t<S>>;
    int64_t code = v.tap * unit.row + u.tap * unit.column, row_code = code;
    for (int64_t h = v.begin; h < v.end; h += step_h, row_code += unit.row) {
      int64_t here = row_code;
      for (int64_t i = u.begin; i < u.end; i += step_w, here += unit.column) {
        const acc_t<S> value = load_one(x + (h * p.w.in + i) * p.c + c);
        if (value > best || value != value) best = value, code = here;
      }
    }
    store_one(y + c, best);
    if (p.where == nullptr) continue;
    if (p.where_is_offset) static_cast<uint8_t*>(p.where)[out + c] = static_cast<uint8_t>(code);
    else static_cast<int64_t*>(p.where)[out + c] = corner + code;
  }
}

template <bool kCoded, class S>
[[gnu::noinline]] void pixel_rows(const PoolParams& p, int64_t begin, int64_t end) {
  constexpr int w = Vec<acc_t<S>>::width;
  for (int64_t row = begin; row < end; ++row) {
    const Window v = window(p, p.h, row % p.h.out);
    const S* x = static_cast<const S*>(p.x) + row / p.h.out * p.h.in * p.w.in * p.c;
    for (int64_t ow = 0; ow < p.w.out; ++ow) {
      const Window u = window(p, p.w, ow);
      const int64_t out = (row * p.w.out + ow) * p.c;
      S* y = static_cast<S*>(p.y) + out;
      // Codes count from the window's corner, which for padded windows lies outside the map.
      const int64_t corner = p.adaptive
                                 ? v.begin * p.w.in + u.begin
                                 : (row % p.h.out * p.h.stride - p.h.padding) * p.w.in + ow * p.w.stride - p.w.padding;
      if (p.c < w) {
        narrow_pixel(p, v, u, x, y, corner, out);
        continue;
      }
      const auto run = [&]<int kVectors>(int64_t c) __attribute__((always_inline)) {
        if constexpr (kCoded) pixel_coded<kVectors>(p, v, u, x + c, y + c, corner, out + c);
        else pixel_values<kVectors>(p, v, u, x + c, y + c);
      };
      int64_t c = 0;
      for (; c + 4 * w <= p.c; c += 4 * w) run.template operator()<4>(c);
      // One vector at a time; the last one again with some channels of before: the same answer.
      for (; c < p.c; c += w) run.template operator()<1>(min64(c, p.c - w));
    }
  }
}

}  // namespace

void max_pool2d_nchw(const PoolParams& params, const Exec& exec) {
  const auto rows = [&](auto zero, int64_t begin, int64_t end, const Scratch& scratch) {
    using S = decltype(zero);
    if (params.adaptive || params.w.stride > 2) window_rows<S>(params, begin, end, scratch);
    else if (params.where == nullptr && params.w.stride == 2) values_rows<2, S>(params, begin, end, scratch);
    else if (params.where == nullptr) values_rows<1, S>(params, begin, end, scratch);
    else if (quarters(params) && params.w.out >= Vec<acc_t<S>>::width) coded_quarters<S>(params, begin, end);
    else if (params.w.stride == 2) coded_rows<2, S>(params, begin, end, scratch);
    else coded_rows<1, S>(params, begin, end, scratch);
  };
  const int64_t count = params.n * params.c * params.h.out;
  parallel_slots(exec, count, rows_grain(params.w.out * 4), [&](int slot, int64_t begin, int64_t end) {
    const Scratch scratch(params, exec, slot);
    dispatch_float(params.dtype, [&](auto zero) { rows(zero, begin, end, scratch); });
  });
}

void max_pool2d_nhwc(const PoolParams& p, const Exec& exec) {
  dispatch_float(p.dtype, [&](auto zero) {
    using S = decltype(zero);
    parallel_for(exec, p.n * p.h.out, rows_grain(p.w.out * p.c * 4), [&](int64_t begin, int64_t end) {
      if (p.where == nullptr) pixel_rows<false, S>(p, begin, end);
      else pixel_rows<true, S>(p, begin, end);
    });
  });
}

}  // namespace fastcv::FASTCV_ISA
