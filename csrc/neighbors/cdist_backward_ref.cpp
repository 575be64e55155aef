#include "neighbors/cdist_backward.h"
#include "neighbors/scalar_ref.h"

namespace fastcv {
namespace {

template <class S>
void run(const CdistBackwardParams& p) {
  const S *grad = static_cast<const S*>(p.grad), *distance = static_cast<const S*>(p.distance);
  const int64_t *gs = p.grad_stride, *ds = p.distance_stride;
  for (int64_t b = 0; b < p.batch; ++b)
    for (int64_t i = 0; i < p.m; ++i)
      for (int64_t d = 0; d < p.depth; ++d) {
        const S* x1 = static_cast<const S*>(p.x1) + b * p.x1_batch + i * p.depth;
        double sum = 0;
        for (int64_t j = 0; j < p.n; ++j) {
          const S* x2 = static_cast<const S*>(p.x2) + b * p.x2_batch + j * p.depth;
          sum += neighbors_ref::slope(grad[b * gs[0] + i * gs[1] + j * gs[2]],
                                      neighbors_ref::difference(x1[d], x2[d], p.p),
                                      distance[b * ds[0] + i * ds[1] + j * ds[2]], p.p);
        }
        static_cast<S*>(p.out)[(b * p.m + i) * p.depth + d] = static_cast<S>(sum);
      }
}

}  // namespace

void cdist_backward_ref(const CdistBackwardParams& p, const Exec&) {
  p.dtype == DType::f64 ? run<double>(p) : run<float>(p);
}

}  // namespace fastcv
