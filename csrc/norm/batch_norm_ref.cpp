#include "norm/batch_norm.h"

#include "norm/norm_ref.h"

namespace fastcv {
namespace {

template <class Params>
int64_t offset(const Params& p, int64_t n, int64_t c, int64_t s) {
  return p.channels_last ? (n * p.s + s) * p.c + c : (n * p.c + c) * p.s + s;
}

}  // namespace

void batch_norm_ref(const BatchNormParams& p, const Exec&) {
  const double count = static_cast<double>(p.n * p.s);
  for (int64_t c = 0; c < p.c; ++c) {
    double mean = get(p.mean, c, 0), var = get(p.var, c, 0);
    if (p.training) {
      mean = var = 0;
      for (int64_t n = 0; n < p.n; ++n)
        for (int64_t s = 0; s < p.s; ++s) mean += get(p.x, p.dtype, offset(p, n, c, s)) / count;
      for (int64_t n = 0; n < p.n; ++n)
        for (int64_t s = 0; s < p.s; ++s) {
          const double d = get(p.x, p.dtype, offset(p, n, c, s)) - mean;
          var += d * d / count;
        }
      p.save_mean[c] = mean;
      p.save_var[c] = var;
      if (p.y == nullptr) continue;
    }
    const double scale = get(p.weight, c, 1) / std::sqrt(var + p.eps);
    for (int64_t n = 0; n < p.n; ++n)
      for (int64_t s = 0; s < p.s; ++s) {
        const int64_t i = offset(p, n, c, s);
        double v = normalised(get(p.x, p.dtype, i), mean, scale, get(p.bias, c, 0));
        if (p.residual != nullptr) v += get(p.residual, p.dtype, i);
        put(p.y, p.dtype, i, activate(p.act, v));
      }
  }
}

void batch_norm_backward_ref(const BatchNormBackwardParams& p, const Exec&) {
  const double count = static_cast<double>(p.sums == nullptr ? p.n * p.s : p.count);
  for (int64_t c = 0; c < p.c; ++c) {
    const double mean = get(p.mean, c, 0), invstd = 1 / std::sqrt(get(p.var, c, 0) + p.eps);
    const double weight = get(p.weight, c, 1), bias = get(p.bias, c, 0);
    const auto gradient = [&](int64_t i, double normal) {
      const double v = p.y != nullptr ? get(p.y, p.dtype, i) : normal * weight + bias;
      return gate(p.act, get(p.grad, p.dtype, i), v);
    };
    double sum_g = 0, sum_gn = 0;
    for (int64_t n = 0; n < p.n; ++n)
      for (int64_t s = 0; s < p.s; ++s) {
        const int64_t i = offset(p, n, c, s);
        const double normal = (get(p.x, p.dtype, i) - mean) * invstd, g = gradient(i, normal);
        sum_g += g;
        sum_gn += g * normal;
      }
    put(p.dweight, c, sum_gn);
    put(p.dbias, c, sum_g);
    if (p.sums != nullptr) {
      sum_g = p.sums[c];
      sum_gn = p.sums[p.c + c];
    }
    for (int64_t n = 0; n < p.n; ++n)
      for (int64_t s = 0; s < p.s; ++s) {
        const int64_t i = offset(p, n, c, s);
        const double normal = (get(p.x, p.dtype, i) - mean) * invstd, g = gradient(i, normal);
        put(p.dresidual, p.dtype, i, g);
        const double centred = p.training ? g - sum_g / count - normal * (sum_gn / count) : g;
        put(p.dx, p.dtype, i, weight * invstd * centred);
      }
  }
}

// One number per channel: nothing here is worth a vector.
void batch_norm_update_ref(const BatchNormUpdateParams& p, const Exec&) {
  const double count = static_cast<double>(p.count), unbiased = count / (count - 1), m = p.momentum;
  for (int64_t c = 0; c < p.c; ++c) {
    double mean = 0, var = 0;
    for (int64_t i = 0; i < p.copies; ++i) {
      mean += p.mean[i * p.c + c] / static_cast<double>(p.copies);
      var += p.var[i * p.c + c] * unbiased / static_cast<double>(p.copies);
    }
    put(p.running_mean, c, (1 - m) * get(p.running_mean, c, 0) + m * mean);
    put(p.running_var, c, (1 - m) * get(p.running_var, c, 0) + m * var);
  }
}

}  // namespace fastcv
