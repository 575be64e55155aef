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
// Product says how these are multiplied, and so how they are arranged (conv_winograd_vectors.h, conv_winograd_amx.cpp):
// tiles come in panels of as many rows as its register tile has, outputs in blocks of two vectors, channels in chunks:
// a sum runs over a chunk in registers and then joins what stands in S. That order is the layer's alone.
// What may depend on threads and batch size is only who computes what, and when:
//
//   tiles:   the weights are transformed once; threads take blocks of tiles, whose V and S stay in their caches
//   outputs: threads take blocks of outputs, transform just their weights, chunk by chunk, and each makes V of a large
//            block of tiles for itself. For deep layers on small maps, where the weights are the larger part.
//   shared:  the same with one V for all, where many threads would make it too often.
// Kept weights (Packing) spare both their transforms, or, where transformed ones would come from memory more slowly
// than they are made, the gathering.
#pragma once
#include "conv/conv_store.h"
#include "conv/conv_winograd_algebra.h"
#include "conv/conv_winograd_panels.h"

namespace fastcv::FASTCV_ISA {

template <int MH, int MW, class Product>
class Winograd {
  using Block = WinogradBlock;
  static constexpr int NH = MH + 2, NW = MW + 2, kPoints = NH * NW;
  static constexpr int L = Vec<float>::width, kBlock = 2 * L;  // outputs of a block

 public:
  // Where every thread can have as many groups as the others, each takes its own: it is its own team.
  Winograd(const ConvParams& params, int threads)
      : p(params),
        tiles(p.n, p.out, p.dilation),
        teams(p.groups % threads == 0 || p.groups >= 4 * threads ? threads : 1) {
    plan(threads / teams);
  }
  size_t workspace() const { return static_cast<size_t>(teams) * team_bytes(); }
  size_t kept() const { return static_cast<size_t>(p.groups) * group_kept(); }

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
  static constexpr int64_t kManyWeights = 1 << 22;  // floats: more are not read again for every block of tiles
  static constexpr int64_t kFewTiles = 16;          // of an image, whose weights come more slowly than they are used

  struct Scratch {
    float *v, *u, *sums, *band, *staging;
    WinogradTile* tiles;
  };

  size_t team_bytes() const { return shared_bytes + static_cast<size_t>(slots) * slot_bytes; }

  void run_group(const Exec& exec, int64_t g) const {
    char *base = static_cast<char*>(exec.workspace), *slots_base = base + shared_bytes;
    float* u = p.packing == Packing::none || keeps_taps() ? nullptr : kept_of(g);
    if (p.packing == Packing::fill) fill(exec, u, slots_base, g);
    else if (mode == Mode::shared) run_shared(exec, reinterpret_cast<float*>(base), u, slots_base, g);
    else if (mode == Mode::outputs) run_outputs(exec, u, slots_base, g);
    else run_tiles(exec, u == nullptr ? reinterpret_cast<float*>(base) : u, slots_base, g);
  }

  // ---- plan --------------------------------------------------------------------------------------------------------

  void plan(int threads) {
    cg = p.c / p.groups;
    kg = p.k / p.groups;
    c_padded = round_up(cg, Product::kChannels);
    k_blocks = ceil_div(kg, kBlock);
    chunk = Product::chunk(cg, MH * MW);
    images = {static_cast<const float*>(p.x), p.c, {p.in[1], p.in[2]}, {}, p.channels_last};
    // In dgrad tap r of output o meets input o + pad - r * dilation: taps run backwards from there.
    for (int i = 0; i < 2; ++i) images.origin[i] = p.transposed ? p.pad[1 + i] - 2 * p.dilation[1 + i] : -p.pad[1 + i];
    unit = tiles.unit(p.channels_last);  // a block's tiles are a multiple of it
    choose_mode(threads);
    lay_out(threads);
  }

  static int64_t floats(int64_t tiles_, int64_t width) { return kPoints * (Product::room(tiles_) * width + kPad); }

  void choose_mode(int threads) {
    constexpr int64_t kShared = 64;  // tiles of a block of outputs
    // More weights than the second cache holds come faster than they are used only by blocks of two panels.
    const bool streamed = weight_floats() > 1 << 18;
    const int64_t least_tiles = Product::least_tiles(streamed);
    const bool few = p.packing == Packing::none && tiles.count <= kShared;  // to keep all transformed weights for them
    parts = 1;
    if (tiles.count >= least_tiles * threads && weight_floats() <= kManyWeights && !few) {
      mode = Mode::tiles;
      wide = least(Product::kWide, k_blocks);
      block = most(least_tiles, Product::floats_of_block(streamed) / (kPoints * (c_padded + wide * kBlock)));
      const int64_t blocks = round_up(ceil_div(tiles.count, block), threads);
      block = ceil_div(tiles.count, streamed ? blocks : most(2 * threads, blocks));
    } else {
      // A second parallel region costs more than some inputs that are transformed twice.
      const bool even = round_up(k_blocks, threads) - k_blocks <= k_blocks / 8;
      mode = Product::kRepeatsInputs && even && (threads - 1) * 128 <= kg ? Mode::outputs : Mode::shared;
      wide = most(1, least(Product::kWide, k_blocks / (2 * threads)));
      block = ceil_div(tiles.count, ceil_div(tiles.count, kShared));
      if (mode == Mode::shared && unit == 1)
        parts = most(1, least(ceil_div(2 * threads, k_blocks), ceil_div(block, Product::kRows)));
    }
    block = least(tiles.count, round_up(block, unit));
    spans = ceil_div(k_blocks, wide);
  }

  static size_t bytes(int64_t n) { return static_cast<size_t>(round_up(n * 4, 64)); }

  void lay_out(int threads) {
    slots = threads;
    const size_t v_bytes = bytes(floats(block, c_padded));
    const int64_t sums_tiles = parts > 1 ? ceil_div(block, parts) + 2 * Product::kRows : block;
    const bool all_weights = mode == Mode::tiles && p.packing == Packing::none;
    shared_bytes = mode == Mode::shared ? v_bytes : all_weights ? bytes(weight_floats()) : 0;
    u_at = mode == Mode::shared ? 0 : v_bytes;
    sums_at = u_at + (mode == Mode::tiles ? 0 : bytes(kPoints * weight_point(least(chunk, cg), wide * kBlock)));
    band_at = sums_at + bytes(floats(sums_tiles, wide * kBlock));
    const int64_t band_pixels = p.channels_last ? kPoints : tiles.template band_pixels<NH, NW>();
    staging_at = band_at + bytes(band_pixels * L);
    tiles_at = staging_at + bytes(least(chunk, cg) * 9 * L);
    slot_bytes = tiles_at + static_cast<size_t>(round_up(block * static_cast<int64_t>(sizeof(WinogradTile)), 64));
  }

  Scratch scratch_of(char* slots_base, int slot) const {
    char* base = slots_base + static_cast<size_t>(slot) * slot_bytes;
    const auto at = [&](size_t offset) { return reinterpret_cast<float*>(base + offset); };
    return {at(0),       at(u_at),       at(sums_at),
            at(band_at), at(staging_at), reinterpret_cast<WinogradTile*>(base + tiles_at)};
  }

  Block make_block(int64_t tile, int64_t count, float* v, WinogradTile* table) const {
    Block b{tile, count, 0, 0, 0, v, Product::room(count) * c_padded + kPad, table};
    Product::cut(b);
    tiles.list(tile, count, table);
    return b;
  }

  // ---- the modes ---------------------------------------------------------------------------------------------------

  // Outputs of a block; of a span of blocks, which are multiplied together.
  int64_t width_of(int64_t k_block) const { return least(kBlock, round_up(kg - k_block * kBlock, L)); }
  int64_t span_width(int64_t span) const { return least(wide * kBlock, round_up(kg - span * wide * kBlock, L)); }
  static int64_t weight_point(int64_t channels, int64_t width) {
    return Product::weight_channels(channels) * width + L;
  }
  // Where in all transformed weights a chunk of a block of outputs starts, and how far apart its points are.
  float* weights_of(float* u, int64_t k_block, int64_t c0) const {
    if constexpr (Product::kPointsFirst)
      return u + Product::weight_channels(cg) * k_block * kBlock + c0 * width_of(k_block);
    const int64_t before = k_block * ceil_div(cg, chunk) + c0 / chunk;  // chunks, which are padded by a vector each
    return u + kPoints * (k_block * cg * kBlock + c0 * width_of(k_block) + before * L);
  }
  int64_t point_of(int64_t k_block, int64_t c0) const {
    return Product::kPointsFirst ? weight_point(cg, round_up(kg, L))
                                 : weight_point(least(chunk, cg - c0), width_of(k_block));
  }
  int64_t weight_floats() const {
    return kPoints * (Product::kPointsFirst ? weight_point(cg, round_up(kg, L))
                                            : cg * round_up(kg, L) + k_blocks * ceil_div(cg, chunk) * L);
  }

  // Transformed weights are up to four times the bytes. Where a call waits for them, what is kept is gathered but not
  // transformed: [vector of outputs][channel][tap][L].
  bool keeps_taps() const {
    return !Product::kPointsFirst && weight_floats() > kManyWeights && tiles.count <= kFewTiles * p.n;
  }
  int64_t taps_of_vector() const { return cg * 9 * L; }
  size_t group_kept() const { return bytes(keeps_taps() ? ceil_div(kg, L) * taps_of_vector() : weight_floats()); }
  float* kept_of(int64_t group) const {
    return reinterpret_cast<float*>(static_cast<char*>(p.packed) + static_cast<size_t>(group) * group_kept());
  }
  float* taps_of(int64_t group, int64_t k0, int64_t c0) const {
    return kept_of(group) + k0 / L * taps_of_vector() + c0 * 9 * L;
  }
  // Those of the next chunk of a block of outputs, if they are kept.
  const float* taps_ahead(int64_t group, int64_t k_block, int64_t c0) const {
    return keeps_taps() && p.packing == Packing::ready && c0 < cg ? taps_of(group, k_block * kBlock, c0) : nullptr;
  }

  void fill(const Exec& exec, float* u, char* slots_base, int64_t group) const {
    if (u != nullptr) return transform_all_weights(exec, u, slots_base, group);
    parallel_slots(exec, ceil_div(kg, L), 1, [&](int, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) gather_weights(group, i * L, 0, cg, taps_of(group, i * L, 0));
    });
  }

  void transform_all_weights(const Exec& exec, float* u, char* slots_base, int64_t group) const {
    const int64_t chunks = ceil_div(cg, chunk);
    parallel_slots(exec, k_blocks * chunks, 1, [&](int slot, int64_t begin, int64_t end) {
      const Scratch s = scratch_of(slots_base, slot);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t k_block = i / chunks, c0 = i % chunks * chunk;
        transform_weights(group, k_block, c0, weights_of(u, k_block, c0), point_of(k_block, c0), s.staging);
      }
    });
  }

  void run_tiles(const Exec& exec, float* u, char* slots_base, int64_t group) const {
    if (p.packing == Packing::none) transform_all_weights(exec, u, slots_base, group);
    parallel_slots(exec, ceil_div(tiles.count, block), 1, [&](int slot, int64_t begin, int64_t end) {
      const Scratch s = scratch_of(slots_base, slot);
      for (int64_t i = begin; i < end; ++i) {
        const Block b = make_block(i * block, least(block, tiles.count - i * block), s.v, s.tiles);
        for (int64_t c = 0; c < cg; c += Product::kChannels) transform_input(b, group, c, 0, b.count, s.band);
        for (int64_t span = 0; span < spans; ++span) finish_outputs(b, 0, b.panels, group, span, u, s);
      }
    });
  }

  // u: the kept weights, or nullptr, here and below.
  void run_outputs(const Exec& exec, float* u, char* slots_base, int64_t group) const {
    parallel_slots(exec, spans, 1, [&](int slot, int64_t begin, int64_t end) {
      const Scratch s = scratch_of(slots_base, slot);
      for (int64_t tile = 0; tile < tiles.count; tile += block) {
        const Block b = make_block(tile, least(block, tiles.count - tile), s.v, s.tiles);
        for (int64_t c = 0; c < cg; c += Product::kChannels) transform_input(b, group, c, 0, b.count, s.band);
        for (int64_t span = begin; span < end; ++span) finish_outputs(b, 0, b.panels, group, span, u, s);
      }
    });
  }

  void run_shared(const Exec& exec, float* v, float* u, char* slots_base, int64_t group) const {
    for (int64_t tile = 0; tile < tiles.count; tile += block) {
      const int64_t count = least(block, tiles.count - tile), vectors = c_padded / Product::kChannels;
      const int64_t cuts = unit > 1 ? 1 : least(count, ceil_div(2 * exec.threads, vectors));
      parallel_slots(exec, vectors * cuts, 1, [&](int slot, int64_t begin, int64_t end) {
        const Scratch s = scratch_of(slots_base, slot);
        const Block b = make_block(tile, count, v, s.tiles);
        for (int64_t i = begin; i < end; ++i)
          transform_input(b, group, i / cuts * Product::kChannels, count * (i % cuts) / cuts,
                          count * (i % cuts + 1) / cuts, s.band);
      });
      parallel_slots(exec, spans * parts, 1, [&](int slot, int64_t begin, int64_t end) {
        const Scratch s = scratch_of(slots_base, slot);
        const Block b = make_block(tile, count, v, s.tiles);
        for (int64_t i = begin; i < end; ++i) {
          const int64_t span = i / parts, part = i % parts;
          const int64_t first = b.panels * part / parts, last = b.panels * (part + 1) / parts;
          if (first < last) finish_outputs(b, first, last, group, span, u, s);
        }
      });
    }
  }

  // A span of outputs of a range of panels.
  void finish_outputs(const Block& b, int64_t first, int64_t last, int64_t group, int64_t span, float* u,
                      const Scratch& s) const {
    const int64_t k_block = span * wide, width = span_width(span);
    // Weights of which a point's lie together are multiplied in one go where they stand.
    const int64_t at_once = Product::kPointsFirst && u != nullptr ? cg : chunk;
    for (int64_t c0 = 0; c0 < cg; c0 += at_once) {
      const int64_t channels = least(at_once, cg - c0);
      const int64_t u_point = u == nullptr ? weight_point(channels, width) : point_of(k_block, c0);
      if (u == nullptr)
        for (int64_t i = 0; i * kBlock < width; ++i)
          transform_weights(group, k_block + i, c0, s.u + Product::weight_channels(channels) * i * kBlock, u_point,
                            s.staging);
      Product::multiply({b, first, last, kPoints, c_padded, c0, channels, width, u_point, s.sums,
                         sums_point(b, first, last, width), taps_ahead(group, k_block, c0 + at_once), taps_of_vector()},
                        u == nullptr ? s.u : weights_of(u, k_block, c0));
    }
    transform_output(b, group, span, first, last, s);
  }
  static int64_t sums_point(const Block& b, int64_t first, int64_t last, int64_t width) {
    return (b.first_of(last) - b.first_of(first)) * round_up(width, Product::pitch(width)) + kPad;
  }

  // ---- weights -----------------------------------------------------------------------------------------------------

  // A chunk of a block of outputs.
  void transform_weights(int64_t group, int64_t k_block, int64_t c0, float* u, int64_t u_point, float* staging) const {
    const int64_t width = width_of(k_block), channels = least(chunk, cg - c0);
    for (int64_t n = 0; n < width; n += L) {
      const int64_t k0 = k_block * kBlock + n;
      const float* taps = staging;
      if (keeps_taps() && p.packing == Packing::ready) taps = taps_of(group, k0, c0);
      else gather_weights(group, k0, c0, channels, staging);
      if (p.transposed) Product::template weights<MH, MW, true>(taps, channels, width, u + n, u_point);
      else Product::template weights<MH, MW, false>(taps, channels, width, u + n, u_point);
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

  // The channels at c, as many as lie together, of tiles [begin, end) of the block.
  void transform_input(const Block& b, int64_t group, int64_t c, int64_t begin, int64_t end, float* band) const {
    constexpr int kVectors = Product::kChannels / L;
    while (begin < end) {
      // Vectors that share lines of V follow each other a panel at a time, while those are near. Bands are not cut.
      const int64_t to = kVectors == 1 || !p.channels_last ? end : least(end, b.first_of(b.panel_of(begin) + 1));
      for (int i = 0; i < kVectors; ++i) transform_vector(b, group, c, i, begin, to, band);
      begin = to;
    }
  }

  // Vector i of these.
  void transform_vector(const Block& b, int64_t group, int64_t c, int i, int64_t begin, int64_t end,
                        float* band) const {
    int64_t panel = b.panel_of(begin), row = begin - b.first_of(panel);
    float* out = b.v + b.first_of(panel) * c_padded + c * b.rows_of(panel) + row * L;
    const auto next = [&](const float* x, int64_t x_row, int64_t x_column) {
      Product::template input<MH, MW>(i, x, x_row, x_column, out, b.v_point, b.rows_of(panel));
      out += L;
      if (++row == b.rows_of(panel)) {
        row = 0;
        ++panel;
        out = b.v + b.first_of(panel) * c_padded + c * b.rows_of(panel);
      }
    };
    const int64_t from = c + i * L;
    const int channels = static_cast<int>(most(0, least(L, cg - from)));
    winograd_windows<NH, NW>(tiles, images, group * cg + from, channels, b.tiles, b.tile, begin, end, band, next);
  }

  // ---- outputs -----------------------------------------------------------------------------------------------------

  // A span of outputs of panels [first, last), whose sums stand in s.sums.
  void transform_output(const Block& b, int64_t group, int64_t span, int64_t first, int64_t last,
                        const Scratch& s) const {
    const int64_t width = span_width(span), pitch = Product::pitch(width), point = sums_point(b, first, last, width);
    const int64_t begin = b.first_of(first), end = least(b.count, b.first_of(last));
    for (int64_t n = 0; n < width; n += L) {
      const int64_t k = span * wide * kBlock + n, channel = group * kg + k;
      const int nk = static_cast<int>(least(L, kg - k));
      const float* sums = s.sums + (b.first_of(last) - begin) * (n - n % pitch) + n % pitch;
      const Vec<float> bias =
          p.bias == nullptr ? Vec<float>(0.0f) : load_n(static_cast<const float*>(p.bias) + channel, nk);
      if (p.channels_last) store_tiles(b, begin, end, sums, point, pitch, bias, channel, nk);
      else store_bands(b, begin, end, sums, point, pitch, bias, channel, nk, s.band);
    }
  }

  void store_tiles(const Block& b, int64_t begin, int64_t end, const float* sums, int64_t point, int64_t step,
                   Vec<float> bias, int64_t channel, int nk) const {
    for (int64_t i = begin; i < end; ++i, sums += step) {
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

  void store_bands(const Block& b, int64_t begin, int64_t end, const float* sums, int64_t point, int64_t step,
                   Vec<float> bias, int64_t channel, int nk, float* buffer) const {
    const int64_t plane = p.out[1] * p.out[2];
    for (int64_t i = begin; i < end;) {
      const WinogradTile first = b.tiles[i];
      const WinogradBand band = tiles.band(b.tiles + i, b.tile + i, end - i, tiles.kBandTiles);
      const int64_t pitch = least(band.width, p.out[2] - band.first);
      for (int64_t l = 0; l < band.lines; ++l)
        for (int64_t j = 0; j < band.tiles; ++j, ++i, sums += step) {
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
  int64_t chunk;         // channels summed in registers
  int64_t wide, spans;   // blocks of outputs that are multiplied together; how many such spans there are
  int64_t block, parts;  // tiles of a block; parts of a shared block that threads take
  int slots;
  size_t shared_bytes, u_at, sums_at, band_at, staging_at, tiles_at, slot_bytes;
};

}  // namespace fastcv::FASTCV_ISA
