#include "conv/conv_wgrad.h"

#include "common/dispatch.h"
#include "common/scalar.h"

namespace fastcv {
namespace {

// Offset of element (n, c, d, h, w).
struct Strides {
  int64_t n, c, d, h, w;
  Strides(int64_t channels, const int64_t* size, bool channels_last) {
    w = channels_last ? channels : 1;
    h = w * size[2];
    d = h * size[1];
    c = channels_last ? 1 : d * size[0];
    n = channels * size[0] * size[1] * size[2];
  }
};

template <class S>
void run(const ConvWgradParams& p) {
  const S* x = static_cast<const S*>(p.input);
  const S* dy = static_cast<const S*>(p.grad_output);
  S* dw = static_cast<S*>(p.grad_weight);
  const int64_t cg = p.in_channels / p.groups, kg = p.out_channels / p.groups;
  const Strides xs(p.in_channels, p.in, p.input_channels_last), ys(p.out_channels, p.out, p.grad_channels_last),
      ws(cg, p.kernel, p.weight_channels_last);
  for (int64_t k = 0; k < p.out_channels; ++k)
    for (int64_t c = 0; c < cg; ++c)
      for (int64_t t = 0; t < p.kernel[0]; ++t)
        for (int64_t r = 0; r < p.kernel[1]; ++r)
          for (int64_t s = 0; s < p.kernel[2]; ++s) {
            double sum = 0;
            for (int64_t n = 0; n < p.batch; ++n)
              for (int64_t o = 0; o < p.out[0]; ++o)
                for (int64_t i = 0; i < p.out[1]; ++i)
                  for (int64_t j = 0; j < p.out[2]; ++j) {
                    const int64_t d = o * p.stride[0] - p.pad[0] + t * p.dilation[0];
                    const int64_t h = i * p.stride[1] - p.pad[1] + r * p.dilation[1];
                    const int64_t w = j * p.stride[2] - p.pad[2] + s * p.dilation[2];
                    if (d < 0 || h < 0 || w < 0 || d >= p.in[0] || h >= p.in[1] || w >= p.in[2]) continue;
                    const int64_t at = n * xs.n + (k / kg * cg + c) * xs.c + d * xs.d + h * xs.h + w * xs.w;
                    sum += static_cast<double>(widen(dy[n * ys.n + k * ys.c + o * ys.d + i * ys.h + j * ys.w])) *
                           widen(x[at]);
                  }
            narrow(sum, &dw[k * ws.n + c * ws.c + t * ws.d + r * ws.h + s * ws.w]);
          }
}

}  // namespace

void conv_wgrad_ref(const ConvWgradParams& p, const Exec&) {
  dispatch_float(p.dtype, [&](auto zero) { run<decltype(zero)>(p); });
}

}  // namespace fastcv
