// Weight gradient of groups of few channels, of which a vector holds one or several: vectors along the channels, so
// that no lane is idle, where a matrix product per group would fill rows and columns of its tiles with zeros.
//
// A piece of work is one vector of channels and a part of the output rows of the batch. Some rows at a time, their
// inputs are copied into a window [line][column][lane] with the zeros beside the image, and the output gradient into
// [pixel][channel of the group][lane]: each channel's gradient in all lanes of its group, which many offsets use. Sums
// [offset][channel of the group][lane], lanes being input channels, stay in registers for some pixels of these rows.
// The number of parts follows from the geometry, and the parts are added in order.
#include "conv/conv_wgrad.h"

#include "common/dispatch.h"
#include "conv/conv_tile.h"

namespace fastcv::FASTCV_ISA {
namespace {

constexpr int64_t kItems = 64;  // pieces of work, if there are rows enough
constexpr int64_t kChain = 32;  // pixels in one chain of additions: short chains round less
#if defined(__AVX512F__)
constexpr int kMostSums = 24;  // in registers
#else
constexpr int kMostSums = 12;
#endif

template <class T>
struct Plan {
  static constexpr int w = Vec<T>::width;
  const ConvWgradParams& p;
  int64_t group, taps, vectors, rows, row_chunks, chunks, parts;
  int64_t columns, lines;  // of the window
  bool spread;             // the gradient is copied to all lanes; else a group fills a vector, and a load spreads it

  explicit Plan(const ConvWgradParams& params) : p(params) {
    group = p.in_channels / p.groups;
    taps = p.kernel[1] * p.kernel[2];
    vectors = ceil_div(p.in_channels, w);
    spread = group < w;
    const int64_t pixels = spread ? 1024 / group : 256;  // what is copied stays in cache
    columns = (p.out[2] - 1) * p.stride[2] + (p.kernel[2] - 1) * p.dilation[2] + 1;
    const int64_t reach = (p.kernel[1] - 1) * p.dilation[1] + 1;
    const int64_t fit = (kMostWindow / columns - reach) / p.stride[1] + 1;
    rows = most(1, least(least(p.out[1], pixels / p.out[2]), fit));
    row_chunks = ceil_div(p.out[1], rows);
    rows = ceil_div(p.out[1], row_chunks);
    row_chunks = ceil_div(p.out[1], rows);
    chunks = p.batch * row_chunks;
    lines = (rows - 1) * p.stride[1] + reach;
    parts = most(1, least(chunks, ceil_div(kItems, vectors)));
  }
  int64_t sums_elements() const { return taps * group * w; }
  int64_t window_elements() const { return lines * columns * w; }
  int64_t grad_elements() const { return rows * p.out[2] * (spread ? group : 1) * w; }
};

// Rows of neighbouring outputs: where their gradients lie, and their inputs under the first kernel offset.
template <class T>
struct Run {
  const T *grad, *x;
  int64_t rows, pixels, grad_step, x_step, line_step;
};

// sums[b][j] += the gradient of channel j of each lane's group times the input under offset[b], over all pixels.
template <int Group, int B, class T>
[[gnu::noinline]] void add_offsets(const Run<T>& run, const int64_t* offset, T* sums) {
  constexpr int w = Vec<T>::width;
  Vec<T> sum[B][Group];
#pragma GCC unroll 16
  for (int b = 0; b < B; ++b)
#pragma GCC unroll 16
    for (int j = 0; j < Group; ++j) sum[b][j] = Vec<T>(T(0));
  const T* g = run.grad;
  for (int64_t row = 0; row < run.rows; ++row) {
    const T* x = run.x + row * run.line_step;
    for (int64_t q = 0; q < run.pixels; ++q, g += run.grad_step, x += run.x_step) {
      Vec<T> input[B];
#pragma GCC unroll 16
      for (int b = 0; b < B; ++b) input[b] = load(x + offset[b]);
#pragma GCC unroll 16
      for (int j = 0; j < Group; ++j) {
        const Vec<T> y = Group == w ? PlainProduct<T>::spread(g + j) : load(g + j * w);
#pragma GCC unroll 16
        for (int b = 0; b < B; ++b) sum[b][j] = fma(y, input[b], sum[b][j]);
      }
    }
  }
#pragma GCC unroll 16
  for (int b = 0; b < B; ++b)
#pragma GCC unroll 16
    for (int j = 0; j < Group; ++j) {
      T* to = sums + (b * Group + j) * w;
      store(to, load(to) + sum[b][j]);
    }
}

template <int Group, class T>
void add_all_offsets(const Run<T>& run, int64_t taps, const int64_t* offset, T* sums) {
  constexpr int w = Vec<T>::width, kBlock = 3 * Group <= kMostSums ? 3 : 1;
  int64_t tap = 0;
  for (; tap + kBlock <= taps; tap += kBlock) add_offsets<Group, kBlock>(run, offset + tap, sums + tap * Group * w);
  for (; tap < taps; ++tap) add_offsets<Group, 1>(run, offset + tap, sums + tap * Group * w);
}

template <class S>
class SmallGroups {
  using T = acc_t<S>;
  static constexpr int w = Vec<T>::width;

 public:
  SmallGroups(const ConvWgradParams& params, int threads) : plan(params), p(params), slots(threads) {}
  size_t workspace() const {
    return static_cast<size_t>(partial_elements() + offset_elements() + slots * slot_elements()) * sizeof(T);
  }

  void run(const Exec& exec) const {
    T* partial = static_cast<T*>(exec.workspace);
    auto* offset = reinterpret_cast<int64_t*>(partial + partial_elements());
    T* scratch = partial + partial_elements() + offset_elements();
    for (int64_t tap = 0; tap < plan.taps; ++tap)
      offset[tap] = (tap / p.kernel[2] * p.dilation[1] * plan.columns + tap % p.kernel[2] * p.dilation[2]) * w;
    const int64_t work = plan.chunks * plan.rows * p.out[2] * plan.taps * plan.group / plan.parts;  // vectors
    parallel_slots(exec, plan.vectors * plan.parts, most(1, (1 << 12) / most(1, work)),
                   [&](int slot, int64_t begin, int64_t end) {
                     for (int64_t i = begin; i < end; ++i)
                       add(i / plan.parts, i % plan.parts, offset, partial, scratch + slot * slot_elements());
                   });
    parallel_for(exec, plan.vectors, most(1, (1 << 14) / plan.sums_elements()), [&](int64_t begin, int64_t end) {
      for (int64_t v = begin; v < end; ++v) finish(v, partial);
    });
  }

 private:
  int64_t partial_elements() const { return plan.parts * plan.vectors * plan.sums_elements(); }
  int64_t offset_elements() const {
    return round_up(plan.taps * static_cast<int64_t>(sizeof(int64_t)), 64) / static_cast<int64_t>(sizeof(T));
  }
  int64_t slot_elements() const { return round_up(plan.window_elements() + plan.grad_elements(), 16); }
  int lanes_of(int64_t v) const { return static_cast<int>(least(w, p.in_channels - v * w)); }

  void add(int64_t v, int64_t part, const int64_t* offset, T* partial, T* scratch) const {
    T* sums = partial + (part * plan.vectors + v) * plan.sums_elements();
    for (int64_t i = 0; i < plan.sums_elements(); i += w) store(sums + i, Vec<T>(T(0)));
    T *window = scratch, *grad = scratch + plan.window_elements();
    for (int64_t chunk = plan.chunks * part / plan.parts; chunk < plan.chunks * (part + 1) / plan.parts; ++chunk) {
      const int64_t n = chunk / plan.row_chunks, row = chunk % plan.row_chunks * plan.rows;
      const int64_t rows = least(plan.rows, p.out[1] - row);
      copy_input(v, n, row, rows, window);
      copy_grad(v, n, row, rows, grad);
      const int64_t grad_step = (plan.spread ? plan.group : 1) * w, x_step = p.stride[2] * w;
      const int64_t line_step = p.stride[1] * plan.columns * w;
      const int64_t wide = least(p.out[2], kChain), high = kChain / wide;  // of a chain: whole rows, or a part of one
      for (int64_t r = 0; r < rows; r += high)
        for (int64_t q = 0; q < p.out[2]; q += wide)
          add_run({grad + (r * p.out[2] + q) * grad_step, window + r * line_step + q * x_step, least(high, rows - r),
                   least(wide, p.out[2] - q), grad_step, x_step, line_step},
                  offset, sums);
    }
  }

  void add_run(const Run<T>& run, const int64_t* offset, T* sums) const {
    if (plan.group == 2) add_all_offsets<2>(run, plan.taps, offset, sums);
    else if (plan.group == 4) add_all_offsets<4>(run, plan.taps, offset, sums);
    else if constexpr (w >= 8) {
      if (plan.group == 8) add_all_offsets<8>(run, plan.taps, offset, sums);
      else if constexpr (w >= 16) add_all_offsets<16>(run, plan.taps, offset, sums);
    }
  }

  // f(i, vector): the `count` pixels from `pixel` on of an image of `plane` pixels, one vector of channels of each.
  template <class F>
  [[gnu::always_inline]] void for_pixels(const void* data, bool channels_last, int64_t n, int64_t plane, int64_t pixel,
                                         int64_t count, int64_t v, F&& f) const {
    const int lanes = lanes_of(v);
    if (channels_last) {
      const S* from = static_cast<const S*>(data) + (n * plane + pixel) * p.in_channels + v * w;
      for (int64_t i = 0; i < count; ++i, from += p.in_channels) f(i, lanes == w ? load(from) : load_n(from, lanes));
      return;
    }
    const S* from = static_cast<const S*>(data) + (n * p.in_channels + v * w) * plane + pixel;
    for (int64_t i = 0; i < count; i += w) {
      Vec<T> square[w];
      const int have = static_cast<int>(least(w, count - i));
      load_square(square, from + i, plane, lanes, have);
      for (int l = 0; l < have; ++l) f(i + l, square[l]);
    }
  }

  void copy_input(int64_t v, int64_t n, int64_t row, int64_t rows, T* window) const {
    const int64_t first = -p.pad[2], lo = least(p.in[2], most(0, first));
    const int64_t hi = most(lo, least(p.in[2], first + plan.columns));
    const int64_t lines = (rows - 1) * p.stride[1] + (p.kernel[1] - 1) * p.dilation[1] + 1;
    for (int64_t line = 0; line < lines; ++line) {
      const int64_t h = row * p.stride[1] - p.pad[1] + line;
      const bool inside = h >= 0 && h < p.in[1] && lo < hi;
      T* out = window + line * plan.columns * w;
      const int64_t begin = inside ? lo - first : plan.columns, end = inside ? hi - first : plan.columns;
      for (int64_t i = 0; i < begin; ++i) store(out + i * w, Vec<T>(T(0)));
      if (inside)
        for_pixels(p.input, p.input_channels_last, n, p.in[1] * p.in[2], h * p.in[2] + lo, hi - lo, v,
                   [&](int64_t i, Vec<T> x) { store(out + (begin + i) * w, x); });
      for (int64_t i = end; i < plan.columns; ++i) store(out + i * w, Vec<T>(T(0)));
    }
  }

  void copy_grad(int64_t v, int64_t n, int64_t row, int64_t rows, T* grad) const {
    const auto copy = [&](auto&& put) {
      for_pixels(p.grad_output, p.grad_channels_last, n, p.out[1] * p.out[2], row * p.out[2], rows * p.out[2], v, put);
    };
    if (!plan.spread) return copy([&](int64_t i, Vec<T> g) { store(grad + i * w, g); });
    Mask<T> first_of_group{};
    for (int i = 0; i < w; ++i) first_of_group.v[i] = static_cast<int_of<T>>(i / plan.group * plan.group);
    copy([&](int64_t i, Vec<T> g) {
      for (int64_t j = 0; j < plan.group; ++j)
        store(grad + (i * plan.group + j) * w, permute(g, first_of_group + Mask<T>(static_cast<int_of<T>>(j))));
    });
  }

  // The weights of one vector of channels: the parts added in order, rounded once.
  void finish(int64_t v, const T* partial) const {
    S* out = static_cast<S*>(p.grad_weight);
    for (int64_t tap = 0; tap < plan.taps; ++tap)
      for (int64_t j = 0; j < plan.group; ++j) {
        const T* from = partial + v * plan.sums_elements() + (tap * plan.group + j) * w;
        Vec<T> sum = load(from);
        for (int64_t part = 1; part < plan.parts; ++part)
          sum += load(from + part * plan.vectors * plan.sums_elements());
        T lane[w];
        store(lane, sum);
        for (int i = 0; i < lanes_of(v); ++i) {
          const int64_t k = v * w + i / plan.group * plan.group + j, c = i % plan.group;
          store_one(out + (p.weight_channels_last ? (k * plan.taps + tap) * plan.group + c
                                                  : (k * plan.group + c) * plan.taps + tap),
                    lane[i]);
        }
      }
  }

  const Plan<T> plan;
  const ConvWgradParams& p;
  int64_t slots;
};

}  // namespace

void conv_wgrad_small_groups(const ConvWgradParams& p, const Exec& exec) {
  dispatch_float(p.dtype, [&](auto zero) { SmallGroups<decltype(zero)>(p, exec.threads).run(exec); });
}

size_t conv_wgrad_small_groups_workspace(const ConvWgradParams& p, int threads) {
  size_t bytes = 0;
  dispatch_float(p.dtype, [&](auto zero) { bytes = SmallGroups<decltype(zero)>(p, threads).workspace(); });
  return bytes;
}

}  // namespace fastcv::FASTCV_ISA
