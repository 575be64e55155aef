// Weight gradient as a matrix product: rows are the output channels of a group, columns its input channels at every
// kernel offset, and the sum runs over the output pixels of the whole batch.
//
// A Product says how pixels are multiplied: kPair of them in one step, as one packed element E of each factor; an image
// whose pixels do not fill its last step is padded with zeros. Steps are taken in chunks short enough that packed
// panels stay in cache: A[step][kRows] of the output gradient and B[step][columns] of the input seen through one kernel
// offset, zeros outside the image. The micro-kernel adds one outer product per step into kRows x kVectors registers.
// Chunks are grouped into parts with sums of their own, in number a function of the geometry only; the parts are added
// in order at the end. With matrix tiles the micro-kernel is that of conv_amx.h, a Product runs its chunks itself, and
// A is [row][step], of numbers in parts [row][plane][step]. Columns run over (offset, channel) for a channels_last
// input and over (channel, offset) otherwise: the order in which the input is read, and in which the weight of the same
// layout is written. Where many offsets lead outside the image, as dilated ones of small maps do, columns run over
// (offset, channel) too, and a panel leaves out the pixels that its offset has no input for.
#pragma once
#include "conv/conv_plan.h"
#include "conv/conv_wgrad.h"
#include "layout/transpose.h"

namespace fastcv::FASTCV_ISA {
namespace {

#if defined(__AVX512F__)
using avx512::transpose_images;  // for the instruction sets above it, too
#endif

#if defined(__AVX512F__)
constexpr int kVectorRows = 8, kVectors = 2;
#elif defined(__AVX2__)
constexpr int kVectorRows = 4, kVectors = 3;
#else
constexpr int kVectorRows = 4, kVectors = 2;
#endif
constexpr int64_t kChunk = 128;      // steps: one A and one B panel of this length leave room in a 32 KB L1
constexpr int64_t kShortChunk = 32;  // few steps are cut finer, into up to kFewChunks: shorter sums round less
constexpr int64_t kFewChunks = 4;
constexpr int64_t kBlockRows = 512;  // output channels packed at once: with kChunk floats each, less than half an L2
constexpr int64_t kMaxPartBytes = 4 << 20;
constexpr int64_t kRunCost = 4;          // steps that the registers of one more run of steps cost
constexpr int64_t kEnoughOutside = 128;  // steps outside the image, on the average of all offsets, worth leaving out

// Pixel by pixel, widened to the type of the sums.
template <class Storage>
struct PlainSteps {
  using S = Storage;
  using T = acc_t<S>;
  using E = T;  // what is packed
  using G = T;  // a pixel of it
  static constexpr int kPair = 1, kRows = kVectorRows, kPlanes = 1, w = Vec<T>::width;
  static constexpr bool kTiles = false;
  using Session = int;
  FASTCV_INLINE G get(const S* from) { return load_one(from); }
  // n <= w numbers
  FASTCV_INLINE void move(G* to, const S* from, int n) {
    if (n == w) store(to, load(from));
    else store_n(to, load_n(from, n), n);
  }
  // The n <= w channels of a step of `pixels` pixels that are `pitch` apart.
  FASTCV_INLINE Vec<E> channels(const S* from, int64_t, int, int n) { return n == w ? load(from) : load_n(from, n); }
  // w steps of one channel, of which `pixels` pixels exist.
  FASTCV_INLINE Vec<E> steps(const S* from, int pixels) { return pixels == w ? load(from) : load_n(from, pixels); }
  FASTCV_INLINE Vec<E> spread(const E* a) { return Vec<E>(*a); }
  FASTCV_INLINE Vec<T> multiply_add(Vec<E> a, Vec<E> b, Vec<T> sum) { return fma(a, b, sum); }
};

// The range of q for which 0 <= q * stride + offset <= last.
struct Span {
  int64_t begin, end;
};
FASTCV_INLINE Span inside(int64_t offset, int64_t stride, int64_t last) {
  const int64_t begin = offset >= 0 ? 0 : ceil_div(-offset, stride);
  return {begin, last < offset ? begin : most(begin, (last - offset) / stride + 1)};
}

// The share of the pairs of an output and a kernel offset along a dim that meet the input.
inline double share_inside(const ConvWgradParams& p, int dim) {
  int64_t met = 0;
  for (int64_t r = 0; r < p.kernel[dim]; ++r) {
    const Span q = inside(r * p.dilation[dim] - p.pad[dim], p.stride[dim], p.in[dim] - 1);
    met += most(0, least(q.end, p.out[dim]) - q.begin);
  }
  return static_cast<double>(met) / static_cast<double>(most(1, p.kernel[dim] * p.out[dim]));
}

// What follows from the geometry and the product.
template <class Q>
struct Plan {
  using T = typename Q::T;
  static constexpr int w = Vec<T>::width;
  static constexpr int64_t panel = kVectors * w, tile = Q::kRows * panel;

  ConvWgradParams p;
  int64_t cg, kg, taps, columns, image_steps;
  int64_t plane, steps, row_panels, row_blocks, column_panels, column_blocks, chunks, parts;
  bool skips, by_offset;  // a panel is of one offset and leaves pixels out; columns run over (offset, channel)

  Plan(const ConvWgradParams& params, int threads) : p(params) {
    bool pointwise = true;
    for (int i = 0; i < 3; ++i)
      pointwise &= p.kernel[i] == 1 && p.stride[i] == 1 && p.pad[i] == 0 && p.in[i] == p.out[i];
    if (pointwise) {  // one long row
      p.in[2] = p.out[2] = p.in[0] * p.in[1] * p.in[2];
      p.in[0] = p.in[1] = p.out[0] = p.out[1] = 1;
    }
    cg = p.in_channels / p.groups;
    kg = p.out_channels / p.groups;
    taps = p.kernel[0] * p.kernel[1] * p.kernel[2];
    columns = cg * taps;
    plane = p.out[0] * p.out[1] * p.out[2];
    image_steps = ceil_div(plane, Q::kPair);
    steps = p.batch * image_steps;
    row_panels = ceil_div(kg, Q::kRows);
    row_blocks = ceil_div(kg, kBlockRows);
    column_panels = ceil_div(columns, panel);
    const double outside = 1 - share_inside(p, 0) * share_inside(p, 1) * share_inside(p, 2);
    skips = Q::kPair == 1 && cg % panel == 0 && outside > 0.1 && outside * static_cast<double>(steps) > kEnoughOutside;
    by_offset = p.input_channels_last || skips;
    chunks = most(ceil_div(steps, kChunk), least(kFewChunks, ceil_div(steps, kShortChunk)));
    // A part of few chunks would spend its time on the sum of the parts. Where numbers are cut, each item packs A at a
    // price, so there are few parts and few blocks of columns.
    constexpr bool cut = Q::kPlanes > 1;
    constexpr int64_t enough_items = cut ? 8 : 64, min_part = cut ? 3 : 8;
    const int64_t items = most(1, p.groups * row_blocks * column_panels);
    const int64_t bytes = most(1, p.out_channels * columns * static_cast<int64_t>(sizeof(T)));
    const int64_t wanted = p.parts > 0 ? p.parts : least(ceil_div(enough_items, items), kMaxPartBytes / bytes);
    parts = most(1, least(wanted, chunks / min_part));
    column_blocks = least(column_panels, ceil_div(cut ? threads : 4 * threads, most(1, parts * p.groups * row_blocks)));
  }

  int64_t part_elements() const { return p.groups * row_panels * column_panels * tile; }
  // Of A for tiles: rows an even number of cache lines apart would share cache sets.
  static constexpr int64_t kPlanePitch = kChunk + 16, kPitch = Q::kPlanes * kPlanePitch + (Q::kPlanes > 1 ? 16 : 0);
  int64_t a_elements() const { return (least(kg, kBlockRows) + Q::kRows + w) * kPitch + w * Q::kRows; }
  static constexpr int64_t b_elements() { return panel * kChunk * Q::kPlanes; }
  // Pixels of the input before they are packed: by columns where it is row-major, by pixels for products of pairs.
  int64_t gathered_elements() const {
    const int64_t pixels = most(w * (kChunk + w), Q::kPair > 1 ? panel * kChunk : 0) * Q::kPair;
    return ceil_div(pixels * static_cast<int64_t>(sizeof(typename Q::G)), sizeof(T));
  }
  int64_t thread_elements() const {
    const int64_t packing = a_elements() + b_elements() + gathered_elements();
    return ceil_div(most(packing, column_panels * panel), 16) * 16;
  }
};

// f(image, pixel, pixels, at): the steps [first, first + n) image by image; `at` counts steps from `first`.
template <class Q, class F>
FASTCV_INLINE void for_images(const Plan<Q>& plan, int64_t first, int64_t n, F&& f) {
  for (int64_t at = 0; at < n;) {
    const int64_t image = (first + at) / plan.image_steps, step = (first + at) % plan.image_steps;
    const int64_t length = least(plan.image_steps - step, n - at);
    f(image, step * Q::kPair, least(length * Q::kPair, plan.plane - step * Q::kPair), at);
    at += length;
  }
}

// f(depth, row, column, length, at): the pixels [first, first + n) of an image as runs within rows of the output.
template <class F>
FASTCV_INLINE void for_rows(const ConvWgradParams& p, int64_t first, int64_t n, F&& f) {
  int64_t q = first % p.out[2], row = first / p.out[2] % p.out[1], depth = first / p.out[2] / p.out[1];
  for (int64_t at = 0; at < n;) {
    const int64_t length = least(p.out[2] - q, n - at);
    f(depth, row, q, length, at);
    at += length;
    q = 0;
    if (++row == p.out[1]) row = 0, ++depth;
  }
}

// ---- A: the output gradient of rows [row, row + rows) of a group as panels [pixel][Q::kRows] ----------------------

template <class Q, class E = typename Q::E>
void pack_a_channels_last(const Plan<Q>& plan, int64_t channel, int64_t rows, int64_t first, int64_t n, E* dst) {
  constexpr int w = Plan<Q>::w, step = w < Q::kRows ? Q::kRows : w;
  const ConvWgradParams& p = plan.p;
  for_images(plan, first, n, [&](int64_t image, int64_t pixel, int64_t pixels, int64_t at) {
    const auto* src =
        static_cast<const typename Q::S*>(p.grad_output) + (image * plan.plane + pixel) * p.out_channels + channel;
    for (int64_t k = 0; k < rows; k += step) {
      const int64_t left = rows - k;
      const int panels = static_cast<int>(least(step / Q::kRows, ceil_div(left, Q::kRows)));
      E* out = dst + k * n + at * Q::kRows;
      for (int64_t i = 0; i < pixels; i += Q::kPair, out += Q::kRows) {
        Vec<E> v[step / w];
        const int have = static_cast<int>(least(Q::kPair, pixels - i));
#pragma GCC unroll 4
        for (int j = 0; j < step / w; ++j)
          v[j] = Q::channels(src + i * p.out_channels + k + j * w, p.out_channels, have,
                             static_cast<int>(most(0, least(w, left - j * w))));
        for (int panel = 0; panel < panels; ++panel)
          __builtin_memcpy(out + panel * n * Q::kRows, reinterpret_cast<const E*>(v) + panel * Q::kRows,
                           Q::kRows * sizeof(E));
      }
    }
  });
}

template <class Q, class E = typename Q::E>
void pack_a_row_major(const Plan<Q>& plan, int64_t channel, int64_t rows, int64_t first, int64_t n, E* dst) {
  constexpr int w = Plan<Q>::w, pixels_of_vector = w * Q::kPair;
  const ConvWgradParams& p = plan.p;
  const int64_t plane = plan.plane;
  for (int64_t k = 0; k < rows; k += Q::kRows) {
    const int have = static_cast<int>(least(Q::kRows, rows - k));
    for_images(plan, first, n, [&](int64_t image, int64_t pixel, int64_t pixels, int64_t at) {
      const auto* from =
          static_cast<const typename Q::S*>(p.grad_output) + (image * p.out_channels + channel + k) * plane + pixel;
      E* out = dst + k * n + at * Q::kRows;
      for (int64_t j = 0; j < pixels; j += pixels_of_vector, from += pixels_of_vector, out += Q::kRows * w) {
        const int valid = static_cast<int>(least(pixels_of_vector, pixels - j));
        Vec<E> v[Q::kRows];
#pragma GCC unroll 8
        for (int r = 0; r < Q::kRows; ++r) v[r] = r >= have ? Vec<E>(E(0)) : Q::steps(from + r * plane, valid);
        transpose<Q::kRows>(v);
        // A short run writes beyond its end: into what the next run, the next panel or the slack will hold.
#pragma GCC unroll 8
        for (int r = 0; r < Q::kRows; ++r) store(out + r * w, v[r]);
      }
    });
  }
}

// ---- B: the input at columns [column, column + vectors * w) of a group as a panel [pixel][vectors * w] ------------

// One run of `length` columns that are neighbours in memory wherever their `span` kernel offsets lie inside the row.
template <class Q, class S = typename Q::S, class G = typename Q::G>
FASTCV_INLINE void pack_run(const ConvWgradParams& p, int64_t channel, int64_t cg, int64_t span, int64_t run, int64_t u,
                            int length, int64_t image, int64_t first, int64_t n, G* dst, int64_t ld) {
  constexpr int w = Plan<Q>::w;
  const S* src = static_cast<const S*>(p.input) + channel + u;
  const int64_t per_row = p.kernel[2] / span;
  const int64_t s = run % per_row, r = run / per_row % p.kernel[1], t = run / per_row / p.kernel[1];
  const int64_t offset = s * p.dilation[2] - p.pad[2];
  const Span whole = inside(offset, p.stride[2], p.in[2] - span);
  for_rows(p, first, n, [&](int64_t depth, int64_t row, int64_t q, int64_t count, int64_t at) {
    const int64_t d = depth * p.stride[0] - p.pad[0] + t * p.dilation[0];
    const int64_t h = row * p.stride[1] - p.pad[1] + r * p.dilation[1];
    G* out = dst + at * ld;
    const bool outside = d < 0 || d >= p.in[0] || h < 0 || h >= p.in[1];
    const int64_t line = outside ? 0 : ((image * p.in[0] + d) * p.in[1] + h) * p.in[2];
    const int64_t begin = outside ? q + count : least(q + count, most(q, whole.begin));
    const int64_t end = outside ? q + count : most(begin, least(q + count, whole.end));
    const auto edge = [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i) {
        G* o = out + (i - q) * ld;
        const int64_t iw = i * p.stride[2] + offset;
        const int64_t lo = outside ? length : most(0, -iw) * cg - u;
        const int64_t hi = outside ? 0 : least(span, p.in[2] - iw) * cg - u;
        for (int64_t e = 0; e < length; ++e)
          o[e] = e >= lo && e < hi ? Q::get(src + (line + iw) * p.in_channels + e) : G{};
      }
    };
    edge(q, begin);
    const S* from = src + (line + begin * p.stride[2] + offset) * p.in_channels;
    const int64_t step = p.stride[2] * p.in_channels;
    G* o = out + (begin - q) * ld;
    if (length == w)
      for (int64_t i = begin; i < end; ++i, from += step, o += ld) Q::move(o, from, w);
    else
      for (int64_t i = begin; i < end; ++i, from += step, o += ld) Q::move(o, from, length);
    edge(end, q + count);
  });
}

template <class Q, class G = typename Q::G>
void gather_channels_last(const Plan<Q>& plan, int64_t group, int64_t column, int vectors, int64_t image, int64_t first,
                          int64_t n, G* dst) {
  constexpr int w = Plan<Q>::w;
  const ConvWgradParams& p = plan.p;
  // With few channels the offsets of a kernel row are packed together: their inputs are one piece of memory.
  const bool merged = p.dilation[2] == 1 && p.groups == 1 && plan.cg % w != 0;
  const int64_t span = merged ? p.kernel[2] : 1, unit = span * plan.cg, ld = vectors * w;
  for (int v = 0; v < vectors; ++v) {
    int64_t j = column + v * w;
    const int64_t end = least(j + w, plan.columns);
    G* out = dst + v * w;
    if (end < j + w)
      for (int64_t i = 0; i < n; ++i)
        for (int l = 0; l < w; ++l) out[i * ld + l] = G{};
    while (j < end) {
      const int64_t length = least(unit - j % unit, end - j);
      pack_run<Q>(p, group * plan.cg, plan.cg, span, j / unit, j % unit, static_cast<int>(length), image, first, n, out,
                  ld);
      j += length;
      out += length;
    }
  }
}

template <class Q, class E = typename Q::E>
void pack_b_channels_last(const Plan<Q>& plan, int64_t group, int64_t column, int vectors, int64_t first, int64_t n,
                          E* dst, typename Q::G* pixels) {
  constexpr int w = Plan<Q>::w;
  const int64_t ld = vectors * w;
  for_images(plan, first, n, [&](int64_t image, int64_t pixel, int64_t count, int64_t at) {
    if constexpr (Q::kPair == 1) {
      gather_channels_last(plan, group, column, vectors, image, pixel, count, dst + at * ld);
    } else {
      gather_channels_last(plan, group, column, vectors, image, pixel, count, pixels);
      for (int64_t i = 0; i < count; i += Q::kPair)
        for (int v = 0; v < vectors; ++v)
          store(dst + (at + i / Q::kPair) * ld + v * w,
                Q::channels(pixels + i * ld + v * w, ld, static_cast<int>(least(Q::kPair, count - i)), w));
    }
  });
}

// One column: the input of channel c seen through kernel offset `tap`, for every pixel of the chunk.
template <class Q, class S = typename Q::S, class G = typename Q::G>
FASTCV_INLINE void gather_column(const ConvWgradParams& p, int64_t c, int64_t tap, int64_t image, int64_t first,
                                 int64_t n, G* dst) {
  constexpr int w = Plan<Q>::w;
  const S* src = static_cast<const S*>(p.input);
  const int64_t s = tap % p.kernel[2], r = tap / p.kernel[2] % p.kernel[1], t = tap / p.kernel[2] / p.kernel[1];
  const int64_t offset = s * p.dilation[2] - p.pad[2], stride = p.stride[2];
  const Span whole = inside(offset, stride, p.in[2] - 1);
  for_rows(p, first, n, [&](int64_t depth, int64_t row, int64_t q, int64_t count, int64_t at) {
    const int64_t d = depth * p.stride[0] - p.pad[0] + t * p.dilation[0];
    const int64_t h = row * p.stride[1] - p.pad[1] + r * p.dilation[1];
    G* out = dst + at;
    const bool outside = d < 0 || d >= p.in[0] || h < 0 || h >= p.in[1];
    const int64_t begin = outside ? q + count : least(q + count, most(q, whole.begin));
    const int64_t end = outside ? q + count : most(begin, least(q + count, whole.end));
    for (int64_t i = q; i < begin; ++i) *out++ = G{};
    const S* from =
        outside ? src
                : src + (((image * p.in_channels + c) * p.in[0] + d) * p.in[1] + h) * p.in[2] + begin * stride + offset;
    int64_t left = end - begin;
    if (stride == 1) {
      for (; left >= w; left -= w, from += w, out += w) Q::move(out, from, w);
      if (left > 0) Q::move(out, from, static_cast<int>(left));
      out += left;
    } else {
      for (int64_t i = 0; i < left; ++i) out[i] = Q::get(from + i * stride);
      out += left;
    }
    for (int64_t i = end; i < q + count; ++i) *out++ = G{};
  });
}

// A vector of columns, each a row of pixels; returns how far apart these are.
template <class Q, class G = typename Q::G>
int64_t gather_rows(const Plan<Q>& plan, int64_t group, int64_t column, int64_t first, int64_t n, G* rows) {
  constexpr int w = Plan<Q>::w;
  constexpr int64_t stride = (kChunk + w) * Q::kPair;
  for (int l = 0; l < w; ++l) {
    const int64_t j = column + l;
    G* row = rows + l * stride;
    if (j >= plan.columns) {
      for (int64_t i = 0; i < n * Q::kPair; ++i) row[i] = G{};
      continue;
    }
    for_images(plan, first, n, [&](int64_t image, int64_t pixel, int64_t pixels, int64_t at) {
      const int64_t c = plan.by_offset ? j % plan.cg : j / plan.taps;
      const int64_t tap = plan.by_offset ? j / plan.cg : j % plan.taps;
      gather_column<Q>(plan.p, group * plan.cg + c, tap, image, pixel, pixels, row + at * Q::kPair);
      for (int64_t i = pixels; i % Q::kPair != 0; ++i) row[at * Q::kPair + i] = G{};
    });
  }
  return stride;
}

template <class Q, class E = typename Q::E, class G = typename Q::G>
void pack_b_row_major(const Plan<Q>& plan, int64_t group, int64_t column, int vectors, int64_t first, int64_t n, E* dst,
                      G* rows) {
  constexpr int w = Plan<Q>::w;
  const int64_t ld = vectors * w;
  for (int v = 0; v < vectors; ++v) {
    const int64_t stride = gather_rows(plan, group, column + v * w, first, n, rows);
    for (int64_t i = 0; i < n; i += w) {
      Vec<E> block[w];
#pragma GCC unroll 16
      for (int l = 0; l < w; ++l) block[l] = load(reinterpret_cast<const E*>(rows + l * stride) + i);
      transpose<w>(block);
      E* out = dst + i * ld + v * w;
      const int64_t count = least(w, n - i);
      if (count == w) {
#pragma GCC unroll 16
        for (int e = 0; e < w; ++e) store(out + e * ld, block[e]);
      } else {
        const E* from = reinterpret_cast<const E*>(block);
        for (int64_t e = 0; e < count; ++e) store(out + e * ld, load(from + e * w));
      }
    }
  }
}

template <class Q, class E = typename Q::E, class G = typename Q::G>
void pack_b(const Plan<Q>& plan, int64_t group, int64_t column, int vectors, int64_t first, int64_t n, E* dst,
            G* gathered) {
  if (plan.p.input_channels_last) pack_b_channels_last(plan, group, column, vectors, first, n, dst, gathered);
  else pack_b_row_major(plan, group, column, vectors, first, n, dst, gathered);
}

// ---- the product ---------------------------------------------------------------------------------------------------

// out[r][v] (+)= sum over steps of a[step][r] * b[step][v]
template <class Q, int V, class E = typename Q::E, class T = typename Q::T>
void multiply(const E* a, const E* b, int64_t n, T* out, bool add) {
  constexpr int w = Plan<Q>::w;
  Vec<T> sum[Q::kRows][V];
#pragma GCC unroll 8
  for (int r = 0; r < Q::kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[r][v] = Vec<T>(T(0));
  for (int64_t i = 0; i < n; ++i, a += Q::kRows, b += V * w) {
    Vec<E> x[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) x[v] = load(b + v * w);
#pragma GCC unroll 8
    for (int r = 0; r < Q::kRows; ++r) {
      const Vec<E> g = Q::spread(a + r);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[r][v] = Q::multiply_add(g, x[v], sum[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Q::kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      T* o = out + r * Plan<Q>::panel + v * w;
      store(o, add ? sum[r][v] + load(o) : sum[r][v]);
    }
}

// a_step, out_step: from one panel of rows to the next.
template <class Q, class T = typename Q::T, class E = typename Q::E>
void multiply_panel(const E* a, int64_t a_step, const E* b, int64_t n, int vectors, int64_t row_panels, T* out,
                    int64_t out_step, bool add) {
  for (int64_t r = 0; r < row_panels; ++r, a += a_step, out += out_step) {
    if (vectors == 1) multiply<Q, 1>(a, b, n, out, add);
    else if (vectors == kVectors) multiply<Q, kVectors>(a, b, n, out, add);
    else multiply<Q, 2>(a, b, n, out, add);
  }
}

// What matrix tiles made of a panel of rows, [Q::kRows][panel], goes to out, or is added to it.
template <class Q, class T = typename Q::T>
void finish_tile(const T* sums, int vectors, T* out, bool add) {
  constexpr int w = Plan<Q>::w;
  for (int r = 0; r < Q::kRows; ++r)
    for (int v = 0; v < vectors; ++v) {
      T* o = out + r * Plan<Q>::panel + v * w;
      const Vec<T> sum = load(sums + r * Plan<Q>::panel + v * w);
      store(o, add ? sum + load(o) : sum);
    }
}

// f(at, length): the steps among [first, first + n) that a kernel offset has an input for, in runs: of whole rows, or
// of a part of each where that is less work.
template <class Q, class F>
void for_inside(const Plan<Q>& plan, int64_t tap, int64_t first, int64_t n, F&& f) {
  const ConvWgradParams& p = plan.p;
  const int64_t s = tap % p.kernel[2], r = tap / p.kernel[2] % p.kernel[1], t = tap / p.kernel[2] / p.kernel[1];
  const Span across = inside(s * p.dilation[2] - p.pad[2], p.stride[2], p.in[2] - 1);
  const bool narrow = least(across.end, p.out[2]) - across.begin + kRunCost < p.out[2];
  int64_t begin = 0, end = 0;  // of the run that still grows
  for_images(plan, first, n, [&](int64_t, int64_t pixel, int64_t pixels, int64_t image_at) {
    for_rows(p, pixel, pixels, [&](int64_t depth, int64_t row, int64_t q, int64_t length, int64_t at) {
      const int64_t d = depth * p.stride[0] - p.pad[0] + t * p.dilation[0];
      const int64_t h = row * p.stride[1] - p.pad[1] + r * p.dilation[1];
      if (d < 0 || d >= p.in[0] || h < 0 || h >= p.in[1]) return;
      const int64_t from = narrow ? most(q, across.begin) : q, to = narrow ? least(q + length, across.end) : q + length;
      if (from >= to) return;
      const int64_t start = image_at + at + from - q;
      if (start != end) {
        if (begin < end) f(begin, end - begin);
        begin = start;
      }
      end = start + to - from;
    });
  });
  if (begin < end) f(begin, end - begin);
}

template <class Q, class T = typename Q::T>
void run_item(const Plan<Q>& plan, int64_t item, T* partial, T* scratch) {
  using E = typename Q::E;
  static_assert(sizeof(E) == sizeof(T));
  constexpr int w = Plan<Q>::w;
  const ConvWgradParams& p = plan.p;
  const int64_t column_block = item % plan.column_blocks;
  item /= plan.column_blocks;
  const int64_t row_block = item % plan.row_blocks;
  item /= plan.row_blocks;
  const int64_t group = item % p.groups, part = item / p.groups;
  const int64_t first_row = row_block * kBlockRows, rows = least(kBlockRows, plan.kg - first_row);
  const int64_t first_panel = plan.column_panels * column_block / plan.column_blocks;
  const int64_t last_panel = plan.column_panels * (column_block + 1) / plan.column_blocks;
  const int64_t first_chunk = plan.chunks * part / plan.parts, last_chunk = plan.chunks * (part + 1) / plan.parts;
  E* a = reinterpret_cast<E*>(scratch);
  E* b = a + plan.a_elements();
  auto* gathered = reinterpret_cast<typename Q::G*>(b + Plan<Q>::b_elements());
  T* tiles = partial + part * plan.part_elements() +
             (group * plan.row_panels + first_row / Q::kRows) * plan.column_panels * Plan<Q>::tile;
  const int64_t out_step = plan.column_panels * Plan<Q>::tile;
  if (plan.skips)
    for (int64_t r = 0; r < ceil_div(rows, Q::kRows); ++r)
      __builtin_memset(tiles + first_panel * Plan<Q>::tile + r * out_step, 0,
                       (last_panel - first_panel) * Plan<Q>::tile * sizeof(T));
  for (int64_t chunk = first_chunk; chunk < last_chunk; ++chunk) {
    const int64_t first = plan.steps * chunk / plan.chunks, n = plan.steps * (chunk + 1) / plan.chunks - first;
    const int64_t channel = group * plan.kg + first_row;
    if constexpr (Q::kTiles) {
      Q::run_chunk(plan, group, channel, rows, first, n, first_panel, last_panel, a, b, gathered, tiles,
                   chunk > first_chunk);
    } else {
      if (p.grad_channels_last) pack_a_channels_last(plan, channel, rows, first, n, a);
      else pack_a_row_major(plan, channel, rows, first, n, a);
      for (int64_t panel = first_panel; panel < last_panel; ++panel) {
        const int64_t column = panel * Plan<Q>::panel, row_panels = ceil_div(rows, Q::kRows);
        const int vectors = static_cast<int>(least(kVectors, ceil_div(plan.columns - column, w)));
        T* out = tiles + panel * Plan<Q>::tile;
        if (plan.skips) {
          for_inside(plan, column / plan.cg, first, n, [&](int64_t at, int64_t steps) {
            pack_b(plan, group, column, vectors, first + at, steps, b, gathered);
            multiply_panel<Q>(a + at * Q::kRows, n * Q::kRows, b, steps, vectors, row_panels, out, out_step, true);
          });
        } else {
          pack_b(plan, group, column, vectors, first, n, b, gathered);
          multiply_panel<Q>(a, n * Q::kRows, b, n, vectors, row_panels, out, out_step, chunk > first_chunk);
        }
      }
    }
  }
}

// Row k of the result: the parts added in order, rounded once, in the weight's order of elements.
template <class Q, class T = typename Q::T>
void finish_row(const Plan<Q>& plan, int64_t k, const T* partial, T* row) {
  using S = typename Q::S;
  constexpr int w = Plan<Q>::w;
  const ConvWgradParams& p = plan.p;
  const int64_t group = k / plan.kg, r = k % plan.kg;
  const T* tiles = partial + (group * plan.row_panels + r / Q::kRows) * plan.column_panels * Plan<Q>::tile +
                   r % Q::kRows * Plan<Q>::panel;
  for (int64_t j = 0; j < plan.columns; j += w) {
    const T* at = tiles + j / Plan<Q>::panel * Plan<Q>::tile + j % Plan<Q>::panel;
    Vec<T> sum = load(at);
    for (int64_t part = 1; part < plan.parts; ++part) sum += load(at + part * plan.part_elements());
    store(row + j, sum);
  }
  S* out = static_cast<S*>(p.grad_weight) + k * plan.columns;
  if (plan.by_offset == p.weight_channels_last || plan.cg == 1 || plan.taps == 1) {
    int64_t j = 0;
    for (; j + w <= plan.columns; j += w) store(out + j, load(row + j));
    if (j < plan.columns) {
      const int left = static_cast<int>(plan.columns - j);
      store_n(out + j, load(row + j), left);
    }
  } else {
    const int64_t inner = plan.by_offset ? plan.cg : plan.taps, outer = plan.columns / inner;
    for (int64_t i = 0; i < inner; ++i)
      for (int64_t o = 0; o < outer; ++o) store_one(out + i * outer + o, row[o * inner + i]);
  }
}

template <class Q>
void run_as_it_lies(const ConvWgradParams& params, const Exec& exec) {
  using S = typename Q::S;
  using T = typename Q::T;
  const Plan<Q> plan(params, exec.threads);
  if (params.out_channels * plan.columns == 0) return;
  if (plan.steps == 0) {
    S* out = static_cast<S*>(params.grad_weight);
    for (int64_t i = 0; i < params.out_channels * plan.columns; ++i) store_one(out + i, T(0));
    return;
  }
  T* partial = static_cast<T*>(exec.workspace);
  T* scratch = partial + plan.parts * plan.part_elements();
  const int64_t items = plan.parts * plan.p.groups * plan.row_blocks * plan.column_blocks;
  const int64_t work = plan.steps * plan.columns * params.out_channels;
  const int64_t grain = most(1, ceil_div(items << 16, work));  // 2^16 multiplications pay for waking a thread
  parallel_slots(exec, items, grain, [&](int slot, int64_t begin, int64_t end) {
    [[maybe_unused]] const typename Q::Session session{};
    for (int64_t i = begin; i < end; ++i) run_item(plan, i, partial, scratch + slot * plan.thread_elements());
  });
  parallel_slots(exec, params.out_channels, most(1, (1 << 14) / plan.columns),
                 [&](int slot, int64_t begin, int64_t end) {
                   for (int64_t k = begin; k < end; ++k)
                     finish_row(plan, k, partial, scratch + slot * plan.thread_elements());
                 });
}

template <class Q>
size_t workspace_as_it_lies(const ConvWgradParams& p, int threads) {
  const Plan<Q> plan(p, threads);
  if (plan.steps == 0) return 0;
  return static_cast<size_t>(plan.parts * plan.part_elements() + threads * plan.thread_elements()) *
         sizeof(typename Q::T);
}

// A row-major input that several taps see is turned into a channels_last one first: each tap would transpose it anew.
// Returns the bytes of the copy, or 0 where the input is read as it lies.
template <class Q>
size_t turned_bytes(const ConvWgradParams& p) {
  constexpr int64_t kFew = 4, kMost = int64_t{64} << 20;  // channels; bytes, beyond which memory is not worth it
  const int64_t bytes =
      p.batch * p.in_channels * p.in[0] * p.in[1] * p.in[2] * static_cast<int64_t>(sizeof(typename Q::S));
  const bool taken = !p.input_channels_last && p.kernel[0] * p.kernel[1] * p.kernel[2] > 1 &&
                     p.in_channels >= kFew * p.groups && bytes <= kMost;
  return taken ? static_cast<size_t>(round_up(bytes, 64)) : 0;
}

template <class Q>
size_t workspace(const ConvWgradParams& p, int threads) {
  const size_t bytes = turned_bytes<Q>(p);
  ConvWgradParams turned = p;
  turned.input_channels_last |= bytes > 0;
  return bytes + workspace_as_it_lies<Q>(turned, threads);
}

template <class Q>
void run(const ConvWgradParams& p, const Exec& exec) {
  const size_t bytes = turned_bytes<Q>(p);
  if (bytes == 0) return run_as_it_lies<Q>(p, exec);
  transpose_images(
      {p.input, exec.workspace, p.batch, p.in_channels, p.in[0] * p.in[1] * p.in[2], sizeof(typename Q::S)}, exec);
  ConvWgradParams turned = p;
  turned.input = exec.workspace;
  turned.input_channels_last = true;
  Exec inner = exec;
  inner.workspace = static_cast<char*>(exec.workspace) + bytes;
  run_as_it_lies<Q>(turned, inner);
}

}  // namespace
}  // namespace fastcv::FASTCV_ISA
