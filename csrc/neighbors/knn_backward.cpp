#include "neighbors/knn_backward.h"

namespace fastcv {
namespace {

constexpr Variant<KnnBackwardParams> kRows[] = {
#if defined(__x86_64__)
    {"gather_avx512", Isa::avx512, nullptr, &avx512::knn_backward_workspace, &avx512::knn_backward},
    {"gather_avx2", Isa::avx2, nullptr, &avx2::knn_backward_workspace, &avx2::knn_backward},
#endif
    {"gather_portable", Isa::portable, nullptr, &portable::knn_backward_workspace, &portable::knn_backward},
    {"ref", Isa::portable, nullptr, nullptr, &knn_backward_ref},
};

}  // namespace

const VariantTable<KnnBackwardParams> knn_backward_table("knn_backward", kRows);

}  // namespace fastcv
