#include "loss/softmax.h"

namespace fastcv {
namespace {

constexpr Variant<SoftmaxParams> kForward[] = {
#if defined(__x86_64__)
    {"threepass_avx512", Isa::avx512, nullptr, &avx512::softmax_workspace, &avx512::softmax},
    {"threepass_avx2", Isa::avx2, nullptr, &avx2::softmax_workspace, &avx2::softmax},
#endif
    {"threepass_portable", Isa::portable, nullptr, &portable::softmax_workspace, &portable::softmax},
    {"ref", Isa::portable, nullptr, nullptr, &softmax_ref},
};

constexpr Variant<SoftmaxParams> kBackward[] = {
#if defined(__x86_64__)
    {"twopass_avx512", Isa::avx512, nullptr, &avx512::softmax_workspace, &avx512::softmax_backward},
    {"twopass_avx2", Isa::avx2, nullptr, &avx2::softmax_workspace, &avx2::softmax_backward},
#endif
    {"twopass_portable", Isa::portable, nullptr, &portable::softmax_workspace, &portable::softmax_backward},
    {"ref", Isa::portable, nullptr, nullptr, &softmax_backward_ref},
};

const char* rows_only(const SoftmaxParams& p) {
  return p.inner != 1 || p.input_channels > 0 ? "needs the classes innermost" : nullptr;
}

constexpr GpuVariant<SoftmaxParams> kForwardGpu[] = {
    {"block_sm80", "sm80", &rows_only, nullptr, FASTCV_LAUNCHERS(softmax)},
    {"column_sm80", "sm80", nullptr, nullptr, FASTCV_LAUNCHERS(softmax_column)},
};
constexpr GpuVariant<SoftmaxParams> kBackwardGpu[] = {
    {"block_sm80", "sm80", &rows_only, nullptr, FASTCV_LAUNCHERS(softmax_backward)},
    {"column_sm80", "sm80", nullptr, nullptr, FASTCV_LAUNCHERS(softmax_column_backward)},
};

}  // namespace

const VariantTable<SoftmaxParams> softmax_table("softmax", kForward, kForwardGpu);
const VariantTable<SoftmaxParams> log_softmax_table("log_softmax", kForward, kForwardGpu);
const VariantTable<SoftmaxParams> softmax_backward_table("softmax_backward", kBackward, kBackwardGpu);
const VariantTable<SoftmaxParams> log_softmax_backward_table("log_softmax_backward", kBackward, kBackwardGpu);

}  // namespace fastcv
