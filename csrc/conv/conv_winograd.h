// Winograd convolution F(MH x MW, 3 x 3) in float32, stride 1, any padding, dilation and groups
// (conv_winograd_algebra.h has the formulas). The input gradient is the same with the taps rotated and channels
// exchanged.
//
// Over the tiles of conv_winograd_tiles.h, per group of the convolution:
//
//   V[point][tile][channel]  = transformed inputs       U[point][channel][output] = transformed weights
//   S[point][tile][output]   = sum over channels of V * U, one small matrix product per point
//   y                        = transformed S, with bias, residual and activation
//
// Tiles come in panels of as many rows as the register tile has, outputs in blocks of two vectors, channels in chunks:
// a sum runs over a chunk in registers and then joins what stands in S. That order is the layer's alone.
// What may depend on threads and batch size is only who computes what, and when:
//
//   tiles:   the weights are transformed once; threads take blocks of tiles, whose V and S stay in their caches
//   outputs: threads take blocks of outputs, transform just their weights, chunk by chunk, and each makes V of a large
//            block of tiles for itself. For deep layers on small maps, where the weights are the larger part.
//   shared:  the same with one V for all, where many threads would make it too often.
// Kept weights (Packing) spare both their transforms.
#pragma once
#include "conv/conv_store.h"
#include "conv/conv_winograd_algebra.h"
#include "conv/conv_winograd_tiles.h"

namespace fastcv::FASTCV_ISA {

#if defined(__AVX512F__)
inline constexpr int kWinogradRows = 14;  // of the register tile: 14 x 2 sums, 2 weights, 1 input in 32 registers
#else
inline constexpr int kWinogradRows = 6;
#endif

// s[MR][NV] (+)= v * u over the channels. v is [channels / L][MR][L]. Meanwhile a vector per channel, `ahead_step`
// apart, is fetched from `ahead` to the second cache.
template <int MR, int NV>
[[gnu::noinline]] static void winograd_multiply(const float* v, const float* u, int64_t channels, float* s,
                                                int64_t s_pitch, bool first, const float* ahead, int64_t ahead_step) {
  using P = PlainProduct<float>;
  constexpr int L = Vec<float>::width;
  Vec<float> sum[MR][NV];
#pragma GCC unroll 14
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 2
    for (int n = 0; n < NV; ++n) sum[m][n] = Vec<float>(0.0f);
  for (; channels > 0; channels -= L, v += MR * L) {
    const int64_t lanes = least(L, channels);
    for (int64_t c = 0; c < lanes; ++c, u += NV * L, ahead += ahead_step) {
      __builtin_prefetch(ahead, 0, 2);
      Vec<float> w[NV];
#pragma GCC unroll 2
      for (int n = 0; n < NV; ++n) w[n] = load(u + n * L);
#pragma GCC unroll 14
      for (int m = 0; m < MR; ++m) {
        const Vec<float> x = P::spread(v + m * L + c);
#pragma GCC unroll 2
        for (int n = 0; n < NV; ++n) sum[m][n] = fma(x, w[n], sum[m][n]);
      }
    }
  }
#pragma GCC unroll 14
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 2
    for (int n = 0; n < NV; ++n) {
      float* out = s + m * s_pitch + n * L;
      store(out, first ? sum[m][n] : load(out) + sum[m][n]);
    }
}

template <int NV>
static void winograd_multiply(int rows, const float* v, const float* u, int64_t channels, float* s, int64_t s_pitch,
                              bool first, const float* ahead, int64_t ahead_step) {
  switch (rows) {
#define FASTCV_ROWS(r) \
  case r:              \
    return winograd_multiply<r, NV>(v, u, channels, s, s_pitch, first, ahead, ahead_step);
    FASTCV_ROWS(1)
    FASTCV_ROWS(2)
    FASTCV_ROWS(3)
    FASTCV_ROWS(4)
    FASTCV_ROWS(5)
    FASTCV_ROWS(6)
#if defined(__AVX512F__)
    FASTCV_ROWS(7)
    FASTCV_ROWS(8)
    FASTCV_ROWS(9)
    FASTCV_ROWS(10)
    FASTCV_ROWS(11)
    FASTCV_ROWS(12)
    FASTCV_ROWS(13)
    FASTCV_ROWS(14)
#endif
#undef FASTCV_ROWS
    default:
      __builtin_unreachable();
  }
}

template <int MH, int MW>
class Winograd {
  static constexpr int NH = MH + 2, NW = MW + 2, kPoints = NH * NW;
  static constexpr int L = Vec<float>::width, kVectors = 2, kBlock = kVectors * L;  // outputs of a block

 public:
  // Where every thread can have as many groups as the others, each takes its own: it is its own team.
  Winograd(const ConvParams& params, int threads)
      : p(params),
        tiles(p.n, p.out, p.dilation),
        teams(p.groups % threads == 0 || p.groups >= 4 * threads ? threads : 1) {
    plan(threads / teams);
  }
  size_t workspace() const { return static_cast<size_t>(teams) * team_bytes(); }
  size_t kept() const { return static_cast<size_t>(p.groups) * bytes(weight_floats()); }

  void run(const Exec& exec) {
    parallel_slots(exec, teams > 1 ? p.groups : 1, 1, [&](int team, int64_t begin, int64_t end) {
      const Exec of_team{exec.parallel, slots,
                         static_cast<char*>(exec.workspace) + static_cast<size_t>(team) * team_bytes()};
      if (teams == 1) begin = 0, end = p.groups;
      for (int64_t g = begin; g < end; ++g) run_group(of_team, g);
    });
  }

 private:
  enum class Mode { tiles, outputs, shared };

  // Consecutive tiles and their transformed inputs: panels of near-equal rows, each [channels / L][rows][L] per point.
  struct Block {
    int64_t tile, count, panels, rows, longer;  // the first `longer` panels have rows + 1
    float* v;
    int64_t v_point;
    WinogradTile* tiles;
    int rows_of(int64_t panel) const { return static_cast<int>(rows + (panel < longer)); }
    int64_t first_of(int64_t panel) const { return panel * rows + least(panel, longer); }
    int64_t panel_of(int64_t i) const {
      const int64_t whole = longer * (rows + 1);
      return i < whole ? i / (rows + 1) : longer + (i - whole) / rows;
    }
  };
  struct Scratch {
    float *v, *u, *sums, *band, *staging;
    WinogradTile* tiles;
  };

  size_t team_bytes() const { return shared_bytes + static_cast<size_t>(slots) * slot_bytes; }

  void run_group(const Exec& exec, int64_t g) const {
    char *base = static_cast<char*>(exec.workspace), *slots_base = base + shared_bytes;
    float* u =
        p.packing == Packing::none
            ? nullptr
            : reinterpret_cast<float*>(static_cast<char*>(p.packed) + static_cast<size_t>(g) * bytes(weight_floats()));
    if (p.packing == Packing::fill) transform_all_weights(exec, u, slots_base, g);
    else if (mode == Mode::shared) run_shared(exec, reinterpret_cast<float*>(base), u, slots_base, g);
    else if (mode == Mode::outputs) run_outputs(exec, u, slots_base, g);
    else run_tiles(exec, u == nullptr ? reinterpret_cast<float*>(base) : u, slots_base, g);
  }

  // ---- plan --------------------------------------------------------------------------------------------------------

  void plan(int threads) {
    cg = p.c / p.groups;
    kg = p.k / p.groups;
    c_padded = round_up(cg, L);
    k_blocks = ceil_div(kg, kBlock);
    // Longer chains are faster and less exact. The tiles that need the more exact sums are taken where 32 are enough
    // for the rule, larger ones where torch's own sums have lost more (conv.cpp).
    chunk = MH * MW == 16 && cg > 64 ? 64 : 32;
    images = {static_cast<const float*>(p.x), p.c, {p.in[1], p.in[2]}, {}, p.channels_last};
    // In dgrad tap r of output o meets input o + pad - r * dilation: taps run backwards from there.
    for (int i = 0; i < 2; ++i) images.origin[i] = p.transposed ? p.pad[1 + i] - 2 * p.dilation[1 + i] : -p.pad[1 + i];
    unit = tiles.unit(p.channels_last);  // a block's tiles are a multiple of it
    choose_mode(threads);
    lay_out(threads);
  }

  static int64_t floats(int64_t tiles_, int64_t width) { return kPoints * (tiles_ * width + kPad); }

  void choose_mode(int threads) {
    constexpr int64_t kShared = 64;        // tiles of a block of outputs
    constexpr int64_t kTiles = 128 << 10;  // floats of V and S of a block of tiles
    constexpr int64_t kWeights = 1 << 22;  // floats that every block of tiles may read again
    // More weights than the second cache holds come faster than they are used only by blocks of two panels.
    const bool streamed = weight_floats() > 1 << 18;
    const int64_t least_tiles = streamed ? 2 * kWinogradRows : kWinogradRows;
    const bool few = p.packing == Packing::none && tiles.count <= kShared;  // to keep all transformed weights for them
    parts = 1;
    if (tiles.count >= least_tiles * threads && weight_floats() <= kWeights && !few) {
      mode = Mode::tiles;
      block = most(least_tiles, kTiles / (kPoints * (c_padded + kBlock)));
      const int64_t blocks = round_up(ceil_div(tiles.count, block), threads);
      block = ceil_div(tiles.count, streamed ? blocks : most(2 * threads, blocks));
    } else {
      // A second parallel region costs more than some inputs that are transformed twice.
      const bool even = round_up(k_blocks, threads) - k_blocks <= k_blocks / 8;
      mode = even && (threads - 1) * 128 <= kg ? Mode::outputs : Mode::shared;
      block = ceil_div(tiles.count, ceil_div(tiles.count, kShared));
      if (mode == Mode::shared && unit == 1)
        parts = most(1, least(ceil_div(2 * threads, k_blocks), ceil_div(block, kWinogradRows)));
    }
    block = least(tiles.count, round_up(block, unit));
  }

  static size_t bytes(int64_t n) { return static_cast<size_t>(round_up(n * 4, 64)); }

  void lay_out(int threads) {
    slots = threads;
    const size_t v_bytes = bytes(floats(block, c_padded));
    const int64_t sums_tiles = parts > 1 ? ceil_div(block, parts) + 2 * kWinogradRows : block;
    const bool all_weights = mode == Mode::tiles && p.packing == Packing::none;
    shared_bytes = mode == Mode::shared ? v_bytes : all_weights ? bytes(weight_floats()) : 0;
    u_at = mode == Mode::shared ? 0 : v_bytes;
    sums_at = u_at + (mode == Mode::tiles ? 0 : bytes(kPoints * weight_point(least(chunk, cg), kBlock)));
    band_at = sums_at + bytes(floats(sums_tiles, kBlock));
    const int64_t band_pixels = p.channels_last ? kPoints : tiles.template band_pixels<NH, NW>();
    staging_at = band_at + bytes(band_pixels * L);
    tiles_at = staging_at + bytes(chunk * 9 * L);
    slot_bytes = tiles_at + static_cast<size_t>(round_up(block * static_cast<int64_t>(sizeof(WinogradTile)), 64));
  }

  Scratch scratch_of(char* slots_base, int slot) const {
    char* base = slots_base + static_cast<size_t>(slot) * slot_bytes;
    const auto at = [&](size_t offset) { return reinterpret_cast<float*>(base + offset); };
    return {at(0),       at(u_at),       at(sums_at),
            at(band_at), at(staging_at), reinterpret_cast<WinogradTile*>(base + tiles_at)};
  }

  Block make_block(int64_t tile, int64_t count, float* v, WinogradTile* table) const {
    Block b{tile, count, ceil_div(count, kWinogradRows), 0, 0, v, count * c_padded + kPad, table};
    b.rows = count / b.panels;
    b.longer = count % b.panels;
    tiles.list(tile, count, table);
    return b;
  }

  // ---- the modes ---------------------------------------------------------------------------------------------------

  int64_t width_of(int64_t k_block) const { return least(kVectors, ceil_div(kg - k_block * kBlock, L)) * L; }
  static int64_t weight_point(int64_t channels, int64_t width) { return channels * width + L; }
  // Where in the transformed weights a chunk of a block of outputs starts.
  float* weights_of(float* u, int64_t k_block, int64_t c0) const {
    const int64_t before = k_block * ceil_div(cg, chunk) + c0 / chunk;  // chunks, which are padded by a vector each
    return u + kPoints * (k_block * cg * kBlock + c0 * width_of(k_block) + before * L);
  }
  int64_t weight_floats() const { return kPoints * (cg * round_up(kg, L) + k_blocks * ceil_div(cg, chunk) * L); }

  void transform_all_weights(const Exec& exec, float* u, char* slots_base, int64_t group) const {
    const int64_t chunks = ceil_div(cg, chunk);
    parallel_slots(exec, k_blocks * chunks, 1, [&](int slot, int64_t begin, int64_t end) {
      const Scratch s = scratch_of(slots_base, slot);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t k_block = i / chunks, c0 = i % chunks * chunk;
        transform_weights(group, k_block, c0, least(chunk, cg - c0), weights_of(u, k_block, c0), s.staging);
      }
    });
  }

  void run_tiles(const Exec& exec, float* u, char* slots_base, int64_t group) const {
    if (p.packing == Packing::none) transform_all_weights(exec, u, slots_base, group);
    parallel_slots(exec, ceil_div(tiles.count, block), 1, [&](int slot, int64_t begin, int64_t end) {
      const Scratch s = scratch_of(slots_base, slot);
      for (int64_t i = begin; i < end; ++i) {
        const Block b = make_block(i * block, least(block, tiles.count - i * block), s.v, s.tiles);
        for (int64_t c = 0; c < cg; c += L) transform_input(b, group, c, 0, b.count, s.band);
        for (int64_t k_block = 0; k_block < k_blocks; ++k_block) {
          for (int64_t c0 = 0; c0 < cg; c0 += chunk)
            multiply(b, 0, b.panels, weights_of(u, k_block, c0), c0, width_of(k_block), s.sums);
          transform_output(b, group, k_block, 0, b.count, s);
        }
      }
    });
  }

  // u: the kept weights, or nullptr, here and below.
  void run_outputs(const Exec& exec, float* u, char* slots_base, int64_t group) const {
    parallel_slots(exec, k_blocks, 1, [&](int slot, int64_t begin, int64_t end) {
      const Scratch s = scratch_of(slots_base, slot);
      for (int64_t tile = 0; tile < tiles.count; tile += block) {
        const Block b = make_block(tile, least(block, tiles.count - tile), s.v, s.tiles);
        for (int64_t c = 0; c < cg; c += L) transform_input(b, group, c, 0, b.count, s.band);
        for (int64_t k_block = begin; k_block < end; ++k_block) finish_outputs(b, 0, b.panels, group, k_block, u, s);
      }
    });
  }

  void run_shared(const Exec& exec, float* v, float* u, char* slots_base, int64_t group) const {
    for (int64_t tile = 0; tile < tiles.count; tile += block) {
      const int64_t count = least(block, tiles.count - tile), vectors = c_padded / L;
      const int64_t cuts = unit > 1 ? 1 : least(count, ceil_div(2 * exec.threads, vectors));
      parallel_slots(exec, vectors * cuts, 1, [&](int slot, int64_t begin, int64_t end) {
        const Scratch s = scratch_of(slots_base, slot);
        const Block b = make_block(tile, count, v, s.tiles);
        for (int64_t i = begin; i < end; ++i)
          transform_input(b, group, i / cuts * L, count * (i % cuts) / cuts, count * (i % cuts + 1) / cuts, s.band);
      });
      parallel_slots(exec, k_blocks * parts, 1, [&](int slot, int64_t begin, int64_t end) {
        const Scratch s = scratch_of(slots_base, slot);
        const Block b = make_block(tile, count, v, s.tiles);
        for (int64_t i = begin; i < end; ++i) {
          const int64_t k_block = i / parts, part = i % parts;
          const int64_t first = b.panels * part / parts, last = b.panels * (part + 1) / parts;
          if (first < last) finish_outputs(b, first, last, group, k_block, u, s);
        }
      });
    }
  }

  // A block of outputs of a range of panels.
  void finish_outputs(const Block& b, int64_t first, int64_t last, int64_t group, int64_t k_block, float* u,
                      const Scratch& s) const {
    for (int64_t c0 = 0; c0 < cg; c0 += chunk) {
      if (u == nullptr) transform_weights(group, k_block, c0, least(chunk, cg - c0), s.u, s.staging);
      multiply(b, first, last, u == nullptr ? s.u : weights_of(u, k_block, c0), c0, width_of(k_block), s.sums);
    }
    transform_output(b, group, k_block, b.first_of(first), b.first_of(last), s);
  }

  // Sums of a range of panels over the chunk of channels at c0, [point][tile of the range][width]. Weights are read
  // once by a few panels, faster than they come from the third cache, and no hardware looks ahead over a page's end: so
  // the first panels fetch those of the next point, which follow.
  void multiply(const Block& b, int64_t first, int64_t last, const float* u, int64_t c0, int64_t width,
                float* sums) const {
    const int64_t channels = least(chunk, cg - c0), start = b.first_of(first);
    const int64_t point = (b.first_of(last) - start) * width + kPad;
    for (int64_t xi = 0; xi < kPoints; ++xi, u += weight_point(channels, width))
      for (int64_t panel = first; panel < last; ++panel) {
        const int rows = b.rows_of(panel);
        const float* v = b.v + xi * b.v_point + b.first_of(panel) * c_padded + c0 * rows;
        float* s = sums + xi * point + (b.first_of(panel) - start) * width;
        const int64_t part = panel - first, lines = width / L;  // of each channel's weights, a panel fetches one
        const float* ahead = u + (part < lines ? weight_point(channels, width) + part * channels * L : 0);
        const int64_t step = last - first < lines ? width : L;  // its neighbour comes along
        if (width == kBlock) winograd_multiply<kVectors>(rows, v, u, channels, s, width, c0 == 0, ahead, step);
        else winograd_multiply<1>(rows, v, u, channels, s, width, c0 == 0, ahead, step);
      }
  }

  // ---- weights -----------------------------------------------------------------------------------------------------

  // Channels c0 .. c0 + channels of a block of outputs: [point][channel][width].
  void transform_weights(int64_t group, int64_t k_block, int64_t c0, int64_t channels, float* u, float* staging) const {
    const int64_t width = width_of(k_block);
    for (int64_t n = 0; n < width; n += L) {
      gather_weights(group, k_block * kBlock + n, c0, channels, staging);
      for (int64_t c = 0; c < channels; ++c) {
        float* out = u + c * width + n;
        if (p.transposed) winograd_weight<MH, MW, true>(staging + c * 9 * L, out, weight_point(channels, width));
        else winograd_weight<MH, MW, false>(staging + c * 9 * L, out, weight_point(channels, width));
      }
    }
  }

  // [channel][tap][L outputs], zeros behind the last output.
  void gather_weights(int64_t group, int64_t k0, int64_t c0, int64_t channels, float* out) const {
    const int64_t columns = p.transposed ? kg : cg, row_step = columns * 9;
    const int64_t column_step = p.weight_channels_last ? 1 : 9, tap_step = p.weight_channels_last ? columns : 1;
    const int64_t k_step = p.transposed ? column_step : row_step, c_step = p.transposed ? row_step : column_step;
    const float* w =
        static_cast<const float*>(p.w) + group * (p.transposed ? cg : kg) * row_step + k0 * k_step + c0 * c_step;
    const int nk = static_cast<int>(least(L, kg - k0));
    const auto run = [&](const float* from, int64_t length, float* to, int64_t step) {
      for (int64_t i = 0; i < length; i += L) {
        Vec<float> square[L];
        const int n = static_cast<int>(least(L, length - i));
        load_square(square, from + i, k_step, nk, n);
        for (int j = 0; j < n; ++j) store(to + (i + j) * step, square[j]);
      }
    };
    if (k_step == 1) {
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t tap = 0; tap < 9; ++tap)
          store(out + (c * 9 + tap) * L, load_n(w + c * c_step + tap * tap_step, nk));
    } else if (p.transposed) {
      for (int64_t c = 0; c < channels; ++c) run(w + c * c_step, 9, out + c * 9 * L, L);
    } else if (p.weight_channels_last) {
      for (int64_t tap = 0; tap < 9; ++tap) run(w + tap * tap_step, channels, out + tap * L, 9 * L);
    } else {
      run(w, channels * 9, out, L);
    }
  }

  // ---- inputs ------------------------------------------------------------------------------------------------------

  // The vector of channels at c of tiles [begin, end) of the block.
  void transform_input(const Block& b, int64_t group, int64_t c, int64_t begin, int64_t end, float* band) const {
    int64_t panel = b.panel_of(begin), row = begin - b.first_of(panel);
    float* out = b.v + b.first_of(panel) * c_padded + c * b.rows_of(panel) + row * L;
    const auto next = [&](const float* x, int64_t x_row, int64_t x_column) {
      winograd_input<MH, MW>(x, x_row, x_column, out, b.v_point);
      out += L;
      if (++row == b.rows_of(panel)) {
        row = 0;
        ++panel;
        out = b.v + b.first_of(panel) * c_padded + c * b.rows_of(panel);
      }
    };
    const int channels = static_cast<int>(least(L, cg - c));
    winograd_windows<NH, NW>(tiles, images, group * cg + c, channels, b.tiles, b.tile, begin, end, band, next);
  }

  // ---- outputs -----------------------------------------------------------------------------------------------------

  // The outputs of a block of channels of tiles [begin, end), whose sums stand in s.sums.
  void transform_output(const Block& b, int64_t group, int64_t k_block, int64_t begin, int64_t end,
                        const Scratch& s) const {
    const int64_t width = width_of(k_block), point = (end - begin) * width + kPad;
    for (int64_t n = 0; n < width; n += L) {
      const int64_t k = k_block * kBlock + n, channel = group * kg + k;
      const int nk = static_cast<int>(least(L, kg - k));
      const Vec<float> bias =
          p.bias == nullptr ? Vec<float>(0.0f) : load_n(static_cast<const float*>(p.bias) + channel, nk);
      if (p.channels_last) store_tiles(b, begin, end, s.sums + n, point, width, bias, channel, nk);
      else store_bands(b, begin, end, s.sums + n, point, width, bias, channel, nk, s.band);
    }
  }

  void store_tiles(const Block& b, int64_t begin, int64_t end, const float* sums, int64_t point, int64_t width,
                   Vec<float> bias, int64_t channel, int nk) const {
    for (int64_t i = begin; i < end; ++i, sums += width) {
      const WinogradTile& t = b.tiles[i];
      const int64_t rows = tiles.outputs(0, t.y), columns = tiles.outputs(1, t.x);
      const int64_t at = ((t.image * p.out[1] + t.y) * p.out[2] + t.x) * p.k + channel;
      const int64_t column = p.dilation[2] * p.k, row = p.dilation[1] * p.out[2] * p.k;
      // More lines than stores may wait for, so those of the next tile are asked for now.
      if (rows == MH) fetch_window<MH, MW, true>(static_cast<const float*>(p.y) + at + MW * column, row, column);
      Vec<float> y[MH][MW];
      winograd_output<MH, MW>(sums, point, bias, y);
      if (rows == MH && columns == MW && nk == L) {
#pragma GCC unroll 4
        for (int r = 0; r < MH; ++r)
#pragma GCC unroll 4
          for (int c = 0; c < MW; ++c) store_final<float>(p, at + r * row + c * column, y[r][c], L);
      } else {
        for (int r = 0; r < rows; ++r)
          for (int c = 0; c < columns; ++c) store_final<float>(p, at + r * row + c * column, y[r][c], nk);
      }
    }
  }

  void store_bands(const Block& b, int64_t begin, int64_t end, const float* sums, int64_t point, int64_t width,
                   Vec<float> bias, int64_t channel, int nk, float* buffer) const {
    const int64_t plane = p.out[1] * p.out[2];
    for (int64_t i = begin; i < end;) {
      const WinogradTile first = b.tiles[i];
      const WinogradBand band = tiles.band(b.tiles + i, b.tile + i, end - i, tiles.kBandTiles);
      const int64_t pitch = least(band.width, p.out[2] - band.first);
      for (int64_t l = 0; l < band.lines; ++l)
        for (int64_t j = 0; j < band.tiles; ++j, ++i, sums += width) {
          Vec<float> y[MH][MW];
          winograd_output<MH, MW>(sums, point, bias, y);
          const int64_t columns = tiles.outputs(1, b.tiles[i].x);
          float* out = buffer + (l * MH * pitch + b.tiles[i].x - band.first) * L;
          for (int r = 0; r < MH; ++r)
            for (int c = 0; c < columns; ++c) store(out + (r * pitch + c * p.dilation[2]) * L, y[r][c]);
        }
      const int64_t rows = least(band.lines * MH, ceil_div(p.out[1] - first.y, p.dilation[1]));
      const int64_t at = (first.image * p.k + channel) * plane + first.y * p.out[2] + band.first;
      if (pitch == p.out[2] && p.dilation[1] == 1) {
        store_run(buffer, rows * pitch, at, plane, nk);
      } else {
        for (int64_t r = 0; r < rows; ++r)
          store_run(buffer + r * pitch * L, pitch, at + r * p.dilation[1] * p.out[2], plane, nk);
      }
    }
  }

  // Consecutive pixels of nk planes.
  void store_run(const float* from, int64_t pixels, int64_t at, int64_t plane, int nk) const {
    for (int64_t j = 0; j < pixels; j += L) {
      const int n = static_cast<int>(least(L, pixels - j));
      Vec<float> square[L];
      for (int k = 0; k < nk; ++k)  // lines that come next, before stores wait for them
        __builtin_prefetch(static_cast<const float*>(p.y) + at + k * plane + j + L, 1, 3);
      load_square(square, from + j * L, L, n, L);
      for (int k = 0; k < nk; ++k) store_final<float>(p, at + k * plane + j, square[k], n);
    }
  }

  static constexpr int64_t kPad = 5 * L;  // floats between points: their streams must not share cache sets

  const ConvParams& p;
  const WinogradTiles<MH, MW> tiles;
  const int teams;
  WinogradImages images;
  int64_t cg, kg, c_padded, k_blocks, unit;
  Mode mode;
  int64_t chunk;         // channels summed in registers; a multiple of L
  int64_t block, parts;  // tiles of a block; parts of a shared block that threads take
  int slots;
  size_t shared_bytes, u_at, sums_at, band_at, staging_at, tiles_at, slot_bytes;
};

}  // namespace fastcv::FASTCV_ISA
