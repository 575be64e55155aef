#include "conv/conv_wgrad.h"

#include "conv/conv_gpu.h"

namespace fastcv {
namespace {

#if defined(__x86_64__)
const char* why_not_bf16(const ConvWgradParams& p) {
  if (p.dtype != DType::bf16) return "needs bfloat16";
  return p.in_channels == p.groups ? "one channel per group is no matrix product" : nullptr;
}
#endif

#define FASTCV_ROWS(isa)                                                                                  \
  {"depthwise_" #isa, Isa::isa, &isa::conv_wgrad_depthwise_why_not, &isa::conv_wgrad_depthwise_workspace, \
   &isa::conv_wgrad_depthwise},                                                                           \
  {                                                                                                       \
    "gemm_" #isa, Isa::isa, nullptr, &isa::conv_wgrad_workspace, &isa::conv_wgrad                         \
  }

constexpr Variant<ConvWgradParams> kRows[] = {
#if defined(__x86_64__)
    {"gemm_bf16_amx", Isa::amx, &why_not_bf16, &amx::conv_wgrad_bf16_workspace, &amx::conv_wgrad_bf16},
    {"gemm_bf16_avx512bf16", Isa::avx512bf16, &why_not_bf16, &avx512bf16::conv_wgrad_bf16_workspace,
     &avx512bf16::conv_wgrad_bf16},
    FASTCV_ROWS(avx512),
    FASTCV_ROWS(avx2),
#endif
    FASTCV_ROWS(portable),
#if defined(__x86_64__)
    // Behind a row that takes everything: never taken unless asked for.
    {"gemm_bf16_amxmodel_avx512", Isa::avx512, &why_not_bf16, &amxmodel::conv_wgrad_bf16_workspace,
     &amxmodel::conv_wgrad_bf16},
#endif
    {"ref", Isa::portable, nullptr, nullptr, &conv_wgrad_ref},
};
#undef FASTCV_ROWS

const char* why_not_depthwise_gpu(const ConvWgradParams& p) {
  if (p.in_channels != p.groups) return "needs one input channel per group";
  return p.input_channels_last != p.grad_channels_last ? "needs two tensors of one layout" : nullptr;
}

constexpr GpuVariant<ConvWgradParams> kGpuRows[] = {
    {"depthwise_sm80", "sm80", &why_not_depthwise_gpu, &wgrad_depthwise_gpu_workspace,
     FASTCV_LAUNCHERS(conv_wgrad_depthwise)},
    {"tiled_sm80", "sm80", nullptr, &wgrad_gpu_workspace, FASTCV_LAUNCHERS(conv_wgrad_tiled)},
};

}  // namespace

const VariantTable<ConvWgradParams> conv_wgrad_table("conv_wgrad", kRows, kGpuRows);

}  // namespace fastcv
