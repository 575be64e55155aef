// What batch norm makes of an element on CUDA: the rule of the sweep over a map (norm_sweeps.cuh), and of the pooling
// that normalises what it reads (pool/batch_norm_max_pool2d.cu).
#pragma once
#include "norm/batch_norm.h"
#include "norm/norm.cuh"

namespace fastcv::FASTCV_GPU {

template <class S>
struct BatchNormRule {
  using T = acc_t<S>;
  static constexpr int kInputs = 2, kOutputs = 1;
  struct alignas(16) Coefficients {
    T high, low, scale, bias;
  };
  const S* in[2];  // x, residual
  S* out[1];
  NormVector weight, bias, mean, var;
  double eps;
  Divider c;
  Bend<T> bend;
  explicit BatchNormRule(const BatchNormParams& p)
      : in{static_cast<const S*>(p.x), static_cast<const S*>(p.residual)},
        out{static_cast<S*>(p.y)},
        weight(p.weight),
        bias(p.bias),
        mean(p.training ? NormVector{p.save_mean, DType::f64} : p.mean),
        var(p.training ? NormVector{p.save_var, DType::f64} : p.var),
        eps(p.eps),
        c(p.c),
        bend(p.act) {}
  __device__ __forceinline__ Coefficients coefficients(int64_t channel) const {
    c.split(channel);
    Coefficients made;
    split(get(mean, channel, 0), made.high, made.low);
    made.scale = static_cast<T>(get(weight, channel, 1) / sqrt(get(var, channel, 0) + eps));
    made.bias = static_cast<T>(get(bias, channel, 0));
    return made;
  }
  __device__ __forceinline__ T normalised(const Coefficients& k, T x) const {
    return ((x - k.high) - k.low) * k.scale + k.bias;
  }
  __device__ __forceinline__ void operator()(const Coefficients& k, const T (&v)[2], T (&y)[1]) const {
    T result = normalised(k, v[0]);
    if (in[1] != nullptr) result += v[1];
    y[0] = bend.activate(result);
  }
};

}  // namespace fastcv::FASTCV_GPU
