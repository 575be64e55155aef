#include "norm/local_response_norm.h"

#include "norm/norm_ref.h"

namespace fastcv {
namespace {

int64_t offset(const LocalResponseNormParams& p, int64_t n, int64_t c, int64_t s) {
  return p.channels_last ? (n * p.s + s) * p.c + c : (n * p.c + c) * p.s + s;
}

double base(const LocalResponseNormParams& p, int64_t n, int64_t c, int64_t s) {
  double sum = 0;
  for (int64_t j = c - p.before; j <= c + p.after; ++j) {
    if (j < 0 || j >= p.c) continue;
    const double x = get(p.x, p.dtype, offset(p, n, j, s));
    sum += x * x;
  }
  return p.k + p.scale * sum;
}

}  // namespace

void local_response_norm_ref(const LocalResponseNormParams& p, const Exec&) {
  for (int64_t n = 0; n < p.n; ++n)
    for (int64_t c = 0; c < p.c; ++c)
      for (int64_t s = 0; s < p.s; ++s) {
        const int64_t i = offset(p, n, c, s);
        put(p.y, p.dtype, i, get(p.x, p.dtype, i) * std::pow(base(p, n, c, s), -p.beta));
      }
}

void local_response_norm_backward_ref(const LocalResponseNormParams& p, const Exec&) {
  for (int64_t n = 0; n < p.n; ++n)
    for (int64_t c = 0; c < p.c; ++c)
      for (int64_t s = 0; s < p.s; ++s) {
        const int64_t i = offset(p, n, c, s);
        double dx = get(p.grad, p.dtype, i) * std::pow(base(p, n, c, s), -p.beta);
        for (int64_t j = c - p.after; j <= c + p.before; ++j) {
          if (j < 0 || j >= p.c) continue;
          const int64_t at = offset(p, n, j, s);
          dx -= 2 * p.scale * p.beta * get(p.x, p.dtype, i) * get(p.grad, p.dtype, at) * get(p.x, p.dtype, at) *
                std::pow(base(p, n, j, s), -p.beta - 1);
        }
        put(p.y, p.dtype, i, dx);
      }
}

}  // namespace fastcv
