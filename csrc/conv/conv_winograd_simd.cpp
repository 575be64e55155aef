#include "conv/conv_winograd.h"
#include "conv/conv_winograd_vectors.h"

namespace fastcv::FASTCV_ISA {

#define FASTCV_WINOGRAD(name, h, w)                                  \
  void conv_##name(const ConvParams& p, const Exec& exec) {          \
    Winograd<h, w, WinogradVectors>(p, exec.threads).run(exec);      \
  }                                                                  \
  size_t conv_##name##_workspace(const ConvParams& p, int threads) { \
    return Winograd<h, w, WinogradVectors>(p, threads).workspace();  \
  }                                                                  \
  size_t conv_##name##_kept(const ConvParams& p) { return Winograd<h, w, WinogradVectors>(p, 1).kept(); }
FASTCV_WINOGRAD(winograd4, 4, 4)
FASTCV_WINOGRAD(winograd4x2, 4, 2)
FASTCV_WINOGRAD(winograd2, 2, 2)
#undef FASTCV_WINOGRAD

}  // namespace fastcv::FASTCV_ISA
