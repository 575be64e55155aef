#include "neighbors/knn.h"

#include "neighbors/byte_products.h"
#include "neighbors/bytes.h"
#include "neighbors/knn_filter.h"
#include "neighbors/knn_plan.h"

namespace fastcv {
namespace {

constexpr Variant<KnnParams> kRows[] = {
#if defined(__x86_64__)
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
    {"ref", Isa::portable, nullptr, nullptr, &knn_ref},
};

const char* select_why_not(const KnnParams& p) { return p.n < INT32_MAX ? nullptr : "needs fewer than 2^31 points"; }
// Beside the tiles' own arrays this is what a block may have on every GPU from sm_80 on.
const char* lists_why_not(const KnnParams& p) {
  return KnnLists::shared_bytes(p) > 80 << 10 ? "needs lists of k neighbours that fit into 80 KB" : select_why_not(p);
}
size_t lists_workspace(const KnnParams& p) { return KnnLists(p).bytes(p); }
size_t select_workspace(const KnnParams& p) { return KnnSelect(p).bytes(p); }

constexpr GpuVariant<KnnParams> kGpuRows[] = {
    {"lists_sm80", "sm80", &lists_why_not, &lists_workspace, FASTCV_LAUNCHERS(knn_lists)},
    {"select_sm80", "sm80", &select_why_not, &select_workspace, FASTCV_LAUNCHERS(knn_select)},
};

}  // namespace

const VariantTable<KnnParams> knn_table("knn", kRows, kGpuRows);

}  // namespace fastcv
