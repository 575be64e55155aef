#include "pool/pool.h"

#include <cmath>
#include <limits>

#include "pool/pool_geometry.h"
#include "pool/pool_ref.h"

namespace fastcv {
namespace {

template <class S>
void forward(const PoolParams& p) {
  const S* x = static_cast<const S*>(p.x);
  S* y = static_cast<S*>(p.y);
  const int64_t step_h = p.adaptive ? 1 : p.h.dilation, step_w = p.adaptive ? 1 : p.w.dilation;
  for_each_output(p, [&](int64_t n, int64_t c, int64_t oh, int64_t ow) {
    const Window v = window(p, p.h, oh), u = window(p, p.w, ow);
    double best = -std::numeric_limits<double>::infinity();
    int64_t offset = v.tap * p.w.kernel + u.tap, index = v.begin * p.w.in + u.begin;
    for (int64_t h = v.begin, i = v.tap; h < v.end; h += step_h, ++i) {
      for (int64_t w = u.begin, j = u.tap; w < u.end; w += step_w, ++j) {
        const double value = widen(x[place(p, p.h.in, p.w.in, n, c, h, w)]);
        if (!(value > best || std::isnan(value))) continue;
        best = value;
        offset = i * p.w.kernel + j;
        index = h * p.w.in + w;
      }
    }
    const int64_t out = place(p, p.h.out, p.w.out, n, c, oh, ow);
    narrow(best, &y[out]);
    if (p.where == nullptr) return;
    if (p.where_is_offset) static_cast<uint8_t*>(p.where)[out] = static_cast<uint8_t>(offset);
    else static_cast<int64_t*>(p.where)[out] = index;
  });
}

template <class S>
void backward(const PoolParams& p) {
  const S* g = static_cast<const S*>(p.x);
  S* y = static_cast<S*>(p.y);
  for (int64_t n = 0; n < p.n; ++n)
    for (int64_t c = 0; c < p.c; ++c)
      for (int64_t h = 0; h < p.h.in; ++h)
        for (int64_t w = 0; w < p.w.in; ++w) {
          double sum = 0;
          const Cover v = cover(p, p.h, h), u = cover(p, p.w, w);
          for (int64_t oh = v.first; oh <= v.last; ++oh)
            for (int64_t ow = u.first; ow <= u.last; ++ow) {
              const int64_t i = tap_of(p.h, oh, h), j = tap_of(p.w, ow, w);
              const int64_t out = place(p, p.h.out, p.w.out, n, c, oh, ow);
              const bool hit = i >= 0 && j >= 0 &&
                               (p.where_is_offset ? static_cast<const uint8_t*>(p.where)[out] == i * p.w.kernel + j
                                                  : static_cast<const int64_t*>(p.where)[out] == h * p.w.in + w);
              if (hit) sum += widen(g[out]);
            }
          narrow(sum, &y[place(p, p.h.in, p.w.in, n, c, h, w)]);
        }
}

}  // namespace

void max_pool2d_ref(const PoolParams& p, const Exec&) {
  dispatch_float(p.dtype, [&](auto zero) { forward<decltype(zero)>(p); });
}
void max_pool2d_backward_ref(const PoolParams& p, const Exec&) {
  dispatch_float(p.dtype, [&](auto zero) { backward<decltype(zero)>(p); });
}

}  // namespace fastcv
