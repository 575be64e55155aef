#include "neighbors/cdist_backward.h"

namespace fastcv {
namespace {

constexpr Variant<CdistBackwardParams> kRows[] = {
#if defined(__x86_64__)
    {"tile_avx512", Isa::avx512, nullptr, nullptr, &avx512::cdist_backward},
    {"tile_avx2", Isa::avx2, nullptr, nullptr, &avx2::cdist_backward},
#endif
    {"tile_portable", Isa::portable, nullptr, nullptr, &portable::cdist_backward},
    {"ref", Isa::portable, nullptr, nullptr, &cdist_backward_ref},
};

constexpr GpuVariant<CdistBackwardParams> kGpuRows[] = {
    {"tile_sm80", "sm80", nullptr, nullptr, FASTCV_LAUNCHERS(cdist_backward)},
};

}  // namespace

const VariantTable<CdistBackwardParams> cdist_backward_table("cdist_backward", kRows, kGpuRows);

}  // namespace fastcv
