#include "neighbors/knn_backward.h"

#include "neighbors/knn_backward_plan.h"

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

size_t gpu_workspace(const KnnBackwardParams& p) { return p.grad_y == nullptr ? 0 : ChosenPairs(p).bytes(); }

constexpr GpuVariant<KnnBackwardParams> kGpuRows[] = {
    {"gather_sm80", "sm80", nullptr, &gpu_workspace, FASTCV_LAUNCHERS(knn_backward)},
};

}  // namespace

const VariantTable<KnnBackwardParams> knn_backward_table("knn_backward", kRows, kGpuRows);

}  // namespace fastcv
