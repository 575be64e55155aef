#include "neighbors/knn.h"

#include "neighbors/bytes.h"

namespace fastcv {
namespace {

constexpr Variant<KnnParams> kRows[] = {
#if defined(__x86_64__)
    {"filter_f32_avx512bf16", Isa::avx512bf16, &avx512bf16::knn_filter_why_not, &avx512bf16::knn_filter_workspace,
     &avx512bf16::knn_filter},
    {"bytes_f32_avx512", Isa::avx512, &bytes_why_not, &avx512::knn_bytes_workspace, &avx512::knn_bytes},
    {"tile_avx512", Isa::avx512, nullptr, &avx512::knn_workspace, &avx512::knn},
    {"bytes_f32_avx2", Isa::avx2, &bytes_why_not, &avx2::knn_bytes_workspace, &avx2::knn_bytes},
    {"tile_avx2", Isa::avx2, nullptr, &avx2::knn_workspace, &avx2::knn},
#endif
    {"tile_portable", Isa::portable, nullptr, &portable::knn_workspace, &portable::knn},
    {"ref", Isa::portable, nullptr, nullptr, &knn_ref},
};

}  // namespace

const VariantTable<KnnParams> knn_table("knn", kRows);

}  // namespace fastcv
