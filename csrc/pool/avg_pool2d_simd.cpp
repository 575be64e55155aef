// Average pooling forward, plain and adaptive. Sums down the columns of a window first, then across (NCHW), or across
// each row first, then down (NHWC, by channels): two short sums instead of one long one. One window over the whole map
// is a plain sum of its elements.
#include "pool/pool.h"

#include "common/dispatch.h"
#include "pool/pool_simd.h"

namespace fastcv::FASTCV_ISA {
namespace {

FASTCV_INLINE bool is_global(const PoolParams& p) {
  if (p.h.out != 1 || p.w.out != 1) return false;
  const Window v = window(p, p.h, 0), u = window(p, p.w, 0);
  return v.end - v.begin == p.h.in && u.end - u.begin == p.w.in;
}

// ---- NCHW --------------------------------------------------------------------------------------------------------

template <class S>
FASTCV_INLINE Vec<acc_t<S>> column_sum(const S* x, int64_t step, int64_t rows, int64_t n) {
  if (rows <= 0) return Vec<acc_t<S>>(acc_t<S>(0));
  Vec<acc_t<S>> sum = load_some(x, n);
  for (int64_t r = 1; r < rows; ++r) sum += load_some(x + r * step, n);
  return sum;
}

// What the sums of a column of windows are divided by, of one row or, if it is given, of all.
template <class T>
const T* divisors(const PoolParams& p, T* size) {
  const int64_t pitch = row_pitch(p);
  for (int64_t ow = 0; ow < p.w.out; ++ow)
    size[ow] = p.divisor != 0 ? static_cast<T>(p.divisor) : static_cast<T>(window(p, p.w, ow).size);
  for (int64_t ow = p.w.out; ow < pitch; ++ow) size[ow] = 1;
  return size;
}

template <int kStride, int kTaps, class S>
void split_row_sums(const PoolParams& p, const Window& v, const S* top, S* y, acc_t<S>* phase, const int64_t* place,
                    const acc_t<S>* size) {
  using T = acc_t<S>;
  constexpr int w = Vec<T>::width;
  const int64_t taps = kTaps > 0 ? kTaps : p.w.kernel;
  split_row<kStride>([&](int64_t x, int64_t n)
                         __attribute__((always_inline)) { return column_sum(top + x, p.w.in, v.end - v.begin, n); },
                     p.w.in, p.w.padding, phase_count(p.w), phase, row_pitch(p), T(0));
  const Vec<T> rows(p.divisor != 0 ? T(1) : static_cast<T>(v.size));
  for (int64_t ow = 0; ow < p.w.out; ow += w) {
    Vec<T> sum = detail::load_raw(phase + place[0] + ow);
    for (int64_t j = 1; j < taps; ++j) sum += detail::load_raw(phase + place[j] + ow);
    store_some(y + ow, sum / (rows * detail::load_raw(size + ow)), p.w.out - ow);
  }
}

template <int kStride, class S>
[[gnu::noinline]] void split_rows(const PoolParams& p, int64_t begin, int64_t end, Scratch scratch) {
  using T = acc_t<S>;
  const int64_t pitch = row_pitch(p);
  T* phase = scratch.take<T>(2 * pitch);
  const T* size = divisors(p, scratch.take<T>(pitch));
  int64_t* place = scratch.take<int64_t>(p.w.kernel);
  for (int64_t j = 0; j < p.w.kernel; ++j) place[j] = tap_place(p.w, j, pitch);
  for (int64_t row = begin; row < end; ++row) {
    const Window v = window(p, p.h, row % p.h.out);
    const S* top = static_cast<const S*>(p.x) + (row / p.h.out * p.h.in + v.begin) * p.w.in;
    S* y = static_cast<S*>(p.y) + row * p.w.out;
    if (kStride == 2 && std::is_same_v<T, float> && p.w.kernel == 3)
      split_row_sums<kStride, 3>(p, v, top, y, phase, place, size);
    else split_row_sums<kStride, 0>(p, v, top, y, phase, place, size);
  }
}

// Windows of two or three columns, one for every column: what split_rows does, without its way through memory.
template <int kTaps, class S>
[[gnu::noinline]] void neighbour_rows(const PoolParams& p, int64_t begin, int64_t end, Scratch scratch) {
  using T = acc_t<S>;
  constexpr int w = Vec<T>::width;
  const T* size = divisors(p, scratch.take<T>(row_pitch(p)));
  int64_t plane = begin / p.h.out, oh = begin % p.h.out;
  for (int64_t row = begin; row < end; ++row) {
    const Window v = window(p, p.h, oh);
    const S* top = static_cast<const S*>(p.x) + (plane * p.h.in + v.begin) * p.w.in;
    S* y = static_cast<S*>(p.y) + row * p.w.out;
    const Vec<T> rows(p.divisor != 0 ? T(1) : static_cast<T>(v.size)), zero(T(0));
    const auto sums = [&](int64_t x) {
      return x < p.w.in ? column_sum(top + x, p.w.in, v.end - v.begin, p.w.in - x) : zero;
    };
    Vec<T> here = sums(0);
    if (p.w.padding == 1) here = slide<w - 1>(zero, here);
    for (int64_t ow = 0; ow < p.w.out; ow += w) {
      const Vec<T> next = sums(ow + w - p.w.padding);
      Vec<T> sum = here + slide<1>(here, next);
      if constexpr (kTaps == 3) sum += slide<2>(here, next);
      store_some(y + ow, sum / (rows * detail::load_raw(size + ow)), p.w.out - ow);
      here = next;
    }
    if (++oh == p.h.out) oh = 0, ++plane;
  }
}

// Sums of pairs, divided.
template <class T>
struct PairAverage {
  bool exact;  // then a product is the quotient, and faster
  Vec<T> by;
  explicit PairAverage(int64_t divisor)
      : exact(divisor > 0 && (divisor & (divisor - 1)) == 0),
        by(exact ? 1 / static_cast<T>(divisor) : static_cast<T>(divisor)) {}
  [[gnu::always_inline]] Vec<T> operator()(Vec<T> low, Vec<T> high) const {
    Vec<T> even, odd;
    unzip(low, high, even, odd);
    return exact ? (even + odd) * by : (even + odd) / by;
  }
};

// Windows of two by two that touch and cover the map, as most do: nothing of a row depends on its place.
bool quarters_map(const PoolParams& p) {
  return quarters(p) || (p.adaptive && p.h.in == 2 * p.h.out && p.w.in == 2 * p.w.out);
}

template <class S>
[[gnu::noinline]] void quartered_rows(const PoolParams& p, int64_t begin, int64_t end) {
  using T = acc_t<S>;
  constexpr int w = Vec<T>::width;
  const PairAverage<T> average(p.divisor != 0 ? p.divisor : 4);
  const int64_t in = p.w.in, out = p.w.out;
  const S* x = static_cast<const S*>(p.x) + 2 * begin * in;
  S* y = static_cast<S*>(p.y) + begin * out;
  if (2 * out <= w) {  // narrow maps: two rows of the result from one vector
    const int few = static_cast<int>(out);
    const auto sums = [&](const S* at) { return load_n(at, 2 * few) + load_n(at + in, 2 * few); };
    for (int64_t row = begin; row < end; row += 2, x += 4 * in, y += 2 * out) {
      const bool both = row + 1 < end;
      const Vec<T> value = average(sums(x), both ? sums(x + 2 * in) : Vec<T>(T(0)));
      store_n(y, value, few);
      if (both) store_n(y + out, slide<w / 2>(value, value), few);
    }
    return;
  }
  const auto sums = [&](const S* at) { return load(at) + load(at + in); };
  const int64_t whole = out / w * w, rest = out - whole;
  for (int64_t row = begin; row < end; ++row, x += 2 * in, y += out) {
    for (int64_t ow = 0; ow < whole; ow += w) store(y + ow, average(sums(x + 2 * ow), sums(x + 2 * ow + w)));
    if (rest == 0) continue;
    const auto some = [&](const S* at, int64_t n) { return load_some(at, n) + load_some(at + in, n); };
    const Vec<T> low = some(x + 2 * whole, 2 * rest);
    const Vec<T> high = 2 * rest > w ? some(x + 2 * whole + w, 2 * rest - w) : Vec<T>(T(0));
    store_n(y + whole, average(low, high), static_cast<int>(rest));
  }
}

// Windows of two columns that touch: what split_rows does, without its way through memory.
bool halves_rows(const PoolParams& p) {
  if (p.adaptive) return p.w.in == 2 * p.w.out;
  return p.w.kernel == 2 && p.w.stride == 2 && p.w.dilation == 1 && p.w.padding == 0 && p.w.in >= 2 * p.w.out;
}

template <class S>
[[gnu::noinline]] void halved_rows(const PoolParams& p, int64_t begin, int64_t end) {
  using T = acc_t<S>;
  constexpr int w = Vec<T>::width;
  int64_t plane = begin / p.h.out, oh = begin % p.h.out;
  for (int64_t row = begin; row < end; ++row) {
    const Window v = window(p, p.h, oh);
    const int64_t rows = v.end - v.begin;
    const PairAverage<T> average(p.divisor != 0 ? p.divisor : 2 * v.size);
    const S* top = static_cast<const S*>(p.x) + (plane * p.h.in + v.begin) * p.w.in;
    S* y = static_cast<S*>(p.y) + row * p.w.out;
    for (int64_t ow = 0; ow < p.w.out; ow += w) {
      const int64_t x = 2 * ow, n = 2 * (p.w.out - ow);
      const Vec<T> low = column_sum(top + x, p.w.in, rows, n);
      const Vec<T> high = n > w ? column_sum(top + x + w, p.w.in, rows, n - w) : Vec<T>(T(0));
      store_some(y + ow, average(low, high), p.w.out - ow);
    }
    if (++oh == p.h.out) oh = 0, ++plane;
  }
}

// Windows of any width and place (stride above 2, adaptive): columns by vectors, then one by one.
template <class S>
[[gnu::noinline]] void window_rows(const PoolParams& p, int64_t begin, int64_t end, Scratch scratch) {
  using T = acc_t<S>;
  T* line = scratch.take<T>(row_pitch(p));
  for (int64_t row = begin; row < end; ++row) {
    const Window v = window(p, p.h, row % p.h.out);
    const S* top = static_cast<const S*>(p.x) + (row / p.h.out * p.h.in + v.begin) * p.w.in;
    for (int64_t x = 0; x < p.w.in; x += Vec<T>::width)
      detail::store_raw(line + x, column_sum(top + x, p.w.in, v.end - v.begin, p.w.in - x));
    for (int64_t ow = 0; ow < p.w.out; ++ow) {
      const Window u = window(p, p.w, ow);
      T sum = 0;
      for (int64_t x = u.begin; x < u.end; ++x) sum += line[x];
      const T divisor = p.divisor != 0 ? static_cast<T>(p.divisor) : static_cast<T>(v.size * u.size);
      store_one(static_cast<S*>(p.y) + row * p.w.out + ow, sum / divisor);
    }
  }
}

// The sum over the lanes, halves added: in reduce_add's order, without its way through memory.
template <class T>
FASTCV_INLINE T add_lanes(Vec<T> x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)x.v);
#else
  return reduce_add(x);
#endif
}

template <class S>
[[gnu::noinline]] void planes(const PoolParams& p, int64_t begin, int64_t end) {
  using T = acc_t<S>;
  constexpr int w = Vec<T>::width;
  const int64_t size = p.h.in * p.w.in;
  const T divisor =
      p.divisor != 0 ? static_cast<T>(p.divisor) : static_cast<T>(window(p, p.h, 0).size * window(p, p.w, 0).size);
  for (int64_t plane = begin; plane < end; ++plane) {
    const S* x = static_cast<const S*>(p.x) + plane * size;
    Vec<T> sum[4] = {Vec<T>(T(0)), Vec<T>(T(0)), Vec<T>(T(0)), Vec<T>(T(0))};
    int64_t i = 0;
    for (; i + 4 * w <= size; i += 4 * w) {
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) sum[k] += load(x + i + k * w);
    }
    for (; i < size; i += w) sum[0] += load_some(x + i, size - i);
    store_one(static_cast<S*>(p.y) + plane, add_lanes((sum[0] + sum[1]) + (sum[2] + sum[3])) / divisor);
  }
}

// ---- NHWC --------------------------------------------------------------------------------------------------------

template <int kVectors, class S>
FASTCV_INLINE void pixel(const PoolParams& p, const Window& v, const Window& u, const S* x, S* y) {
  using T = acc_t<S>;
  constexpr int w = Vec<T>::width;
  Vec<T> sum[kVectors];
#pragma GCC unroll 4
  for (int k = 0; k < kVectors; ++k) sum[k] = Vec<T>(T(0));
  for (int64_t h = v.begin; h < v.end; ++h) {
    const S* at = x + (h * p.w.in + u.begin) * p.c;
    Vec<T> across[kVectors];
#pragma GCC unroll 4
    for (int k = 0; k < kVectors; ++k) across[k] = Vec<T>(T(0));
    for (int64_t i = u.begin; i < u.end; ++i, at += p.c) {
#pragma GCC unroll 4
      for (int k = 0; k < kVectors; ++k) across[k] += load(at + k * w);
    }
#pragma GCC unroll 4
    for (int k = 0; k < kVectors; ++k) sum[k] += across[k];
  }
  const Vec<T> divisor(p.divisor != 0 ? static_cast<T>(p.divisor) : static_cast<T>(v.size * u.size));
#pragma GCC unroll 4
  for (int k = 0; k < kVectors; ++k) store(y + k * w, sum[k] / divisor);
}

// Fewer channels than a vector: one by one.
template <class S>
[[gnu::noinline]] void narrow_pixel(const PoolParams& p, const Window& v, const Window& u, const S* x, S* y) {
  using T = acc_t<S>;
  for (int64_t c = 0; c < p.c; ++c) {
    T sum = 0;
    for (int64_t h = v.begin; h < v.end; ++h) {
      T across = 0;
      for (int64_t i = u.begin; i < u.end; ++i) across += load_one(x + (h * p.w.in + i) * p.c + c);
      sum += across;
    }
    store_one(y + c, sum / (p.divisor != 0 ? static_cast<T>(p.divisor) : static_cast<T>(v.size * u.size)));
  }
}

template <class S>
[[gnu::noinline]] void pixel_rows(const PoolParams& p, int64_t begin, int64_t end) {
  constexpr int w = Vec<acc_t<S>>::width;
  for (int64_t row = begin; row < end; ++row) {
    const Window v = window(p, p.h, row % p.h.out);
    const S* x = static_cast<const S*>(p.x) + row / p.h.out * p.h.in * p.w.in * p.c;
    for (int64_t ow = 0; ow < p.w.out; ++ow) {
      const Window u = window(p, p.w, ow);
      S* y = static_cast<S*>(p.y) + (row * p.w.out + ow) * p.c;
      if (p.c < w) {
        narrow_pixel(p, v, u, x, y);
        continue;
      }
      int64_t c = 0;
      for (; c + 4 * w <= p.c; c += 4 * w) pixel<4>(p, v, u, x + c, y + c);
      // One vector at a time; the last one again with some channels of before: the same answer.
      for (; c < p.c; c += w) pixel<1>(p, v, u, x + min64(c, p.c - w), y + min64(c, p.c - w));
    }
  }
}

}  // namespace

void avg_pool2d_nchw(const PoolParams& params, const Exec& exec) {
  if (is_global(params)) {
    return dispatch_float(params.dtype, [&](auto zero) {
      parallel_for(exec, params.n * params.c, rows_grain(params.h.in * params.w.in),
                   [&](int64_t begin, int64_t end) { planes<decltype(zero)>(params, begin, end); });
    });
  }
  const auto rows = [&](auto zero, int64_t begin, int64_t end, const Scratch& scratch) {
    using S = decltype(zero);
    if (quarters_map(params)) quartered_rows<S>(params, begin, end);
    else if (halves_rows(params)) halved_rows<S>(params, begin, end);
    else if (params.adaptive || params.w.stride > 2) window_rows<S>(params, begin, end, scratch);
    else if (params.w.stride == 2) split_rows<2, S>(params, begin, end, scratch);
    else if (params.w.kernel == 2) neighbour_rows<2, S>(params, begin, end, scratch);
    else if (params.w.kernel == 3) neighbour_rows<3, S>(params, begin, end, scratch);
    else split_rows<1, S>(params, begin, end, scratch);
  };
  const int64_t count = params.n * params.c * params.h.out;
  parallel_slots(exec, count, rows_grain(params.w.out * 4), [&](int slot, int64_t begin, int64_t end) {
    const Scratch scratch(params, exec, slot);
    dispatch_float(params.dtype, [&](auto zero) { rows(zero, begin, end, scratch); });
  });
}

void avg_pool2d_nhwc(const PoolParams& p, const Exec& exec) {
  dispatch_float(p.dtype, [&](auto zero) {
    using S = decltype(zero);
    const int64_t rows = p.h.in / (p.h.out > 0 ? p.h.out : 1) + 1;
    parallel_for(exec, p.n * p.h.out, rows_grain(rows * p.w.in * p.c),
                 [&](int64_t begin, int64_t end) { pixel_rows<S>(p, begin, end); });
  });
}

}  // namespace fastcv::FASTCV_ISA
