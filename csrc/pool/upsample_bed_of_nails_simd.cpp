// Bed of nails, both ways: moves values, so the dtype is only a size. Output rows are written once, zeros included.
#include "pool/upsample_bed_of_nails.h"

#include "common/dispatch.h"
#include "common/simd.h"

namespace fastcv::FASTCV_ISA {
namespace {

constexpr int64_t kGrain = 1 << 14;

// A row of pixels of `channels` values each (one in NCHW); rows: how many of them the small map has an image or plane.
struct Shape {
  int64_t maps, channels;
};
[[gnu::always_inline]] inline Shape shape_of(const BedOfNailsParams& p) {
  return p.channels_last ? Shape{p.n, p.c} : Shape{p.n * p.c, 1};
}
[[gnu::always_inline]] inline int64_t grain(int64_t row) { return row >= kGrain ? 1 : kGrain / (row > 0 ? row : 1); }

}  // namespace

void upsample_bed_of_nails(const BedOfNailsParams& p, const Exec& exec) {
  dispatch_float(p.dtype, [&](auto zero) {
    using S = decltype(zero);
    const Shape s = shape_of(p);
    const int64_t width = p.w * p.scale_w * s.channels;
    parallel_for(exec, s.maps * p.h * p.scale_h, grain(width), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        S* y = static_cast<S*>(p.y) + row * width;
        for (int64_t i = 0; i < width; ++i) y[i] = S{};
        if (row % p.scale_h != 0) continue;
        const S* x = static_cast<const S*>(p.x) + row / p.scale_h * p.w * s.channels;
        for (int64_t w = 0; w < p.w; ++w)
          for (int64_t c = 0; c < s.channels; ++c) y[w * p.scale_w * s.channels + c] = x[w * s.channels + c];
      }
    });
  });
}

void upsample_bed_of_nails_backward(const BedOfNailsParams& p, const Exec& exec) {
  dispatch_float(p.dtype, [&](auto zero) {
    using S = decltype(zero);
    const Shape s = shape_of(p);
    parallel_for(exec, s.maps * p.h, grain(p.w * s.channels), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const S* x = static_cast<const S*>(p.x) + row * p.scale_h * p.w * p.scale_w * s.channels;
        S* y = static_cast<S*>(p.y) + row * p.w * s.channels;
        for (int64_t w = 0; w < p.w; ++w)
          for (int64_t c = 0; c < s.channels; ++c) y[w * s.channels + c] = x[w * p.scale_w * s.channels + c];
      }
    });
  });
}

}  // namespace fastcv::FASTCV_ISA
