#include "loss/nll.h"

#include "common/dispatch.h"
#include "common/scalar.h"

namespace fastcv {
namespace {

template <class S>
void run(const CrossEntropyParams& p) {
  const S *x = static_cast<const S*>(p.x), *weight = static_cast<const S*>(p.weight);
  const S* grad_loss = static_cast<const S*>(p.grad_loss);
  S *loss = static_cast<S*>(p.loss), *grad = static_cast<S*>(p.grad);
  const int64_t rows = p.outer * p.inner;
  const bool each = p.reduction == Reduction::none;
  const auto index = [&](int64_t r) {
    return p.target_kind == Target::i64 ? static_cast<const int64_t*>(p.target)[r]
                                        : int64_t{static_cast<const uint8_t*>(p.target)[r]};
  };
  double total = 0, count = 0;
  *p.bad = -1;
  for (int64_t r = 0; r < rows && *p.bad < 0; ++r) {
    if (index(r) == p.ignore_index) continue;
    if (index(r) < 0 || index(r) >= p.classes) *p.bad = r;
    else count += weight ? widen(weight[index(r)]) : 1;
  }
  if (*p.bad >= 0) return;
  if (grad)
    for (int64_t i = 0; i < rows * p.classes; ++i) narrow(0, &grad[i]);
  for (int64_t r = 0; r < rows; ++r) {
    const bool ignored = index(r) == p.ignore_index;
    const int64_t at = ignored ? 0 : (r / p.inner * p.classes + index(r)) * p.inner + r % p.inner;
    const double w = ignored ? 0 : weight ? widen(weight[index(r)]) : 1;
    if (loss) {
      const double mine = ignored ? 0 : -w * widen(x[at]);
      total += mine;
      if (each) narrow(mine, &loss[r]);
    }
    if (grad && !ignored)
      narrow(-w * widen(grad_loss[each ? r : 0]) / (p.reduction == Reduction::mean ? count : 1), &grad[at]);
  }
  if (loss && !each) narrow(p.reduction == Reduction::mean ? total / count : total, loss);
}

}  // namespace

void nll_ref(const CrossEntropyParams& p, const Exec&) {
  dispatch_float(p.dtype, [&](auto zero) { run<decltype(zero)>(p); });
}

}  // namespace fastcv
