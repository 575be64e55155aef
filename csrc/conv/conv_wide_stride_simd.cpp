// Transposed convolution with a wide stride along the width: vectors along the weights of a kernel's line.
//
// Outputs that follow each other in a line and lie over the same input take weights that follow each other: in
// row-major tensors those of one output channel, in channels_last ones those of all. So with a "line" of out[2]
// elements, or of out[2] * k, and a step of as many elements as one input is wide,
//
//   y[q * step + f] = bias + sum over (tap, channel) of x[q - t][channel] * w[channel][f + pad + t * step]
//
// is a product of inputs and weights as they lie. A panel is a few vectors of f, of one residue along the height; its
// weights of all taps and channels are copied side by side, with zeros beyond the kernel's line, and strips
// (conv_tile.h) of all cells q of a chunk run over them. Channels_last images are read in place, others through a
// window.
#include "conv/conv.h"
#include "conv/conv_igemm_window.h"
#include "conv/conv_store.h"
#include "conv/conv_tile.h"

namespace fastcv::FASTCV_ISA {
namespace {

class WideStride {
  using P = PlainProduct<float>;
  using V = Vec<float>;
  using Window = CopiedWindow<P, float>;
  static constexpr int64_t L = V::width, kVectors = 2;
  static constexpr int64_t kBlock = 96;  // pixels whose sums wait for the epilogue, in the first-level cache

 public:
  WideStride(const ConvParams& params, int threads) : p(params), slots(static_cast<size_t>(threads)) {
    for (int i = 0; i < 3; ++i) d[i] = make_dim(p, i);
    cg = p.c / p.groups;
    kg = p.k / p.groups;
    const int64_t unit = p.channels_last ? p.k : 1;
    planes = p.channels_last ? 1 : p.k;
    step = d[2].stride * unit;
    reach = d[2].kernel * unit;
    pad = d[2].pad * unit;
    line = d[2].out * unit;
    panels = ceil_div(step, kVectors * L);
    cols = d[2].cells;
    rows = most(1, least(d[1].cells, 128 / cols));
    row_chunks = ceil_div(d[1].cells, rows);
    window.plan(p, d, p.c, p.c, false);
    direct = p.residual == nullptr && p.activation == Activation::none && step % L == 0 && line % step == 0;
    const auto aligned = [](int64_t bytes) { return static_cast<size_t>(round_up(bytes, 64)); };
    const int64_t taps = ceil_div(d[1].kernel, d[1].tap_step) * (ceil_div(reach + kVectors * L, step) + 1);
    window_at = aligned(p.c * 4);
    table_at = window_at + (p.channels_last ? 0 : aligned(window.elements(rows, cols) * 4));
    places_at = table_at + aligned(taps * rows * cols * 8);
    weights_at = places_at + aligned(rows * cols * 8);
    sums_at = weights_at + aligned(taps * cg * kVectors * L * 4);
    bias_at = sums_at + (direct ? 0 : aligned(kBlock * kVectors * L * 4));
    slot_bytes = bias_at + aligned(kVectors * L * 4);
  }
  size_t workspace() const { return slots * slot_bytes; }

  void run(const Exec& exec) const {
    const int64_t items = p.n * row_chunks * planes * d[1].phases * panels;
    const int64_t cost = rows * cols * cg * most(1, d[1].kernel / d[1].stride) * most(1, reach / step) * kVectors * L;
    parallel_slots(exec, items, most(1, (1 << 16) / most(1, cost)), [&](int slot, int64_t begin, int64_t end) {
      char* base = static_cast<char*>(exec.workspace) + static_cast<size_t>(slot) * slot_bytes;
      Chunk c;
      c.zeros = reinterpret_cast<float*>(base);
      c.view.window = reinterpret_cast<float*>(base + window_at);
      c.table = reinterpret_cast<const float**>(base + table_at);
      c.places = reinterpret_cast<int64_t*>(base + places_at);
      c.weights = reinterpret_cast<float*>(base + weights_at);
      c.sums = reinterpret_cast<float*>(base + sums_at);
      c.bias = reinterpret_cast<float*>(base + bias_at);
      for (int64_t i = 0; i < p.c; ++i) c.zeros[i] = 0;
      int64_t read_chunk = -1;
      for (int64_t i = begin; i < end; ++i) {
        const int64_t rest = i / panels / d[1].phases;
        const int64_t plane = rest % planes, chunk = rest / planes;
        if (chunk != read_chunk) read(c, chunk), read_chunk = chunk;
        run_panel(c, plane, i / panels % d[1].phases, i % panels);
      }
    });
  }

 private:
  struct Tabulated {
    int64_t lines, count, offset, first, last;
    bool operator==(const Tabulated&) const = default;
  };
  struct Chunk {
    float* zeros;
    Window::Chunk view;
    const float** table;  // [taps][pixels]: the input of each pixel for each tap
    int64_t* places;      // [pixels]: where its sums go
    float *weights, *sums, *bias;
    int64_t n, cell, cells;  // image; lines of cells
    Tabulated tabulated;     // what stands in the table
  };

  void read(Chunk& c, int64_t chunk) const {
    c.n = chunk / row_chunks;
    c.cell = chunk % row_chunks * rows;
    c.cells = least(rows, d[1].cells - c.cell);
    c.tabulated.lines = -1;
    const int64_t cell[3] = {0, c.cell, 0}, cells[3] = {1, c.cells, cols}, image = p.in[1] * p.in[2] * p.c;
    const float* x = static_cast<const float*>(p.x) + c.n * image;
    if (p.channels_last) {
      c.view.origin = x;
      c.view.pitch[1] = p.in[2] * p.c;
      c.view.pitch[2] = p.c;
    } else {
      for (int i = 0; i < 3; ++i) c.view.inputs[i] = inputs_of(d[i], cell[i], cells[i]);
      window.fill(c.view, x, cell, cells, {});
    }
  }

  void run_panel(Chunk& c, int64_t plane, int64_t phase, int64_t panel) const {
    const int64_t f = panel * kVectors * L, width = least(kVectors * L, step - f);
    const int64_t lines = d[1].outputs(phase, c.cell, c.cells), group = plane / kg;
    if (lines == 0) return;
    const int nv = static_cast<int>(ceil_div(width, L));
    const Taps th = d[1].taps(phase);
    // Taps along the width: those t of which some f + pad + t * step lies in the kernel's line.
    const int64_t first = -floor_div(f + width - 1 + pad, step), last = floor_div(reach - 1 - f - pad, step);
    tabulate(c, {lines, th.count, th.offset, first, last}, th.offset_step);
    copy_weights(c, group, plane % kg, th, first, last, f, nv);
    Strip<P> s{};
    s.rows = c.table;
    s.zeros = c.zeros;
    s.row_pitch = lines * cols;
    s.taps = th.count * most(0, last - first + 1);
    s.steps = cg;
    s.channel = group * cg;
    s.weights = c.weights;
    s.segment = segment_of(s.taps * s.steps);
    s.bias = c.bias;
    s.places = c.places;
    const int64_t top = c.cell * d[1].out_step + phase;
    const int64_t at = ((c.n * planes + plane) * d[1].out + top) * line + f, down = d[1].out_step * line;
    if (direct) {
      s.out = static_cast<float*>(p.y) + at;
      s.out_pitch = 1;
      return run_strip<P>(s, s.row_pitch, nv);
    }
    s.out = c.sums;
    s.out_pitch = nv * L;
    for (int64_t i = 0; i < s.row_pitch; i += kBlock) {
      const int64_t pixels = least(kBlock, s.row_pitch - i);
      s.rows = c.table + i;
      run_strip<P>(s, pixels, nv);
      for (int64_t j = i; j < i + pixels; ++j)
        for (int64_t v = 0; v < width; v += L) {
          const int64_t column = j % cols * step + v, n = least(least(L, width - v), line - f - column);
          if (n > 0)
            store_final<float>(p, at + j / cols * down + column, load(c.sums + (j - i) * s.out_pitch + v),
                               static_cast<int>(n));
        }
    }
  }

  void tabulate(Chunk& c, const Tabulated& now, int64_t offset_step) const {
    if (c.tabulated == now) return;
    c.tabulated = now;
    const float** out = c.table;
    for (int64_t jh = 0; jh < now.count; ++jh)
      for (int64_t t = now.first; t <= now.last; ++t)
        for (int64_t i = 0; i < now.lines; ++i) {
          const int64_t ih = c.cell + i + now.offset + jh * offset_step;
          const bool exists = ih >= 0 && ih < d[1].in;
          for (int64_t q = 0; q < cols; ++q) {
            const int64_t iw = q - t;
            *out++ = exists && iw >= 0 && iw < d[2].in ? c.view.origin + ih * c.view.pitch[1] + iw * c.view.pitch[2]
                                                       : c.zeros;
          }
        }
    for (int64_t i = 0; i < now.lines * cols; ++i)
      c.places[i] = direct ? i / cols * d[1].out_step * line + i % cols * step : i % kBlock;
  }

  // [tap of the height][tap of the width][channel][nv vectors], and the bias of each lane.
  void copy_weights(Chunk& c, int64_t group, int64_t k, const Taps& th, int64_t first, int64_t last, int64_t f,
                    int nv) const {
    const int64_t kernel_line = p.channels_last ? reach : d[2].kernel;
    const int64_t channel_step = (p.channels_last ? 1 : kg) * d[1].kernel * kernel_line;
    const float* w = static_cast<const float*>(p.w) + group * cg * channel_step + k * d[1].kernel * kernel_line;
    float* out = c.weights;
    for (int64_t jh = 0; jh < th.count; ++jh)
      for (int64_t t = first; t <= last; ++t)
        for (int64_t channel = 0; channel < cg; ++channel) {
          const float* from = w + channel * channel_step + (th.first + jh * th.step) * kernel_line;
          for (int v = 0; v < nv; ++v, out += L) store(out, load_inside(from, f + pad + t * step + v * L));
        }
    const float* bias = static_cast<const float*>(p.bias);
    for (int64_t i = 0; i < nv * L; ++i)
      c.bias[i] = bias == nullptr ? 0 : bias[p.channels_last ? (f + i) % p.k : group * kg + k];
  }
  // Elements i, i + 1, ... of a kernel's line.
  V load_inside(const float* from, int64_t i) const {
    if (i >= 0 && i + L <= reach) return load(from + i);
    float lanes[L];
    for (int64_t l = 0; l < L; ++l) lanes[l] = i + l >= 0 && i + l < reach ? from[i + l] : 0;
    return load(lanes);
  }

  const ConvParams& p;
  Dim d[3];
  int64_t cg, kg, planes;
  int64_t step, reach, pad, line;  // elements: of an input's width, the kernel's, the padding's, of a line of y
  int64_t panels, rows, cols, row_chunks;
  bool direct;  // sums go straight to y
  Window window;
  size_t window_at, table_at, places_at, weights_at, sums_at, bias_at, slot_bytes, slots;
};

}  // namespace

void conv_wide_stride(const ConvParams& p, const Exec& exec) { WideStride(p, exec.threads).run(exec); }
size_t conv_wide_stride_workspace(const ConvParams& p, int threads) { return WideStride(p, threads).workspace(); }

}  // namespace fastcv::FASTCV_ISA
