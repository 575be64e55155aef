#include "loss/scale.h"

#include "common/dispatch.h"
#include "common/scalar.h"

namespace fastcv {

void scale_ref(const ScaleParams& p, const Exec&) {
  dispatch_float(p.dtype, [&](auto zero) {
    using S = decltype(zero);
    const double factor = widen(*static_cast<const S*>(p.factor));
    for (int64_t i = 0; i < p.n; ++i) narrow(widen(static_cast<const S*>(p.x)[i]) * factor, static_cast<S*>(p.y) + i);
  });
}

}  // namespace fastcv
