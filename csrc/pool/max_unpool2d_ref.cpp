#include "pool/max_unpool2d.h"

#include "pool/pool_ref.h"

namespace fastcv {
namespace {

// Element i of plane (n, c) of a map of `size` elements a plane.
int64_t spot(const MaxUnpool2dParams& p, int64_t size, int64_t n, int64_t c, int64_t i) {
  return place(p.c, p.channels_last, 1, size, n, c, 0, i);
}

// f(plane, position of the small element, position of the big one), for every element whose index is valid.
template <class F>
void for_each(const MaxUnpool2dParams& p, F&& f) {
  for (int64_t n = 0; n < p.n; ++n)
    for (int64_t c = 0; c < p.c; ++c)
      for (int64_t i = 0; i < p.small; ++i) {
        const int64_t at = spot(p, p.small, n, c, i), index = p.index[at];
        if (index >= 0 && index < p.big) f(at, spot(p, p.big, n, c, index));
        else if (at < *p.bad) *p.bad = at;
      }
}

template <class S>
void scatter(const MaxUnpool2dParams& p) {
  const S* x = static_cast<const S*>(p.x);
  S* y = static_cast<S*>(p.y);
  for (int64_t i = 0; i < p.n * p.c * p.big; ++i) y[i] = S{};
  if (!p.accumulate) return for_each(p, [&](int64_t at, int64_t to) { y[to] = x[at]; });
  // One sum at a time, in double: slow and plain.
  for (int64_t n = 0; n < p.n; ++n)
    for (int64_t c = 0; c < p.c; ++c)
      for (int64_t j = 0; j < p.big; ++j) {
        double sum = 0;
        for (int64_t i = 0; i < p.small; ++i) {
          const int64_t at = spot(p, p.small, n, c, i);
          if (p.index[at] == j) sum += widen(x[at]);
        }
        narrow(sum, &y[spot(p, p.big, n, c, j)]);
      }
  for_each(p, [](int64_t, int64_t) {});
}

template <class S>
void gather(const MaxUnpool2dParams& p) {
  const S* x = static_cast<const S*>(p.x);
  S* y = static_cast<S*>(p.y);
  for (int64_t i = 0; i < p.n * p.c * p.small; ++i) y[i] = S{};
  for_each(p, [&](int64_t at, int64_t from) { y[at] = x[from]; });
}

}  // namespace

void max_unpool2d_ref(const MaxUnpool2dParams& p, const Exec&) {
  dispatch_float(p.dtype, [&](auto zero) { scatter<decltype(zero)>(p); });
}
void max_unpool2d_backward_ref(const MaxUnpool2dParams& p, const Exec&) {
  dispatch_float(p.dtype, [&](auto zero) { gather<decltype(zero)>(p); });
}

}  // namespace fastcv
