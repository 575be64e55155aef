#include "neighbors/cdist.h"

#include "neighbors/byte_products.h"
#include "neighbors/bytes.h"

namespace fastcv {
namespace {

constexpr Variant<CdistParams> kRows[] = {
#if defined(__x86_64__)
    {"product_u8_avx512vnni", Isa::avx512vnni, &products_why_not, &avx512vnni::cdist_products_workspace,
     &avx512vnni::cdist_products},
    {"bytes_f32_avx512", Isa::avx512, &bytes_why_not, &avx512::cdist_bytes_workspace, &avx512::cdist_bytes},
    {"tile_avx512", Isa::avx512, nullptr, &avx512::cdist_workspace, &avx512::cdist},
    {"bytes_f32_avx2", Isa::avx2, &bytes_why_not, &avx2::cdist_bytes_workspace, &avx2::cdist_bytes},
    {"tile_avx2", Isa::avx2, nullptr, &avx2::cdist_workspace, &avx2::cdist},
#endif
    {"tile_portable", Isa::portable, nullptr, &portable::cdist_workspace, &portable::cdist},
    {"ref", Isa::portable, nullptr, nullptr, &cdist_ref},
};

constexpr GpuVariant<CdistParams> kGpuRows[] = {
    {"tile_sm80", "sm80", nullptr, nullptr, FASTCV_LAUNCHERS(cdist)},
};

}  // namespace

const VariantTable<CdistParams> cdist_table("cdist", kRows, kGpuRows);

}  // namespace fastcv
