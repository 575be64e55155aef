// A software model of the tile instructions of common/amx.h, after Intel's manual, for CPUs that have none: what the
// hardware refuses (#UD, #GP) throws std::logic_error here. Slow; for tests of kernels written on tiles. Included by
// common/amx.h, never directly.
#pragma once
#include <cstring>
#include <stdexcept>

namespace fastcv::FASTCV_ISA {

struct Tiles {
  struct State {
    TileConfig config;
    bool configured = false;
    uint8_t data[8][16][64] = {};
  };
  static State& state() {
    static thread_local State s;
    return s;
  }
  static void refuse_if(bool fault, const char* what) {
    if (fault) throw std::logic_error(what);
  }

  static void configure(const TileConfig& config) {
    refuse_if(config.palette != 1, "ldtilecfg: only palette 1 exists");
    refuse_if(config.start_row != 0, "ldtilecfg: kernels start at row 0");
    for (const uint8_t byte : config.reserved) refuse_if(byte != 0, "ldtilecfg: reserved bytes must be zero");
    for (int t = 0; t < 16; ++t) {
      refuse_if(config.rows[t] > (t < 8 ? 16 : 0), "ldtilecfg: eight tiles of at most 16 rows");
      refuse_if(config.row_bytes[t] > (t < 8 ? 64 : 0), "ldtilecfg: eight tiles of at most 64 bytes a row");
      refuse_if((config.rows[t] == 0) != (config.row_bytes[t] == 0), "ldtilecfg: a tile has rows and columns or none");
    }
    state() = State{};
    state().config = config;
    state().configured = true;
  }
  static void release() { state() = State{}; }
  static void fence() {}

  template <int t>
  static void check() {
    static_assert(t >= 0 && t < 8);
    refuse_if(!state().configured || state().config.rows[t] == 0, "a tile that is not configured");
  }
  template <int t>
  static void zero() {
    check<t>();
    std::memset(state().data[t], 0, sizeof state().data[t]);
  }
  // Rows and columns beyond the tile's are zeroed, as by the hardware.
  template <int t>
  static void load(const void* from, int64_t pitch) {
    zero<t>();
    for (int r = 0; r < state().config.rows[t]; ++r)
      std::memcpy(state().data[t][r], static_cast<const char*>(from) + r * pitch, state().config.row_bytes[t]);
  }
  template <int t>
  static void store(void* to, int64_t pitch) {
    check<t>();
    for (int r = 0; r < state().config.rows[t]; ++r)
      std::memcpy(static_cast<char*>(to) + r * pitch, state().data[t][r], state().config.row_bytes[t]);
  }

  // DAZ and FTZ: numbers below the normal range count as zeros of their sign.
  static float flushed(float x) { return __builtin_fabsf(x) < 0x1p-126f ? __builtin_copysignf(0.0f, x) : x; }
  static float widened(const uint8_t* bf16) {
    uint16_t half;
    std::memcpy(&half, bf16, 2);
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    float x;
    std::memcpy(&x, &bits, 4);
    return flushed(x);
  }
  // The even and the odd products are summed from zero in chains of their own, by fused multiply-add; then the two,
  // then the sum and what stands in c.
  template <int c, int a, int b>
  static void multiply_add_bf16() {
    static_assert(c != a && c != b && a != b, "tdpbf16ps: three different tiles");
    check<c>(), check<a>(), check<b>();
    State& s = state();
    const auto& rows = s.config.rows;
    const auto& bytes = s.config.row_bytes;
    refuse_if(rows[c] != rows[a], "tdpbf16ps: c and a have different numbers of rows");
    refuse_if(bytes[c] != bytes[b], "tdpbf16ps: c and b have different widths");
    refuse_if(bytes[a] != 4 * rows[b], "tdpbf16ps: a has not a pair for each row of b");
    refuse_if(bytes[a] % 4 != 0 || bytes[b] % 4 != 0, "tdpbf16ps: columns are of four bytes");
    float left[16][32], right[16][32];
    for (int m = 0; m < rows[a]; ++m)
      for (int i = 0; i < bytes[a] / 2; ++i) left[m][i] = widened(s.data[a][m] + 2 * i);
    for (int k = 0; k < rows[b]; ++k)
      for (int i = 0; i < bytes[b] / 2; ++i) right[k][i] = widened(s.data[b][k] + 2 * i);
    for (int m = 0; m < rows[c]; ++m) {
      float sums[32] = {};
      for (int k = 0; k < rows[b]; ++k)
        for (int i = 0; i < bytes[b] / 2; ++i)
          sums[i] = flushed(__builtin_fmaf(left[m][2 * k + i % 2], right[k][i], sums[i]));
      for (int n = 0; n < bytes[c] / 4; ++n) {
        float x;
        std::memcpy(&x, s.data[c][m] + 4 * n, 4);
        x = flushed(flushed(x) + flushed(sums[2 * n] + sums[2 * n + 1]));
        std::memcpy(s.data[c][m] + 4 * n, &x, 4);
      }
    }
  }
};

}  // namespace fastcv::FASTCV_ISA
