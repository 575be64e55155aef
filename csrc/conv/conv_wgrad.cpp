#include "conv/conv_wgrad.h"

namespace fastcv {
namespace {

constexpr Variant<ConvWgradParams> kRows[] = {
#if defined(__x86_64__)
    {"gemm_avx512", Isa::avx512, nullptr, &avx512::conv_wgrad_workspace, &avx512::conv_wgrad},
    {"gemm_avx2", Isa::avx2, nullptr, &avx2::conv_wgrad_workspace, &avx2::conv_wgrad},
#endif
    {"gemm_portable", Isa::portable, nullptr, &portable::conv_wgrad_workspace, &portable::conv_wgrad},
    {"ref", Isa::portable, nullptr, nullptr, &conv_wgrad_ref},
};

}  // namespace

const VariantTable<ConvWgradParams> conv_wgrad_table("conv_wgrad", kRows);

}  // namespace fastcv
