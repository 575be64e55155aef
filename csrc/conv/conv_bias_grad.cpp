#include "conv/conv_bias_grad.h"

namespace fastcv {
namespace {

constexpr Variant<ConvBiasGradParams> kRows[] = {
#if defined(__x86_64__)
    {"sum_avx512", Isa::avx512, nullptr, &avx512::conv_bias_grad_workspace, &avx512::conv_bias_grad},
    {"sum_avx2", Isa::avx2, nullptr, &avx2::conv_bias_grad_workspace, &avx2::conv_bias_grad},
#endif
    {"sum_portable", Isa::portable, nullptr, &portable::conv_bias_grad_workspace, &portable::conv_bias_grad},
    {"ref", Isa::portable, nullptr, nullptr, &conv_bias_grad_ref},
};

}  // namespace

const VariantTable<ConvBiasGradParams> conv_bias_grad_table("conv_bias_grad", kRows);

}  // namespace fastcv
