// The AMX tile instructions that the kernels use, by number of the tile register, which is a template argument.
//
// Tiles are state of the thread: a TileSession configures all eight, as 16 rows of 64 bytes unless told otherwise, and
// gives them back at its end. Loads and stores are ordered with ordinary memory accesses only by a session and by
// store(): data that a load reads must have been written before the kernel was entered, which fence() tells the
// compiler. A file that defines FASTCV_TILE_MODEL first gets the software model of common/amx_model.h in their place.
#pragma once
#include "common/types.h"

namespace fastcv::FASTCV_ISA {

// The operand of ldtilecfg.
struct TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

static inline TileConfig whole_tiles() {
  TileConfig config;
  for (int t = 0; t < 8; ++t) config.row_bytes[t] = 64, config.rows[t] = 16;
  return config;
}

}  // namespace fastcv::FASTCV_ISA

#if defined(FASTCV_TILE_MODEL)
#include "common/amx_model.h"
#else

namespace fastcv::FASTCV_ISA {

struct Tiles {
  static void configure(const TileConfig& config) { __asm__ volatile("ldtilecfg %0" ::"m"(config) : "memory"); }
  static void release() { __asm__ volatile("tilerelease" ::: "memory"); }
  [[gnu::always_inline]] static void fence() { __asm__ volatile("" ::: "memory"); }
  template <int t>
  [[gnu::always_inline]] static void zero() {
    __asm__ volatile("tilezero %%tmm%c0" ::"i"(t));
  }
  // Rows `pitch` bytes apart.
  template <int t>
  [[gnu::always_inline]] static void load(const void* from, int64_t pitch) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(pitch), "i"(t));
  }
  template <int t>
  [[gnu::always_inline]] static void store(void* to, int64_t pitch) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(pitch), "i"(t) : "memory");
  }
  // c[m][n] += sum over pairs k of a[m][k] . b[k][n], a and b in bfloat16, c in float32.
  template <int c, int a, int b>
  [[gnu::always_inline]] static void multiply_add_bf16() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(c), "i"(a), "i"(b));
  }
};

}  // namespace fastcv::FASTCV_ISA
#endif

namespace fastcv::FASTCV_ISA {

class TileSession {
 public:
  explicit TileSession(const TileConfig& config = whole_tiles()) { Tiles::configure(config); }
  ~TileSession() { Tiles::release(); }
  TileSession(const TileSession&) = delete;
  TileSession& operator=(const TileSession&) = delete;
};

}  // namespace fastcv::FASTCV_ISA
