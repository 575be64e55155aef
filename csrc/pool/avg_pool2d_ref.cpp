#include "pool/pool.h"
#include "pool/pool_geometry.h"
#include "pool/pool_ref.h"

namespace fastcv {
namespace {

double divisor_of(const PoolParams& p, int64_t oh, int64_t ow) {
  if (p.divisor != 0) return static_cast<double>(p.divisor);
  return static_cast<double>(window(p, p.h, oh).size * window(p, p.w, ow).size);
}

template <class S>
void forward(const PoolParams& p) {
  const S* x = static_cast<const S*>(p.x);
  S* y = static_cast<S*>(p.y);
  for_each_output(p, [&](int64_t n, int64_t c, int64_t oh, int64_t ow) {
    const Window v = window(p, p.h, oh), u = window(p, p.w, ow);
    double sum = 0;
    for (int64_t h = v.begin; h < v.end; ++h)
      for (int64_t w = u.begin; w < u.end; ++w) sum += widen(x[place(p, p.h.in, p.w.in, n, c, h, w)]);
    narrow(sum / divisor_of(p, oh, ow), &y[place(p, p.h.out, p.w.out, n, c, oh, ow)]);
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
            for (int64_t ow = u.first; ow <= u.last; ++ow)
              sum += widen(g[place(p, p.h.out, p.w.out, n, c, oh, ow)]) / divisor_of(p, oh, ow);
          narrow(sum, &y[place(p, p.h.in, p.w.in, n, c, h, w)]);
        }
}

}  // namespace

void avg_pool2d_ref(const PoolParams& p, const Exec&) {
  dispatch_float(p.dtype, [&](auto zero) { forward<decltype(zero)>(p); });
}
void avg_pool2d_backward_ref(const PoolParams& p, const Exec&) {
  dispatch_float(p.dtype, [&](auto zero) { backward<decltype(zero)>(p); });
}

}  // namespace fastcv
