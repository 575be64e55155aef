#include "loss/multi_margin.h"

#include "loss/loss_sums.h"

namespace fastcv {
namespace {

constexpr Variant<MultiMarginParams> kRows[] = {
#if defined(__x86_64__)
    {"rows_avx512", Isa::avx512, nullptr, &avx512::multi_margin_workspace, &avx512::multi_margin},
    {"rows_avx2", Isa::avx2, nullptr, &avx2::multi_margin_workspace, &avx2::multi_margin},
#endif
    {"rows_portable", Isa::portable, nullptr, &portable::multi_margin_workspace, &portable::multi_margin},
    {"ref", Isa::portable, nullptr, nullptr, &multi_margin_ref},
};

// The loss of each row, and partial sums of them.
size_t gpu_workspace(const MultiMarginParams& p) {
  if (p.loss == nullptr || p.reduction == Reduction::none) return 0;
  return static_cast<size_t>(p.rows) * sizeof(double) + SumChunks(p.rows).bytes();
}

constexpr GpuVariant<MultiMarginParams> kGpuRows[] = {
    {"warp_sm80", "sm80", nullptr, &gpu_workspace, FASTCV_LAUNCHERS(multi_margin)},
};

}  // namespace

const VariantTable<MultiMarginParams> multi_margin_loss_table("multi_margin_loss", kRows, kGpuRows);
const VariantTable<MultiMarginParams> multi_margin_loss_backward_table("multi_margin_loss_backward", kRows, kGpuRows);

}  // namespace fastcv
