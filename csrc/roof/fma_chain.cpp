#include "roof/fma_chain.h"

namespace fastcv {
namespace {

constexpr Variant<FmaChainParams> kRows[] = {
#if defined(__x86_64__)
    {"registers_avx512", Isa::avx512, nullptr, nullptr, &avx512::fma_chain},
    {"registers_avx2", Isa::avx2, nullptr, nullptr, &avx2::fma_chain},
#endif
    {"registers_portable", Isa::portable, nullptr, nullptr, &portable::fma_chain},
    {"ref", Isa::portable, nullptr, nullptr, &fma_chain_ref},
};

}  // namespace

const VariantTable<FmaChainParams> fma_chain_table("fma_chain", kRows);

}  // namespace fastcv
