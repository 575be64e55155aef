// Batch norm on CUDA: two sums per channel (norm.cuh), then one pass over the elements; backward the same. The
// activation and the residual ride along, and nothing is stored for them: the gate is recomputed from x, or read off
// the result where a residual was added. Channels are the sets: [n][s] runs in row-major tensors, columns in
// channels_last ones.
#include "norm/batch_norm.h"

#include "norm/norm.cuh"

namespace fastcv::FASTCV_GPU {
namespace {

// The channel of element i.
struct ChannelOf {
  bool channels_last;
  Divider c, s;
  template <class Params>
  explicit ChannelOf(const Params& p) : channels_last(p.channels_last), c(p.c), s(p.s) {}
  __device__ __forceinline__ int64_t operator()(int64_t i) const {
    int64_t channel = channels_last ? i : s.divide(i);
    c.split(channel);
    return channel;
  }
};

template <class S>
__global__ void __launch_bounds__(kThreads)
    apply_kernel(const BatchNormParams p, const ChannelOf channel_of, const double* mean, const double* var) {
  using T = acc_t<S>;
  const S *x = static_cast<const S*>(p.x), *residual = static_cast<const S*>(p.residual);
  const int64_t total = p.n * p.c * p.s;
  for (int64_t i = global_thread(); i < total; i += global_threads()) {
    const int64_t c = channel_of(i);
    const Split<T> m(mean != nullptr ? mean[c] : get(p.mean, c, 0));
    const double v = var != nullptr ? var[c] : get(p.var, c, 0);
    const T scale = static_cast<T>(get(p.weight, c, 1) / sqrt(v + p.eps)), bias = static_cast<T>(get(p.bias, c, 0));
    T result = m.below(widen(x[i])) * scale + bias;
    if (residual != nullptr) result += widen(residual[i]);
    static_cast<S*>(p.y)[i] = narrow<S>(activate(p.act, result));
  }
}

// The gradient behind the gate, and the normalised input.
template <class S>
struct Gradient {
  using T = acc_t<S>;
  BatchNormBackwardParams p;
  __device__ __forceinline__ void operator()(int64_t c, int64_t i, T& g, T& normal) const {
    const T invstd = static_cast<T>(1 / sqrt(get(p.var, c, 0) + p.eps));
    normal = Split<T>(get(p.mean, c, 0)).below(widen(static_cast<const S*>(p.x)[i])) * invstd;
    const T v = p.y != nullptr ? static_cast<T>(widen(static_cast<const S*>(p.y)[i]))
                               : normal * static_cast<T>(get(p.weight, c, 1)) + static_cast<T>(get(p.bias, c, 0));
    g = gate(p.act, static_cast<T>(widen(static_cast<const S*>(p.grad)[i])), v);
  }
};
template <class S>
struct GradientTerms {
  Gradient<S> gradient;
  __device__ __forceinline__ void operator()(int64_t c, int64_t at, int64_t, double& a, double& b) const {
    acc_t<S> g, normal;
    gradient(c, at, g, normal);
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
__global__ void __launch_bounds__(kThreads)
    apply_backward_kernel(const Gradient<S> gradient, const ChannelOf channel_of, const double* sums, double count) {
  using T = acc_t<S>;
  const BatchNormBackwardParams& p = gradient.p;
  const int64_t total = p.n * p.c * p.s;
  for (int64_t i = global_thread(); i < total; i += global_threads()) {
    const int64_t c = channel_of(i);
    T g, normal;
    gradient(c, i, g, normal);
    if (p.dresidual != nullptr) static_cast<S*>(p.dresidual)[i] = narrow<S>(g);
    if (p.dx == nullptr) continue;
    if (p.training) g = g - static_cast<T>(sums[c] / count) - normal * static_cast<T>(sums[p.c + c] / count);
    const T scale = static_cast<T>(get(p.weight, c, 1) / sqrt(get(p.var, c, 0) + p.eps));
    static_cast<S*>(p.dx)[i] = narrow<S>(scale * g);
  }
}

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
  const int64_t total = p.n * p.c * p.s;
  return by_dtype(p.dtype, [&]<class S>() {
    if (p.training) {
      const int error = moments(channel_sets(p), static_cast<const S*>(p.x), p.save_mean, p.save_var,
                                static_cast<double*>(workspace), stream);
      if (error != 0) return error;
    }
    if (p.y == nullptr || total == 0) return static_cast<int>(cudaSuccess);
    return launch(apply_kernel<S>, grid_for(total, kThreads), kThreads, 0, stream, p, ChannelOf(p),
                  static_cast<const double*>(p.training ? p.save_mean : nullptr),
                  static_cast<const double*>(p.training ? p.save_var : nullptr));
  });
}

int batch_norm_backward(const BatchNormBackwardParams& p, void* workspace, CUstream_st* stream) {
  const int64_t total = p.n * p.c * p.s;
  double* sums = static_cast<double*>(workspace);
  return by_dtype(p.dtype, [&]<class S>() {
    const int error = reduce_sets(channel_sets(p), GradientTerms<S>{{p}}, GradientFinish{p.dweight, p.dbias, sums, p.c},
                                  sums + 2 * p.c, stream);
    if (error != 0 || total == 0 || (p.dx == nullptr && p.dresidual == nullptr)) return error;
    return launch(apply_backward_kernel<S>, grid_for(total, kThreads), kThreads, 0, stream, Gradient<S>{p},
                  ChannelOf(p), p.sums != nullptr ? p.sums : static_cast<const double*>(sums),
                  static_cast<double>(p.sums != nullptr ? p.count : p.n * p.s));
  });
}

int batch_norm_update(const BatchNormUpdateParams& p, void*, CUstream_st* stream) {
  if (p.c == 0) return cudaSuccess;
  return launch(update_kernel, grid_for(p.c, kThreads), kThreads, 0, stream, p);
}

}  // namespace fastcv::FASTCV_GPU
