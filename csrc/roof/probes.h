// Ops that ask a machine what it does. They serve no network: benchmarks read speeds off them, and tests and the first
// run on a GPU compare every instruction with the plain loops of the ref row. Integers make all sums exact.
//
//   step_chain    y[i] = x[i] + steps, by `steps` times adding one in registers. A row per instruction: the ceiling of
//                 each. n elements in f32; rows of vectors and matrices need a multiple of kChainTile.
//   cache_read    y[r] = steps * (sum of x), for each of `readers` blocks that all read the whole of x, which a cache
//                 holds: the ceiling of that cache. n elements in f32; CUDA rows need a multiple of kReadStep.
//   tile_product  d (64 x 128, f32) = a (64 x 64) b' (b is 128 x 64), a and b row-major in one dtype. A row per way in
//                 which tiles reach a matrix instruction.
//   tma_tile      what one copy of the tensor memory accelerator leaves in shared memory: `pixels` rows of 64 elements
//                 of 16 bits from x [n][h][w][c], in the order in which they lie there (the 16-byte chunk's number is
//                 xored with the row's, modulo 8). im2col: from the position at = {c, w, h, n}, which is one of the
//                 window's, moved by offset, `pixels` positions on in steps of step = {w, h}; a row of positions goes
//                 from lower to size - 1 + upper. Otherwise a box of `pixels` images, x being [n * h][w][c], at
//                 at = {c, w, h}. Zeros outside. c is a multiple of 8.
#pragma once
#include "common/parallel.h"
#include "common/types.h"
#include "common/variant.h"

namespace fastcv {

inline constexpr int64_t kChainTile = 256 * 64, kReadStep = 256 * 4;
inline constexpr int64_t kTileRows = 64, kTileColumns = 128, kTileDepth = 64;

struct StepChainParams {
  const float* x;
  float* y;
  int64_t n, steps;
};
struct CacheReadParams {
  const float* x;
  float* y;
  int64_t n, readers, steps;
};
struct TileProductParams {
  const void *a, *b;
  float* d;
  DType dtype;  // f32 bf16 f16
};
struct TmaTileParams {
  const void* x;
  void* y;
  int64_t n, h, w, c, pixels;
  int64_t at[4], offset[2], lower[2], upper[2], step[2];
  bool im2col;
  bool corrected;  // with what the descriptor of a small tensor needs on older drivers (common/ptx_sm90.cuh)
  DType dtype;     // bf16 f16
};

extern const VariantTable<StepChainParams> step_chain_table;
extern const VariantTable<CacheReadParams> cache_read_table;
extern const VariantTable<TileProductParams> tile_product_table;
extern const VariantTable<TmaTileParams> tma_tile_table;

void step_chain_ref(const StepChainParams&, const Exec&);
namespace avx512bf16 {
void chain_dots_bf16(const StepChainParams&, const Exec&);
}
namespace amx {
void chain_tiles_bf16(const StepChainParams&, const Exec&);
}
namespace amxmodel {  // on a software model of the tiles, in builds for tests
FASTCV_IF_LINKED void chain_tiles_bf16(const StepChainParams&, const Exec&);
}
void cache_read_ref(const CacheReadParams&, const Exec&);
void tile_product_ref(const TileProductParams&, const Exec&);
void tma_tile_ref(const TmaTileParams&, const Exec&);

#define FASTCV_PROBES                                                                               \
  FASTCV_IF_LINKED int chain_add(const StepChainParams&, void*, CUstream_st*);                      \
  FASTCV_IF_LINKED int chain_multiply_add(const StepChainParams&, void*, CUstream_st*);             \
  FASTCV_IF_LINKED int chain_mma_bf16(const StepChainParams&, void*, CUstream_st*);                 \
  FASTCV_IF_LINKED int chain_mma_tf32(const StepChainParams&, void*, CUstream_st*);                 \
  FASTCV_IF_LINKED int chain_wgmma_bf16(const StepChainParams&, void*, CUstream_st*);               \
  FASTCV_IF_LINKED int cache_read(const CacheReadParams&, void*, CUstream_st*);                     \
  FASTCV_IF_LINKED int tile_product_ldmatrix(const TileProductParams&, void*, CUstream_st*);        \
  FASTCV_IF_LINKED int tile_product_transposed(const TileProductParams&, void*, CUstream_st*);      \
  FASTCV_IF_LINKED int tile_product_stmatrix(const TileProductParams&, void*, CUstream_st*);        \
  FASTCV_IF_LINKED int tile_product_tf32(const TileProductParams&, void*, CUstream_st*);            \
  FASTCV_IF_LINKED int tile_product_wgmma(const TileProductParams&, void*, CUstream_st*);           \
  FASTCV_IF_LINKED int tile_product_wgmma_registers(const TileProductParams&, void*, CUstream_st*); \
  FASTCV_IF_LINKED int tma_tile(const TmaTileParams&, void*, CUstream_st*);
namespace cuda {
FASTCV_PROBES
FASTCV_IF_LINKED int tile_product_wgmma_transposed(const TileProductParams&, void*, CUstream_st*);
}  // namespace cuda
namespace emulated {
FASTCV_PROBES
FASTCV_IF_LINKED int tile_product_wgmma_transposed(const TileProductParams&, void*, CUstream_st*);
}  // namespace emulated
#undef FASTCV_PROBES

}  // namespace fastcv
