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

}  // namespace

const VariantTable<SoftmaxParams> softmax_table("softmax", kForward);
const VariantTable<SoftmaxParams> log_softmax_table("log_softmax", kForward);
const VariantTable<SoftmaxParams> softmax_backward_table("softmax_backward", kBackward);
const VariantTable<SoftmaxParams> log_softmax_backward_table("log_softmax_backward", kBackward);

}  // namespace fastcv
