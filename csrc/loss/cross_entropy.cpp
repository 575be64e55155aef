#include "loss/cross_entropy.h"

namespace fastcv {
namespace {

const char* why_not_many_classes(const CrossEntropyParams& p) {
  return p.classes < (int64_t{1} << 31) ? nullptr : "needs fewer than 2^31 classes";
}

constexpr Variant<CrossEntropyParams> kRows[] = {
#if defined(__x86_64__)
    {"fused_avx512", Isa::avx512, &why_not_many_classes, &avx512::cross_entropy_workspace, &avx512::cross_entropy},
    {"fused_avx2", Isa::avx2, &why_not_many_classes, &avx2::cross_entropy_workspace, &avx2::cross_entropy},
#endif
    {"fused_portable", Isa::portable, &why_not_many_classes, &portable::cross_entropy_workspace,
     &portable::cross_entropy},
    {"ref", Isa::portable, nullptr, nullptr, &cross_entropy_ref},
};

}  // namespace

const VariantTable<CrossEntropyParams> cross_entropy_table("cross_entropy", kRows);
const VariantTable<CrossEntropyParams> cross_entropy_backward_table("cross_entropy_backward", kRows);

}  // namespace fastcv
