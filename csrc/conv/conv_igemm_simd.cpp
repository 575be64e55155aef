#include "conv/conv_igemm.h"

#include "common/dispatch.h"
#include "conv/conv.h"

namespace fastcv::FASTCV_ISA {

void conv_igemm(const ConvParams& p, const Exec& exec) {
  dispatch_float(p.dtype, [&](auto zero) {
    using S = decltype(zero);
    Igemm<PlainProduct<acc_t<S>>, S>(p, exec.threads).run(exec);
  });
}

size_t conv_igemm_workspace(const ConvParams& p, int threads) {
  size_t bytes = 0;
  dispatch_float(p.dtype, [&](auto zero) {
    using S = decltype(zero);
    bytes = Igemm<PlainProduct<acc_t<S>>, S>(p, threads).workspace();
  });
  return bytes;
}

size_t conv_igemm_kept(const ConvParams& p) {
  size_t bytes = 0;
  dispatch_float(p.dtype, [&](auto zero) {
    using S = decltype(zero);
    bytes = Igemm<PlainProduct<acc_t<S>>, S>(p, 1).kept();
  });
  return bytes;
}

}  // namespace fastcv::FASTCV_ISA
