// Convolution of channels_last images by 1x1 kernels, on matrix tiles that multiply parts of numbers (conv_amx.h): what
// an implicit GEMM (conv_igemm.h) makes of it, with its packed weights, but in an order that keeps the tiles busy.
// Pixels of all images follow each other and are taken in strips of two tiles (four, of up to 16 output channels).
// While one strip is multiplied, the next one is split into parts and the sums before are finished, some at every step.
//
// Few weights stay in the second-level cache: strip by strip, all panels. Many come once for a block of strips, panel
// by panel, each fetched ahead while the one before it is multiplied. Long sums are made of pieces, so that a block has
// many strips: the sums of a block wait until those of all pieces have been added. Pieces depend on the layer alone,
// and sums of one piece have the bits of the implicit GEMM.
#pragma once
#include "conv/conv_amx.h"
#include "conv/conv_igemm_plan.h"
#include "conv/conv_igemm_weights.h"
#include "conv/conv_store.h"

namespace fastcv::FASTCV_ISA {

template <class P, class S>
class Pointwise {
  using Plan = IgemmPlan<P, S>;
  using X = typename P::X;
  using V = Vec<float>;
  static constexpr int kLanes = Plan::kLanes;
  static constexpr int64_t kPanel = 2 * kLanes, kLine = 64, kMostPixels = 4 * kTilePixels, kMostStrips = 32;
  static constexpr int64_t kMostSteps = 24;  // of a piece

 public:
  // Every output reads one input, which exists.
  static bool fits(const ConvParams& p) {
    for (int i = 0; i < 3; ++i)
      if (p.kernel[i] != 1 || p.pad[i] != 0 || (p.transposed && p.stride[i] != 1) ||
          (p.out[i] - 1) * p.stride[i] >= p.in[i])
        return false;
    return p.channels_last && p.groups == 1 && p.c > 0 && p.k > 0 && p.n * p.out[0] * p.out[1] * p.out[2] > 0;
  }

  Pointwise(const ConvParams& params, int threads)
      : p(params), plan(params, 1), weights(plan), slots(threads), pixels(p.n * p.out[0] * p.out[1] * p.out[2]) {
    for (int i = 0; i < 3; ++i) all_inputs = all_inputs && p.in[i] == p.out[i];
    const int64_t all_steps = plan.pixel_length / kTileChannels;
    pieces = ceil_div(all_steps, kMostSteps);
    steps = ceil_div(all_steps, pieces);
    tiles = plan.vectors == 1 ? 4 : 2;
    share(threads);
    slot_bytes = steps_bytes() + window_bytes() + waiting_bytes();
    if (slot_bytes < static_cast<int64_t>(weights.scratch())) slot_bytes = static_cast<int64_t>(weights.scratch());
  }

  size_t workspace() const { return weights.shared() + static_cast<size_t>(slots * slot_bytes); }

  void run(const Exec& exec) {
    constexpr int64_t kGrain = 1 << 16;  // multiply-adds: below this, waking a thread costs more than it saves
    char* const base = static_cast<char*>(exec.workspace);
    char* const slot_base = base + weights.shared();
    weights.place(base);
    if (p.packing != Packing::ready) {
      weights.prepare();
      weights.pack(exec, kGrain, slot_base, static_cast<size_t>(slot_bytes));
    }
    if (p.packing == Packing::fill) return;
    weights.load_rest();
    const int64_t parts = pixel_parts * panel_parts;
    const int64_t part_cost = pixels * plan.kdim * plan.kg / parts;
    parallel_slots(exec, parts, most(1, kGrain / most(1, part_cost)), [&](int slot, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) Worker(*this, i, slot_base + slot * slot_bytes).run();
    });
  }

 private:
  // Cuts pixels and output channels into parts so that the busiest thread has the least to do. Threads that differ in
  // output channels split the same pixels, threads that differ in pixels read the same weights: a number split costs
  // kSplit multiply-adds, a weight read kRead. Measured on 1x1 layers of ResNet-50 with cold weights.
  void share(int threads) {
    constexpr int64_t kSplit = 60, kRead = 40;
    int64_t least_cost = INT64_MAX;
    for (int64_t k = 1; k <= least(threads, plan.panels); ++k) {
      const int64_t parts = least(threads / k, ceil_div(pixels, kTilePixels)), strip = tiles * kTilePixels;
      const int64_t each = ceil_div(pixels, parts), strips = ceil_div(each, strip);
      const int64_t rows = strips * tiles * ceil_div(each, strips * tiles), columns = ceil_div(plan.panels, k) * kPanel;
      const int64_t cost = rows * (columns + kSplit) + columns * kRead;
      if (cost < least_cost) least_cost = cost, pixel_parts = parts, panel_parts = k;
    }
    const int64_t panels = ceil_div(plan.panels, panel_parts), strip = tiles * kTilePixels;
    const int64_t strips = ceil_div(ceil_div(pixels, pixel_parts), strip);
    const int64_t room = most(1, least(kMostStrips, kWindow / (strip * pitch(P::kParts) * sizeof_x())));
    block = pieces * panels * panel_bytes() <= kNear ? 1 : ceil_div(strips, ceil_div(strips, room));
  }

  // Bytes of the second-level cache, 2 MB: for weights that stay there, or for strips that wait there.
  static constexpr int64_t kNear = 1 << 20, kWindow = 1 << 20;

  static constexpr int64_t sizeof_x() { return static_cast<int64_t>(sizeof(X)); }
  // Of a piece.
  int64_t panel_bytes() const { return length() * P::kParts * kPanel * sizeof_x(); }
  int64_t length() const { return steps * kTileChannels; }
  int64_t pitch(int64_t stored) const { return tile_pixel_pitch<X>(length() * stored); }
  int64_t steps_bytes() const { return round_up(steps * static_cast<int64_t>(sizeof(TileStep)), kLine); }
  int64_t strip_elements() const { return tiles * kTilePixels * pitch(P::kStored); }
  int64_t window_bytes() const { return (block + 1) * strip_elements() * sizeof_x(); }
  int64_t strip_sums() const { return tiles * kTilePixels * kPanel; }
  int64_t waiting_bytes() const {
    if (pieces == 1) return 0;
    return block * ceil_div(plan.panels, panel_parts) * strip_sums() * static_cast<int64_t>(sizeof(float));
  }

  // What is done between the products of a strip and a panel, a share after each.
  struct Meanwhile {
    int64_t steps;
    // Rows of the sums before are added to what waits for them, if anything does, and go to y, if they are the last.
    const float *sums, *bias;
    float* waiting;
    S* y;
    const S* residual;
    int64_t pitch, strip;       // elements of y in a pixel, in a strip
    int64_t row, rows, credit;  // credit: products since the last row, times rows
    bool relu;
    // Pixels first to last of the next piece are split, a step's channels of some after each product.
    const S* const* from;
    X* to;
    int64_t first, last, split_steps, channels, length, to_pitch, stored;
    bool special;
    __m512 poison;

    [[gnu::always_inline]] void operator()(int64_t at, int product) {
      const int64_t n = last - first, slots = P::kFirst;
      if (product < P::kFirst && at < split_steps)
        for (int64_t i = first + n * product / slots; i < first + n * (product + 1) / slots; ++i) split(i, at);
      for (credit += rows; credit >= steps * P::kProducts; credit -= steps * P::kProducts) finish(row++);
    }
    [[gnu::always_inline]] void split(int64_t i, int64_t at) {
      const int64_t k = at * kTileChannels, left = channels - k;
      const S* x = from[i] + k;
      X* out = to + i * to_pitch + k;
      if (left >= kTileChannels && stored == P::kParts) {
        P::put_finite(out, length, load(x), load(x + kLanes), poison);
      } else if (left >= kTileChannels) {
        special |= P::put(out, length, stored, load(x), load(x + kLanes));
      } else {
        const int64_t high = most(0, left - kLanes);
        special |= P::put(out, length, stored, load_n(x, static_cast<int>(least(kLanes, left))),
                          load_n(x + (high > 0 ? kLanes : 0), static_cast<int>(high)));
      }
    }
    // A row of the next strip, for when its turn comes: in a network it is in no near cache.
    [[gnu::always_inline]] static void fetch(const S* row) {
      __builtin_prefetch(row, 0, 2);
      __builtin_prefetch(row + kLanes, 0, 2);
    }
    [[gnu::always_inline]] void finish(int64_t i) {
      V low = load(sums + i * kPanel), high = load(sums + i * kPanel + kLanes);
      if (waiting != nullptr) {
        float* sum = waiting + i * kPanel;
        low = load(sum) + low, high = load(sum + kLanes) + high;
        if (y == nullptr) {
          store(sum, low);
          store(sum + kLanes, high);
          return;
        }
      }
      low = low + load(bias), high = high + load(bias + kLanes);
      S* to_y = y + i * pitch;
      fetch(to_y + strip);
      if (residual != nullptr) {
        const S* r = residual + i * pitch;
        fetch(r + strip);
        low = low + load(r), high = high + load(r + kLanes);
      }
      const V zero(0.0f);
      if (relu) low = select<float>(low <= zero, zero, low), high = select<float>(high <= zero, zero, high);
      store(to_y, low);
      store(to_y + kLanes, high);
    }
  };

  // A strip and a piece of its sums.
  struct Part {
    int64_t strip, piece;
  };

  // One panel's sums of a strip.
  struct Sums {
    int64_t pixel, rows, panel;
    const float* at;
  };

  // One thread's part.
  class Worker {
   public:
    Worker(const Pointwise& layer, int64_t part, char* scratch) : of(layer), p(of.p), plan(of.plan) {
      const int64_t i = part / of.panel_parts, j = part % of.panel_parts;
      begin = of.pixels * i / of.pixel_parts, end = of.pixels * (i + 1) / of.pixel_parts;
      first_panel = plan.panels * j / of.panel_parts, last_panel = plan.panels * (j + 1) / of.panel_parts;
      const int64_t n = end - begin;
      strips = ceil_div(n, of.tiles * kTilePixels);
      tiles = strips > 1 || n > 2 * kTilePixels ? of.tiles : ceil_div(n, kTilePixels);
      sum.rows = ceil_div(n, strips * tiles);
      strip = tiles * sum.rows;
      TileStep* table = reinterpret_cast<TileStep*>(scratch);
      for (int64_t k = 0; k < of.steps; ++k) table[k] = {k * kTileChannels * sizeof_x(), k * kTileChannels / P::kPair};
      sum.steps = table;
      sum.x_part = of.length() * sizeof_x();
      window = reinterpret_cast<X*>(scratch + of.steps_bytes());
      waiting = reinterpret_cast<float*>(scratch + of.steps_bytes() + of.window_bytes());
      work.from = from;
      work.length = of.length();
      work.relu = p.activation == Activation::relu;
      work.pitch = p.k, work.strip = strip * p.k;
      quick = work.relu || p.activation == Activation::none;
      before.rows = 0;
    }

    void run() {
      const TileSession session(tiles_of_rows(sum.rows));
      const int64_t block = of.block, panels = last_panel - first_panel;
      prepare({0, 0}, 0);
      split_steps(0, work.split_steps);
      finish_split();
      int64_t slot = 0;  // of a block's first strip
      for (int64_t b = 0; b < strips; b += block) {
        const int64_t behind = least(strips, b + block);
        for (int64_t piece = 0; piece < of.pieces; ++piece, slot = (slot + behind - b) % (block + 1)) {
          sum.count = steps_of(piece);
          work.steps = sum.count;
          for (int64_t panel = first_panel; panel < last_panel; ++panel) {
            sum.weights = of.weights.panel(0, panel, piece * of.length());
            sum.clean = of.weights.clean(0, panel, piece * of.length());
            fetch_ahead(panel, piece, b, behind);
            for (int64_t q = b; q < behind; ++q) {
              const int64_t at = (slot + q - b) % (block + 1), next_at = (at + 1) % (block + 1);
              const Part next = q + 1 < behind          ? Part{q + 1, piece}
                                : piece + 1 < of.pieces ? Part{b, piece + 1}
                                                        : Part{behind, 0};
              const bool splits = next.strip < strips && (block == 1 || panel == first_panel);
              work.first = work.last = 0;
              if (splits) {
                const int64_t n = rows_of(next.strip), i = panel - first_panel;
                if (block > 1 || i == 0) prepare(next, next_at);
                work.first = block == 1 ? n * i / panels : 0;
                work.last = block == 1 ? n * (i + 1) / panels : n;
              }
              multiply({q, piece}, at, panel, waiting + ((q - b) * panels + panel - first_panel) * of.strip_sums());
              if (splits && (block > 1 || panel + 1 == last_panel)) {
                split_steps(sum.count, work.split_steps);
                finish_split();
              }
              if (sum.ahead != nullptr) sum.ahead += sum.ahead_lines * kLine * sum.count;
            }
          }
        }
      }
      while (work.row < before.rows) work.finish(work.row++);
    }

   private:
    int64_t rows_of(int64_t q) const { return least(strip, end - begin - q * strip); }
    int64_t steps_of(int64_t piece) const {
      return least(of.steps, plan.pixel_length / kTileChannels - piece * of.steps);
    }
    X* window_slot(int64_t at) const { return window + at * of.strip_elements(); }
    const S* input(int64_t pixel) const {
      const S* x = static_cast<const S*>(p.x);
      if (of.all_inputs) return x + pixel * p.c;
      const int64_t w = pixel % p.out[2], line = pixel / p.out[2], h = line % p.out[1], plane = line / p.out[1];
      const int64_t d = plane % p.out[0], n = plane / p.out[0];
      return x + (((n * p.in[0] + d * p.stride[0]) * p.in[1] + h * p.stride[1]) * p.in[2] + w * p.stride[2]) * p.c;
    }

    // Gets ready to split a piece of a strip.
    void prepare(Part next, int64_t at) {
      const int64_t k = next.piece * of.length();
      for (int64_t i = 0; i < rows_of(next.strip); ++i) from[i] = input(begin + next.strip * strip + i) + k;
      work.split_steps = steps_of(next.piece);
      work.channels = least(of.length(), p.c - k);
      work.to = window_slot(at);
      work.poison = _mm512_setzero_ps();
      work.special = of.weights.any_special();
      to_rows = rows_of(next.strip), to_at = at;
      set_stored(work.special);
    }
    void set_stored(bool special) {
      work.stored = special ? P::kStored : P::kParts;
      work.to_pitch = of.pitch(work.stored);
      special_slots[to_at] = special;
    }
    void split_steps(int64_t first, int64_t last) {
      for (int64_t i = 0; i < to_rows; ++i)
        for (int64_t k = first; k < last; ++k) work.split(i, k);
    }
    void finish_split() {
      work.special |= _mm512_cmp_ps_mask(work.poison, work.poison, _CMP_UNORD_Q) != 0;
      if (work.special && work.stored < P::kStored) set_stored(true), split_steps(0, work.split_steps);
    }

    void fetch_ahead(int64_t panel, int64_t piece, int64_t b, int64_t behind) {
      sum.ahead = nullptr;
      if (of.block == 1 && b > 0) return;
      const bool last = panel + 1 == last_panel, last_piece = last && piece + 1 == of.pieces;
      if (last_piece && (of.block == 1 || behind == strips)) return;
      const int64_t next = last_piece ? 0 : piece + (last ? 1 : 0);
      sum.ahead =
          reinterpret_cast<const char*>(of.weights.panel(0, last ? first_panel : panel + 1, next * of.length()));
      sum.ahead_lines = ceil_div(of.panel_bytes(), kLine * (behind - b) * sum.count);
    }

    // slot: of the window; wait: where the sums of a strip's pieces are added up.
    void multiply(Part part, int64_t slot, int64_t panel, float* wait) {
      PixelTile at[4];
      const bool special = special_slots[slot], first = part.piece == 0, last = part.piece + 1 == of.pieces;
      const int64_t pitch = of.pitch(special ? P::kStored : P::kParts);
      for (int64_t m = 0; m < tiles; ++m) at[m] = {window_slot(slot) + m * sum.rows * pitch, pitch * sizeof_x()};
      const int vectors = plan.panel_vectors(panel);
      float* sums = first && !last ? wait : room[now];
      work.rows = before.rows - work.row;
      work.credit = 0;
      if (tiles == 2 && vectors == 2 && !special) {
        multiply_tiles<P, false, 2, 2>(sum, at, sums, work);
      } else {
        for (int i = 0; i < P::kProducts; ++i)
          for (int64_t k = 0; k < sum.count; ++k) work(k, i);
        P::multiply(sum, special, at, tiles, vectors, sums);
      }
      before = {begin + part.strip * strip, first && !last ? 0 : rows_of(part.strip), panel, sums};
      now = 1 - now;
      const int64_t k0 = panel * kPanel, to = before.pixel * p.k + k0;
      work.row = 0;
      work.sums = sums;
      work.waiting = first ? nullptr : wait;
      work.y = nullptr;
      if (!last) return;
      if (quick && k0 + kPanel <= p.k) {
        work.bias = of.weights.bias(0, panel);
        work.y = static_cast<S*>(p.y) + to;
        work.residual = p.residual == nullptr ? nullptr : static_cast<const S*>(p.residual) + to;
      } else {
        finish_slowly();
      }
    }

    void finish_slowly() {
      const float* bias = of.weights.bias(0, before.panel);
      const int64_t k0 = before.panel * kPanel, n = least(kPanel, p.k - k0);
      for (; work.row < before.rows; ++work.row)
        for (int64_t k = 0; k < n; k += kLanes) {
          V sum = load(before.at + work.row * kPanel + k);
          if (work.waiting != nullptr) sum = load(work.waiting + work.row * kPanel + k) + sum;
          store_final<S>(p, (before.pixel + work.row) * p.k + k0 + k, sum + load(bias + k),
                         static_cast<int>(least(kLanes, n - k)));
        }
    }

    const Pointwise& of;
    const ConvParams& p;
    const Plan& plan;
    int64_t begin, end, first_panel, last_panel, strips, strip, tiles;
    TileSum sum{};
    X* window;
    float* waiting;
    int64_t to_rows, to_at;  // of the piece that is split
    Meanwhile work{};
    Sums before;
    bool quick;
    int now = 0;
    bool special_slots[kMostStrips + 1];
    const S* from[kMostPixels];
    alignas(64) float room[2][kMostPixels * kPanel];
  };

  const ConvParams& p;
  const Plan plan;
  IgemmWeights<P, S> weights;
  int64_t slots, pixels, steps, tiles, slot_bytes;
  int64_t pieces;  // of a sum, `steps` times 32 channels each
  int64_t pixel_parts = 1, panel_parts = 1;
  int64_t block;           // strips that wait in the window while all panels pass
  bool all_inputs = true;  // are read, one after the other
};

}  // namespace fastcv::FASTCV_ISA
