// What the plain-loop references of this family share: where an element lies.
#pragma once
#include "common/dispatch.h"
#include "common/scalar.h"
#include "pool/pool.h"

namespace fastcv {
namespace {

// Where element (n, c, h, w) of a map of this height and width lies.
[[maybe_unused]] int64_t place(int64_t channels, bool channels_last, int64_t height, int64_t width, int64_t n,
                               int64_t c, int64_t h, int64_t w) {
  return channels_last ? ((n * height + h) * width + w) * channels + c : ((n * channels + c) * height + h) * width + w;
}
[[maybe_unused]] int64_t place(const PoolParams& p, int64_t height, int64_t width, int64_t n, int64_t c, int64_t h,
                               int64_t w) {
  return place(p.c, p.channels_last, height, width, n, c, h, w);
}

template <class F>
void for_each_output(const PoolParams& p, F&& f) {
  for (int64_t n = 0; n < p.n; ++n)
    for (int64_t c = 0; c < p.c; ++c)
      for (int64_t oh = 0; oh < p.h.out; ++oh)
        for (int64_t ow = 0; ow < p.w.out; ++ow) f(n, c, oh, ow);
}

}  // namespace
}  // namespace fastcv
