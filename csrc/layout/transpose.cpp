#include "layout/transpose.h"

namespace fastcv {
namespace {

constexpr Variant<TransposeParams> kRows[] = {
#if defined(__x86_64__)
    {"squares_avx512", Isa::avx512, nullptr, nullptr, &avx512::transpose_images},
    {"squares_avx2", Isa::avx2, nullptr, nullptr, &avx2::transpose_images},
#endif
    {"squares_portable", Isa::portable, nullptr, nullptr, &portable::transpose_images},
    {"ref", Isa::portable, nullptr, nullptr, &transpose_ref},
};

}  // namespace

const VariantTable<TransposeParams> transpose_table("transpose", kRows);

}  // namespace fastcv
