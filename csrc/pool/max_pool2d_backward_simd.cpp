// Max pooling backward: each input element sums the gradients of the windows whose maximum it was.
// NCHW: an input row at a time, from gradient rows padded so that every tap is a contiguous load; NHWC: by channels.
#include "pool/pool.h"

#include "common/dispatch.h"
#include "pool/pool_simd.h"

namespace fastcv::FASTCV_ISA {
namespace {

// Codes relative to the corner of each window, of one row of outputs.
template <class I>
FASTCV_INLINE void load_codes(const PoolParams& p, int64_t row, I* code) {
  if (p.where_is_offset) {
    const uint8_t* in = static_cast<const uint8_t*>(p.where) + row * p.w.out;
    for (int64_t ow = 0; ow < p.w.out; ++ow) code[ow] = in[ow];
  } else {
    const int64_t* in = static_cast<const int64_t*>(p.where) + row * p.w.out;
    const int64_t corner = (row % p.h.out * p.h.stride - p.h.padding) * p.w.in - p.w.padding;
    for (int64_t ow = 0; ow < p.w.out; ++ow) code[ow] = static_cast<I>(in[ow] - corner - ow * p.w.stride);
  }
}

// Gradient rows and their codes, with zeros and impossible codes on both sides, in a ring.
template <class T>
struct Rows {
  T* grad;
  int_of<T>* code;
  int64_t* row;
  int64_t pitch, left;  // left: columns of padding before the first output
};

template <class S>
FASTCV_INLINE void fetch_row(const PoolParams& p, const Rows<acc_t<S>>& rows, int64_t plane, int64_t oh) {
  const int64_t slot = oh % output_ring(p), row = plane * p.h.out + oh;
  if (rows.row[slot] == row) return;
  rows.row[slot] = row;
  const S* g = static_cast<const S*>(p.x) + row * p.w.out;
  acc_t<S>* grad = rows.grad + slot * rows.pitch + rows.left;
  for (int64_t ow = 0; ow < p.w.out; ow += Vec<acc_t<S>>::width)
    detail::store_raw(grad + ow, load_some(g + ow, p.w.out - ow));
  load_codes(p, row, rows.code + slot * rows.pitch + rows.left);
}

// sum over the taps of phase f, at q .. q + width - 1, of the row under it. In order of the outputs: taps descending.
template <int kStride, class T>
FASTCV_INLINE Vec<T> gather(const PoolParams& p, const T* grad, const int_of<T>* code, int64_t f, int64_t q,
                            int64_t row_code, int64_t unit, Vec<T> sum) {
  using I = int_of<T>;
  for (int64_t j = p.w.kernel - 1; j >= 0; --j) {
    const int64_t reach = j * p.w.dilation;
    if (kStride == 2 && reach % 2 != f) continue;
    const int64_t at = q - reach / kStride;
    sum = add_where(sum, load_int(code + at), Vec<I>(static_cast<I>(row_code + j * unit)), detail::load_raw(grad + at));
  }
  return sum;
}

template <int kStride, class S>
void split_rows(const PoolParams& p, int64_t begin, int64_t end, Scratch scratch) {
  using T = acc_t<S>;
  using I = int_of<T>;
  constexpr int w = Vec<T>::width;
  const int64_t pitch = row_pitch(p), ring = output_ring(p), span = (p.w.kernel - 1) * p.w.dilation;
  const Code unit = code_of(p);
  Rows<T> rows{scratch.take<T>(ring * pitch), scratch.take<I>(ring * pitch), scratch.take<int64_t>(ring), pitch,
               span / kStride};
  for (int64_t r = 0; r < ring; ++r) rows.row[r] = -1;
  for (int64_t i = 0; i < ring * pitch; ++i) rows.grad[i] = 0, rows.code[i] = -1;
  // first: the first q whose inputs all lie at or behind 0; in stride 2 one input may lie before it.
  const int64_t pad = p.w.padding, first = (pad + kStride - 1) / kStride;

  for (int64_t row = begin; row < end; ++row) {
    const int64_t plane = row / p.h.in, h = row % p.h.in;
    const Cover v = cover(p, p.h, h);
    S* y = static_cast<S*>(p.y) + row * p.w.in;
    const auto sum_of = [&](int64_t f, int64_t q) __attribute__((always_inline)) {
      Vec<T> sum(T(0));
      for (int64_t oh = v.first; oh <= v.last; ++oh) {
        const int64_t i = tap_of(p.h, oh, h);
        if (i < 0) continue;
        const int64_t at = oh % ring * pitch + rows.left;
        sum = gather<kStride>(p, rows.grad + at, rows.code + at, f, q, i * unit.row, unit.column, sum);
      }
      return sum;
    };
    for (int64_t oh = v.first; oh <= v.last; ++oh) fetch_row<S>(p, rows, plane, oh);
    if (kStride == 2 && pad % 2 == 1) store_one(y, sum_of(1, first - 1)[0]);
    for (int64_t q = first; q * kStride - pad < p.w.in; q += w) {
      const int64_t x = q * kStride - pad;
      if constexpr (kStride == 1) {
        store_some(y + x, sum_of(0, q), p.w.in - x);
      } else {
        Vec<T> low, high;
        zip(sum_of(0, q), sum_of(1, q), low, high);
        store_some(y + x, low, p.w.in - x);
        if (p.w.in - x > w) store_some(y + x + w, high, p.w.in - x - w);
      }
    }
  }
}

// Stride above 2: windows barely overlap, so each output of the covering rows goes to its place in turn.
template <class S>
void scatter_rows(const PoolParams& p, int64_t begin, int64_t end, Scratch scratch) {
  using T = acc_t<S>;
  using I = int_of<T>;
  const int64_t pitch = row_pitch(p);
  const Code unit = code_of(p);
  T* line = scratch.take<T>(pitch);
  I* code = scratch.take<I>(pitch);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t plane = row / p.h.in, h = row % p.h.in;
    const Cover v = cover(p, p.h, h);
    for (int64_t i = 0; i < p.w.in; ++i) line[i] = 0;
    for (int64_t oh = v.first; oh <= v.last; ++oh) {
      const int64_t i = tap_of(p.h, oh, h);
      if (i < 0) continue;
      const S* g = static_cast<const S*>(p.x) + (plane * p.h.out + oh) * p.w.out;
      load_codes(p, plane * p.h.out + oh, code);
      for (int64_t ow = 0; ow < p.w.out; ++ow) {
        const int64_t column = code[ow] - i * unit.row;  // in code units: taps for offsets, inputs for indices
        const int64_t at = ow * p.w.stride - p.w.padding + (p.where_is_offset ? column * p.w.dilation : column);
        if (column >= 0 && column < p.w.kernel * unit.column && at >= 0 && at < p.w.in) line[at] += load_one(g + ow);
      }
    }
    S* y = static_cast<S*>(p.y) + row * p.w.in;
    for (int64_t i = 0; i < p.w.in; i += Vec<T>::width) store_some(y + i, detail::load_raw(line + i), p.w.in - i);
  }
}

// ---- NHWC --------------------------------------------------------------------------------------------------------

// n codes of one pixel, relative to its window's corner.
template <class I>
FASTCV_INLINE Vec<I> load_pixel_codes(const PoolParams& p, int64_t at, int64_t corner, int n) {
  I code[Vec<I>::width] = {};
  if (p.where_is_offset) {
    const uint8_t* in = static_cast<const uint8_t*>(p.where) + at;
    if (n == Vec<I>::width) {
      for (int k = 0; k < Vec<I>::width; ++k) code[k] = in[k];
    } else {
      for (int k = 0; k < n; ++k) code[k] = in[k];
    }
  } else {
    const int64_t* in = static_cast<const int64_t*>(p.where) + at;
    if (n == Vec<I>::width) {
      for (int k = 0; k < Vec<I>::width; ++k) code[k] = static_cast<I>(in[k] - corner);
    } else {
      for (int k = 0; k < n; ++k) code[k] = static_cast<I>(in[k] - corner);
    }
  }
  return load_int(code);
}

template <class S>
void pixel_rows(const PoolParams& p, int64_t begin, int64_t end) {
  using T = acc_t<S>;
  using I = int_of<T>;
  constexpr int w = Vec<T>::width;
  const Code unit = code_of(p);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t image = row / p.h.in, h = row % p.h.in;
    const Cover v = cover(p, p.h, h);
    for (int64_t x = 0; x < p.w.in; ++x) {
      const Cover u = cover(p, p.w, x);
      S* y = static_cast<S*>(p.y) + (row * p.w.in + x) * p.c;
      const auto run = [&](int64_t c, int n) __attribute__((always_inline)) {
        Vec<T> sum(T(0));
        for (int64_t oh = v.first; oh <= v.last; ++oh) {
          const int64_t i = tap_of(p.h, oh, h);
          if (i < 0) continue;
          for (int64_t ow = u.first; ow <= u.last; ++ow) {
            const int64_t j = tap_of(p.w, ow, x);
            if (j < 0) continue;
            const int64_t at = ((image * p.h.out + oh) * p.w.out + ow) * p.c + c;
            const int64_t corner = (oh * p.h.stride - p.h.padding) * p.w.in + ow * p.w.stride - p.w.padding;
            sum = add_where(sum, load_pixel_codes<I>(p, at, corner, n),
                            Vec<I>(static_cast<I>(i * unit.row + j * unit.column)),
                            load_some(static_cast<const S*>(p.x) + at, n));
          }
        }
        store_some(y + c, sum, n);
      };
      int64_t c = 0;
      for (; c + w <= p.c; c += w) run(c, w);
      if (c == p.c) continue;
      if (p.c >= w) run(p.c - w, w);  // again some channels of before: the same answer
      else run(c, static_cast<int>(p.c - c));
    }
  }
}

}  // namespace

void max_pool2d_backward_nchw(const PoolParams& p, const Exec& exec) {
  dispatch_float(p.dtype, [&](auto zero) {
    using S = decltype(zero);
    parallel_slots(exec, p.n * p.c * p.h.in, rows_grain(p.w.in * 2), [&](int slot, int64_t begin, int64_t end) {
      const Scratch scratch(p, exec, slot);
      if (p.w.stride == 1) split_rows<1, S>(p, begin, end, scratch);
      else if (p.w.stride == 2) split_rows<2, S>(p, begin, end, scratch);
      else scatter_rows<S>(p, begin, end, scratch);
    });
  });
}

void max_pool2d_backward_nhwc(const PoolParams& p, const Exec& exec) {
  dispatch_float(p.dtype, [&](auto zero) {
    using S = decltype(zero);
    parallel_for(exec, p.n * p.h.in, rows_grain(p.w.in * p.c * 2),
                 [&](int64_t begin, int64_t end) { pixel_rows<S>(p, begin, end); });
  });
}

}  // namespace fastcv::FASTCV_ISA
