#include "conv/conv_wgrad_winograd.h"

namespace fastcv::FASTCV_ISA {

#define FASTCV_WINOGRAD(name, h, w)                                             \
  void conv_wgrad_##name(const ConvWgradParams& p, const Exec& exec) {          \
    WinogradWgrad<h, w>(p, exec.threads).run(exec);                             \
  }                                                                             \
  size_t conv_wgrad_##name##_workspace(const ConvWgradParams& p, int threads) { \
    return WinogradWgrad<h, w>(p, threads).workspace();                         \
  }
FASTCV_WINOGRAD(winograd4, 4, 4)
FASTCV_WINOGRAD(winograd4x2, 4, 2)
FASTCV_WINOGRAD(winograd2, 2, 2)
#undef FASTCV_WINOGRAD

}  // namespace fastcv::FASTCV_ISA
