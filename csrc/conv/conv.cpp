#include "conv/conv.h"

namespace fastcv {
namespace {

const char* why_not_depthwise_nchw(const ConvParams& p) {
  if (p.groups != p.c || p.groups != p.k) return "needs groups == input channels == output channels";
  if (p.channels_last) return "needs a row-major input";
  // Lines are copied with the zeros beyond their ends.
  const int64_t reach = p.pad[2] + p.kernel[2] * p.dilation[2];
  if (reach > 4096 + 2 * p.in[2] || p.stride[2] > 4096) return "needs padding and dilation within the image";
  return nullptr;
}

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
    {"depthwise_nchw_avx512", Isa::avx512, &why_not_depthwise_nchw, &avx512::conv_depthwise_workspace,
     &avx512::conv_depthwise},
    {"igemm_avx512", Isa::avx512, nullptr, &avx512::conv_igemm_workspace, &avx512::conv_igemm},
    {"depthwise_nchw_avx2", Isa::avx2, &why_not_depthwise_nchw, &avx2::conv_depthwise_workspace, &avx2::conv_depthwise},
    {"igemm_avx2", Isa::avx2, nullptr, &avx2::conv_igemm_workspace, &avx2::conv_igemm},
#endif
    {"depthwise_nchw_portable", Isa::portable, &why_not_depthwise_nchw, &portable::conv_depthwise_workspace,
     &portable::conv_depthwise},
    {"igemm_portable", Isa::portable, nullptr, &portable::conv_igemm_workspace, &portable::conv_igemm},
    {"ref", Isa::portable, nullptr, nullptr, &conv_ref},
};

}  // namespace

const VariantTable<ConvParams> conv_table("conv", kRows);
const VariantTable<ConvParams> conv_dgrad_table("conv_dgrad", kRows);

}  // namespace fastcv
