// Convolution of row-major float32 images as a product of the weights and panels of gathered pixels.
//
//   y[k][pixel] = sum over (channel, tap) of w[k][channel, tap] * patch[channel, tap][pixel]
//
// Vectors run along the pixels, so neither x nor y is ever transposed, and a weight of a row-major convolution is read
// where it lies. For a panel of up to four vectors of consecutive outputs of an image, kRows rows of patches at a time
// are gathered into scratch, once for all outputs k that a thread computes; register tiles of some k times the panel
// run over them. Sums stay in registers for a segment (conv_tile.h) and then join the panel's sums, but for those of
// the last segment, which go to y. Also the input gradient of stride 1, whose weights are rearranged first.
#include "conv/conv.h"
#include "conv/conv_store.h"
#include "conv/conv_tile.h"

namespace fastcv::FASTCV_ISA {
namespace {

class Im2col {
  using V = Vec<float>;
  static constexpr int L = V::width, kVectors = kPanelVectors, kPanel = kVectors * L;
  static constexpr int64_t kRows = 512, kOutputs = 512;  // of patches in scratch; outputs k of a piece of work

 public:
  Im2col(const ConvParams& params, int threads) : p(params) {
    for (int i = 0; i < 3; ++i) {
      d[i] = make_dim(p, i);
      taps[i] = d[i].taps(0);
    }
    cg = p.c / p.groups;
    kg = p.k / p.groups;
    tap_count = p.kernel[0] * p.kernel[1] * p.kernel[2];
    rows = cg * tap_count;
    flat = tap_count == 1 && p.stride[0] == 1 && p.stride[1] == 1 && p.stride[2] == 1 && p.pad[0] == 0 &&
           p.pad[1] == 0 && p.pad[2] == 0 && p.in[1] == p.out[1] && p.in[2] == p.out[2];
    pixels = p.out[0] * p.out[1] * p.out[2];
    const int64_t vectors = ceil_div(pixels, L);
    panels = ceil_div(vectors, kVectors);
    const int64_t wanted = ceil_div(2 * threads, p.n * p.groups * panels);
    parts = most(ceil_div(kg, kOutputs), least(wanted, ceil_div(kg, 4 * kTileRows<kVectors>)));
    weight_bytes = p.transposed ? bytes(p.groups * kg * rows) : 0;
    sums_at = bytes(kRows * kPanel);
    runs_at = sums_at + bytes((ceil_div(kg, parts) + 1) * kPanel);
    slot_bytes = runs_at + static_cast<size_t>(round_up((kPanel + 1) * static_cast<int64_t>(sizeof(Run)), 64));
    slots = static_cast<size_t>(threads);
  }
  size_t workspace() const { return weight_bytes + slots * slot_bytes; }

  void run(const Exec& exec) const {
    char* base = static_cast<char*>(exec.workspace);
    const float* weights = static_cast<const float*>(p.w);
    if (p.transposed) {
      weights = reinterpret_cast<const float*>(base);
      parallel_for(exec, p.groups * kg, most(1, (1 << 14) / rows), [&](int64_t begin, int64_t end) {
        for (int64_t k = begin; k < end; ++k) rearrange(k, reinterpret_cast<float*>(base) + k * rows);
      });
    }
    const int64_t items = p.n * p.groups * panels * parts;
    const int64_t grain = most(1, (1 << 16) / most(1, rows * kPanel * ceil_div(kg, parts)));
    parallel_slots(exec, items, grain, [&](int slot, int64_t begin, int64_t end) {
      char* scratch = base + weight_bytes + static_cast<size_t>(slot) * slot_bytes;
      for (int64_t i = begin; i < end; ++i) run_item(weights, i, scratch);
    });
  }

 private:
  // Consecutive outputs of one line, which start at `at` in the panel.
  struct Run {
    int64_t at, cell[3], size;
  };
  static size_t bytes(int64_t floats) { return static_cast<size_t>(round_up(floats * 4, 64)); }

  // Weights of output k of dgrad, [c][k][tap] to [k][c][tap].
  void rearrange(int64_t k, float* out) const {
    const float* w = static_cast<const float*>(p.w) + (k / kg * cg * kg + k % kg) * tap_count;
    for (int64_t c = 0; c < cg; ++c, w += kg * tap_count, out += tap_count)
      for (int64_t tap = 0; tap < tap_count; ++tap) out[tap] = w[tap];
  }

  void run_item(const float* weights, int64_t item, char* scratch) const {
    const int64_t part = item % parts, panel = item / parts % panels, image = item / parts / panels / p.groups;
    const int64_t group = item / parts / panels % p.groups;
    const int64_t vectors = ceil_div(pixels, L);
    const int64_t first = vectors * panel / panels * L, last = least(pixels, vectors * (panel + 1) / panels * L);
    const int nv = static_cast<int>(ceil_div(last - first, L));
    const int64_t k0 = kg * part / parts, k1 = kg * (part + 1) / parts;
    float *patches = reinterpret_cast<float*>(scratch), *sums = reinterpret_cast<float*>(scratch + sums_at);
    Run* runs = reinterpret_cast<Run*>(scratch + runs_at);
    const int64_t count = cut(first, last, runs);
    const float* x = static_cast<const float*>(p.x) + (image * p.c + group * cg) * p.in[0] * p.in[1] * p.in[2];
    for (int64_t row = 0; row < rows; row += kRows) {
      const int64_t n = least(kRows, rows - row);
      gather(x, row, n, runs, count, nv * L, patches);
      Product product;
      product.weights = weights + (group * kg + k0) * rows + row;
      product.bias = p.bias == nullptr ? nullptr : static_cast<const float*>(p.bias) + group * kg + k0;
      product.patches = patches;
      product.sums = sums;
      product.rows = n;
      product.first = row == 0;
      product.last = row + n == rows;
      product.at = (image * p.k + group * kg + k0) * pixels + first;
      product.tail = static_cast<int>(last - first - (nv - 1) * L);
      switch (nv) {
        case 1:
          multiply<1>(product, k1 - k0);
          break;
        case 2:
          multiply<2>(product, k1 - k0);
          break;
#if defined(__AVX512F__)
        case 3:
          multiply<3>(product, k1 - k0);
          break;
        case 4:
          multiply<4>(product, k1 - k0);
          break;
#endif
        default:
          __builtin_unreachable();
      }
    }
  }

  // ---- patches -----------------------------------------------------------------------------------------------------

  int64_t cut(int64_t first, int64_t last, Run* runs) const {
    if (flat) {
      runs[0] = {0, {0, 0, first}, last - first};
      return 1;
    }
    int64_t count = 0;
    for (int64_t at = first; at < last; ++count) {
      Run& r = runs[count];
      r = {at - first, {at / p.out[2] / p.out[1], at / p.out[2] % p.out[1], at % p.out[2]}, 0};
      r.size = least(last - at, p.out[2] - r.cell[2]);
      at += r.size;
    }
    return count;
  }

  // Rows [row, row + n) of the patches, each `width` long.
  void gather(const float* x, int64_t row, int64_t n, const Run* runs, int64_t count, int64_t width, float* out) const {
    const int64_t plane = p.in[0] * p.in[1] * p.in[2], filled = runs[count - 1].at + runs[count - 1].size;
    int64_t c = row / tap_count, tap = row % tap_count;
    for (int64_t i = 0; i < n; ++i, out += width) {
      const int64_t tw = tap % p.kernel[2], th = tap / p.kernel[2] % p.kernel[1], td = tap / p.kernel[2] / p.kernel[1];
      const int64_t offset[3] = {taps[0].offset + td * taps[0].offset_step, taps[1].offset + th * taps[1].offset_step,
                                 taps[2].offset + tw * taps[2].offset_step};
      for (int64_t r = 0; r < count; ++r) copy(x + c * plane, runs[r], offset, out + runs[r].at);
      for (int64_t j = filled; j < width; ++j) out[j] = 0;
      if (++tap == tap_count) tap = 0, ++c;
    }
  }

  void copy(const float* x, const Run& run, const int64_t (&offset)[3], float* out) const {
    const int64_t id = run.cell[0] * d[0].in_step + offset[0], ih = run.cell[1] * d[1].in_step + offset[1];
    const int64_t step = d[2].in_step, iw = run.cell[2] * step + offset[2];
    if (flat) return copy_line(x + run.cell[2], run.size, out);
    if (id < 0 || id >= p.in[0] || ih < 0 || ih >= p.in[1]) return clear(out, run.size);
    const auto [lo, hi] = inside(iw, step, p.in[2] - 1, run.size);
    const float* from = x + (id * p.in[1] + ih) * p.in[2] + iw;
    clear(out, lo);
    clear(out + hi, run.size - hi);
    if (step == 1) return copy_line(from + lo, hi - lo, out + lo);
    int64_t j = lo;
    if (step == 2)
      for (; j + L <= hi && iw + 2 * (j + L) <= p.in[2]; j += L) {
        V even, odd;
        unzip(load(from + 2 * j), load(from + 2 * j + L), even, odd);
        store(out + j, even);
      }
    for (; j < hi; ++j) out[j] = from[j * step];
  }
  static void copy_line(const float* from, int64_t n, float* out) {
    int64_t j = 0;
    for (; j + L <= n; j += L) store(out + j, load(from + j));
    if (j < n) store_n(out + j, load_n(from + j, static_cast<int>(n - j)), static_cast<int>(n - j));
  }
  static void clear(float* out, int64_t n) {
    for (int64_t j = 0; j < n; j += L) store_n(out + j, V(0.0f), static_cast<int>(least(L, n - j)));
  }

  // ---- products ----------------------------------------------------------------------------------------------------

  // Some rows of a panel's patches times as many weights of each output.
  struct Product {
    const float *weights, *bias;  // [outputs][all rows]; [outputs] or nullptr
    const float* patches;         // [rows][panel]
    float* sums;                  // [outputs][panel]: of the rows before these
    int64_t rows;
    bool first, last;  // no rows came before; none follow
    int64_t at;        // the panel's place in y, for the first output
    int tail;          // pixels of the panel's last vector
  };

  template <int NV>
  void multiply(const Product& product, int64_t outputs) const {
    constexpr int MR = kTileRows<NV>;
    int64_t k = 0;
    for (; k + MR <= outputs; k += MR) tile<MR, NV>(product, k);
    if (k + 4 <= outputs) tile<4, NV>(product, k), k += 4;
    if (k + 2 <= outputs) tile<2, NV>(product, k), k += 2;
    if (k < outputs) tile<1, NV>(product, k);
  }

  template <int MR, int NV>
  [[gnu::noinline]] void tile(const Product& product, int64_t k) const {
    using P = PlainProduct<float>;
    const float* weights[MR];
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) weights[m] = product.weights + (k + m) * rows;
    const float* patches = product.patches;
    const int64_t segment = segment_of(rows);
    for (int64_t begin = 0; begin < product.rows; begin += segment) {
      const int64_t end = least(product.rows, begin + segment);
      V sum[MR][NV];
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) sum[m][v] = V(0.0f);
      for (int64_t i = begin; i < end; ++i, patches += NV * L) {
        V x[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) x[v] = load(patches + v * L);
#pragma GCC unroll 8
        for (int m = 0; m < MR; ++m) {
          const V spread = P::spread(weights[m] + i);
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) sum[m][v] = fma(spread, x[v], sum[m][v]);
        }
      }
      add_up(p, product, k, sum, product.first && begin == 0, product.last && end == product.rows, pixels);
    }
  }

  // A segment's sums join those before it: the bias, or what stands in scratch. The total goes back there, or to y.
  template <int MR, int NV>
  FASTCV_INLINE void add_up(const ConvParams& p, const Product& product, int64_t k, V (&sum)[MR][NV], bool first,
                            bool last, int64_t pixels) {
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
      const V bias(first && product.bias != nullptr ? product.bias[k + m] : 0.0f);
      const float* before = product.sums + (k + m) * NV * L;
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sum[m][v] = (first ? bias : load(before + v * L)) + sum[m][v];
    }
    const bool straight = last && product.tail == L && p.residual == nullptr && p.activation == Activation::none;
    float* out = straight ? static_cast<float*>(p.y) + product.at + k * pixels : product.sums + k * NV * L;
    const int64_t pitch = straight ? pixels : NV * L;
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) store(out + m * pitch + v * L, sum[m][v]);
    if (straight || !last) return;
    for (int m = 0; m < MR; ++m)
      for (int v = 0; v < NV; ++v)
        store_final<float>(p, product.at + (k + m) * pixels + v * L, load(out + (m * NV + v) * L),
                           v == NV - 1 ? product.tail : L);
  }

  const ConvParams& p;
  Dim d[3];
  Taps taps[3];
  int64_t cg, kg, tap_count, rows, pixels;  // rows: of patches, channels times taps
  bool flat;                                // taps neither move nor skip anything: all pixels are one run
  int64_t panels, parts;
  size_t weight_bytes, sums_at, runs_at, slot_bytes, slots;
};

}  // namespace

void conv_im2col(const ConvParams& p, const Exec& exec) { Im2col(p, exec.threads).run(exec); }
size_t conv_im2col_workspace(const ConvParams& p, int threads) { return Im2col(p, threads).workspace(); }

}  // namespace fastcv::FASTCV_ISA
