#include "loss/linear_cross_entropy.h"

#include "loss/linear_cross_entropy_plan.h"

namespace fastcv {
namespace {

const char* why_not_many_classes(const LinearCrossEntropyParams& p) {
  return p.classes < (int64_t{1} << 31) ? nullptr : "needs fewer than 2^31 classes";
}

#if defined(__x86_64__)
const char* why_not_tiles(const LinearCrossEntropyParams& p) {
  if (p.dtype != DType::f32) return "needs float32";
  if (p.target_kind == Target::probability) return "needs class indices as targets";
  return p.classes == 0 || p.features == 0 ? "needs classes and features" : why_not_many_classes(p);
}
const char* slower_tiles(const LinearCrossEntropyParams& p) {
  return p.features < 32 || p.classes < 256 ? "is for more features or classes" : nullptr;
}
#endif

constexpr Variant<LinearCrossEntropyParams> kRows[] = {
#if defined(__x86_64__)
    {"columns_bf16x6_amx", Isa::amx, &why_not_tiles, &amx::linear_cross_entropy_workspace, &amx::linear_cross_entropy,
     &slower_tiles},
    {"chunked_avx512", Isa::avx512, &why_not_many_classes, &avx512::linear_cross_entropy_workspace,
     &avx512::linear_cross_entropy},
    {"chunked_avx2", Isa::avx2, &why_not_many_classes, &avx2::linear_cross_entropy_workspace,
     &avx2::linear_cross_entropy},
#endif
    {"chunked_portable", Isa::portable, &why_not_many_classes, &portable::linear_cross_entropy_workspace,
     &portable::linear_cross_entropy},
#if defined(__x86_64__)
    // Behind a row that takes everything, so never taken unless asked for.
    {"columns_bf16x6_amxmodel_avx512", Isa::avx512, &why_not_tiles, &amxmodel::linear_cross_entropy_workspace,
     &amxmodel::linear_cross_entropy, &slower_tiles},
#endif
    {"ref", Isa::portable, nullptr, nullptr, &linear_cross_entropy_ref},
};

size_t gpu_workspace(const LinearCrossEntropyParams& p) { return LinearChunks(p).bytes(p); }

constexpr GpuVariant<LinearCrossEntropyParams> kGpuRows[] = {
    {"chunked_sm80", "sm80", nullptr, &gpu_workspace, FASTCV_LAUNCHERS(linear_cross_entropy)},
};

}  // namespace

const VariantTable<LinearCrossEntropyParams> linear_cross_entropy_table("linear_cross_entropy", kRows, kGpuRows);
const VariantTable<LinearCrossEntropyParams> linear_cross_entropy_backward_table("linear_cross_entropy_backward", kRows,
                                                                                 kGpuRows);

}  // namespace fastcv
