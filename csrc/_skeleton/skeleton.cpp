#include "_skeleton/skeleton.h"

namespace fastcv {
namespace {

constexpr Variant<SkeletonParams> kRows[] = {
#if defined(__x86_64__)
    {"copy_avx512", Isa::avx512, nullptr, nullptr, &avx512::skeleton},
    {"copy_avx2", Isa::avx2, nullptr, nullptr, &avx2::skeleton},
#endif
    {"copy_portable", Isa::portable, nullptr, nullptr, &portable::skeleton},
    {"ref", Isa::portable, nullptr, nullptr, &skeleton_ref},
};

constexpr GpuVariant<SkeletonParams> kGpuRows[] = {
    {"copy_sm80", "sm80", nullptr, nullptr, FASTCV_LAUNCHERS(skeleton)},
};

}  // namespace

const VariantTable<SkeletonParams> skeleton_table("skeleton", kRows, kGpuRows);

}  // namespace fastcv
