#include "norm/layer_norm.h"

#include "norm/norm_sets.h"

namespace fastcv {
namespace {

// weight and bias in the accumulation type.
size_t workspace(const LayerNormParams& p, int) { return static_cast<size_t>(p.l) * 2 * sizeof(double) + 4 * 64; }

// weight; per partial sum of rows two doubles, and per thread two numbers of the accumulation type, for each element of
// a row.
size_t backward_workspace(const LayerNormBackwardParams& p, int threads) {
  const bool parameters = p.dweight.data != nullptr || p.dbias.data != nullptr;
  const int64_t rows = layer_norm_super_rows(p.m), supers = parameters ? (p.m + rows - 1) / rows : 0;
  return static_cast<size_t>(p.l) * (1 + 2 * supers + (parameters ? 2 * threads : 0)) * sizeof(double) +
         (4 + 2 * threads) * 64;
}

constexpr Variant<LayerNormParams> kRows[] = {
#if defined(__x86_64__)
    {"chan_avx512", Isa::avx512, nullptr, &workspace, &avx512::layer_norm},
    {"chan_avx2", Isa::avx2, nullptr, &workspace, &avx2::layer_norm},
#endif
    {"chan_portable", Isa::portable, nullptr, &workspace, &portable::layer_norm},
    {"ref", Isa::portable, nullptr, nullptr, &layer_norm_ref},
};

constexpr Variant<LayerNormBackwardParams> kBackwardRows[] = {
#if defined(__x86_64__)
    {"two_pass_avx512", Isa::avx512, nullptr, &backward_workspace, &avx512::layer_norm_backward},
    {"two_pass_avx2", Isa::avx2, nullptr, &backward_workspace, &avx2::layer_norm_backward},
#endif
    {"two_pass_portable", Isa::portable, nullptr, &backward_workspace, &portable::layer_norm_backward},
    {"ref", Isa::portable, nullptr, nullptr, &layer_norm_backward_ref},
};

size_t gpu_workspace(const LayerNormParams& p) { return row_sets(p).bytes(); }
size_t gpu_backward_workspace(const LayerNormBackwardParams& p) {
  const size_t rows = row_sets(p).bytes(), columns = column_sets(p).bytes();
  return static_cast<size_t>(p.m) * 2 * sizeof(double) + (rows > columns ? rows : columns);
}

size_t gpu_columns_workspace(const LayerNormBackwardParams& p) { return column_sets(p).bytes(); }

template <class Params>
const char* warp_why_not(const Params& p) {
  return p.l > 0 && p.l <= kLayerNormWarpPacks * norm_pack(p.dtype) ? nullptr : "keeps rows of at most 4096 bytes";
}

constexpr GpuVariant<LayerNormParams> kGpuRows[] = {
    {"warp_sm80", "sm80", &warp_why_not<LayerNormParams>, nullptr, FASTCV_LAUNCHERS(layer_norm_warp)},
    {"two_pass_sm80", "sm80", nullptr, &gpu_workspace, FASTCV_LAUNCHERS(layer_norm)},
};
constexpr GpuVariant<LayerNormBackwardParams> kBackwardGpuRows[] = {
    {"warp_sm80", "sm80", &warp_why_not<LayerNormBackwardParams>, &gpu_columns_workspace,
     FASTCV_LAUNCHERS(layer_norm_backward_warp)},
    {"two_pass_sm80", "sm80", nullptr, &gpu_backward_workspace, FASTCV_LAUNCHERS(layer_norm_backward)},
};

}  // namespace

const VariantTable<LayerNormParams> layer_norm_table("layer_norm", kRows, kGpuRows);
const VariantTable<LayerNormBackwardParams> layer_norm_backward_table("layer_norm_backward", kBackwardRows,
                                                                      kBackwardGpuRows);

}  // namespace fastcv
