#include "loss/kl_div.h"

#include "loss/loss_sums.h"

namespace fastcv {
namespace {

constexpr Variant<KlDivParams> kForward[] = {
#if defined(__x86_64__)
    {"onepass_avx512", Isa::avx512, nullptr, &avx512::kl_div_workspace, &avx512::kl_div},
    {"onepass_avx2", Isa::avx2, nullptr, &avx2::kl_div_workspace, &avx2::kl_div},
#endif
    {"onepass_portable", Isa::portable, nullptr, &portable::kl_div_workspace, &portable::kl_div},
    {"ref", Isa::portable, nullptr, nullptr, &kl_div_ref},
};

constexpr Variant<KlDivParams> kBackward[] = {
#if defined(__x86_64__)
    {"onepass_avx512", Isa::avx512, nullptr, nullptr, &avx512::kl_div_backward},
    {"onepass_avx2", Isa::avx2, nullptr, nullptr, &avx2::kl_div_backward},
#endif
    {"onepass_portable", Isa::portable, nullptr, nullptr, &portable::kl_div_backward},
    {"ref", Isa::portable, nullptr, nullptr, &kl_div_backward_ref},
};

size_t gpu_workspace(const KlDivParams& p) { return p.reduce ? SumChunks(p.n).bytes() : 0; }

constexpr GpuVariant<KlDivParams> kForwardGpu[] = {
    {"onepass_sm80", "sm80", nullptr, &gpu_workspace, FASTCV_LAUNCHERS(kl_div)},
};
constexpr GpuVariant<KlDivParams> kBackwardGpu[] = {
    {"onepass_sm80", "sm80", nullptr, nullptr, FASTCV_LAUNCHERS(kl_div_backward)},
};

}  // namespace

const VariantTable<KlDivParams> kl_div_table("kl_div", kForward, kForwardGpu);
const VariantTable<KlDivParams> kl_div_backward_table("kl_div_backward", kBackward, kBackwardGpu);

}  // namespace fastcv
