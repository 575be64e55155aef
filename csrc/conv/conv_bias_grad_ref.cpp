#include "conv/conv_bias_grad.h"

#include "common/dispatch.h"
#include "common/scalar.h"

namespace fastcv {
namespace {

template <class S>
void run(const ConvBiasGradParams& p) {
  const S* x = static_cast<const S*>(p.grad_output);
  for (int64_t k = 0; k < p.channels; ++k) {
    double total = 0;
    for (int64_t n = 0; n < p.batch; ++n)
      for (int64_t i = 0; i < p.inner; ++i)
        total += widen(x[p.channels_last ? (n * p.inner + i) * p.channels + k : (n * p.channels + k) * p.inner + i]);
    narrow(total, &static_cast<S*>(p.grad_bias)[k]);
  }
}

}  // namespace

void conv_bias_grad_ref(const ConvBiasGradParams& p, const Exec&) {
  dispatch_float(p.dtype, [&](auto zero) { run<decltype(zero)>(p); });
}

}  // namespace fastcv
