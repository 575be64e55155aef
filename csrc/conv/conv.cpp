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

const char* why_not_tiles(const ConvParams& p) {
  if (p.groups > 1 && p.c / p.groups <= 8 && p.k / p.groups < 16) return "small groups fill no tiles";
  for (int i = 1; i < 3; ++i) {
    if (!p.transposed && p.stride[i] > kMostTileStride) return "needs strides up to 8";
    if ((p.kernel[i] - 1) * p.dilation[i] > 1024) return "needs a kernel that reaches over at most 1024 pixels";
  }
  return nullptr;
}
const char* why_not_bf16_tiles(const ConvParams& p) {
  if (p.dtype != DType::bf16 && (p.dtype != DType::f32 || p.precision != Precision::medium))
    return "needs bfloat16 or float32 of precision medium";
  return why_not_tiles(p);
}
const char* why_not_bf16x3_tiles(const ConvParams& p) {
  if (p.dtype != DType::f16 && (p.dtype != DType::f32 || p.precision == Precision::highest))
    return "needs float16 or float32 of precision high";
  return why_not_tiles(p);
}
const char* why_not_bf16x6_tiles(const ConvParams& p) {
  return p.dtype != DType::f32 ? "needs float32" : why_not_tiles(p);
}
#endif

// Both directions run the same kernels; two tables so that each can be studied and forced on its own.
constexpr Variant<ConvParams> kRows[] = {
#if defined(__x86_64__)
    {"igemm_bf16_amx", Isa::amx, &why_not_bf16_tiles, &amx::conv_igemm_bf16_workspace, &amx::conv_igemm_bf16},
    {"igemm_bf16x3_amx", Isa::amx, &why_not_bf16x3_tiles, &amx::conv_igemm_bf16x3_workspace, &amx::conv_igemm_bf16x3},
    {"igemm_bf16_avx512bf16", Isa::avx512bf16, &why_not_bf16_dot, &avx512bf16::conv_igemm_bf16_workspace,
     &avx512bf16::conv_igemm_bf16},
    {"depthwise_nchw_avx512", Isa::avx512, &why_not_depthwise_nchw, &avx512::conv_depthwise_workspace,
     &avx512::conv_depthwise},
    {"igemm_avx512", Isa::avx512, nullptr, &avx512::conv_igemm_workspace, &avx512::conv_igemm},
    // Behind a row that takes everything, so never taken unless asked for: numbers below 2^-126 are zeros to it.
    {"igemm_bf16x6_amx", Isa::amx, &why_not_bf16x6_tiles, &amx::conv_igemm_bf16x6_workspace, &amx::conv_igemm_bf16x6},
    {"depthwise_nchw_avx2", Isa::avx2, &why_not_depthwise_nchw, &avx2::conv_depthwise_workspace, &avx2::conv_depthwise},
    {"igemm_avx2", Isa::avx2, nullptr, &avx2::conv_igemm_workspace, &avx2::conv_igemm},
#endif
    {"depthwise_nchw_portable", Isa::portable, &why_not_depthwise_nchw, &portable::conv_depthwise_workspace,
     &portable::conv_depthwise},
    {"igemm_portable", Isa::portable, nullptr, &portable::conv_igemm_workspace, &portable::conv_igemm},
#if defined(__x86_64__)
    // Nor are these.
    {"igemm_bf16_amxmodel_avx512", Isa::avx512, &why_not_bf16_tiles, &amxmodel::conv_igemm_bf16_workspace,
     &amxmodel::conv_igemm_bf16},
    {"igemm_bf16x3_amxmodel_avx512", Isa::avx512, &why_not_bf16x3_tiles, &amxmodel::conv_igemm_bf16x3_workspace,
     &amxmodel::conv_igemm_bf16x3},
    {"igemm_bf16x6_amxmodel_avx512", Isa::avx512, &why_not_bf16x6_tiles, &amxmodel::conv_igemm_bf16x6_workspace,
     &amxmodel::conv_igemm_bf16x6},
#endif
    {"ref", Isa::portable, nullptr, nullptr, &conv_ref},
};

}  // namespace

const VariantTable<ConvParams> conv_table("conv", kRows);
const VariantTable<ConvParams> conv_dgrad_table("conv_dgrad", kRows);

}  // namespace fastcv
