#include "roof/probes.h"

namespace fastcv {
namespace {

const char* why_not_chain(const StepChainParams& p) {
  return p.n % kChainTile == 0 ? nullptr : "needs a multiple of 16384 elements";
}
const char* why_not_chain_wgmma(const StepChainParams& p) {
  return p.steps % 4 == 0 ? why_not_chain(p) : "needs a multiple of 4 steps";
}
const char* slower_model(const StepChainParams&) { return "is a program that does what the tiles would"; }
constexpr Variant<StepChainParams> kChainRows[] = {
#if defined(__x86_64__)
    {"tiles_bf16_amx", Isa::amx, &why_not_chain, nullptr, &amx::chain_tiles_bf16},
    {"dots_bf16_avx512bf16", Isa::avx512bf16, &why_not_chain, nullptr, &avx512bf16::chain_dots_bf16},
    {"tiles_bf16_amxmodel_avx512", Isa::avx512, &why_not_chain, nullptr, &amxmodel::chain_tiles_bf16, &slower_model},
#endif
    {"ref", Isa::portable, nullptr, nullptr, &step_chain_ref},
};
constexpr GpuVariant<StepChainParams> kChainGpuRows[] = {
    {"add_sm80", "sm80", &why_not_chain, nullptr, FASTCV_LAUNCHERS(chain_add)},
    {"multiply_add_sm80", "sm80", &why_not_chain, nullptr, FASTCV_LAUNCHERS(chain_multiply_add)},
    {"mma_bf16_sm80", "sm80", &why_not_chain, nullptr, FASTCV_LAUNCHERS(chain_mma_bf16)},
    {"mma_tf32_sm80", "sm80", &why_not_chain, nullptr, FASTCV_LAUNCHERS(chain_mma_tf32)},
    {"wgmma_bf16_sm90a", "sm90a", &why_not_chain_wgmma, nullptr, FASTCV_LAUNCHERS(chain_wgmma_bf16)},
};

const char* why_not_read(const CacheReadParams& p) {
  return p.n % kReadStep == 0 ? nullptr : "needs a multiple of 1024 elements";
}
constexpr Variant<CacheReadParams> kReadRows[] = {{"ref", Isa::portable, nullptr, nullptr, &cache_read_ref}};
constexpr GpuVariant<CacheReadParams> kReadGpuRows[] = {
    {"block_sm80", "sm80", &why_not_read, nullptr, FASTCV_LAUNCHERS(cache_read)},
};

const char* why_not_narrow(const TileProductParams& p) {
  return p.dtype == DType::f32 ? "needs bfloat16 or float16" : nullptr;
}
const char* why_not_tf32(const TileProductParams& p) { return p.dtype == DType::f32 ? nullptr : "needs float32"; }
constexpr Variant<TileProductParams> kProductRows[] = {{"ref", Isa::portable, nullptr, nullptr, &tile_product_ref}};
constexpr GpuVariant<TileProductParams> kProductGpuRows[] = {
    {"ldmatrix_sm80", "sm80", &why_not_narrow, nullptr, FASTCV_LAUNCHERS(tile_product_ldmatrix)},
    {"transposed_sm80", "sm80", &why_not_narrow, nullptr, FASTCV_LAUNCHERS(tile_product_transposed)},
    {"stmatrix_sm90", "sm90", &why_not_narrow, nullptr, FASTCV_LAUNCHERS(tile_product_stmatrix)},
    {"tf32_sm80", "sm80", &why_not_tf32, nullptr, FASTCV_LAUNCHERS(tile_product_tf32)},
    {"wgmma_sm90a", "sm90a", &why_not_narrow, nullptr, FASTCV_LAUNCHERS(tile_product_wgmma)},
    {"tf32_wgmma_sm90a", "sm90a", &why_not_tf32, nullptr, FASTCV_LAUNCHERS(tile_product_wgmma)},
    {"wgmma_registers_sm90a", "sm90a", &why_not_narrow, nullptr, FASTCV_LAUNCHERS(tile_product_wgmma_registers)},
    {"wgmma_transposed_sm90a", "sm90a", &why_not_narrow, nullptr, FASTCV_LAUNCHERS(tile_product_wgmma_transposed)},
};

constexpr Variant<TmaTileParams> kTmaRows[] = {{"ref", Isa::portable, nullptr, nullptr, &tma_tile_ref}};
constexpr GpuVariant<TmaTileParams> kTmaGpuRows[] = {
    {"copy_sm90a", "sm90a", nullptr, nullptr, FASTCV_LAUNCHERS(tma_tile)},
};

}  // namespace

const VariantTable<StepChainParams> step_chain_table("step_chain", kChainRows, kChainGpuRows);
const VariantTable<CacheReadParams> cache_read_table("cache_read", kReadRows, kReadGpuRows);
const VariantTable<TileProductParams> tile_product_table("tile_product", kProductRows, kProductGpuRows);
const VariantTable<TmaTileParams> tma_tile_table("tma_tile", kTmaRows, kTmaGpuRows);

}  // namespace fastcv
