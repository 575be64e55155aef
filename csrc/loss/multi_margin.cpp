#include "loss/multi_margin.h"

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

}  // namespace

const VariantTable<MultiMarginParams> multi_margin_loss_table("multi_margin_loss", kRows);
const VariantTable<MultiMarginParams> multi_margin_loss_backward_table("multi_margin_loss_backward", kRows);

}  // namespace fastcv
