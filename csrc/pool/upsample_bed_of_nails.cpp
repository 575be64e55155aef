#include "pool/upsample_bed_of_nails.h"

namespace fastcv {
namespace {

constexpr Variant<BedOfNailsParams> kForward[] = {
#if defined(__x86_64__)
    {"rows_avx512", Isa::avx512, nullptr, nullptr, &avx512::upsample_bed_of_nails},
    {"rows_avx2", Isa::avx2, nullptr, nullptr, &avx2::upsample_bed_of_nails},
#endif
    {"rows_portable", Isa::portable, nullptr, nullptr, &portable::upsample_bed_of_nails},
    {"ref", Isa::portable, nullptr, nullptr, &upsample_bed_of_nails_ref},
};

constexpr Variant<BedOfNailsParams> kBackward[] = {
#if defined(__x86_64__)
    {"rows_avx512", Isa::avx512, nullptr, nullptr, &avx512::upsample_bed_of_nails_backward},
    {"rows_avx2", Isa::avx2, nullptr, nullptr, &avx2::upsample_bed_of_nails_backward},
#endif
    {"rows_portable", Isa::portable, nullptr, nullptr, &portable::upsample_bed_of_nails_backward},
    {"ref", Isa::portable, nullptr, nullptr, &upsample_bed_of_nails_backward_ref},
};

constexpr GpuVariant<BedOfNailsParams> kForwardGpu[] = {
    {"element_sm80", "sm80", nullptr, nullptr, FASTCV_LAUNCHERS(upsample_bed_of_nails)},
};
constexpr GpuVariant<BedOfNailsParams> kBackwardGpu[] = {
    {"element_sm80", "sm80", nullptr, nullptr, FASTCV_LAUNCHERS(upsample_bed_of_nails_backward)},
};

}  // namespace

const VariantTable<BedOfNailsParams> upsample_bed_of_nails_table("upsample_bed_of_nails", kForward, kForwardGpu);
const VariantTable<BedOfNailsParams> upsample_bed_of_nails_backward_table("upsample_bed_of_nails_backward", kBackward,
                                                                          kBackwardGpu);

}  // namespace fastcv
