#include "loss/softmax.h"

#include "common/dispatch.h"
#include "common/scalar.h"

namespace fastcv {
namespace {

template <class S>
void forward(const SoftmaxParams& p) {
  const S* x = static_cast<const S*>(p.x);
  S* y = static_cast<S*>(p.y);
  for (int64_t o = 0; o < p.outer; ++o) {
    for (int64_t i = 0; i < p.inner; ++i) {
      const auto in = [&](int64_t c) {
        if (p.input_channels > 0) {
          const int64_t position = o % p.input_positions, plane = o / p.input_positions;
          const int64_t image = plane / p.input_channels, channel = plane % p.input_channels;
          return widen(x[((image * p.input_positions + position) * p.classes + c) * p.input_channels + channel]);
        }
        return widen(x[p.input_rows ? (o * p.inner + i) * p.classes + c : (o * p.classes + c) * p.inner + i]);
      };
      double m = -INFINITY, sum = 0;
      for (int64_t c = 0; c < p.classes; ++c) m = in(c) > m ? in(c) : m;
      for (int64_t c = 0; c < p.classes; ++c) sum += std::exp(in(c) - m);
      for (int64_t c = 0; c < p.classes; ++c) {
        const double z = in(c) - m;
        narrow(p.log ? z - std::log(sum) : std::exp(z) / sum, &y[(o * p.classes + c) * p.inner + i]);
      }
    }
  }
}

template <class S>
void backward(const SoftmaxParams& p) {
  const S *y = static_cast<const S*>(p.x), *dy = static_cast<const S*>(p.dy);
  S* dx = static_cast<S*>(p.y);
  for (int64_t o = 0; o < p.outer; ++o) {
    for (int64_t i = 0; i < p.inner; ++i) {
      const auto at = [&](int64_t c) { return (o * p.classes + c) * p.inner + i; };
      double sum = 0;
      for (int64_t c = 0; c < p.classes; ++c) sum += widen(dy[at(c)]) * (p.log ? 1 : widen(y[at(c)]));
      for (int64_t c = 0; c < p.classes; ++c) {
        const double g = widen(dy[at(c)]), v = widen(y[at(c)]);
        narrow(p.log ? g - std::exp(v) * sum : v * (g - sum), &dx[at(c)]);
      }
    }
  }
}

}  // namespace

void softmax_ref(const SoftmaxParams& p, const Exec&) {
  dispatch_float(p.dtype, [&](auto zero) { forward<decltype(zero)>(p); });
}

void softmax_backward_ref(const SoftmaxParams& p, const Exec&) {
  dispatch_float(p.dtype, [&](auto zero) { backward<decltype(zero)>(p); });
}

}  // namespace fastcv
