#include "loss/scale.h"

#include "common/dispatch.h"
#include "loss/tile.h"

namespace fastcv::FASTCV_ISA {

constexpr int64_t kGrain = 1 << 15;  // elements a thread takes at least

void scale(const ScaleParams& p, const Exec& exec) {
  dispatch_float(p.dtype, [&](auto zero) {
    using S = decltype(zero);
    using V = Vec<acc_t<S>>;
    const S* x = static_cast<const S*>(p.x);
    S* y = static_cast<S*>(p.y);
    const V factor(load_one(static_cast<const S*>(p.factor)));
    parallel_for(exec, p.n, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i += V::width) {
        const int n = static_cast<int>(end - i < V::width ? end - i : V::width);
        store_up_to(y + i, load_up_to(x + i, n) * factor, n);
      }
    });
  });
}

}  // namespace fastcv::FASTCV_ISA
