// Max pooling backward: each input element sums the gradients of the windows whose maximum it was.
// NCHW: an input row at a time, from gradient rows padded so that every tap is a contiguous load; NHWC: by channels.
// Code is the type of the map: uint8_t for offsets, int64_t for indices.
#include "pool/pool.h"

#include "common/dispatch.h"
#include "pool/pool_simd.h"

namespace fastcv::FASTCV_ISA {
namespace {

// What the map of window (oh, ow) holds if its maximum is the input (h, x), which it sees by its tap (i, j).
template <class Code>
FASTCV_INLINE Code name_of(const PoolParams& p, int64_t i, int64_t j, int64_t h, int64_t x) {
  if constexpr (std::is_same_v<Code, uint8_t>) return static_cast<uint8_t>(i * p.w.kernel + j);
  else return h * p.w.in + x;
}

// ---- NCHW, stride 1 and 2 ----------------------------------------------------------------------------------------

// Gradient rows and their codes in a ring, with zeros on both sides. Codes are relative to the row of windows, so that
// one number names tap (i, j) in all its columns: an offset as it is, an index less that of the window's corner.
template <class T, class Code>
struct Ring {
  T* grad;
  Code* code;
  int64_t* row;  // which output row a slot holds
  int64_t slots, pitch, left;
};

template <class S, class Code>
FASTCV_INLINE void fetch_row(const PoolParams& p, const Ring<acc_t<S>, Code>& ring, int64_t row) {
  const int64_t oh = row % p.h.out, slot = oh % ring.slots;
  if (ring.row[slot] == row) return;
  ring.row[slot] = row;
  const S* g = static_cast<const S*>(p.x) + row * p.w.out;
  acc_t<S>* grad = ring.grad + slot * ring.pitch + ring.left;
  for (int64_t ow = 0; ow < p.w.out; ow += Vec<acc_t<S>>::width)
    detail::store_raw(grad + ow, load_some(g + ow, p.w.out - ow));
  const Code* in = static_cast<const Code*>(p.where) + row * p.w.out;
  auto* code = ring.code + slot * ring.pitch + ring.left;
  if constexpr (std::is_same_v<Code, uint8_t>) {
    std::memcpy(code, in, p.w.out);
  } else {
    const int64_t corner = (oh * p.h.stride - p.h.padding) * p.w.in - p.w.padding;
    for (int64_t ow = 0; ow < p.w.out; ++ow) code[ow] = in[ow] - corner - ow * p.w.stride;
  }
}

// One output row that covers the input row, and how it names its first tap there.
template <class T, class Code>
struct Source {
  const T* grad;
  const Code* code;
  int64_t first;
};

// The sum for phase f of the input row at q .. q + width - 1, in order of the outputs: taps descending.
template <int kStride, int kTaps, class T, class Code>
FASTCV_INLINE Vec<T> gather(const PoolParams& p, const Source<T, Code>* sources, int64_t count, int64_t unit, int f,
                            int64_t q) {
  Vec<T> sum(T(0));
  const int64_t dilation = kTaps > 0 ? 1 : p.w.dilation;
  for (int64_t r = 0; r < count; ++r) {
    const Source<T, Code>& source = sources[r];
#pragma GCC unroll 3
    for (int64_t j = (kTaps > 0 ? kTaps : p.w.kernel) - 1; j >= 0; --j) {
      const int64_t reach = j * dilation;
      if (kStride == 2 && reach % 2 != f) continue;
      const int64_t at = q - reach / kStride;
      sum = add_where(sum, source.code + at, static_cast<Code>(source.first + j * unit),
                      detail::load_raw(source.grad + at));
    }
  }
  return sum;
}

template <int kStride, int kTaps, class S, class Code>
[[gnu::noinline]] void split_rows(const PoolParams& p, int64_t begin, int64_t end, Scratch scratch) {
  using T = acc_t<S>;
  constexpr int w = Vec<T>::width;
  const int64_t pitch = row_pitch(p), slots = output_ring(p);
  const auto unit = code_of(p);
  const Ring<T, Code> ring{scratch.take<T>(slots * pitch),
                           scratch.take<Code>(slots * pitch),
                           scratch.take<int64_t>(slots),
                           slots,
                           pitch,
                           (p.w.kernel - 1) * p.w.dilation / kStride};
  auto* sources = scratch.take<Source<T, Code>>(slots);
  for (int64_t r = 0; r < slots; ++r) ring.row[r] = -1;
  // Beside the rows: zeros, whose codes then do not matter.
  for (int64_t i = 0; i < slots * pitch; ++i) ring.grad[i] = 0, ring.code[i] = 0;
  // first: the first q whose inputs all lie at or behind 0; in stride 2 one input may lie before it.
  const int64_t pad = p.w.padding, first = (pad + kStride - 1) / kStride;

  for (int64_t row = begin; row < end; ++row) {
    const int64_t plane = row / p.h.in, h = row % p.h.in;
    const Cover v = cover(p, p.h, h);
    int64_t count = 0;
    for (int64_t oh = v.first; oh <= v.last; ++oh) {
      const int64_t i = tap_of(p.h, oh, h);
      if (i < 0) continue;
      fetch_row<S, Code>(p, ring, plane * p.h.out + oh);
      const int64_t at = oh % slots * pitch + ring.left;
      sources[count++] = {ring.grad + at, ring.code + at, i * unit.row};
    }
    const auto sum_of = [&](int f, int64_t q) __attribute__((always_inline)) {
      return gather<kStride, kTaps>(p, sources, count, unit.column, f, q);
    };
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

// A vector's width of codes less `base`.
template <class I>
FASTCV_INLINE Vec<I> relative(const uint8_t* code, int64_t) {
  Vec<I> r;
#if defined(__AVX512F__)
  static_assert(sizeof(I) == 4, "AVX-512 objects hold no float64 kernels");
  r = Vec<I>((typename Vec<I>::Raw)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)code)));
#else
  for (int k = 0; k < Vec<I>::width; ++k) r.v[k] = code[k];
#endif
  return r;
}
template <class I>
FASTCV_INLINE Vec<I> relative(const int64_t* code, int64_t base) {
  Vec<I> r;
#if defined(__AVX512F__)
  const __m512i by = _mm512_set1_epi64(base);
  const __m256i low = _mm512_cvtepi64_epi32(_mm512_sub_epi64(_mm512_loadu_si512(code), by));
  const __m256i high = _mm512_cvtepi64_epi32(_mm512_sub_epi64(_mm512_loadu_si512(code + 8), by));
  r = Vec<I>((typename Vec<I>::Raw)_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1));
#else
  for (int k = 0; k < Vec<I>::width; ++k) r.v[k] = static_cast<I>(code[k] - base);
#endif
  return r;
}

// Windows of two by two that touch, in rows of at least a vector: each gradient goes to one of four places.
template <class S, class Code>
[[gnu::noinline]] void quartered_rows(const PoolParams& p, int64_t begin, int64_t end) {
  using T = acc_t<S>;
  using I = int_of<T>;
  constexpr int w = Vec<T>::width;
  constexpr bool offsets = std::is_same_v<Code, uint8_t>;
  const int64_t in = p.w.in, out = p.w.out;
  const auto unit = code_of(p);
  const Vec<I> zero_code(I(0)), right(static_cast<I>(unit.column)), below(static_cast<I>(unit.row));
  const Vec<I> both = right + below, corners = offsets ? zero_code : iota<I>() + iota<I>();
  const Vec<T> zero(T(0));
  for (int64_t row = begin; row < end; ++row) {
    S* y = static_cast<S*>(p.y) + 2 * row * in;
    const int64_t corner = 2 * (row % p.h.out) * in;
    for (int64_t next = 0; next < out; next += w) {
      const int64_t ow = min64(next, out - w);  // the last vector again with some columns of before: the same answer
      const int64_t at = row * out + ow;
      const Vec<T> g = zero + load(static_cast<const S*>(p.x) + at);  // 0 + -0 is 0
      const Vec<I> code = relative<I>(static_cast<const Code*>(p.where) + at, corner + 2 * ow) - corners;
      const auto where = [&](Vec<I> want) { return select<T>(code == want, g, zero); };
      Vec<T> low, high;
      zip(where(zero_code), where(right), low, high);
      store(y + 2 * ow, low);
      store(y + 2 * ow + w, high);
      zip(where(below), where(both), low, high);
      store(y + in + 2 * ow, low);
      store(y + in + 2 * ow + w, high);
    }
  }
}

// ---- NCHW, stride above 2: windows barely overlap, so each output of the covering rows goes to its place ----------

template <class S, class Code>
[[gnu::noinline]] void scatter_rows(const PoolParams& p, int64_t begin, int64_t end, Scratch scratch) {
  using T = acc_t<S>;
  T* line = scratch.take<T>(row_pitch(p));
  for (int64_t row = begin; row < end; ++row) {
    const int64_t plane = row / p.h.in, h = row % p.h.in;
    const Cover v = cover(p, p.h, h);
    for (int64_t x = 0; x < p.w.in; ++x) line[x] = 0;
    for (int64_t oh = v.first; oh <= v.last; ++oh) {
      const int64_t i = tap_of(p.h, oh, h);
      if (i < 0) continue;
      const int64_t out = (plane * p.h.out + oh) * p.w.out;
      const S* g = static_cast<const S*>(p.x) + out;
      const Code* code = static_cast<const Code*>(p.where) + out;
      for (int64_t ow = 0; ow < p.w.out; ++ow) {
        int64_t x;
        if constexpr (std::is_same_v<Code, uint8_t>) {
          const int64_t j = code[ow] - i * p.w.kernel;
          if (j < 0 || j >= p.w.kernel) continue;
          x = ow * p.w.stride - p.w.padding + j * p.w.dilation;
        } else {
          x = code[ow] - h * p.w.in;
        }
        if (x >= 0 && x < p.w.in) line[x] += load_one(g + ow);
      }
    }
    S* y = static_cast<S*>(p.y) + row * p.w.in;
    for (int64_t x = 0; x < p.w.in; x += Vec<T>::width) store_some(y + x, detail::load_raw(line + x), p.w.in - x);
  }
}

// ---- NHWC --------------------------------------------------------------------------------------------------------

// kVectors vectors of channels of input pixel (h, x); the windows' pixels start at channel `c`.
template <int kVectors, class S, class Code>
FASTCV_INLINE void pixel(const PoolParams& p, const Cover& v, const Cover& u, int64_t image, int64_t h, int64_t x,
                         int64_t c, S* y) {
  using T = acc_t<S>;
  constexpr int w = Vec<T>::width;
  Vec<T> sum[kVectors];
#pragma GCC unroll 4
  for (int k = 0; k < kVectors; ++k) sum[k] = Vec<T>(T(0));
  for (int64_t oh = v.first; oh <= v.last; ++oh) {
    const int64_t i = tap_of(p.h, oh, h);
    if (i < 0) continue;
    for (int64_t ow = u.first; ow <= u.last; ++ow) {
      const int64_t j = tap_of(p.w, ow, x);
      if (j < 0) continue;
      const int64_t at = ((image * p.h.out + oh) * p.w.out + ow) * p.c + c;
      const Code name = name_of<Code>(p, i, j, h, x);
#pragma GCC unroll 4
      for (int k = 0; k < kVectors; ++k)
        sum[k] = add_where(sum[k], static_cast<const Code*>(p.where) + at + k * w, name,
                           load(static_cast<const S*>(p.x) + at + k * w));
    }
  }
#pragma GCC unroll 4
  for (int k = 0; k < kVectors; ++k) store(y + k * w, sum[k]);
}

// Fewer channels than a vector: one by one.
template <class S, class Code>
FASTCV_INLINE void narrow_pixel(const PoolParams& p, const Cover& v, const Cover& u, int64_t image, int64_t h,
                                int64_t x, S* y) {
  for (int64_t c = 0; c < p.c; ++c) {
    acc_t<S> sum = 0;
    for (int64_t oh = v.first; oh <= v.last; ++oh) {
      for (int64_t ow = u.first; ow <= u.last; ++ow) {
        const int64_t i = tap_of(p.h, oh, h), j = tap_of(p.w, ow, x);
        const int64_t at = ((image * p.h.out + oh) * p.w.out + ow) * p.c + c;
        if (i >= 0 && j >= 0 && static_cast<const Code*>(p.where)[at] == name_of<Code>(p, i, j, h, x))
          sum += load_one(static_cast<const S*>(p.x) + at);
      }
    }
    store_one(y + c, sum);
  }
}

template <class S, class Code>
[[gnu::noinline]] void pixel_rows(const PoolParams& p, int64_t begin, int64_t end) {
  constexpr int w = Vec<acc_t<S>>::width;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t image = row / p.h.in, h = row % p.h.in;
    const Cover v = cover(p, p.h, h);
    for (int64_t x = 0; x < p.w.in; ++x) {
      const Cover u = cover(p, p.w, x);
      S* y = static_cast<S*>(p.y) + (row * p.w.in + x) * p.c;
      if (p.c < w) {
        narrow_pixel<S, Code>(p, v, u, image, h, x, y);
        continue;
      }
      int64_t c = 0;
      for (; c + 4 * w <= p.c; c += 4 * w) pixel<4, S, Code>(p, v, u, image, h, x, c, y + c);
      for (; c + w <= p.c; c += w) pixel<1, S, Code>(p, v, u, image, h, x, c, y + c);
      // The last channels again together with some before: the same answer.
      if (c < p.c) pixel<1, S, Code>(p, v, u, image, h, x, p.c - w, y + p.c - w);
    }
  }
}

template <class S, class Code>
void rows_nchw(const PoolParams& p, int64_t begin, int64_t end, const Scratch& scratch) {
  // The usual windows have kernels of their own: for offsets, the codes of training, in float.
  constexpr bool usual = std::is_same_v<acc_t<S>, float> && std::is_same_v<Code, uint8_t>;
  [[maybe_unused]] const int64_t taps = p.w.dilation == 1 ? p.w.kernel : 0;
  if constexpr (usual) {
    if (p.w.stride == 1 && taps == 3) return split_rows<1, 3, S, Code>(p, begin, end, scratch);
    if (p.w.stride == 2 && taps == 2) return split_rows<2, 2, S, Code>(p, begin, end, scratch);
    if (p.w.stride == 2 && taps == 3) return split_rows<2, 3, S, Code>(p, begin, end, scratch);
  }
  if (p.w.stride == 1) split_rows<1, 0, S, Code>(p, begin, end, scratch);
  else if (p.w.stride == 2) split_rows<2, 0, S, Code>(p, begin, end, scratch);
  else scatter_rows<S, Code>(p, begin, end, scratch);
}

}  // namespace

void max_pool2d_backward_nchw(const PoolParams& params, const Exec& exec) {
  const auto rows = [&](auto zero, int64_t begin, int64_t end, const Scratch& scratch) {
    using S = decltype(zero);
    if (params.where_is_offset) rows_nchw<S, uint8_t>(params, begin, end, scratch);
    else rows_nchw<S, int64_t>(params, begin, end, scratch);
  };
  const int64_t width = kVectorBytes / (params.dtype == DType::f64 ? 8 : 4);
  if (quarters(params) && params.w.out >= width) {
    return dispatch_float(params.dtype, [&](auto zero) {
      using S = decltype(zero);
      parallel_for(exec, params.n * params.c * params.h.out, rows_grain(params.w.in * 4),
                   [&](int64_t begin, int64_t end) {
                     if (params.where_is_offset) quartered_rows<S, uint8_t>(params, begin, end);
                     else quartered_rows<S, int64_t>(params, begin, end);
                   });
    });
  }
  const int64_t count = params.n * params.c * params.h.in;
  parallel_slots(exec, count, rows_grain(params.w.in * 2), [&](int slot, int64_t begin, int64_t end) {
    const Scratch scratch(params, exec, slot);
    dispatch_float(params.dtype, [&](auto zero) { rows(zero, begin, end, scratch); });
  });
}

void max_pool2d_backward_nhwc(const PoolParams& p, const Exec& exec) {
  dispatch_float(p.dtype, [&](auto zero) {
    using S = decltype(zero);
    parallel_for(exec, p.n * p.h.in, rows_grain(p.w.in * p.c * 2), [&](int64_t begin, int64_t end) {
      if (p.where_is_offset) pixel_rows<S, uint8_t>(p, begin, end);
      else pixel_rows<S, int64_t>(p, begin, end);
    });
  });
}

}  // namespace fastcv::FASTCV_ISA
