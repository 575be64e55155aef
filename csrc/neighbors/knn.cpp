#include "neighbors/knn.h"

#include "neighbors/byte_products.h"
#include "neighbors/bytes.h"
#include "neighbors/knn_filter.h"
#include "neighbors/knn_plan.h"

namespace fastcv {
namespace {

constexpr Variant<KnnParams> kRows[] = {
#if defined(__x86_64__)
    {"filter_bf16_amx", Isa::amx, &knn_filter_why_not, &amx::knn_filter_workspace, &amx::knn_filter,
     &knn_filter_slower_amx},
    {"filter_avx512bf16", Isa::avx512bf16, &knn_filter_why_not, &avx512bf16::knn_filter_workspace,
     &avx512bf16::knn_filter, &knn_filter_slower},
    {"product_u8_avx512vnni", Isa::avx512vnni, &products_why_not, &avx512vnni::knn_products_workspace,
     &avx512vnni::knn_products},
    {"bytes_f32_avx512", Isa::avx512, &bytes_why_not, &avx512::knn_bytes_workspace, &avx512::knn_bytes},
    {"filter_avx512", Isa::avx512, &knn_filter_why_not, &avx512::knn_filter_workspace, &avx512::knn_filter,
     &knn_filter_slower_avx512},
    {"tile_avx512", Isa::avx512, nullptr, &avx512::knn_workspace, &avx512::knn},
    {"bytes_f32_avx2", Isa::avx2, &bytes_why_not, &avx2::knn_bytes_workspace, &avx2::knn_bytes},
    {"filter_avx2", Isa::avx2, &knn_filter_why_not, &avx2::knn_filter_workspace, &avx2::knn_filter,
     &knn_filter_slower_avx2},
    {"tile_avx2", Isa::avx2, nullptr, &avx2::knn_workspace, &avx2::knn},
#endif
    {"filter_portable", Isa::portable, &knn_filter_why_not, &portable::knn_filter_workspace, &portable::knn_filter,
     &knn_filter_slower_avx2},
    {"tile_portable", Isa::portable, nullptr, &portable::knn_workspace, &portable::knn},
#if defined(__x86_64__)
    // Behind rows that take everything, so never taken unless asked for.
    {"filter_bf16_amxmodel_avx512", Isa::avx512, &knn_filter_why_not, &amxmodel::knn_filter_workspace,
     &amxmodel::knn_filter},
#endif
    {"ref", Isa::portable, nullptr, nullptr, &knn_ref},
};

const char* select_why_not(const KnnParams& p) { return p.n < INT32_MAX ? nullptr : "needs fewer than 2^31 points"; }
// Beside the tiles' own arrays this is what a block may have on every GPU from sm_80 on.
const char* lists_why_not(const KnnParams& p) {
  return KnnLists::shared_bytes(p) > 80 << 10 ? "needs lists of k neighbours that fit into 80 KB" : select_why_not(p);
}
// Products on tensor cores. The lists, and the steps in flight, fit into 99 KB of shared memory.
const char* product_why_not(const KnnParams& p) {
  if (p.n > INT32_MAX - KnnProduct::kTilePoints) return "needs fewer than 2^31 - 128 points";
  return p.k > KnnProduct::kMaxK ? "needs k up to 64" : nullptr;
}
const char* filter_why_not(const KnnParams& p) {
  if (p.p != 2 || (p.dtype != DType::f32 && p.dtype != DType::bf16 && p.dtype != DType::f16))
    return "needs p = 2 and float32, bfloat16 or float16";
  return p.depth > kMaxFilterDepth ? "needs at most 65536 coordinates" : product_why_not(p);
}
const char* filter_bf16x3_why_not(const KnnParams& p) {
  return p.dtype != DType::f32 ? "needs float32, which it splits in two" : filter_why_not(p);
}
const char* minimum_why_not(const KnnParams& p) { return p.k > 1 ? "needs k = 1" : filter_why_not(p); }
const char* product_u8_why_not(const KnnParams& p) {
  if (p.p != 2 || p.dtype != DType::u8) return "needs p = 2 and uint8";
  return p.depth > kMaxGpuProductsDepth ? "needs at most 66051 coordinates for sums in 32 bits" : product_why_not(p);
}
size_t filter_workspace(const KnnParams& p) {
  return static_cast<size_t>(KnnProduct(p, 1, p.dtype == DType::f32).bytes);
}
size_t filter_bf16x3_workspace(const KnnParams& p) { return static_cast<size_t>(KnnProduct(p, 2, true).bytes); }

size_t lists_workspace(const KnnParams& p) { return KnnLists(p).bytes(p); }
size_t select_workspace(const KnnParams& p) { return KnnSelect(p).bytes(p); }

constexpr GpuVariant<KnnParams> kGpuRows[] = {
    {"lists_sm80", "sm80", &lists_why_not, &lists_workspace, FASTCV_LAUNCHERS(knn_lists)},
    {"select_sm80", "sm80", &select_why_not, &select_workspace, FASTCV_LAUNCHERS(knn_select)},
    // Behind a row that takes everything, so never taken unless asked for: how tensor cores round their sums has not
    // been seen, and no GPU has timed them.
    {"minimum_sm80", "sm80", &minimum_why_not, &filter_workspace, FASTCV_LAUNCHERS(knn_minimum)},
    {"filter_sm80", "sm80", &filter_why_not, &filter_workspace, FASTCV_LAUNCHERS(knn_filter)},
    {"filter_bf16x3_sm80", "sm80", &filter_bf16x3_why_not, &filter_bf16x3_workspace,
     FASTCV_LAUNCHERS(knn_filter_bf16x3)},
    {"product_u8_sm80", "sm80", &product_u8_why_not, &filter_workspace, FASTCV_LAUNCHERS(knn_products)},
};

}  // namespace

const VariantTable<KnnParams> knn_table("knn", kRows, kGpuRows);

}  // namespace fastcv
