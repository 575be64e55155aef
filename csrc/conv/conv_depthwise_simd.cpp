// Depthwise convolution of row-major tensors: one channel's plane at a time, vectors along the width.
//
// The input lines of a chunk of rows are copied into scratch in the arithmetic's type, with the zeros beyond their
// ends, and split by position modulo the stride, so that every tap of a vector of outputs is one load.
#include "conv/conv_plan.h"

#include <utility>

#include "common/dispatch.h"
#include "conv/conv.h"
#include "conv/conv_store.h"

namespace fastcv::FASTCV_ISA {
namespace {

template <class Raw, int... i>
FASTCV_INLINE Raw even_lanes(Raw a, Raw b, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(a, b, (2 * i)...);
}
template <class T>
FASTCV_INLINE Vec<T> even_lanes(Vec<T> a, Vec<T> b) {
  return Vec<T>(even_lanes(a.v, b.v, std::make_integer_sequence<int, Vec<T>::width>()));
}

template <class S>
class Depthwise {
  using Acc = acc_t<S>;
  static constexpr int kLanes = Vec<Acc>::width;
  static constexpr int kRows = 4, kVectors = 2;  // of a tile

 public:
  Depthwise(const ConvParams& params, int threads) : p(params) {
    for (int i = 0; i < 3; ++i) d[i] = make_dim(p, i);
    constexpr int64_t kScratch = 24 << 10;  // lines of a chunk stay in the first-level cache
    cols = d[2].cells <= 4096 ? d[2].cells : 2048;
    const int64_t reach = (cols - 1) * d[2].in_step + d[2].high - d[2].low + 1;
    residue = ceil_div(reach, d[2].in_step) + kLanes;
    line = residue * d[2].in_step;
    rows = most(1, least(d[1].cells, 64));
    const auto lines = [&] { return inputs_bound(d[0], 1) * inputs_bound(d[1], rows) + 1; };
    while (rows > kRows && lines() * line * static_cast<int64_t>(sizeof(Acc)) > kScratch) rows = (rows + 1) / 2;
    rows = ceil_div(d[1].cells, ceil_div(d[1].cells, rows));
    row_chunks = ceil_div(d[1].cells, rows);
    col_chunks = ceil_div(d[2].cells, cols);
    const int64_t line_taps = p.kernel[0] * p.kernel[1], taps = line_taps * p.kernel[2];
    const auto aligned = [](int64_t bytes) { return static_cast<size_t>(round_up(bytes, 64)); };
    table_at = aligned(lines() * line * static_cast<int64_t>(sizeof(Acc)));
    offsets_at = table_at + aligned(line_taps * rows * 8);
    weights_at = offsets_at + aligned(p.kernel[2] * 8);
    slot_bytes = weights_at + aligned(taps * static_cast<int64_t>(sizeof(Acc)));
    slots = static_cast<size_t>(threads);
  }
  size_t workspace() const { return slots * slot_bytes; }

  void run(const Exec& exec) const {
    // Planes of a block share the table of lines.
    const int64_t planes = p.n * p.c, chunks = d[0].cells * row_chunks * col_chunks;
    const int64_t cost = rows * cols * p.kernel[0] * p.kernel[1] * p.kernel[2];
    const int64_t block = most(1, least(16, planes * chunks / (8 * exec.threads)));
    const int64_t items = ceil_div(planes, block) * chunks;
    parallel_slots(exec, items, most(1, (1 << 16) / (cost * block)), [&](int slot, int64_t begin, int64_t end) {
      char* base = static_cast<char*>(exec.workspace) + slot * slot_bytes;
      Chunk c;
      c.lines = reinterpret_cast<Acc*>(base);
      c.table = reinterpret_cast<const Acc**>(base + table_at);
      c.offsets = reinterpret_cast<int64_t*>(base + offsets_at);
      c.weights = reinterpret_cast<Acc*>(base + weights_at);
      for (int64_t i = 0; i < line; ++i) c.lines[i] = Acc(0);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t plane = i / chunks * block;
        run_item(c, i % chunks, plane, least(block, planes - plane));
      }
    });
  }

 private:
  struct Chunk {
    Acc* lines;         // the first holds zeros
    const Acc** table;  // [line tap][row]: the line it reads
    int64_t* offsets;   // [tap of the width]: where in a line its input for the first cell lies
    Acc* weights;       // [line tap][tap of the width]
    int64_t line_taps, width_taps, table_pitch;
    int64_t plane, cell[3], cells[3];
    Range inputs[2];
    Acc bias;
    bool is_3x3, upwards;  // the taps are 3 lines of 3; the lines come last first
  };

  void run_item(Chunk& c, int64_t chunk, int64_t plane, int64_t planes) const {
    c.cell[2] = chunk % col_chunks * cols;
    chunk /= col_chunks;
    c.cell[1] = chunk % row_chunks * rows;
    c.cell[0] = chunk / row_chunks;
    c.cells[0] = 1;
    c.cells[1] = least(rows, d[1].cells - c.cell[1]);
    c.cells[2] = least(cols, d[2].cells - c.cell[2]);
    for (int i = 0; i < 2; ++i) c.inputs[i] = inputs_of(d[i], c.cell[i], c.cells[i]);
    const bool one_phase = d[0].phases * d[1].phases * d[2].phases == 1;
    for (c.plane = plane; c.plane < plane + planes; ++c.plane) {
      c.bias = p.bias == nullptr ? Acc(0) : load_one(static_cast<const S*>(p.bias) + c.plane % p.c);
      fill_lines(c);
      for (int64_t fd = 0; fd < d[0].phases; ++fd) {
        if (c.cell[0] * d[0].out_step + fd >= d[0].out) break;
        for (int64_t fh = 0; fh < d[1].phases; ++fh)
          for (int64_t fw = 0; fw < d[2].phases; ++fw) {
            const Taps td = d[0].taps(fd), th = d[1].taps(fh), tw = d[2].taps(fw);
            if (!one_phase || c.plane == plane) tabulate(c, fh, td, th, tw);
            run_phase(c, fd, fh, fw, td, th, tw);
          }
      }
    }
  }

  void fill_lines(Chunk& c) const {
    const int64_t first = c.cell[2] * d[2].in_step + d[2].low;  // the position that a line starts at
    const int64_t length = (c.cells[2] - 1) * d[2].in_step + d[2].high - d[2].low + 1;
    Acc* out = c.lines + line;
    for (int64_t i = 0; i < c.inputs[0].size; ++i)
      for (int64_t j = 0; j < c.inputs[1].size; ++j, out += line) {
        const int64_t id = c.inputs[0].begin + i, ih = c.inputs[1].begin + j;
        const S* x = static_cast<const S*>(p.x) + ((c.plane * p.in[0] + id) * p.in[1] + ih) * p.in[2];
        if (d[2].in_step == 1) {
          const int64_t lo = least(length, most(0, -first)), hi = most(lo, least(length, d[2].in - first));
          clear(out, 0, lo);
          clear(out, hi, residue);
          for (int64_t k = lo; k < hi; k += kLanes) {
            const int n = static_cast<int>(least(kLanes, hi - k));
            if (n == kLanes) store(out + k, load(x + first + k));
            else store_n(out + k, load_n(x + first + k, n), n);
          }
          continue;
        }
        for (int64_t r = 0; r < d[2].in_step; ++r) {
          Acc* to = out + r * residue;
          const int64_t start = first + r, step = d[2].in_step;
          const auto [lo, hi] = inside(start, step, d[2].in - 1, residue);
          clear(to, 0, lo);
          clear(to, hi, residue);
          int64_t k = lo;
          if (step == 2)
            for (; k + kLanes < hi; k += kLanes) store(to + k, load_even(x + start + 2 * k));
          for (; k < hi; ++k) to[k] = load_one(x + start + k * step);
        }
      }
  }
  static void clear(Acc* out, int64_t begin, int64_t end) {
    for (; begin + kLanes <= end; begin += kLanes) store(out + begin, Vec<Acc>(Acc(0)));
    if (begin < end) store_n(out + begin, Vec<Acc>(Acc(0)), static_cast<int>(end - begin));
  }
  // Elements 0, 2, 4, ... of two vectors.
  FASTCV_INLINE Vec<Acc> load_even(const S* x) { return even_lanes(load(x), load(x + kLanes)); }

  // What the planes of a block share: which lines the rows read, and where in them the taps start.
  void tabulate(Chunk& c, int64_t fh, const Taps& td, const Taps& th, const Taps& tw) const {
    const int64_t nh = d[1].outputs(fh, c.cell[1], c.cells[1]);
    for (int64_t j = 0; j < tw.count; ++j) {
      const int64_t position = tw.offset + j * tw.offset_step - d[2].low;
      c.offsets[j] = position % d[2].in_step * residue + position / d[2].in_step;
    }
    const Acc** entry = c.table;
    for (int64_t a = 0; a < td.count; ++a) {
      const int64_t id = c.cell[0] * d[0].in_step + td.offset + a * td.offset_step;
      for (int64_t b = 0; b < th.count; ++b)
        for (int64_t i = 0; i < nh; ++i) {
          const int64_t ih = (c.cell[1] + i) * d[1].in_step + th.offset + b * th.offset_step;
          const bool exists = id >= 0 && id < d[0].in && ih >= 0 && ih < d[1].in;
          const int64_t at = (id - c.inputs[0].begin) * c.inputs[1].size + ih - c.inputs[1].begin;
          *entry++ = c.lines + (exists ? (at + 1) * line : 0);
        }
    }
    c.line_taps = td.count * th.count;
    c.width_taps = tw.count;
    c.table_pitch = nh;
    c.upwards = th.offset_step < 0;
    c.is_3x3 = td.count == 1 && th.count == 3 && tw.count == 3 && d[1].in_step <= 2 &&
               (th.offset_step == 1 || th.offset_step == -1);
  }

  void run_phase(Chunk& c, int64_t fd, int64_t fh, int64_t fw, const Taps& td, const Taps& th, const Taps& tw) const {
    const int64_t nh = c.table_pitch, nw = d[2].outputs(fw, c.cell[2], c.cells[2]);
    const S* w = static_cast<const S*>(p.w) + c.plane % p.c * p.kernel[0] * p.kernel[1] * p.kernel[2];
    Acc* weight = c.weights;
    for (int64_t a = 0; a < td.count; ++a)
      for (int64_t b = 0; b < th.count; ++b) {
        const int64_t rd = td.first + a * td.step, rh = th.first + b * th.step;
        for (int64_t j = 0; j < tw.count; ++j)
          *weight++ = load_one(w + (rd * p.kernel[1] + rh) * p.kernel[2] + tw.first + j * tw.step);
      }
    const int64_t od = c.cell[0] * d[0].out_step + fd;
    const int64_t row = ((c.plane * d[0].out + od) * d[1].out + c.cell[1] * d[1].out_step + fh) * d[2].out;
    const int64_t at = row + c.cell[2] * d[2].out_step + fw;
    int64_t i = 0;
    for (; i + kRows <= nh; i += kRows) run_rows<kRows>(c, i, nw, at);
    if (i + 2 <= nh) run_rows<2>(c, i, nw, at), i += 2;
    if (i < nh) run_rows<1>(c, i, nw, at);
  }

  template <int R>
  void run_rows(const Chunk& c, int64_t i, int64_t nw, int64_t at) const {
    int64_t j = 0;
    for (; j + kVectors * kLanes <= nw; j += kVectors * kLanes) run_tile<R, kVectors>(c, i, j, kLanes, at);
    for (; j < nw; j += kLanes) run_tile<R, 1>(c, i, j, static_cast<int>(least(kLanes, nw - j)), at);
  }

  template <int R, int V>
  void run_tile(const Chunk& c, int64_t i, int64_t j, int n, int64_t at) const {
    if (R < kRows || !c.is_3x3) return tile<R, V>(c, i, j, n, at);
    if (d[1].in_step == 1) tile_3x3<kRows, V, 1>(c, i, j, n, at);
    else tile_3x3<kRows, V, 2>(c, i, j, n, at);
  }

  // R rows of V vectors; of the last vector, n outputs.
  template <int R, int V>
  [[gnu::noinline]] void tile(const Chunk& c, int64_t i, int64_t j, int n, int64_t at) const {
    Vec<Acc> sum[R][V];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) sum[r][v] = Vec<Acc>(c.bias);
    const Acc* w = c.weights;
    const int64_t width_taps = c.width_taps;
    for (int64_t tap = 0; tap < c.line_taps; ++tap) {
      const Acc* x[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) x[r] = c.table[tap * c.table_pitch + i + r] + j;
      for (int64_t s = 0; s < width_taps; ++s) {
        const Vec<Acc> weight(*w++);
        const int64_t offset = c.offsets[s];
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
          for (int v = 0; v < V; ++v) sum[r][v] = fma(load(x[r] + offset + v * kLanes), weight, sum[r][v]);
      }
    }
    store_tile(sum, i, j, n, at);
  }

  // The same for 3 x 3 taps one line apart, with inputs Step lines apart: a line is loaded once for all rows that it
  // meets. Loads off the vector grid cost twice, and they bound the plain tile.
  template <int R, int V, int Step>
  [[gnu::noinline]] void tile_3x3(const Chunk& c, int64_t i, int64_t j, int n, int64_t at) const {
    Vec<Acc> sum[R][V], weight[3][3];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) sum[r][v] = Vec<Acc>(c.bias);
#pragma GCC unroll 3
    for (int a = 0; a < 3; ++a)
#pragma GCC unroll 3
      for (int b = 0; b < 3; ++b) weight[a][b] = Vec<Acc>(c.weights[(c.upwards ? 2 - a : a) * 3 + b]);
    constexpr int kLines = (R - 1) * Step + 3;
#pragma GCC unroll 9
    for (int l = 0; l < kLines; ++l) {
      const int row = l < 3 ? 0 : (l - 2 + Step - 1) / Step, tap = l - row * Step;
      const Acc* x = c.table[(c.upwards ? 2 - tap : tap) * c.table_pitch + i + row] + j;
#pragma GCC unroll 3
      for (int b = 0; b < 3; ++b)
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) {
          Vec<Acc> input = load(x + c.offsets[b] + v * kLanes);
          hold(input);
#pragma GCC unroll 4
          for (int r = 0; r < R; ++r)
            if (l - r * Step >= 0 && l - r * Step < 3) sum[r][v] = fma(input, weight[l - r * Step][b], sum[r][v]);
        }
    }
    store_tile(sum, i, j, n, at);
  }

  template <int R, int V>
  void store_tile(const Vec<Acc> (&sum)[R][V], int64_t i, int64_t j, int n, int64_t at) const {
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v) {
        const int64_t to = at + (i + r) * d[1].out_step * d[2].out + (j + v * kLanes) * d[2].out_step;
        if (d[2].out_step == 1) store_final<S>(p, to, sum[r][v], n);
        else store_final_strided<S>(p, to, d[2].out_step, sum[r][v], n);
      }
  }

  const ConvParams& p;
  Dim d[3];
  int64_t rows, cols, row_chunks, col_chunks;  // cells of a chunk, chunks of a plane
  int64_t line, residue;                       // elements of a line, and of one residue of it
  size_t table_at, offsets_at, weights_at, slot_bytes, slots;
};

}  // namespace

void conv_depthwise(const ConvParams& p, const Exec& exec) {
  dispatch_float(p.dtype, [&](auto zero) { Depthwise<decltype(zero)>(p, exec.threads).run(exec); });
}

size_t conv_depthwise_workspace(const ConvParams& p, int threads) {
  size_t bytes = 0;
  dispatch_float(p.dtype, [&](auto zero) { bytes = Depthwise<decltype(zero)>(p, threads).workspace(); });
  return bytes;
}

}  // namespace fastcv::FASTCV_ISA
