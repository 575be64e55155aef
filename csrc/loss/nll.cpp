#include "loss/nll.h"

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

}  // namespace

const VariantTable<CrossEntropyParams> nll_loss_table("nll_loss", kRows);
const VariantTable<CrossEntropyParams> nll_loss_backward_table("nll_loss_backward", kRows);

}  // namespace fastcv
