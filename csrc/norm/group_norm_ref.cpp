#include "norm/group_norm.h"

#include "norm/norm_ref.h"

namespace fastcv {
namespace {

template <class Params>
int64_t offset(const Params& p, int64_t n, int64_t c, int64_t s) {
  return p.channels_last ? (n * p.s + s) * p.c + c : (n * p.c + c) * p.s + s;
}

// f(offset, channel) over the elements of one group of one image.
template <class Params, class F>
void each(const Params& p, int64_t n, int64_t g, F&& f) {
  const int64_t D = p.c / p.groups;
  for (int64_t c = g * D; c < (g + 1) * D; ++c)
    for (int64_t s = 0; s < p.s; ++s) f(offset(p, n, c, s), c);
}

}  // namespace

void group_norm_ref(const GroupNormParams& p, const Exec&) {
  for (int64_t n = 0; n < p.n; ++n)
    for (int64_t g = 0; g < p.groups; ++g) {
      const double count = static_cast<double>(p.c / p.groups * p.s);
      double mean = 0, var = 0;
      each(p, n, g, [&](int64_t i, int64_t) { mean += get(p.x, p.dtype, i) / count; });
      each(p, n, g, [&](int64_t i, int64_t) {
        const double d = get(p.x, p.dtype, i) - mean;
        var += d * d / count;
      });
      p.mean[n * p.groups + g] = mean;
      p.var[n * p.groups + g] = var;
      each(p, n, g, [&](int64_t i, int64_t c) {
        const double normal = (get(p.x, p.dtype, i) - mean) / std::sqrt(var + p.eps);
        put(p.y, p.dtype, i, normal * get(p.weight, c, 1) + get(p.bias, c, 0));
      });
    }
}

void group_norm_backward_ref(const GroupNormBackwardParams& p, const Exec&) {
  const double count = p.groups == 0 ? 0 : static_cast<double>(p.c / p.groups * p.s);
  for (int64_t n = 0; n < p.n; ++n)
    for (int64_t g = 0; g < p.groups; ++g) {
      const double mean = p.mean[n * p.groups + g], invstd = 1 / std::sqrt(p.var[n * p.groups + g] + p.eps);
      double sum = 0, sum_n = 0;
      each(p, n, g, [&](int64_t i, int64_t c) {
        const double scaled = get(p.grad, p.dtype, i) * get(p.weight, c, 1);
        sum += scaled / count;
        sum_n += scaled * (get(p.x, p.dtype, i) - mean) * invstd / count;
      });
      each(p, n, g, [&](int64_t i, int64_t c) {
        const double scaled = get(p.grad, p.dtype, i) * get(p.weight, c, 1);
        put(p.dx, p.dtype, i, invstd * (scaled - sum - (get(p.x, p.dtype, i) - mean) * invstd * sum_n));
      });
    }
  for (int64_t c = 0; c < p.c; ++c) {
    double dweight = 0, dbias = 0;
    for (int64_t n = 0; n < p.n; ++n) {
      const int64_t group = n * p.groups + c / (p.c / p.groups);
      const double invstd = 1 / std::sqrt(p.var[group] + p.eps);
      for (int64_t s = 0; s < p.s; ++s) {
        const int64_t i = offset(p, n, c, s);
        dweight += get(p.grad, p.dtype, i) * (get(p.x, p.dtype, i) - p.mean[group]) * invstd;
        dbias += get(p.grad, p.dtype, i);
      }
    }
    put(p.dweight, c, dweight);
    put(p.dbias, c, dbias);
  }
}

}  // namespace fastcv
