#include "loss/soft_iou.h"

#include "loss/loss_sums.h"

namespace fastcv {
namespace {

constexpr Variant<SoftIouParams> kForward[] = {
#if defined(__x86_64__)
    {"onepass_avx512", Isa::avx512, nullptr, &avx512::soft_iou_workspace, &avx512::soft_iou},
    {"onepass_avx2", Isa::avx2, nullptr, &avx2::soft_iou_workspace, &avx2::soft_iou},
#endif
    {"onepass_portable", Isa::portable, nullptr, &portable::soft_iou_workspace, &portable::soft_iou},
    {"ref", Isa::portable, nullptr, nullptr, &soft_iou_ref},
};

constexpr Variant<SoftIouParams> kBackward[] = {
#if defined(__x86_64__)
    {"onepass_avx512", Isa::avx512, nullptr, nullptr, &avx512::soft_iou_backward},
    {"onepass_avx2", Isa::avx2, nullptr, nullptr, &avx2::soft_iou_backward},
#endif
    {"onepass_portable", Isa::portable, nullptr, nullptr, &portable::soft_iou_backward},
    {"ref", Isa::portable, nullptr, nullptr, &soft_iou_backward_ref},
};

size_t gpu_workspace(const SoftIouParams& p) { return static_cast<size_t>(p.groups) * SumChunks(p.n).bytes(); }

constexpr GpuVariant<SoftIouParams> kForwardGpu[] = {
    {"onepass_sm80", "sm80", nullptr, &gpu_workspace, FASTCV_LAUNCHERS(soft_iou)},
};
constexpr GpuVariant<SoftIouParams> kBackwardGpu[] = {
    {"onepass_sm80", "sm80", nullptr, nullptr, FASTCV_LAUNCHERS(soft_iou_backward)},
};

}  // namespace

const VariantTable<SoftIouParams> soft_iou_loss_table("soft_iou_loss", kForward, kForwardGpu);
const VariantTable<SoftIouParams> soft_iou_loss_backward_table("soft_iou_loss_backward", kBackward, kBackwardGpu);

}  // namespace fastcv
