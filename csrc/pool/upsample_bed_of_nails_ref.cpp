#include "pool/upsample_bed_of_nails.h"

#include "pool/pool_ref.h"

namespace fastcv {
namespace {

template <class F>
void for_each(const BedOfNailsParams& p, F&& f) {
  for (int64_t n = 0; n < p.n; ++n)
    for (int64_t c = 0; c < p.c; ++c)
      for (int64_t h = 0; h < p.h; ++h)
        for (int64_t w = 0; w < p.w; ++w)
          f(place(p.c, p.channels_last, p.h, p.w, n, c, h, w),
            place(p.c, p.channels_last, p.h * p.scale_h, p.w * p.scale_w, n, c, h * p.scale_h, w * p.scale_w));
}

}  // namespace

void upsample_bed_of_nails_ref(const BedOfNailsParams& p, const Exec&) {
  dispatch_float(p.dtype, [&](auto zero) {
    using S = decltype(zero);
    S* y = static_cast<S*>(p.y);
    for (int64_t i = 0; i < p.n * p.c * p.h * p.scale_h * p.w * p.scale_w; ++i) y[i] = S{};
    for_each(p, [&](int64_t small, int64_t big) { y[big] = static_cast<const S*>(p.x)[small]; });
  });
}

void upsample_bed_of_nails_backward_ref(const BedOfNailsParams& p, const Exec&) {
  dispatch_float(p.dtype, [&](auto zero) {
    using S = decltype(zero);
    for_each(p, [&](int64_t small, int64_t big) { static_cast<S*>(p.y)[small] = static_cast<const S*>(p.x)[big]; });
  });
}

}  // namespace fastcv
