// Weight gradient as a matrix product: rows are the output channels of a group, columns its input channels at every
// kernel offset, and the sum runs over the output pixels of the whole batch.
//
// Pixels are taken in chunks short enough that packed panels stay in cache: A[pixel][kRows] of the output gradient and
// B[pixel][columns] of the input seen through one kernel offset, zeros outside the image, both widened to the type of
// the sum. The micro-kernel adds one outer product per pixel into kRows x kVectors registers. Chunks are grouped into
// parts with sums of their own, in number a function of the geometry only; the parts are added in order at the end.
// Columns run over (offset, channel) for a channels_last input and over (channel, offset) otherwise: the order in which
// the input is read, and in which the weight of the same layout is written.
#include "conv/conv_wgrad.h"

#include "common/dispatch.h"
#include "common/simd.h"

namespace fastcv::FASTCV_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kRows = 8, kVectors = 2;
#elif defined(__AVX2__)
constexpr int kRows = 4, kVectors = 3;
#else
constexpr int kRows = 4, kVectors = 2;
#endif
constexpr int64_t kChunk = 128;      // pixels: one A and one B panel of this length leave room in a 32 KB L1
constexpr int64_t kShortChunk = 32;  // few pixels are cut finer, into up to kFewChunks: shorter sums round less
constexpr int64_t kFewChunks = 4;
constexpr int64_t kBlockRows = 512;  // output channels packed at once: with kChunk floats each, less than half an L2
constexpr int64_t kMinPart = 8;      // chunks: a shorter part would spend its time on the sum of the parts
constexpr int64_t kEnoughItems = 64;
constexpr int64_t kMaxPartBytes = 4 << 20;

FASTCV_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
FASTCV_INLINE int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }
FASTCV_INLINE int64_t greater(int64_t a, int64_t b) { return a > b ? a : b; }

// What follows from the geometry and the type T of the sums.
template <class T>
struct Plan {
  static constexpr int w = Vec<T>::width;
  static constexpr int64_t panel = kVectors * w, tile = kRows * panel;

  ConvWgradParams p;
  int64_t cg, kg, taps, columns, pixels;
  int64_t row_panels, row_blocks, column_panels, column_blocks, chunks, parts;

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
    pixels = p.batch * p.out[0] * p.out[1] * p.out[2];
    row_panels = ceil_div(kg, kRows);
    row_blocks = ceil_div(kg, kBlockRows);
    column_panels = ceil_div(columns, panel);
    chunks = greater(ceil_div(pixels, kChunk), lesser(kFewChunks, ceil_div(pixels, kShortChunk)));
    const int64_t items = greater(1, p.groups * row_blocks * column_panels);
    const int64_t bytes = greater(1, p.out_channels * columns * static_cast<int64_t>(sizeof(T)));
    parts = greater(1, lesser(ceil_div(kEnoughItems, items), lesser(chunks / kMinPart, kMaxPartBytes / bytes)));
    column_blocks = lesser(column_panels, ceil_div(4 * threads, greater(1, parts * p.groups * row_blocks)));
  }

  int64_t part_elements() const { return p.groups * row_panels * column_panels * tile; }
  int64_t a_elements() const { return (lesser(kg, kBlockRows) + kRows + w) * kChunk + w * kRows; }
  int64_t thread_elements() const {
    const int64_t packing = a_elements() + panel * kChunk + w * (kChunk + w);
    return ceil_div(greater(packing, column_panels * panel), 16) * 16;
  }
};

// f(image, depth, row, column, length, at): the pixels [first, first + n) as runs within rows of the output.
template <class F>
FASTCV_INLINE void for_rows(const ConvWgradParams& p, int64_t first, int64_t n, F&& f) {
  int64_t q = first % p.out[2], rest = first / p.out[2];
  int64_t row = rest % p.out[1];
  rest /= p.out[1];
  int64_t depth = rest % p.out[0], image = rest / p.out[0];
  for (int64_t at = 0; at < n;) {
    const int64_t length = lesser(p.out[2] - q, n - at);
    f(image, depth, row, q, length, at);
    at += length;
    q = 0;
    if (++row == p.out[1]) {
      row = 0;
      if (++depth == p.out[0]) depth = 0, ++image;
    }
  }
}

// The range of q for which 0 <= q * stride + offset <= last.
struct Range {
  int64_t begin, end;
};
FASTCV_INLINE Range inside(int64_t offset, int64_t stride, int64_t last) {
  const int64_t begin = offset >= 0 ? 0 : ceil_div(-offset, stride);
  return {begin, last < offset ? begin : greater(begin, (last - offset) / stride + 1)};
}

// ---- A: the output gradient of rows [row, row + rows) of a group as panels [pixel][kRows]
// ------------------------------

template <class S, class T>
void pack_a_channels_last(const ConvWgradParams& p, int64_t channel, int64_t rows, int64_t first, int64_t n, T* dst) {
  constexpr int w = Vec<T>::width, step = w < kRows ? kRows : w;
  const S* src = static_cast<const S*>(p.grad_output) + first * p.out_channels + channel;
  for (int64_t k = 0; k < rows; k += step) {
    T* out = dst + k * n;
    const int64_t left = rows - k;
    const int panels = static_cast<int>(lesser(step / kRows, ceil_div(left, kRows)));
    for (int64_t i = 0; i < n; ++i) {
      Vec<T> v[step / w];
#pragma GCC unroll 4
      for (int j = 0; j < step / w; ++j) {
        const S* from = src + i * p.out_channels + k + j * w;
        const int64_t valid = left - j * w;
        v[j] = valid >= w ? load(from) : load_n(from, static_cast<int>(greater(0, valid)));
      }
      for (int panel = 0; panel < panels; ++panel)
        __builtin_memcpy(out + (panel * n + i) * kRows, reinterpret_cast<const T*>(v) + panel * kRows,
                         kRows * sizeof(T));
    }
  }
}

template <class S, class T>
void pack_a_row_major(const ConvWgradParams& p, int64_t channel, int64_t rows, int64_t first, int64_t n, T* dst) {
  constexpr int w = Vec<T>::width;
  const S* src = static_cast<const S*>(p.grad_output);
  const int64_t plane = p.out[0] * p.out[1] * p.out[2];
  for (int64_t k = 0; k < rows; k += kRows) {
    T* out = dst + k * n;
    const int have = static_cast<int>(lesser(kRows, rows - k));
    for (int64_t i = 0; i < n;) {
      const int64_t image = (first + i) / plane, at = (first + i) % plane, length = lesser(plane - at, n - i);
      const S* from = src + (image * p.out_channels + channel + k) * plane + at;
      for (int64_t j = 0; j < length; j += w, from += w) {
        const int valid = static_cast<int>(lesser(w, length - j));
        Vec<T> v[kRows];
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r)
          v[r] = r >= have ? Vec<T>(T(0)) : valid == w ? load(from + r * plane) : load_n(from + r * plane, valid);
        transpose<kRows>(v);
        // A short run writes beyond its end: into what the next run, the next panel or the slack will hold.
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) store(out + i * kRows + r * w, v[r]);
        i += valid;
      }
    }
  }
}

// ---- B: the input at columns [column, column + vectors * w) of a group as a panel [pixel][vectors * w]
// -----------------

// One run of `length` columns that are neighbours in memory wherever their `span` kernel offsets lie inside the row.
template <class S, class T>
FASTCV_INLINE void pack_run(const ConvWgradParams& p, int64_t channel, int64_t cg, int64_t span, int64_t run, int64_t u,
                            int length, int64_t first, int64_t n, T* dst, int64_t ld) {
  constexpr int w = Vec<T>::width;
  const S* src = static_cast<const S*>(p.input) + channel + u;
  const int64_t per_row = p.kernel[2] / span;
  const int64_t s = run % per_row, r = run / per_row % p.kernel[1], t = run / per_row / p.kernel[1];
  const int64_t offset = s * p.dilation[2] - p.pad[2];
  const Range whole = inside(offset, p.stride[2], p.in[2] - span);
  for_rows(p, first, n, [&](int64_t image, int64_t depth, int64_t row, int64_t q, int64_t count, int64_t at) {
    const int64_t d = depth * p.stride[0] - p.pad[0] + t * p.dilation[0];
    const int64_t h = row * p.stride[1] - p.pad[1] + r * p.dilation[1];
    T* out = dst + at * ld;
    const bool outside = d < 0 || d >= p.in[0] || h < 0 || h >= p.in[1];
    const int64_t line = outside ? 0 : ((image * p.in[0] + d) * p.in[1] + h) * p.in[2];
    const int64_t begin = outside ? q + count : lesser(q + count, greater(q, whole.begin));
    const int64_t end = outside ? q + count : greater(begin, lesser(q + count, whole.end));
    const auto edge = [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i) {
        T* o = out + (i - q) * ld;
        const int64_t iw = i * p.stride[2] + offset;
        const int64_t lo = outside ? length : greater(0, -iw) * cg - u;
        const int64_t hi = outside ? 0 : lesser(span, p.in[2] - iw) * cg - u;
        for (int64_t e = 0; e < length; ++e)
          o[e] = e >= lo && e < hi ? load_one(src + (line + iw) * p.in_channels + e) : T(0);
      }
    };
    edge(q, begin);
    const S* from = src + (line + begin * p.stride[2] + offset) * p.in_channels;
    const int64_t step = p.stride[2] * p.in_channels;
    T* o = out + (begin - q) * ld;
    if (length == w)
      for (int64_t i = begin; i < end; ++i, from += step, o += ld) store(o, load(from));
    else
      for (int64_t i = begin; i < end; ++i, from += step, o += ld) store_n(o, load_n(from, length), length);
    edge(end, q + count);
  });
}

template <class S, class T>
void pack_b_channels_last(const Plan<T>& plan, int64_t group, int64_t column, int vectors, int64_t first, int64_t n,
                          T* dst) {
  constexpr int w = Vec<T>::width;
  const ConvWgradParams& p = plan.p;
  // With few channels the offsets of a kernel row are packed together: their inputs are one piece of memory.
  const bool merged = p.dilation[2] == 1 && p.groups == 1 && plan.cg % w != 0;
  const int64_t span = merged ? p.kernel[2] : 1, unit = span * plan.cg, ld = vectors * w;
  for (int v = 0; v < vectors; ++v) {
    int64_t j = column + v * w;
    const int64_t end = lesser(j + w, plan.columns);
    T* out = dst + v * w;
    if (end < j + w)
      for (int64_t i = 0; i < n; ++i) store(out + i * ld, Vec<T>(T(0)));
    while (j < end) {
      const int64_t length = lesser(unit - j % unit, end - j);
      pack_run<S, T>(p, group * plan.cg, plan.cg, span, j / unit, j % unit, static_cast<int>(length), first, n, out,
                     ld);
      j += length;
      out += length;
    }
  }
}

// One column: the input of channel c seen through kernel offset `tap`, for every pixel of the chunk.
template <class S, class T>
FASTCV_INLINE void gather_column(const ConvWgradParams& p, int64_t c, int64_t tap, int64_t first, int64_t n, T* dst) {
  constexpr int w = Vec<T>::width;
  const S* src = static_cast<const S*>(p.input);
  const int64_t s = tap % p.kernel[2], r = tap / p.kernel[2] % p.kernel[1], t = tap / p.kernel[2] / p.kernel[1];
  const int64_t offset = s * p.dilation[2] - p.pad[2], stride = p.stride[2];
  const Range whole = inside(offset, stride, p.in[2] - 1);
  for_rows(p, first, n, [&](int64_t image, int64_t depth, int64_t row, int64_t q, int64_t count, int64_t at) {
    const int64_t d = depth * p.stride[0] - p.pad[0] + t * p.dilation[0];
    const int64_t h = row * p.stride[1] - p.pad[1] + r * p.dilation[1];
    T* out = dst + at;
    const bool outside = d < 0 || d >= p.in[0] || h < 0 || h >= p.in[1];
    const int64_t begin = outside ? q + count : lesser(q + count, greater(q, whole.begin));
    const int64_t end = outside ? q + count : greater(begin, lesser(q + count, whole.end));
    for (int64_t i = q; i < begin; ++i) *out++ = T(0);
    const S* from =
        outside ? src
                : src + (((image * p.in_channels + c) * p.in[0] + d) * p.in[1] + h) * p.in[2] + begin * stride + offset;
    int64_t left = end - begin;
    if (stride == 1) {
      for (; left >= w; left -= w, from += w, out += w) store(out, load(from));
      if (left > 0) store_n(out, load_n(from, static_cast<int>(left)), static_cast<int>(left));
      out += left;
    } else {
      for (int64_t i = 0; i < left; ++i) out[i] = load_one(from + i * stride);
      out += left;
    }
    for (int64_t i = end; i < q + count; ++i) *out++ = T(0);
  });
}

template <class S, class T>
void pack_b_row_major(const Plan<T>& plan, int64_t group, int64_t column, int vectors, int64_t first, int64_t n, T* dst,
                      T* rows) {
  constexpr int w = Vec<T>::width;
  const int64_t ld = vectors * w, stride = kChunk + w;
  for (int v = 0; v < vectors; ++v) {
    for (int l = 0; l < w; ++l) {
      const int64_t j = column + v * w + l;
      if (j < plan.columns)
        gather_column<S, T>(plan.p, group * plan.cg + j / plan.taps, j % plan.taps, first, n, rows + l * stride);
      else
        for (int64_t i = 0; i < n; ++i) rows[l * stride + i] = T(0);
    }
    for (int64_t i = 0; i < n; i += w) {
      Vec<T> block[w];
#pragma GCC unroll 16
      for (int l = 0; l < w; ++l) block[l] = load(rows + l * stride + i);
      transpose<w>(block);
      T* out = dst + i * ld + v * w;
      const int64_t count = lesser(w, n - i);
      if (count == w) {
#pragma GCC unroll 16
        for (int e = 0; e < w; ++e) store(out + e * ld, block[e]);
      } else {
        const T* from = reinterpret_cast<const T*>(block);
        for (int64_t e = 0; e < count; ++e) store(out + e * ld, load(from + e * w));
      }
    }
  }
}

// ---- the product
// ------------------------------------------------------------------------------------------------------

// out[r][v] (+)= sum over pixels of a[pixel][r] * b[pixel][v]
template <class T, int V>
void multiply(const T* a, const T* b, int64_t n, T* out, bool add) {
  constexpr int w = Vec<T>::width;
  Vec<T> sum[kRows][V];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[r][v] = Vec<T>(T(0));
  for (int64_t i = 0; i < n; ++i, a += kRows, b += V * w) {
    Vec<T> x[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) x[v] = load(b + v * w);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Vec<T> g(a[r]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[r][v] = fma(g, x[v], sum[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      T* o = out + r * Plan<T>::panel + v * w;
      store(o, add ? sum[r][v] + load(o) : sum[r][v]);
    }
}

template <class S, class T>
void run_item(const Plan<T>& plan, int64_t item, T* partial, T* scratch) {
  constexpr int w = Vec<T>::width;
  const ConvWgradParams& p = plan.p;
  const int64_t column_block = item % plan.column_blocks;
  item /= plan.column_blocks;
  const int64_t row_block = item % plan.row_blocks;
  item /= plan.row_blocks;
  const int64_t group = item % p.groups, part = item / p.groups;
  const int64_t first_row = row_block * kBlockRows, rows = lesser(kBlockRows, plan.kg - first_row);
  const int64_t first_panel = plan.column_panels * column_block / plan.column_blocks;
  const int64_t last_panel = plan.column_panels * (column_block + 1) / plan.column_blocks;
  const int64_t first_chunk = plan.chunks * part / plan.parts, last_chunk = plan.chunks * (part + 1) / plan.parts;
  T* a = scratch;
  T* b = a + plan.a_elements();
  T* gathered = b + Plan<T>::panel * kChunk;
  T* tiles = partial + part * plan.part_elements() +
             (group * plan.row_panels + first_row / kRows) * plan.column_panels * Plan<T>::tile;
  for (int64_t chunk = first_chunk; chunk < last_chunk; ++chunk) {
    const int64_t first = plan.pixels * chunk / plan.chunks, n = plan.pixels * (chunk + 1) / plan.chunks - first;
    const int64_t channel = group * plan.kg + first_row;
    if (p.grad_channels_last) pack_a_channels_last<S, T>(p, channel, rows, first, n, a);
    else pack_a_row_major<S, T>(p, channel, rows, first, n, a);
    for (int64_t panel = first_panel; panel < last_panel; ++panel) {
      const int64_t column = panel * Plan<T>::panel;
      const int vectors = static_cast<int>(lesser(kVectors, ceil_div(plan.columns - column, w)));
      if (p.input_channels_last) pack_b_channels_last<S, T>(plan, group, column, vectors, first, n, b);
      else pack_b_row_major<S, T>(plan, group, column, vectors, first, n, b, gathered);
      for (int64_t r = 0; r < ceil_div(rows, kRows); ++r) {
        T* out = tiles + (r * plan.column_panels + panel) * Plan<T>::tile;
        const T* rows_a = a + r * n * kRows;
        if (vectors == 1) multiply<T, 1>(rows_a, b, n, out, chunk > first_chunk);
        else if (vectors == kVectors) multiply<T, kVectors>(rows_a, b, n, out, chunk > first_chunk);
        else multiply<T, 2>(rows_a, b, n, out, chunk > first_chunk);
      }
    }
  }
}

// Row k of the result: the parts added in order, rounded once, in the weight's order of elements.
template <class S, class T>
void finish_row(const Plan<T>& plan, int64_t k, const T* partial, T* row) {
  constexpr int w = Vec<T>::width;
  const ConvWgradParams& p = plan.p;
  const int64_t group = k / plan.kg, r = k % plan.kg;
  const T* tiles =
      partial + (group * plan.row_panels + r / kRows) * plan.column_panels * Plan<T>::tile + r % kRows * Plan<T>::panel;
  for (int64_t j = 0; j < plan.columns; j += w) {
    const T* at = tiles + j / Plan<T>::panel * Plan<T>::tile + j % Plan<T>::panel;
    Vec<T> sum = load(at);
    for (int64_t part = 1; part < plan.parts; ++part) sum += load(at + part * plan.part_elements());
    store(row + j, sum);
  }
  S* out = static_cast<S*>(p.grad_weight) + k * plan.columns;
  if (p.input_channels_last == p.weight_channels_last || plan.cg == 1 || plan.taps == 1) {
    int64_t j = 0;
    for (; j + w <= plan.columns; j += w) store(out + j, load(row + j));
    if (j < plan.columns) {
      const int left = static_cast<int>(plan.columns - j);
      store_n(out + j, load(row + j), left);
    }
  } else {
    const int64_t inner = p.input_channels_last ? plan.cg : plan.taps, outer = plan.columns / inner;
    for (int64_t i = 0; i < inner; ++i)
      for (int64_t o = 0; o < outer; ++o) store_one(out + i * outer + o, row[o * inner + i]);
  }
}

template <class S>
void run(const ConvWgradParams& params, const Exec& exec) {
  using T = acc_t<S>;
  const Plan<T> plan(params, exec.threads);
  if (params.out_channels * plan.columns == 0) return;
  if (plan.pixels == 0) {
    S* out = static_cast<S*>(params.grad_weight);
    for (int64_t i = 0; i < params.out_channels * plan.columns; ++i) store_one(out + i, T(0));
    return;
  }
  T* partial = static_cast<T*>(exec.workspace);
  T* scratch = partial + plan.parts * plan.part_elements();
  const int64_t items = plan.parts * plan.p.groups * plan.row_blocks * plan.column_blocks;
  const int64_t work = plan.pixels * plan.columns * params.out_channels;
  const int64_t grain = greater(1, ceil_div(items << 16, work));  // 2^16 multiplications pay for waking a thread
  parallel_slots(exec, items, grain, [&](int slot, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) run_item<S, T>(plan, i, partial, scratch + slot * plan.thread_elements());
  });
  parallel_slots(exec, params.out_channels, greater(1, (1 << 14) / plan.columns),
                 [&](int slot, int64_t begin, int64_t end) {
                   for (int64_t k = begin; k < end; ++k)
                     finish_row<S, T>(plan, k, partial, scratch + slot * plan.thread_elements());
                 });
}

template <class T>
size_t workspace(const ConvWgradParams& p, int threads) {
  const Plan<T> plan(p, threads);
  if (plan.pixels == 0) return 0;
  return static_cast<size_t>(plan.parts * plan.part_elements() + threads * plan.thread_elements()) * sizeof(T);
}

}  // namespace

size_t conv_wgrad_workspace(const ConvWgradParams& p, int threads) {
  return p.dtype == DType::f64 ? workspace<double>(p, threads) : workspace<float>(p, threads);
}

void conv_wgrad(const ConvWgradParams& p, const Exec& exec) {
  dispatch_float(p.dtype, [&](auto zero) { run<decltype(zero)>(p, exec); });
}

}  // namespace fastcv::FASTCV_ISA
