#include "neighbors/knn_backward.h"

#include "neighbors/knn_backward_partials.h"
#include "neighbors/knn_backward_plan.h"

namespace fastcv {

const char* knn_backward_partials_why_not(const KnnBackwardParams& p) {
  if (p.p != 2) return "needs p = 2";
  return p.n * p.depth > 1 << 16 ? "needs few points: at most 65536 coordinates in all" : nullptr;
}
const char* knn_backward_partials_slower(const KnnBackwardParams& p) {
  return p.m < 2048 || p.m < 8 * p.n ? "comes after sorted choices below 2048 queries or 8 for each point" : nullptr;
}

namespace {

#define FASTCV_PARTIALS(isa)              \
  {"partials_" #isa,                      \
   Isa::isa,                              \
   &knn_backward_partials_why_not,        \
   &isa::knn_backward_partials_workspace, \
   &isa::knn_backward_partials,           \
   &knn_backward_partials_slower}

constexpr Variant<KnnBackwardParams> kRows[] = {
#if defined(__x86_64__)
    FASTCV_PARTIALS(avx512),
    {"gather_avx512", Isa::avx512, nullptr, &avx512::knn_backward_workspace, &avx512::knn_backward},
    FASTCV_PARTIALS(avx2),
    {"gather_avx2", Isa::avx2, nullptr, &avx2::knn_backward_workspace, &avx2::knn_backward},
#endif
    FASTCV_PARTIALS(portable),
    {"gather_portable", Isa::portable, nullptr, &portable::knn_backward_workspace, &portable::knn_backward},
    {"ref", Isa::portable, nullptr, nullptr, &knn_backward_ref},
};
#undef FASTCV_PARTIALS

size_t gpu_workspace(const KnnBackwardParams& p) { return p.grad_y == nullptr ? 0 : ChosenPairs(p).bytes(); }

constexpr GpuVariant<KnnBackwardParams> kGpuRows[] = {
    {"gather_sm80", "sm80", nullptr, &gpu_workspace, FASTCV_LAUNCHERS(knn_backward)},
};

}  // namespace

const VariantTable<KnnBackwardParams> knn_backward_table("knn_backward", kRows, kGpuRows);

}  // namespace fastcv
