#include "loss/cross_entropy.h"

#include "loss/cluster_slices.h"
#include "loss/loss_sums.h"

namespace fastcv {
namespace {

const char* why_not_many_classes(const CrossEntropyParams& p) {
  return p.classes < (int64_t{1} << 31) ? nullptr : "needs fewer than 2^31 classes";
}

constexpr Variant<CrossEntropyParams> kRows[] = {
#if defined(__x86_64__)
    {"fused_avx512", Isa::avx512, &why_not_many_classes, &avx512::cross_entropy_workspace, &avx512::cross_entropy},
    {"fused_avx2", Isa::avx2, &why_not_many_classes, &avx2::cross_entropy_workspace, &avx2::cross_entropy},
#endif
    {"fused_portable", Isa::portable, &why_not_many_classes, &portable::cross_entropy_workspace,
     &portable::cross_entropy},
    {"ref", Isa::portable, nullptr, nullptr, &cross_entropy_ref},
};

const char* rows_only(const CrossEntropyParams& p) { return p.inner != 1 ? "needs the classes innermost" : nullptr; }
int64_t element_bytes(const CrossEntropyParams& p) { return p.dtype == DType::f64 ? 8 : p.dtype == DType::f32 ? 4 : 2; }
const char* warp_why_not(const CrossEntropyParams& p) {
  if (p.classes > 256 && p.classes * element_bytes(p) % 16 != 0) return "needs at most 256 classes or rows of 16 bytes";
  return p.classes > 1024 ? "needs at most 1024 classes" : rows_only(p);
}
// What a block may have on every GPU from sm_80 on, beside what it reduces in.
const char* staged_why_not(const CrossEntropyParams& p) {
  return p.classes * element_bytes(p) > 96 << 10 ? "needs a row of at most 96 KB" : rows_only(p);
}
const char* cluster_why_not(const CrossEntropyParams& p) {
  return ClusterSlices(p.classes, element_bytes(p)).fits(element_bytes(p)) ? rows_only(p)
                                                                           : "needs a row of at most 1.7 MB";
}
// Partial sums, and the loss of each sample where they are added up.
size_t gpu_workspace(const CrossEntropyParams& p) {
  const int64_t samples = p.outer * p.inner;
  const bool sums = p.loss != nullptr && p.reduction != Reduction::none;
  return SumChunks(samples).bytes() + (sums ? static_cast<size_t>(samples) * sizeof(double) : 0);
}

constexpr GpuVariant<CrossEntropyParams> kGpuRows[] = {
    {"warp_sm80", "sm80", &warp_why_not, &gpu_workspace, FASTCV_LAUNCHERS(cross_entropy_warp)},
    {"staged_sm80", "sm80", &staged_why_not, &gpu_workspace, FASTCV_LAUNCHERS(cross_entropy_staged)},
    {"cluster_sm90", "sm90", &cluster_why_not, &gpu_workspace, FASTCV_LAUNCHERS(cross_entropy_cluster)},
    {"online_sm80", "sm80", &rows_only, &gpu_workspace, FASTCV_LAUNCHERS(cross_entropy_online)},
    {"column_sm80", "sm80", nullptr, &gpu_workspace, FASTCV_LAUNCHERS(cross_entropy_column)},
};

}  // namespace

const VariantTable<CrossEntropyParams> cross_entropy_table("cross_entropy", kRows, kGpuRows);
const VariantTable<CrossEntropyParams> cross_entropy_backward_table("cross_entropy_backward", kRows, kGpuRows);

}  // namespace fastcv
