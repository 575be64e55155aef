#include "conv/conv_bias_grad.h"

#include "conv/conv_gpu.h"

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

constexpr GpuVariant<ConvBiasGradParams> kGpuRows[] = {
    {"sum_sm80", "sm80", nullptr, &bias_grad_gpu_workspace, FASTCV_LAUNCHERS(conv_bias_grad)},
};

}  // namespace

const VariantTable<ConvBiasGradParams> conv_bias_grad_table("conv_bias_grad", kRows, kGpuRows);

}  // namespace fastcv
