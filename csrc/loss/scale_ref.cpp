#include "loss/scalar.h"
#include "loss/scale.h"

namespace fastcv {

void scale_ref(const ScaleParams& p, const Exec&) {
  scalar::dispatch(p.dtype, [&](auto zero) {
    using S = decltype(zero);
    const double factor = scalar::to_double(*static_cast<const S*>(p.factor));
    for (int64_t i = 0; i < p.n; ++i)
      scalar::from_double(scalar::to_double(static_cast<const S*>(p.x)[i]) * factor, static_cast<S*>(p.y) + i);
  });
}

}  // namespace fastcv
