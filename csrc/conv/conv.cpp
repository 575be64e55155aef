#include "conv/conv.h"

namespace fastcv {
namespace {

// Both directions run the same kernels; two tables so that each can be studied and forced on its own.
constexpr Variant<ConvParams> kRows[] = {
    {"ref", Isa::portable, nullptr, nullptr, &conv_ref},
};

}  // namespace

const VariantTable<ConvParams> conv_table("conv", kRows);
const VariantTable<ConvParams> conv_dgrad_table("conv_dgrad", kRows);

}  // namespace fastcv
