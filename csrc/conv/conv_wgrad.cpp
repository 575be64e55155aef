#include "conv/conv_wgrad.h"

namespace fastcv {
namespace {

#define FASTCV_ROWS(isa)                                                                                  \
  {"depthwise_" #isa, Isa::isa, &isa::conv_wgrad_depthwise_why_not, &isa::conv_wgrad_depthwise_workspace, \
   &isa::conv_wgrad_depthwise},                                                                           \
  {                                                                                                       \
    "gemm_" #isa, Isa::isa, nullptr, &isa::conv_wgrad_workspace, &isa::conv_wgrad                         \
  }

constexpr Variant<ConvWgradParams> kRows[] = {
#if defined(__x86_64__)
    FASTCV_ROWS(avx512),
    FASTCV_ROWS(avx2),
#endif
    FASTCV_ROWS(portable),
    {"ref", Isa::portable, nullptr, nullptr, &conv_wgrad_ref},
};
#undef FASTCV_ROWS

}  // namespace

const VariantTable<ConvWgradParams> conv_wgrad_table("conv_wgrad", kRows);

}  // namespace fastcv
