// Average pooling backward, plain and adaptive: each input element sums, over the windows that cover it, the gradient
// divided by the window's divisor. NCHW: gradients down the columns first, then across; NHWC: by channels.
#include "pool/pool.h"

#include "common/dispatch.h"
#include "pool/pool_simd.h"

namespace fastcv::FASTCV_ISA {
namespace {

template <class T>
FASTCV_INLINE T divisor_of(const PoolParams& p, int64_t rows, int64_t columns) {
  return p.divisor != 0 ? static_cast<T>(p.divisor) : static_cast<T>(rows * columns);
}

// All windows of a cover contribute the same size to the divisor.
FASTCV_INLINE bool same_size(const PoolParams& p, const PoolAxis& a, const Cover& v) {
  if (p.divisor != 0 || v.last <= v.first) return true;
  const int64_t size = window(p, a, v.first).size;
  for (int64_t o = v.first + 1; o <= v.last; ++o)
    if (window(p, a, o).size != size) return false;
  return true;
}

// ---- NCHW --------------------------------------------------------------------------------------------------------

// line[ow] = sum over the covering output rows of gradient / divisor.
template <class S>
FASTCV_INLINE void column_sums(const PoolParams& p, int64_t plane, int64_t h, acc_t<S>* line, const acc_t<S>* size) {
  using T = acc_t<S>;
  const Cover v = cover(p, p.h, h);
  const bool same = same_size(p, p.h, v);
  const auto rows_of = [&](int64_t oh) {
    return Vec<T>(p.divisor != 0 ? T(1) : static_cast<T>(window(p, p.h, oh).size));
  };
  const Vec<T> rows = v.last >= v.first ? rows_of(v.first) : Vec<T>(T(1));
  const S* g = static_cast<const S*>(p.x) + plane * p.h.out * p.w.out;
  for (int64_t ow = 0; ow < p.w.out; ow += Vec<T>::width) {
    const Vec<T> columns = detail::load_raw(size + ow);
    Vec<T> sum(T(0));
    if (same) {
      for (int64_t oh = v.first; oh <= v.last; ++oh) sum += load_some(g + oh * p.w.out + ow, p.w.out - ow);
      sum = sum / (rows * columns);
    } else {
      for (int64_t oh = v.first; oh <= v.last; ++oh)
        sum += load_some(g + oh * p.w.out + ow, p.w.out - ow) / (rows_of(oh) * columns);
    }
    detail::store_raw(line + ow, sum);
  }
}

template <class T>
FASTCV_INLINE T* column_sizes(const PoolParams& p, Scratch& scratch) {
  T* size = scratch.take<T>(row_pitch(p));
  for (int64_t ow = 0; ow < row_pitch(p); ++ow) size[ow] = 1;
  for (int64_t ow = 0; ow < p.w.out; ++ow) size[ow] = divisor_of<T>(p, 1, window(p, p.w, ow).size);
  return size;
}

template <int kStride, class S>
[[gnu::noinline]] void split_rows(const PoolParams& p, int64_t begin, int64_t end, Scratch scratch) {
  using T = acc_t<S>;
  constexpr int w = Vec<T>::width;
  const int64_t pad = p.w.padding, first = (pad + kStride - 1) / kStride, left = (p.w.kernel - 1) / kStride;
  const T* size = column_sizes<T>(p, scratch);
  T* buffer = scratch.take<T>(2 * row_pitch(p));
  for (int64_t i = 0; i < 2 * row_pitch(p); ++i) buffer[i] = 0;
  T* line = buffer + left;
  // The windows that see input q * stride + f - pad, in order: taps descending.
  const auto sum_of = [&](int64_t f, int64_t q) __attribute__((always_inline)) {
    Vec<T> sum(T(0));
    int64_t j = p.w.kernel - 1;
    if (kStride == 2 && j % 2 != f) --j;
    for (; j >= 0; j -= kStride) sum += detail::load_raw(line + q - j / kStride);
    return sum;
  };
  for (int64_t row = begin; row < end; ++row) {
    column_sums<S>(p, row / p.h.in, row % p.h.in, line, size);
    S* y = static_cast<S*>(p.y) + row * p.w.in;
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

// Windows of two by two that touch: each gradient goes to four places.
template <class S>
[[gnu::noinline]] void quartered_rows(const PoolParams& p, int64_t begin, int64_t end) {
  using T = acc_t<S>;
  constexpr int w = Vec<T>::width;
  const int64_t out = p.w.out, in = p.w.in, divisor = p.divisor != 0 ? p.divisor : 4;
  const bool exact = (divisor & (divisor - 1)) == 0 && divisor > 0;  // then a product is the quotient, and faster
  const Vec<T> by(exact ? 1 / static_cast<T>(divisor) : static_cast<T>(divisor)), zero(T(0));
  for (int64_t row = begin; row < end; ++row) {
    const S* g = static_cast<const S*>(p.x) + row * out;
    S* y = static_cast<S*>(p.y) + 2 * row * in;
    for (int64_t ow = 0; ow < out; ow += w) {
      const Vec<T> sum = zero + load_some(g + ow, out - ow), value = exact ? sum * by : sum / by;  // 0 + -0 is 0
      Vec<T> low, high;
      zip(value, value, low, high);
      const int64_t x = 2 * ow, n = in - x;
      for (S* to : {y + x, y + in + x}) {
        store_some(to, low, n);
        if (n > w) store_some(to + w, high, n - w);
      }
    }
  }
}

template <class S>
[[gnu::noinline]] void window_rows(const PoolParams& p, int64_t begin, int64_t end, Scratch scratch) {
  using T = acc_t<S>;
  const T* size = column_sizes<T>(p, scratch);
  T* line = scratch.take<T>(row_pitch(p));
  T* sums = scratch.take<T>(row_pitch(p));
  // The windows over each column are the same in every row.
  Cover* covers = scratch.take<Cover>(p.w.in);
  int64_t most = 0;
  for (int64_t x = 0; x < p.w.in; ++x) {
    covers[x] = cover(p, p.w, x);
    if (covers[x].last - covers[x].first >= most) most = covers[x].last - covers[x].first + 1;
  }
  const int64_t none = row_pitch(p) - 1;  // a place of zero: where there is no second window
  for (int64_t x = 0; most <= 2 && x < p.w.in; ++x) {
    if (covers[x].last < covers[x].first) covers[x].first = none;
    if (covers[x].last <= covers[x].first) covers[x].last = none;
  }
  for (int64_t row = begin; row < end; ++row) {
    column_sums<S>(p, row / p.h.in, row % p.h.in, line, size);
    if (most <= 2) {
      line[none] = 0;
      for (int64_t x = 0; x < p.w.in; ++x) sums[x] = T(0) + line[covers[x].first] + line[covers[x].last];
    } else {
      for (int64_t x = 0; x < p.w.in; ++x) {
        T sum = 0;
        for (int64_t ow = covers[x].first; ow <= covers[x].last; ++ow) sum += line[ow];
        sums[x] = sum;
      }
    }
    S* y = static_cast<S*>(p.y) + row * p.w.in;
    for (int64_t x = 0; x < p.w.in; x += Vec<T>::width) store_some(y + x, detail::load_raw(sums + x), p.w.in - x);
  }
}

// One window: the plane is one number.
template <class S>
[[gnu::noinline]] void planes(const PoolParams& p, int64_t begin, int64_t end) {
  using T = acc_t<S>;
  constexpr int w = Vec<T>::width;
  const int64_t size = p.h.in * p.w.in;
  const T divisor = divisor_of<T>(p, window(p, p.h, 0).size, window(p, p.w, 0).size);
  for (int64_t plane = begin; plane < end; ++plane) {
    const Vec<T> value(load_one(static_cast<const S*>(p.x) + plane) / divisor);
    S* y = static_cast<S*>(p.y) + plane * size;
    for (int64_t i = 0; i < size; i += w) store_some(y + i, value, size - i);
  }
}

// ---- NHWC --------------------------------------------------------------------------------------------------------

template <class S>
[[gnu::noinline]] void pixel_rows(const PoolParams& p, int64_t begin, int64_t end) {
  using T = acc_t<S>;
  constexpr int w = Vec<T>::width;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t image = row / p.h.in;
    const Cover v = cover(p, p.h, row % p.h.in);
    const bool same_rows = same_size(p, p.h, v);
    for (int64_t x = 0; x < p.w.in; ++x) {
      const Cover u = cover(p, p.w, x);
      const bool none = v.last < v.first || u.last < u.first;
      const bool same = none || (same_rows && same_size(p, p.w, u));
      const T shared = none ? T(1) : divisor_of<T>(p, window(p, p.h, v.first).size, window(p, p.w, u.first).size);
      S* y = static_cast<S*>(p.y) + (row * p.w.in + x) * p.c;
      const auto run = [&](int64_t c, int64_t n) __attribute__((always_inline)) {
        Vec<T> sum(T(0));
        for (int64_t oh = v.first; oh <= v.last; ++oh) {
          for (int64_t ow = u.first; ow <= u.last; ++ow) {
            const int64_t at = ((image * p.h.out + oh) * p.w.out + ow) * p.c + c;
            const Vec<T> g = load_some(static_cast<const S*>(p.x) + at, n);
            sum += same ? g : g / Vec<T>(divisor_of<T>(p, window(p, p.h, oh).size, window(p, p.w, ow).size));
          }
        }
        store_some(y + c, same ? sum / Vec<T>(shared) : sum, n);
      };
      int64_t c = 0;
      for (; c + w <= p.c; c += w) run(c, w);
      if (c == p.c) continue;
      if (p.c >= w) run(p.c - w, w);  // again some channels of before: the same answer
      else run(c, p.c - c);
    }
  }
}

}  // namespace

void avg_pool2d_backward_nchw(const PoolParams& params, const Exec& exec) {
  const Cover first = cover(params, params.h, 0), last = cover(params, params.h, params.h.in - 1);
  const Cover left = cover(params, params.w, 0), right = cover(params, params.w, params.w.in - 1);
  const bool one = params.h.out == 1 && params.w.out == 1 && first.last == 0 && last.last == 0 && left.last == 0 &&
                   right.last == 0 && last.first == 0 && right.first == 0;
  if (one) {
    return dispatch_float(params.dtype, [&](auto zero) {
      parallel_for(exec, params.n * params.c, rows_grain(params.h.in * params.w.in),
                   [&](int64_t begin, int64_t end) { planes<decltype(zero)>(params, begin, end); });
    });
  }
  if (quarters(params)) {
    return dispatch_float(params.dtype, [&](auto zero) {
      parallel_for(exec, params.n * params.c * params.h.out, rows_grain(params.w.in * 2),
                   [&](int64_t begin, int64_t end) { quartered_rows<decltype(zero)>(params, begin, end); });
    });
  }
  const auto rows = [&](auto zero, int64_t begin, int64_t end, const Scratch& scratch) {
    using S = decltype(zero);
    if (params.adaptive || params.w.stride > 2) window_rows<S>(params, begin, end, scratch);
    else if (params.w.stride == 2) split_rows<2, S>(params, begin, end, scratch);
    else split_rows<1, S>(params, begin, end, scratch);
  };
  const int64_t count = params.n * params.c * params.h.in;
  parallel_slots(exec, count, rows_grain(params.w.in * 2), [&](int slot, int64_t begin, int64_t end) {
    const Scratch scratch(params, exec, slot);
    dispatch_float(params.dtype, [&](auto zero) { rows(zero, begin, end, scratch); });
  });
}

void avg_pool2d_backward_nhwc(const PoolParams& p, const Exec& exec) {
  dispatch_float(p.dtype, [&](auto zero) {
    using S = decltype(zero);
    parallel_for(exec, p.n * p.h.in, rows_grain(p.w.in * p.c * 2),
                 [&](int64_t begin, int64_t end) { pixel_rows<S>(p, begin, end); });
  });
}

}  // namespace fastcv::FASTCV_ISA
