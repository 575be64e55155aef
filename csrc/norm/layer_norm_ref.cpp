#include "norm/layer_norm.h"

#include "norm/norm_ref.h"

namespace fastcv {

void layer_norm_ref(const LayerNormParams& p, const Exec&) {
  const double count = static_cast<double>(p.l);
  for (int64_t r = 0; r < p.m; ++r) {
    double mean = 0, var = 0;
    for (int64_t i = 0; i < p.l; ++i) mean += get(p.x, p.dtype, r * p.l + i) / count;
    for (int64_t i = 0; i < p.l; ++i) {
      const double d = get(p.x, p.dtype, r * p.l + i) - mean;
      var += d * d / count;
    }
    p.mean[r] = mean;
    p.var[r] = var;
    for (int64_t i = 0; i < p.l; ++i) {
      const double normal = (get(p.x, p.dtype, r * p.l + i) - mean) / std::sqrt(var + p.eps);
      put(p.y, p.dtype, r * p.l + i, normal * get(p.weight, i, 1) + get(p.bias, i, 0));
    }
  }
}

void layer_norm_backward_ref(const LayerNormBackwardParams& p, const Exec&) {
  const double count = static_cast<double>(p.l);
  const auto normal = [&](int64_t r, int64_t i) {
    return (get(p.x, p.dtype, r * p.l + i) - p.mean[r]) / std::sqrt(p.var[r] + p.eps);
  };
  for (int64_t r = 0; r < p.m; ++r) {
    double sum = 0, sum_n = 0;
    for (int64_t i = 0; i < p.l; ++i) {
      const double g = get(p.grad, p.dtype, r * p.l + i) * get(p.weight, i, 1);
      sum += g / count;
      sum_n += g * normal(r, i) / count;
    }
    for (int64_t i = 0; i < p.l; ++i) {
      const double g = get(p.grad, p.dtype, r * p.l + i) * get(p.weight, i, 1);
      put(p.dx, p.dtype, r * p.l + i, (g - sum - normal(r, i) * sum_n) / std::sqrt(p.var[r] + p.eps));
    }
  }
  for (int64_t i = 0; i < p.l; ++i) {
    double dweight = 0, dbias = 0;
    for (int64_t r = 0; r < p.m; ++r) {
      const double g = get(p.grad, p.dtype, r * p.l + i);
      dweight += g * normal(r, i);
      dbias += g;
    }
    put(p.dweight, i, dweight);
    put(p.dbias, i, dbias);
  }
}

}  // namespace fastcv
