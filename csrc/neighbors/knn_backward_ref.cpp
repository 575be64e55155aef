#include "neighbors/knn_backward.h"
#include "neighbors/scalar_ref.h"

#include <vector>

namespace fastcv {
namespace {

template <class S>
void run(const KnnBackwardParams& p) {
  std::vector<double> gx(p.m * p.depth), gy(p.n * p.depth);
  for (int64_t b = 0; b < p.batch; ++b) {
    gx.assign(gx.size(), 0);
    gy.assign(gy.size(), 0);
    for (int64_t i = 0; i < p.m * p.k; ++i) {
      const int64_t at = b * p.m * p.k + i, m = i / p.k, n = p.index[at];
      if (n < 0) continue;
      const double g = static_cast<const S*>(p.grad)[at], distance = static_cast<const S*>(p.distance)[at];
      const S* x = static_cast<const S*>(p.x) + b * p.x_batch + m * p.depth;
      const S* y = static_cast<const S*>(p.y) + b * p.y_batch + n * p.depth;
      for (int64_t d = 0; d < p.depth; ++d) {
        const double difference = neighbors_ref::difference(x[d], y[d], p.p);
        const double slope = p.squared ? 2 * g * difference : neighbors_ref::slope(g, difference, distance, p.p);
        gx[m * p.depth + d] += slope;
        gy[n * p.depth + d] -= slope;
      }
    }
    for (size_t i = 0; i < gx.size() && p.grad_x; ++i)
      static_cast<S*>(p.grad_x)[b * gx.size() + i] = static_cast<S>(gx[i]);
    for (size_t i = 0; i < gy.size() && p.grad_y; ++i)
      static_cast<S*>(p.grad_y)[b * gy.size() + i] = static_cast<S>(gy[i]);
  }
}

}  // namespace

void knn_backward_ref(const KnnBackwardParams& p, const Exec&) {
  p.dtype == DType::f64 ? run<double>(p) : run<float>(p);
}

}  // namespace fastcv
