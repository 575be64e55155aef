// Depthwise convolution, and that of groups of which a vector holds several: vectors along the channels.
//
// A tile is a row of neighbouring outputs of one vector of channels. For each line of the kernel (and each channel of a
// group, which a permutation brings to all lanes of its group) it loads the inputs under all outputs once and holds
// them in registers, where every tap of the 3, 5 or 7 along the width finds its own. channels_last tensors of the
// arithmetic's type are read in place. Of others, a chunk of lines of one vector of channels is first copied to a
// window of that form, with the zeros beside the image; row-major planes are transposed on their way in and out.
// Every output is one chain of sums from the bias on: by line, by channel of the group, by column.
#include "common/dispatch.h"
#include "conv/conv.h"
#include "conv/conv_store.h"
#include "conv/conv_tile.h"

namespace fastcv::FASTCV_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kOutputs = 7;  // most maps of image networks are multiples of 7 wide
#else
constexpr int kOutputs = 4;
#endif

template <class Acc>
struct TileCall {
  const Acc* x;  // input of the first output's first tap, in the first line
  int64_t line_pitch, pixel_pitch;
  int64_t lines;
  const Acc *weights, *bias;  // [lines][channels of a group][width][lanes], [lanes]
  int64_t group;              // channels of a group
  Acc* out;
  int64_t out_pitch;
  int outputs;
  // For careful tiles: the column that x stands in and how many there are; channels that exist; a vector of zeros.
  int64_t column, columns;
  int lanes;
  const Acc* zeros;
};

// Careful: where inputs lie beside the image, or channels beside the tensor. Grouped: groups of several channels.
template <class Acc, int Width, int Step, bool Careful, bool Grouped>
[[gnu::noinline]] void tile(const TileCall<Acc>& c) {
  constexpr int kLanes = Vec<Acc>::width, kInputs = (kOutputs - 1) * Step + Width;
  const int lanes = Careful ? c.lanes : kLanes;
  Vec<Acc> sum[kOutputs];
  const Vec<Acc> bias = load(c.bias);
#pragma GCC unroll 7
  for (int o = 0; o < kOutputs; ++o) sum[o] = bias;
  const Acc *x = c.x, *w = c.weights;
  Mask<Acc> first_of_group{};
  if constexpr (Grouped)
    for (int i = 0; i < kLanes; ++i) first_of_group.v[i] = static_cast<int_of<Acc>>(i / c.group * c.group);
  for (int64_t line = 0; line < c.lines; ++line) {
    for (int64_t channel = 0; channel < (Grouped ? c.group : 1); ++channel) {
      [[maybe_unused]] const Mask<Acc> index = first_of_group + Mask<Acc>(static_cast<int_of<Acc>>(channel));
      Vec<Acc> input[kInputs];
#pragma GCC unroll 19
      for (int i = 0; i < kInputs; ++i) {
        const Acc* from = x + i * c.pixel_pitch;
        if constexpr (Careful) {
          const bool inside = static_cast<uint64_t>(c.column + i) < static_cast<uint64_t>(c.columns);
          if (!inside) from = c.zeros;
        }
        input[i] = lanes == kLanes ? load(from) : load_n(from, lanes);
        if constexpr (Grouped) input[i] = permute(input[i], index);
        hold(input[i]);
      }
#pragma GCC unroll 7
      for (int s = 0; s < Width; ++s) {
        Vec<Acc> weight = load(w + s * kLanes);
        hold(weight);
#pragma GCC unroll 7
        for (int o = 0; o < kOutputs; ++o) sum[o] = fma(input[o * Step + s], weight, sum[o]);
      }
      w += Width * kLanes;
    }
    x += c.line_pitch;
  }
#pragma GCC unroll 7
  for (int o = 0; o < kOutputs; ++o) {
    if (o == c.outputs) return;
    if (lanes == kLanes) store(c.out + o * c.out_pitch, sum[o]);
    else store_n(c.out + o * c.out_pitch, sum[o], lanes);
  }
}

template <class Acc>
using TileFunction = void (*)(const TileCall<Acc>&);

template <class Acc, bool Careful>
TileFunction<Acc> tile_for(int64_t width, int64_t step, bool grouped) {
  if (grouped) return step == 1 ? &tile<Acc, 3, 1, Careful, true> : &tile<Acc, 3, 2, Careful, true>;
  if (width == 3) return step == 1 ? &tile<Acc, 3, 1, Careful, false> : &tile<Acc, 3, 2, Careful, false>;
  if (width == 5) return step == 1 ? &tile<Acc, 5, 1, Careful, false> : &tile<Acc, 5, 2, Careful, false>;
  return step == 1 ? &tile<Acc, 7, 1, Careful, false> : &tile<Acc, 7, 2, Careful, false>;
}

template <class S>
class SmallGroups {
  using Acc = acc_t<S>;
  static constexpr int kLanes = Vec<Acc>::width;

 public:
  SmallGroups(const ConvParams& params, int threads) : p(params), slots(static_cast<size_t>(threads)) {
    // With stride 1 the input gradient is the convolution with the kernel turned round.
    for (int i = 0; i < 2; ++i) {
      before[i] = p.transposed ? p.kernel[1 + i] - 1 - p.pad[1 + i] : p.pad[1 + i];
      step[i] = p.transposed ? 1 : p.stride[1 + i];
    }
    vectors = ceil_div(p.c, kLanes);
    group_channels = p.c / p.groups;
    in_place = p.channels_last && std::is_same_v<S, Acc>;
    direct = in_place && p.residual == nullptr && p.activation == Activation::none;
    plain = tile_for<Acc, false>(p.kernel[2], step[1], group_channels > 1);
    careful = tile_for<Acc, true>(p.kernel[2], step[1], group_channels > 1);
    cut(threads);
    const auto aligned = [](int64_t elements) {
      return static_cast<size_t>(round_up(elements * static_cast<int64_t>(sizeof(Acc)), 64));
    };
    bias_at = aligned(vectors * terms() * kLanes);
    zeros_at = bias_at + aligned(vectors * kLanes);
    shared_bytes = zeros_at + aligned(kLanes);
    sums_at = aligned(window_elements());
    slot_bytes = sums_at + (direct ? 0 : aligned(rows * cols * kLanes));
  }
  size_t workspace() const { return shared_bytes + slots * slot_bytes; }

  void run(const Exec& exec) const {
    char* base = static_cast<char*>(exec.workspace);
    Acc *weights = reinterpret_cast<Acc*>(base), *bias = reinterpret_cast<Acc*>(base + bias_at);
    Acc* zeros = reinterpret_cast<Acc*>(base + zeros_at);
    constexpr int64_t kGrain = 1 << 16;
    parallel_for(exec, vectors, most(1, kGrain / (terms() * kLanes)), [&](int64_t begin, int64_t end) {
      for (int64_t v = begin; v < end; ++v) pack(v, weights, bias);
    });
    store(zeros, Vec<Acc>(Acc(0)));
    const int64_t items = p.n * row_chunks * col_chunks * spans, cost = rows * cols * terms() * span * kLanes;
    parallel_slots(exec, items, most(1, kGrain / cost), [&](int slot, int64_t begin, int64_t end) {
      char* scratch = base + shared_bytes + static_cast<size_t>(slot) * slot_bytes;
      Chunk c;
      c.window = reinterpret_cast<Acc*>(scratch);
      c.sums = reinterpret_cast<Acc*>(scratch + sums_at);
      for (int64_t item = begin; item < end; ++item) {
        int64_t rest = item / spans;
        c.column = rest % col_chunks * cols;
        rest /= col_chunks;
        c.row = rest % row_chunks * rows;
        c.n = rest / row_chunks;
        c.rows = least(rows, p.out[1] - c.row);
        c.cols = least(cols, p.out[2] - c.column);
        c.lines.begin = least(p.in[1], most(0, c.row * step[0] - before[0]));
        c.lines.size =
            most(0, least(p.in[1], (c.row + c.rows - 1) * step[0] - before[0] + p.kernel[1]) - c.lines.begin);
        const int64_t first = item % spans * span, last = least(vectors, first + span);
        TileCall<Acc> call{};
        call.zeros = zeros;
        call.columns = p.in[2];
        call.group = group_channels;
        run_vectors(c, call, first, last, weights, bias);
      }
    });
  }

 private:
  struct Chunk {
    Acc *window, *sums;
    int64_t n, row, column, rows, cols;  // the first output and how many there are
    Range lines;                         // of the input
  };

  int64_t terms() const { return group_channels * p.kernel[1] * p.kernel[2]; }
  // Columns of the window, from that of the first output's first tap on.
  int64_t window_columns() const { return (round_up(cols, kOutputs) - 1) * step[1] + p.kernel[2]; }
  int64_t window_elements() const {
    if (in_place) return 0;
    return least(p.in[1], (rows - 1) * step[0] + p.kernel[1]) * window_columns() * kLanes;
  }

  void cut(int threads) {
    constexpr int64_t kSecondLevel = 256 << 10;
    cols = in_place || p.out[2] <= 256 ? p.out[2] : round_up(ceil_div(p.out[2], ceil_div(p.out[2], 224)), kOutputs);
    // In place the channels of a pixel in turn, as memory streams them: as many as have their weights in the
    // first-level cache.
    constexpr int64_t kWeights = 16 << 10;
    span = direct ? most(1, least(vectors, kWeights / (terms() * kLanes * static_cast<int64_t>(sizeof(Acc))))) : 1;
    rows = least(p.out[1], direct ? 4 : 64);
    const auto elements = [&] { return window_elements() + (direct ? 0 : rows * cols * kLanes); };
    while (rows > 1 && elements() * static_cast<int64_t>(sizeof(Acc)) > kSecondLevel) rows = (rows + 1) / 2;
    spans = ceil_div(vectors, span);
    col_chunks = ceil_div(p.out[2], cols);
    while (rows > 1 && threads > 1 && p.n * spans * col_chunks * ceil_div(p.out[1], rows) < 2 * threads)
      rows = (rows + 1) / 2;
    row_chunks = ceil_div(p.out[1], rows);
    rows = ceil_div(p.out[1], row_chunks);
    row_chunks = ceil_div(p.out[1], rows);
  }

  // Weights of one vector of output channels to [line][channel of the group][column][lane].
  void pack(int64_t v, Acc* weights, Acc* bias) const {
    const int64_t first = v * kLanes, taps = p.kernel[1] * p.kernel[2], count = terms();
    const int lanes = lanes_of(v);
    const S *w = static_cast<const S*>(p.w), *b = static_cast<const S*>(p.bias);
    Acc* out = weights + v * count * kLanes;
    store(bias + first, b == nullptr ? Vec<Acc>(Acc(0)) : load_n(b + first, lanes));
    const auto row_of = [&](int64_t channel, int64_t tap) {
      return (tap / p.kernel[2] * group_channels + channel) * p.kernel[2] + tap % p.kernel[2];
    };
    if (p.transposed && group_channels > 1) {
      for (int64_t c = 0; c < group_channels; ++c)
        for (int64_t tap = 0; tap < taps; ++tap)
          for (int i = 0; i < kLanes; ++i) {
            const int64_t row = (first + i) / group_channels * group_channels + c,
                          column = (first + i) % group_channels;
            const int64_t from = p.weight_channels_last ? (row * taps + tap) * group_channels + column
                                                        : (row * group_channels + column) * taps + tap;
            out[row_of(c, taps - 1 - tap) * kLanes + i] = i < lanes ? load_one(w + from) : Acc(0);
          }
      return;
    }
    for (int64_t q = 0; q < count; q += kLanes) {
      const int n = static_cast<int>(least(kLanes, count - q));
      Vec<Acc> square[kLanes];
      load_square(square, w + first * count + q, count, lanes, n);
      for (int i = 0; i < n; ++i) {
        const int64_t at = q + i;
        const int64_t tap = p.weight_channels_last ? at / group_channels : at % taps;
        const int64_t channel = p.weight_channels_last ? at % group_channels : at / taps;
        store(out + row_of(channel, p.transposed ? taps - 1 - tap : tap) * kLanes, square[i]);
      }
    }
  }
  int lanes_of(int64_t v) const { return static_cast<int>(least(kLanes, p.c - v * kLanes)); }

  void run_vectors(Chunk& c, TileCall<Acc>& call, int64_t first, int64_t last, const Acc* weights,
                   const Acc* bias) const {
    if (!in_place) fill(c, first * kLanes, lanes_of(first));
    const int64_t column = c.column * step[1] - before[1];  // of the first output's first tap
    for (int64_t i = 0; i < c.rows; ++i) {
      const int64_t line = (c.row + i) * step[0] - before[0], skipped = most(0, -line);
      call.lines = most(0, least(p.kernel[1], p.in[1] - line) - skipped);
      for (int64_t j = 0; j < c.cols; j += kOutputs) {
        call.outputs = static_cast<int>(least(kOutputs, c.cols - j));
        call.column = column + j * step[1];
        const bool inside = call.column >= 0 && call.column + (kOutputs - 1) * step[1] + p.kernel[2] <= p.in[2];
        for (int64_t v = first; v < last; ++v) {
          call.lanes = lanes_of(v);
          call.weights = weights + (v * p.kernel[1] + skipped) * group_channels * p.kernel[2] * kLanes;
          call.bias = bias + v * kLanes;
          if (in_place) {
            call.pixel_pitch = p.c;
            call.line_pitch = p.in[2] * p.c;
            call.x = static_cast<const Acc*>(p.x) + v * kLanes +
                     ((c.n * p.in[1] + line + skipped) * p.in[2] + call.column) * p.c;
          } else {
            call.pixel_pitch = kLanes;
            call.line_pitch = window_columns() * kLanes;
            call.x = c.window + (line + skipped - c.lines.begin) * call.line_pitch + j * step[1] * kLanes;
          }
          call.out_pitch = direct ? p.c : kLanes;
          call.out = direct ? static_cast<Acc*>(p.y) + first_output(c, i, j) * p.c + v * kLanes
                            : c.sums + (i * c.cols + j) * kLanes;
          if (in_place && (!inside || call.lanes < kLanes)) careful(call);
          else plain(call);
        }
      }
    }
    if (!direct) finish(c, first * kLanes, lanes_of(first));
  }
  int64_t first_output(const Chunk& c, int64_t i, int64_t j) const {
    return (c.n * p.out[1] + c.row + i) * p.out[2] + c.column + j;
  }

  // The lines of a chunk for one vector of channels: [line][column][lane].
  void fill(Chunk& c, int64_t channel, int lanes) const {
    const int64_t first = c.column * step[1] - before[1], width = window_columns(), pitch = width * kLanes;
    const int64_t lo = least(p.in[2], most(0, first)), hi = most(lo, least(p.in[2], first + width));
    for (int64_t line = 0; line < c.lines.size; ++line) {
      Acc* out = c.window + line * pitch;
      for (int64_t i = 0; i < lo - first; ++i) store(out + i * kLanes, Vec<Acc>(Acc(0)));
      for (int64_t i = most(0, hi - first); i < width; ++i) store(out + i * kLanes, Vec<Acc>(Acc(0)));
    }
    const S* x = static_cast<const S*>(p.x);
    Acc* out = c.window + (lo - first) * kLanes;
    if (p.channels_last) {
      for (int64_t line = 0; line < c.lines.size; ++line) {
        const S* from = x + ((c.n * p.in[1] + c.lines.begin + line) * p.in[2] + lo) * p.c + channel;
        for (int64_t i = 0; i < hi - lo; ++i)
          store(out + line * pitch + i * kLanes,
                lanes == kLanes ? load(from + i * p.c) : load_n(from + i * p.c, lanes));
      }
      return;
    }
    const S* from = x + ((c.n * p.c + channel) * p.in[1] + c.lines.begin) * p.in[2] + lo;
    const bool whole = hi - lo == p.in[2];  // lines follow each other without a gap
    const int64_t run = whole ? c.lines.size * p.in[2] : hi - lo;
    for (int64_t line = 0; line < (whole ? 1 : c.lines.size); ++line)
      transpose_in(from + line * p.in[2], lanes, run, hi - lo, out + line * pitch, pitch);
  }
  // A run of pixels of some planes to [pixel][lane], in lines of `columns` that are `pitch` apart.
  void transpose_in(const S* from, int lanes, int64_t run, int64_t columns, Acc* out, int64_t pitch) const {
    int64_t column = 0;
    for (int64_t q = 0; q < run; q += kLanes) {
      const int n = static_cast<int>(least(kLanes, run - q));
      Vec<Acc> square[kLanes];
      load_square(square, from + q, p.in[1] * p.in[2], lanes, n);
      if (n == kLanes && columns - column > kLanes) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) store(out + (column + i) * kLanes, square[i]);
        column += kLanes;
        continue;
      }
      for (int i = 0; i < n; ++i) {
        store(out + column * kLanes, square[i]);
        if (++column == columns) column = 0, out += pitch;
      }
    }
  }

  // The sums of a chunk of one vector of channels to y.
  void finish(const Chunk& c, int64_t channel, int lanes) const {
    if (p.channels_last) {
      const Acc* sum = c.sums;
      for (int64_t i = 0; i < c.rows; ++i)
        for (int64_t j = 0; j < c.cols; ++j, sum += kLanes)
          store_final<S>(p, first_output(c, i, j) * p.c + channel, load(sum), lanes);
      return;
    }
    const int64_t plane = p.out[1] * p.out[2];
    const bool whole = c.cols == p.out[2];
    const int64_t run = whole ? c.rows * c.cols : c.cols;
    for (int64_t row = 0; row < (whole ? 1 : c.rows); ++row) {
      const int64_t at = (c.n * p.c + channel) * plane + (c.row + row) * p.out[2] + c.column;
      for (int64_t q = 0; q < run; q += kLanes) {
        const int n = static_cast<int>(least(kLanes, run - q));
        Vec<Acc> square[kLanes];
        const Acc* sum = c.sums + (row * c.cols + q) * kLanes;
        if (n == kLanes) {
#pragma GCC unroll 16
          for (int i = 0; i < kLanes; ++i) square[i] = load(sum + i * kLanes);
        } else {
          for (int i = 0; i < kLanes; ++i) square[i] = i < n ? load(sum + i * kLanes) : Vec<Acc>(Acc(0));
        }
        transpose_square(square);
        store_final_square<S>(p, at + q, plane, square, lanes, n);
      }
    }
  }

  const ConvParams& p;
  int64_t before[2], step[2];  // height, width: padding before the first input, inputs per output
  int64_t vectors, group_channels;
  int64_t span, spans;  // vectors of a piece of work; such pieces
  int64_t rows, cols, row_chunks, col_chunks;
  bool in_place, direct;
  TileFunction<Acc> plain, careful;
  size_t bias_at, zeros_at, shared_bytes, sums_at, slot_bytes, slots;
};

}  // namespace

void conv_small_groups(const ConvParams& p, const Exec& exec) {
  dispatch_float(p.dtype, [&](auto zero) { SmallGroups<decltype(zero)>(p, exec.threads).run(exec); });
}

size_t conv_small_groups_workspace(const ConvParams& p, int threads) {
  size_t bytes = 0;
  dispatch_float(p.dtype, [&](auto zero) { bytes = SmallGroups<decltype(zero)>(p, threads).workspace(); });
  return bytes;
}

}  // namespace fastcv::FASTCV_ISA
