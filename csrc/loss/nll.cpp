#include "loss/nll.h"

#include "loss/loss_sums.h"

namespace fastcv {
namespace {

constexpr Variant<CrossEntropyParams> kRows[] = {
#if defined(__x86_64__)
    {"gather_avx512", Isa::avx512, nullptr, &avx512::nll_workspace, &avx512::nll},
    {"gather_avx2", Isa::avx2, nullptr, &avx2::nll_workspace, &avx2::nll},
#endif
    {"gather_portable", Isa::portable, nullptr, &portable::nll_workspace, &portable::nll},
    {"ref", Isa::portable, nullptr, nullptr, &nll_ref},
};

size_t gpu_workspace(const CrossEntropyParams& p) { return SumChunks(p.outer * p.inner).bytes(); }

constexpr GpuVariant<CrossEntropyParams> kForwardGpu[] = {
    {"gather_sm80", "sm80", nullptr, &gpu_workspace, FASTCV_LAUNCHERS(nll)},
};
constexpr GpuVariant<CrossEntropyParams> kBackwardGpu[] = {
    {"scatter_sm80", "sm80", nullptr, &gpu_workspace, FASTCV_LAUNCHERS(nll_backward)},
};

}  // namespace

const VariantTable<CrossEntropyParams> nll_loss_table("nll_loss", kRows, kForwardGpu);
const VariantTable<CrossEntropyParams> nll_loss_backward_table("nll_loss_backward", kRows, kBackwardGpu);

}  // namespace fastcv
