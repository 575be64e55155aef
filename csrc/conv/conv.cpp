#include "conv/conv.h"

namespace fastcv {
namespace {

#if defined(__x86_64__)
const char* why_not_bf16_dot(const ConvParams& p) {
  if (p.dtype != DType::bf16) return "needs bfloat16";
  if (p.groups > 1 && p.c / p.groups <= 8 && p.k / p.groups < 16) return "small groups have too few pairs of channels";
  return nullptr;
}
#endif

// Both directions run the same kernels; two tables so that each can be studied and forced on its own.
constexpr Variant<ConvParams> kRows[] = {
#if defined(__x86_64__)
    {"igemm_bf16_avx512bf16", Isa::avx512bf16, &why_not_bf16_dot, &avx512bf16::conv_igemm_bf16_workspace,
     &avx512bf16::conv_igemm_bf16},
    {"igemm_avx512", Isa::avx512, nullptr, &avx512::conv_igemm_workspace, &avx512::conv_igemm},
    {"igemm_avx2", Isa::avx2, nullptr, &avx2::conv_igemm_workspace, &avx2::conv_igemm},
#endif
    {"igemm_portable", Isa::portable, nullptr, &portable::conv_igemm_workspace, &portable::conv_igemm},
    {"ref", Isa::portable, nullptr, nullptr, &conv_ref},
};

}  // namespace

const VariantTable<ConvParams> conv_table("conv", kRows);
const VariantTable<ConvParams> conv_dgrad_table("conv_dgrad", kRows);

}  // namespace fastcv
