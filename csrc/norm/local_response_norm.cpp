#include "norm/local_response_norm.h"

namespace fastcv {
namespace {

size_t workspace(const LocalResponseNormParams& p, int threads) { return threads * local_response_norm_scratch(p.c); }

constexpr Variant<LocalResponseNormParams> kRows[] = {
#if defined(__x86_64__)
    {"window_avx512", Isa::avx512, nullptr, &workspace, &avx512::local_response_norm},
    {"window_avx2", Isa::avx2, nullptr, &workspace, &avx2::local_response_norm},
#endif
    {"window_portable", Isa::portable, nullptr, &workspace, &portable::local_response_norm},
    {"ref", Isa::portable, nullptr, nullptr, &local_response_norm_ref},
};

constexpr Variant<LocalResponseNormParams> kBackwardRows[] = {
#if defined(__x86_64__)
    {"window_avx512", Isa::avx512, nullptr, &workspace, &avx512::local_response_norm_backward},
    {"window_avx2", Isa::avx2, nullptr, &workspace, &avx2::local_response_norm_backward},
#endif
    {"window_portable", Isa::portable, nullptr, &workspace, &portable::local_response_norm_backward},
    {"ref", Isa::portable, nullptr, nullptr, &local_response_norm_backward_ref},
};

constexpr GpuVariant<LocalResponseNormParams> kGpuRows[] = {
    {"window_sm80", "sm80", nullptr, nullptr, FASTCV_LAUNCHERS(local_response_norm)},
};
constexpr GpuVariant<LocalResponseNormParams> kBackwardGpuRows[] = {
    {"window_sm80", "sm80", nullptr, nullptr, FASTCV_LAUNCHERS(local_response_norm_backward)},
};

}  // namespace

const VariantTable<LocalResponseNormParams> local_response_norm_table("local_response_norm", kRows, kGpuRows);
const VariantTable<LocalResponseNormParams> local_response_norm_backward_table("local_response_norm_backward",
                                                                               kBackwardRows, kBackwardGpuRows);

}  // namespace fastcv
