#include "pool/batch_norm_max_pool2d.h"

#include <cmath>
#include <limits>

#include "norm/norm_ref.h"
#include "pool/pool_geometry.h"
#include "pool/pool_ref.h"

namespace fastcv {
namespace {

template <class S>
void forward(const BatchNormMaxPool2dParams& all) {
  const BatchNormParams& norm = all.norm;
  const PoolParams& p = all.pool;
  const S* x = static_cast<const S*>(norm.x);
  S* y = static_cast<S*>(p.y);
  for_each_output(p, [&](int64_t n, int64_t c, int64_t oh, int64_t ow) {
    const double mean = norm.training ? norm.save_mean[c] : get(norm.mean, c, 0);
    const double var = norm.training ? norm.save_var[c] : get(norm.var, c, 0);
    const double scale = get(norm.weight, c, 1) / std::sqrt(var + norm.eps), bias = get(norm.bias, c, 0);
    const Window v = window(p, p.h, oh), u = window(p, p.w, ow);
    double best = -std::numeric_limits<double>::infinity();
    int64_t offset = v.tap * p.w.kernel + u.tap;
    for (int64_t h = v.begin, i = v.tap; h < v.end; h += p.h.dilation, ++i) {
      for (int64_t w = u.begin, j = u.tap; w < u.end; w += p.w.dilation, ++j) {
        S stored;
        narrow(activate(norm.act, normalised(widen(x[place(p, p.h.in, p.w.in, n, c, h, w)]), mean, scale, bias)),
               &stored);
        const double value = widen(stored);
        if (!(value > best || std::isnan(value))) continue;
        best = value;
        offset = i * p.w.kernel + j;
      }
    }
    const int64_t out = place(p, p.h.out, p.w.out, n, c, oh, ow);
    narrow(best, &y[out]);
    if (p.where != nullptr) static_cast<uint8_t*>(p.where)[out] = static_cast<uint8_t>(offset);
  });
}

}  // namespace

void batch_norm_max_pool2d_ref(const BatchNormMaxPool2dParams& p, const Exec& exec) {
  if (p.norm.training) batch_norm_ref(p.norm, exec);
  dispatch_float(p.dtype, [&](auto zero) { forward<decltype(zero)>(p); });
}

}  // namespace fastcv
