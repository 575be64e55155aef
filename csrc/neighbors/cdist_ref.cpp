#include "neighbors/cdist.h"
#include "neighbors/scalar_ref.h"

namespace fastcv {

void cdist_ref(const CdistParams& p, const Exec&) {
  using namespace neighbors_ref;
  dispatch(p.dtype, [&](auto zero) {
    using S = decltype(zero);
    dispatch(p.out_dtype, [&](auto out_zero) {
      using Out = decltype(out_zero);
      if constexpr (!std::is_same_v<Out, uint8_t>)
        for (int64_t b = 0; b < p.batch; ++b)
          for (int64_t i = 0; i < p.m; ++i)
            for (int64_t j = 0; j < p.n; ++j) {
              const S* x1 = static_cast<const S*>(p.x1) + b * p.x1_batch + i * p.depth;
              const S* x2 = static_cast<const S*>(p.x2) + b * p.x2_batch + j * p.depth;
              narrow(root(distance_sum(x1, x2, p.depth, p.p), p.p), static_cast<Out*>(p.out) + (b * p.m + i) * p.n + j);
            }
    });
  });
}

}  // namespace fastcv
