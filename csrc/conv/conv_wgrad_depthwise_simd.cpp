// Weight gradient where every group has one input channel: no sum is shared, so there is no matrix product, and what
// counts is to read both tensors once. Sums of up to kBlock kernel offsets stay in registers while one vector of the
// output gradient after the other is multiplied with the input under each of these offsets.
//
// channels_last: vectors run over channels, the sums over a row of the output. Rows are grouped into parts.
// row-major: vectors run over the pixels of a row; the input rows under a block of output rows are first copied into
// scratch with their padding and split by the stride's phase, so that every offset reads contiguous memory. Images are
// grouped into parts. The number of parts follows from the geometry, and the parts are added in order.
#include "conv/conv_wgrad.h"

#include "common/dispatch.h"
#include "common/simd.h"

namespace fastcv::FASTCV_ISA {
namespace {

constexpr int64_t kMaxTaps = 128;
constexpr int64_t kScratchRows = 1 << 15;   // elements of input rows copied at once: half an L2 of floats at most
constexpr int64_t kScratchLimit = 1 << 20;  // elements: what one output row may need
constexpr int64_t kItems = 64, kPartRows = 8, kVectorsPerSum = 512;

FASTCV_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
FASTCV_INLINE int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }
FASTCV_INLINE int64_t greater(int64_t a, int64_t b) { return a > b ? a : b; }

template <class T>
struct Plan {
  static constexpr int w = Vec<T>::width;
  ConvWgradParams p;
  int64_t taps, rows, parts, channel_blocks;          // rows: of the output, over the whole batch
  int64_t line, row_length, reach, block_rows, held;  // row-major: scratch rows

  Plan(const ConvWgradParams& params, int threads) : p(params) {
    taps = p.kernel[0] * p.kernel[1] * p.kernel[2];
    rows = p.batch * p.out[0] * p.out[1];
    line = ceil_div(p.out[2], w) * w + (p.kernel[2] - 1) * p.dilation[2] / p.stride[2] + 1;
    row_length = line * p.stride[2];
    reach = (p.kernel[1] - 1) * p.dilation[1] + 1;
    const int64_t fit = kScratchRows / (p.kernel[0] * row_length);
    block_rows = fit > reach ? (fit - reach) / p.stride[1] + 1 : 1;
    block_rows = greater(1, lesser(block_rows, kVectorsPerSum / ceil_div(p.out[2] + 1, w)));
    held = (block_rows - 1) * p.stride[1] + reach;
    const int64_t k = p.out_channels;
    if (p.input_channels_last) {
      parts = greater(1, lesser(kItems, rows / kPartRows));
      channel_blocks = greater(1, lesser(ceil_div(k, w), ceil_div(4 * threads, parts)));
    } else {
      parts = greater(1, lesser(p.batch, ceil_div(kItems, greater(1, k))));
      channel_blocks = k;
    }
  }

  int64_t partial_elements() const { return parts * taps * p.out_channels; }
  int64_t thread_elements() const {
    return p.input_channels_last ? 0 : ceil_div(p.kernel[0] * held * row_length + (taps + 1) * w, 16) * 16;
  }
};

// f(integral constant B, first) with blocks of 9, 5, 3 and 1 that cover [0, n): 3x3 in one, 5x5 in five, 7x7 in seven.
template <int B>
struct Block {
  static constexpr int size = B;
};
template <class F>
FASTCV_INLINE void for_blocks(int64_t n, F&& f) {
  int64_t i = 0;
  for (; n - i >= 9; i += 9) f(Block<9>{}, i);
  for (; n - i >= 5; i += 5) f(Block<5>{}, i);
  for (; n - i >= 3; i += 3) f(Block<3>{}, i);
  for (; i < n; ++i) f(Block<1>{}, i);
}

// ---- channels_last ------------------------------------------------------------------------------------------------

// One kernel offset as a row of the output sees it: where its input lies, and for which q that is inside.
struct Taps {
  int64_t count, offset[kMaxTaps], index[kMaxTaps], begin[kMaxTaps], end[kMaxTaps];
};

// sums[index[b]][0..lanes) += sum over n pixels of g * x[offset[b]]
template <int B, class S, class T>
FASTCV_INLINE void add_pixels(const S* g, const S* x, int64_t n, int64_t g_step, int64_t x_step, const int64_t* offset,
                              const int64_t* index, int lanes, T* sums, int64_t ld) {
  constexpr int w = Vec<T>::width;
  Vec<T> sum[B];
#pragma GCC unroll 9
  for (int b = 0; b < B; ++b) sum[b] = Vec<T>(T(0));
  if (lanes == w) {
    for (int64_t q = 0; q < n; ++q, g += g_step, x += x_step) {
      const Vec<T> y = load(g);
#pragma GCC unroll 9
      for (int b = 0; b < B; ++b) sum[b] = fma(y, load(x + offset[b]), sum[b]);
    }
#pragma GCC unroll 9
    for (int b = 0; b < B; ++b) store(sums + index[b] * ld, load(sums + index[b] * ld) + sum[b]);
  } else {
    for (int64_t q = 0; q < n; ++q, g += g_step, x += x_step) {
      const Vec<T> y = load_n(g, lanes);
#pragma GCC unroll 9
      for (int b = 0; b < B; ++b) sum[b] = fma(y, load_n(x + offset[b], lanes), sum[b]);
    }
#pragma GCC unroll 9
    for (int b = 0; b < B; ++b) store_n(sums + index[b] * ld, load_n(sums + index[b] * ld, lanes) + sum[b], lanes);
  }
}

template <class S, class T>
void add_row(const Plan<T>& plan, const Taps& taps, const S* g, const S* x, int64_t first, int64_t last, T* sums) {
  constexpr int w = Vec<T>::width;
  const int64_t c = plan.p.out_channels, step = plan.p.stride[2] * c;
  int64_t begin = 0, end = plan.p.out[2];
  for (int64_t i = 0; i < taps.count; ++i) begin = greater(begin, taps.begin[i]), end = lesser(end, taps.end[i]);
  if (begin > end) begin = end = 0;
  for (int64_t k = first; k < last; k += w) {
    const int lanes = static_cast<int>(lesser(w, last - k));
    for_blocks(begin < end ? taps.count : 0, [&](auto block, int64_t i) {
      add_pixels<block.size>(g + begin * c + k, x + begin * step + k, end - begin, c, step, taps.offset + i,
                             taps.index + i, lanes, sums + k, c);
    });
    const auto rest = [&](int64_t i, int64_t from, int64_t to) {  // where not all offsets are inside
      if (from < to)
        add_pixels<1>(g + from * c + k, x + from * step + k, to - from, c, step, taps.offset + i, taps.index + i, lanes,
                      sums + k, c);
    };
    for (int64_t i = 0; i < taps.count; ++i) {
      rest(i, taps.begin[i], lesser(begin, taps.end[i]));
      rest(i, greater(end, taps.begin[i]), taps.end[i]);
    }
  }
}

template <class S, class T>
void run_channels_last(const Plan<T>& plan, int64_t item, T* partial) {
  const ConvWgradParams& p = plan.p;
  constexpr int w = Vec<T>::width;
  const int64_t c = p.out_channels, vectors = ceil_div(c, w), part = item / plan.channel_blocks,
                block = item % plan.channel_blocks;
  const int64_t first = vectors * block / plan.channel_blocks * w;
  const int64_t last = lesser(c, vectors * (block + 1) / plan.channel_blocks * w);
  T* sums = partial + part * plan.taps * c;
  for (int64_t tap = 0; tap < plan.taps; ++tap)
    for (int64_t k = first; k < last; ++k) sums[tap * c + k] = T(0);
  Taps taps;
  for (int64_t row = plan.rows * part / plan.parts; row < plan.rows * (part + 1) / plan.parts; ++row) {
    const int64_t i = row % p.out[1], o = row / p.out[1] % p.out[0], n = row / p.out[1] / p.out[0];
    taps.count = 0;
    for (int64_t t = 0; t < p.kernel[0]; ++t)
      for (int64_t r = 0; r < p.kernel[1]; ++r) {
        const int64_t d = o * p.stride[0] - p.pad[0] + t * p.dilation[0];
        const int64_t h = i * p.stride[1] - p.pad[1] + r * p.dilation[1];
        if (d < 0 || d >= p.in[0] || h < 0 || h >= p.in[1]) continue;
        for (int64_t s = 0; s < p.kernel[2]; ++s) {
          const int64_t at = s * p.dilation[2] - p.pad[2];
          const int64_t begin = at >= 0 ? 0 : ceil_div(-at, p.stride[2]);
          const int64_t end = at >= p.in[2] ? 0 : lesser(p.out[2], (p.in[2] - 1 - at) / p.stride[2] + 1);
          if (begin >= end) continue;
          taps.offset[taps.count] = ((d * p.in[1] + h) * p.in[2] + at) * c;
          taps.index[taps.count] = (t * p.kernel[1] + r) * p.kernel[2] + s;
          taps.begin[taps.count] = begin;
          taps.end[taps.count++] = end;
        }
      }
    add_row<S, T>(plan, taps, static_cast<const S*>(p.grad_output) + row * p.out[2] * c,
                  static_cast<const S*>(p.input) + n * p.in[0] * p.in[1] * p.in[2] * c, first, last, sums);
  }
}

// ---- row-major ----------------------------------------------------------------------------------------------------

// sums[b][lane] += sum over the pixels of `rows` output rows of g * x[offset[b]]
template <int B, class S, class T>
FASTCV_INLINE void add_rows(const S* g, const T* x, int64_t rows, int64_t length, int64_t x_step, const int64_t* offset,
                            T* sums) {
  constexpr int w = Vec<T>::width;
  Vec<T> sum[B];
#pragma GCC unroll 9
  for (int b = 0; b < B; ++b) sum[b] = load(sums + b * w);
  for (int64_t row = 0; row < rows; ++row, g += length, x += x_step) {
    int64_t q = 0;
    for (; q + w <= length; q += w) {
      const Vec<T> y = load(g + q);
#pragma GCC unroll 9
      for (int b = 0; b < B; ++b) sum[b] = fma(y, load(x + q + offset[b]), sum[b]);
    }
    if (q < length) {
      const int lanes = static_cast<int>(length - q);
      const Vec<T> y = load_n(g + q, lanes);
#pragma GCC unroll 9
      for (int b = 0; b < B; ++b) sum[b] = fma(y, load_n(x + q + offset[b], lanes), sum[b]);
    }
  }
#pragma GCC unroll 9
  for (int b = 0; b < B; ++b) store(sums + b * w, sum[b]);
}

// One input row, or zeros for x == nullptr, as `stride` lines: element j of line f is x[f + j * stride - pad].
template <class S, class T>
void copy_row(const S* x, int64_t width, int64_t pad, int64_t stride, int64_t line, T* out) {
  constexpr int w = Vec<T>::width;
  for (int64_t f = 0; f < stride; ++f, out += line) {
    const int64_t begin = x == nullptr ? line : lesser(line, greater(0, ceil_div(pad - f, stride)));
    const int64_t end =
        x == nullptr || width + pad - f <= 0 ? begin : greater(begin, lesser(line, ceil_div(width + pad - f, stride)));
    for (int64_t j = 0; j < begin; ++j) out[j] = T(0);
    const S* from = x + (f + begin * stride - pad);
    int64_t j = begin;
    if (stride == 1)
      for (; j + w <= end; j += w, from += w) store(out + j, load(from));
    for (; j < end; ++j, from += stride) out[j] = load_one(from);
    for (; j < line; ++j) out[j] = T(0);
  }
}

template <class S, class T>
void run_row_major(const Plan<T>& plan, int64_t item, T* partial, T* scratch) {
  constexpr int w = Vec<T>::width;
  const ConvWgradParams& p = plan.p;
  const int64_t k = item % p.out_channels, part = item / p.out_channels, c = k / (p.out_channels / p.groups);
  const int64_t in_plane = p.in[0] * p.in[1] * p.in[2], out_plane = p.out[0] * p.out[1] * p.out[2];
  T* sums = scratch;
  T* rows = scratch + plan.taps * w;
  int64_t offset[kMaxTaps];
  for (int64_t tap = 0; tap < plan.taps; ++tap) {
    const int64_t s = tap % p.kernel[2] * p.dilation[2], r = tap / p.kernel[2] % p.kernel[1],
                  t = tap / p.kernel[2] / p.kernel[1];
    offset[tap] = (t * plan.held + r * p.dilation[1]) * plan.row_length + s % p.stride[2] * plan.line + s / p.stride[2];
  }
  for (int64_t i = 0; i < plan.taps * w; ++i) sums[i] = T(0);
  for (int64_t n = p.batch * part / plan.parts; n < p.batch * (part + 1) / plan.parts; ++n) {
    const S* x = static_cast<const S*>(p.input) + (n * p.in_channels + c) * in_plane;
    const S* g = static_cast<const S*>(p.grad_output) + (n * p.out_channels + k) * out_plane;
    for (int64_t o = 0; o < p.out[0]; ++o)
      for (int64_t i = 0; i < p.out[1]; i += plan.block_rows) {
        const int64_t count = lesser(plan.block_rows, p.out[1] - i), need = (count - 1) * p.stride[1] + plan.reach;
        for (int64_t t = 0; t < p.kernel[0]; ++t)
          for (int64_t row = 0; row < need; ++row) {
            const int64_t d = o * p.stride[0] - p.pad[0] + t * p.dilation[0], h = i * p.stride[1] - p.pad[1] + row;
            const bool inside = d >= 0 && d < p.in[0] && h >= 0 && h < p.in[1];
            copy_row(inside ? x + (d * p.in[1] + h) * p.in[2] : nullptr, p.in[2], p.pad[2], p.stride[2], plan.line,
                     rows + (t * plan.held + row) * plan.row_length);
          }
        for_blocks(plan.taps, [&](auto block, int64_t first) {
          add_rows<block.size>(g + (o * p.out[1] + i) * p.out[2], rows, count, p.out[2], p.stride[1] * plan.row_length,
                               offset + first, sums + first * w);
        });
      }
  }
  T* out = partial + (part * p.out_channels + k) * plan.taps;
  for (int64_t tap = 0; tap < plan.taps; ++tap) out[tap] = reduce_add(load(sums + tap * w));
}

template <class S>
void run(const ConvWgradParams& params, const Exec& exec) {
  using T = acc_t<S>;
  constexpr int w = Vec<T>::width;
  const Plan<T> plan(params, exec.threads);
  const ConvWgradParams& p = plan.p;
  const int64_t k = p.out_channels, taps = plan.taps;
  S* out = static_cast<S*>(p.grad_weight);
  T* partial = static_cast<T*>(exec.workspace);
  T* scratch = partial + ceil_div(plan.partial_elements(), 16) * 16;
  const int64_t items = plan.parts * plan.channel_blocks;
  const int64_t work = greater(1, plan.rows * p.out[2] * k * taps);
  parallel_slots(exec, items, greater(1, ceil_div(items << 15, work)), [&](int slot, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (p.input_channels_last) run_channels_last<S, T>(plan, i, partial);
      else run_row_major<S, T>(plan, i, partial, scratch + slot * plan.thread_elements());
    }
  });
  // partial is [part][tap][channel] or [part][channel][tap]; out is [channel][tap].
  const int64_t count = taps * k;
  parallel_for(exec, ceil_div(count, w), 1 << 10, [&](int64_t begin, int64_t end) {
    for (int64_t v = begin; v < end; ++v) {
      const int lanes = static_cast<int>(lesser(w, count - v * w));
      Vec<T> sum = load_n(partial + v * w, lanes);
      for (int64_t part = 1; part < plan.parts; ++part) sum += load_n(partial + part * count + v * w, lanes);
      if (!p.input_channels_last) {
        store_n(out + v * w, sum, lanes);
        continue;
      }
      T lane[w];
      store(lane, sum);
      for (int i = 0; i < lanes; ++i) store_one(out + (v * w + i) % k * taps + (v * w + i) / k, lane[i]);
    }
  });
}

template <class T>
size_t workspace(const ConvWgradParams& p, int threads) {
  const Plan<T> plan(p, threads);
  return static_cast<size_t>(ceil_div(plan.partial_elements(), 16) * 16 + threads * plan.thread_elements()) * sizeof(T);
}

}  // namespace

const char* conv_wgrad_depthwise_why_not(const ConvWgradParams& p) {
  if (p.in_channels != p.groups) return "needs one input channel per group";
  const int64_t taps = p.kernel[0] * p.kernel[1] > kMaxTaps ? kMaxTaps + 1 : p.kernel[0] * p.kernel[1] * p.kernel[2];
  if (taps > kMaxTaps) return "needs a kernel of at most 128 elements";
  if (p.input_channels_last != p.grad_channels_last) return "needs both tensors in one layout";
  if (p.batch * p.out[0] * p.out[1] * p.out[2] == 0) return "needs at least one pixel";
  if (p.input_channels_last)
    return p.out_channels == p.groups ? nullptr : "channels_last needs one output channel per group";
  const int64_t line = p.out[2] + (p.kernel[2] - 1) * p.dilation[2] / p.stride[2] + 17;
  if (p.stride[2] > kScratchLimit || p.dilation[1] > kScratchLimit || line > kScratchLimit ||
      p.kernel[0] * ((p.kernel[1] - 1) * p.dilation[1] + 1) > kScratchLimit / (line * p.stride[2]))
    return "needs input rows under the kernel that fit into cache";
  return nullptr;
}

size_t conv_wgrad_depthwise_workspace(const ConvWgradParams& p, int threads) {
  return p.dtype == DType::f64 ? workspace<double>(p, threads) : workspace<float>(p, threads);
}

void conv_wgrad_depthwise(const ConvWgradParams& p, const Exec& exec) {
  dispatch_float(p.dtype, [&](auto zero) { run<decltype(zero)>(p, exec); });
}

}  // namespace fastcv::FASTCV_ISA
