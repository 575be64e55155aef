#include "conv/conv_activation.h"

namespace fastcv {
namespace {

constexpr Variant<ConvActivationParams> kRows[] = {
#if defined(__x86_64__)
    {"elementwise_avx512", Isa::avx512, nullptr, nullptr, &avx512::conv_activation},
    {"elementwise_avx2", Isa::avx2, nullptr, nullptr, &avx2::conv_activation},
#endif
    {"elementwise_portable", Isa::portable, nullptr, nullptr, &portable::conv_activation},
    {"ref", Isa::portable, nullptr, nullptr, &conv_activation_ref},
};

constexpr GpuVariant<ConvActivationParams> kGpuRows[] = {
    {"elementwise_sm80", "sm80", nullptr, nullptr, FASTCV_LAUNCHERS(conv_activation)},
};

}  // namespace

const VariantTable<ConvActivationParams> conv_activation_table("conv_activation", kRows, kGpuRows);

}  // namespace fastcv
