// Batch norm on CUDA: two sums per channel (norm_sums.cuh), then one pass over the elements (norm_sweeps.cuh); backward
// the same. The activation and the residual ride along, and nothing is stored for them: the gate is recomputed from x,
// or read off the result where a residual was added. Channels are the sets: [n][s] runs in row-major tensors, columns
// in channels_last ones.
//
// Bytes, of each tensor once: eval 1 read + 1 write, training 2 + 1, backward 4 + 1, a residual one more of each that
// it takes part in. Prediction for an H200: 85 % of its copy bandwidth (4.3 TB/s) on tensors beyond its L2 (60 MB).
#include "norm/batch_norm.h"

#include "norm/batch_norm.cuh"
#include "norm/norm_sums.cuh"
#include "norm/norm_sweeps.cuh"

namespace fastcv::FASTCV_GPU {
namespace {

// The gradient behind the gate, and the normalised input. Inputs are the gradient, x and the saved result.
template <class S>
struct Gradient {
  using T = acc_t<S>;
  struct Coefficients {
    T high, low, invstd, weight, bias;
  };
  NormVector weight, bias, mean, var;
  double eps;
  Bend<T> bend;
  bool saved;
  explicit Gradient(const BatchNormBackwardParams& p)
      : weight(p.weight), bias(p.bias), mean(p.mean), var(p.var), eps(p.eps), bend(p.act), saved(p.y != nullptr) {}
  __device__ __forceinline__ Coefficients coefficients(int64_t channel) const {
    Coefficients made;
    split(get(mean, channel, 0), made.high, made.low);
    made.invstd = static_cast<T>(1 / sqrt(get(var, channel, 0) + eps));
    made.weight = static_cast<T>(get(weight, channel, 1));
    made.bias = static_cast<T>(get(bias, channel, 0));
    return made;
  }
  __device__ __forceinline__ void operator()(const Coefficients& k, const T (&v)[3], T& g, T& normal) const {
    normal = ((v[1] - k.high) - k.low) * k.invstd;
    g = bend.gate(v[0], saved ? v[2] : normal * k.weight + k.bias);
  }
};
template <class S>
struct GradientTerms {
  static constexpr int kInputs = 3;
  static constexpr bool kByRow = false, kWeighted = false;
  using Coefficients = typename Gradient<S>::Coefficients;
  using Row = Nothing;
  const S* in[3];
  Gradient<S> gradient;
  __device__ __forceinline__ Coefficients coefficients(int64_t channel, int64_t) const {
    return gradient.coefficients(channel);
  }
  __device__ __forceinline__ void add(const Coefficients& k, Nothing, const acc_t<S> (&v)[3], double& a,
                                      double& b) const {
    acc_t<S> g, normal;
    gradient(k, v, g, normal);
    a += g;
    b += static_cast<double>(g) * normal;
  }
};
struct GradientFinish {
  NormVector dweight, dbias;
  double* sums;  // [2][c]
  int64_t c;
  __device__ __forceinline__ void operator()(int64_t channel, double a, double b) const {
    sums[channel] = a;
    sums[c + channel] = b;
    put(dbias, channel, a);
    put(dweight, channel, b);
  }
};

template <class S>
struct Backward {
  using T = acc_t<S>;
  static constexpr int kInputs = 3, kOutputs = 2;
  struct alignas(16) Coefficients {
    typename Gradient<S>::Coefficients gradient;
    T mean_g, mean_gx, scale;
  };
  const S* in[3];  // gradient, x, the saved result
  S* out[2];       // dx, dresidual
  Gradient<S> gradient;
  Divider c;
  const double* sums;  // [2][channels]
  int64_t channels;
  double count;
  bool training;
  __device__ __forceinline__ Coefficients coefficients(int64_t channel) const {
    c.split(channel);
    Coefficients made;
    made.gradient = gradient.coefficients(channel);
    made.mean_g = training ? static_cast<T>(sums[channel] / count) : T(0);
    made.mean_gx = training ? static_cast<T>(sums[channels + channel] / count) : T(0);
    made.scale = static_cast<T>(get(gradient.weight, channel, 1) / sqrt(get(gradient.var, channel, 0) + gradient.eps));
    return made;
  }
  __device__ __forceinline__ void operator()(const Coefficients& k, const T (&v)[3], T (&results)[2]) const {
    T g, normal;
    gradient(k.gradient, v, g, normal);
    results[1] = g;
    if (training) g = g - k.mean_g - normal * k.mean_gx;
    results[0] = k.scale * g;
  }
};

__global__ void __launch_bounds__(kThreads) update_kernel(const BatchNormUpdateParams p) {
  const double count = static_cast<double>(p.count), unbiased = count / (count - 1), m = p.momentum;
  for (int64_t c = global_thread(); c < p.c; c += global_threads()) {
    double mean = 0, var = 0;
    for (int64_t i = 0; i < p.copies; ++i) {
      mean += p.mean[i * p.c + c] / static_cast<double>(p.copies);
      var += p.var[i * p.c + c] * unbiased / static_cast<double>(p.copies);
    }
    put(p.running_mean, c, (1 - m) * get(p.running_mean, c, 0) + m * mean);
    put(p.running_var, c, (1 - m) * get(p.running_var, c, 0) + m * var);
  }
}

}  // namespace

int batch_norm(const BatchNormParams& p, void* workspace, CUstream_st* stream) {
  return by_dtype(p.dtype, [&]<class S>() {
    if (p.training) {
      const int error = moments(channel_sets(p), static_cast<const S*>(p.x), p.save_mean, p.save_var,
                                static_cast<double*>(workspace), stream);
      if (error != 0) return error;
    }
    if (p.y == nullptr) return static_cast<int>(cudaSuccess);
    return p.channels_last ? sweep<S>(BatchNormRule<S>(p), 1, p.c, p.n * p.s, true, stream)
                           : sweep<S>(BatchNormRule<S>(p), p.n, p.c, p.s, false, stream);
  });
}

int batch_norm_backward(const BatchNormBackwardParams& p, void* workspace, CUstream_st* stream) {
  double* sums = static_cast<double*>(workspace);
  return by_dtype(p.dtype, [&]<class S>() {
    const S *grad = static_cast<const S*>(p.grad), *x = static_cast<const S*>(p.x), *y = static_cast<const S*>(p.y);
    const Gradient<S> gradient(p);
    const int error = reduce_sets<S>(channel_sets(p), GradientTerms<S>{{grad, x, y}, gradient},
                                     GradientFinish{p.dweight, p.dbias, sums, p.c}, sums + 2 * p.c, stream);
    if (error != 0 || (p.dx == nullptr && p.dresidual == nullptr)) return error;
    const Backward<S> rule{{grad, x, y},
                           {static_cast<S*>(p.dx), static_cast<S*>(p.dresidual)},
                           gradient,
                           Divider(p.c),
                           p.sums != nullptr ? p.sums : sums,
                           p.c,
                           static_cast<double>(p.sums != nullptr ? p.count : p.n * p.s),
                           p.training};
    return p.channels_last ? sweep<S>(rule, 1, p.c, p.n * p.s, true, stream)
                           : sweep<S>(rule, p.n, p.c, p.s, false, stream);
  });
}

int batch_norm_update(const BatchNormUpdateParams& p, void*, CUstream_st* stream) {
  if (p.c == 0) return cudaSuccess;
  return launch(update_kernel, grid_for(p.c, kThreads), kThreads, 0, stream, p);
}

}  // namespace fastcv::FASTCV_GPU
