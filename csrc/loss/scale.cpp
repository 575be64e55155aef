#include "loss/scale.h"

namespace fastcv {
namespace {

constexpr Variant<ScaleParams> kRows[] = {
#if defined(__x86_64__)
    {"onepass_avx512", Isa::avx512, nullptr, nullptr, &avx512::scale},
    {"onepass_avx2", Isa::avx2, nullptr, nullptr, &avx2::scale},
#endif
    {"onepass_portable", Isa::portable, nullptr, nullptr, &portable::scale},
    {"ref", Isa::portable, nullptr, nullptr, &scale_ref},
};

constexpr GpuVariant<ScaleParams> kGpuRows[] = {
    {"onepass_sm80", "sm80", nullptr, nullptr, FASTCV_LAUNCHERS(scale)},
};

}  // namespace

const VariantTable<ScaleParams> scale_gradient_table("scale_gradient", kRows, kGpuRows);

}  // namespace fastcv
