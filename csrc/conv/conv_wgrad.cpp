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

const char* why_not_igemm_gpu(const ConvWgradParams& p) {
  constexpr int64_t kLimit = int64_t{1} << 28;  // positions are 32-bit numbers
  if (p.groups > 1 && (p.in_channels < 8 * p.groups || p.out_channels < 16 * p.groups))
    return "small groups fill no tiles";
  for (int i = 0; i < 3; ++i)
    if (p.in[i] >= kLimit || p.pad[i] >= kLimit || p.stride[i] >= kLimit || p.dilation[i] * p.kernel[i] >= kLimit ||
        (p.out[i] + 1) * p.stride[i] >= kLimit)
      return "needs sizes below 2^28";
  return nullptr;
}
const char* why_not_igemm_sm80(const ConvWgradParams& p) {
  if (p.dtype == DType::f64 ||
      (p.dtype == DType::f32 && p.precision != Precision::high && p.precision != Precision::medium))
    return "needs bfloat16, float16 or float32 of precision high";
  return why_not_igemm_gpu(p);
}
const char* why_not_igemm_tf32x3_sm80(const ConvWgradParams& p) {
  if (p.precision == Precision::ieee) return "the precision 'ieee' asks for a direct sum";
  return p.dtype != DType::f32 ? "needs float32" : why_not_igemm_gpu(p);
}

constexpr GpuVariant<ConvWgradParams> kGpuRows[] = {
    {"depthwise_sm80", "sm80", &why_not_depthwise_gpu, &wgrad_depthwise_gpu_workspace,
     FASTCV_LAUNCHERS(conv_wgrad_depthwise)},
    {"igemm_sm80", "sm80", &why_not_igemm_sm80, &wgrad_igemm_gpu_workspace, FASTCV_LAUNCHERS(conv_wgrad_igemm)},
    {"tiled_sm80", "sm80", nullptr, &wgrad_gpu_workspace, FASTCV_LAUNCHERS(conv_wgrad_tiled)},
    // Behind a row that takes everything, so never taken unless asked for: how tensor cores round their sums has not
    // been measured.
    {"igemm_tf32x3_sm80", "sm80", &why_not_igemm_tf32x3_sm80, &wgrad_igemm_gpu_workspace,
     FASTCV_LAUNCHERS(conv_wgrad_igemm_tf32x3)},
};

}  // namespace

const VariantTable<ConvWgradParams> conv_wgrad_table("conv_wgrad", kRows, kGpuRows);

}  // namespace fastcv
