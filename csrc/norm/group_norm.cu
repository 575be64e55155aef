// Group norm on CUDA: mean and variance of each group of each image (norm_sums.cuh), one pass over the elements
// (norm_sweeps.cuh). Backward adds up the gradient and its product with the normalised input for every image and
// channel; groups and parameters take their sums from those.
//
// Bytes, of each tensor once: forward 2 reads + 1 write, backward 4 + 1. Prediction for an H200: 85 % of its copy
// bandwidth (4.3 TB/s) on tensors beyond its L2 (60 MB).
#include "norm/group_norm.h"

#include "norm/norm_sums.cuh"
#include "norm/norm_sweeps.cuh"

namespace fastcv::FASTCV_GPU {
namespace {

template <class S>
struct Forward {
  using T = acc_t<S>;
  static constexpr int kInputs = 1, kOutputs = 1;
  struct alignas(16) Coefficients {
    T high, low, scale, bias;
  };
  const S* in[1];
  S* out[1];
  NormVector weight, bias;
  const double *mean, *var;
  double eps;
  Divider c, c_per_group;
  __device__ __forceinline__ Coefficients coefficients(int64_t plane) const {
    const int64_t group = c_per_group.divide(plane);
    int64_t channel = plane;
    c.split(channel);
    Coefficients made;
    split(mean[group], made.high, made.low);
    made.scale = static_cast<T>(get(weight, channel, 1) / sqrt(var[group] + eps));
    made.bias = static_cast<T>(get(bias, channel, 0));
    return made;
  }
  __device__ __forceinline__ void operator()(const Coefficients& k, const T (&x)[1], T (&y)[1]) const {
    y[0] = ((x[0] - k.high) - k.low) * k.scale + k.bias;
  }
};

// Sums over the places of an image's channel: of the gradient and of its product with the normalised input, whose
// standard deviation waits for the end.
template <class S>
struct Terms {
  static constexpr int kInputs = 2;
  static constexpr bool kByRow = false, kWeighted = false;
  using Coefficients = double;  // mean
  using Row = Nothing;
  const S* in[2];  // gradient, x
  const double* mean;
  Divider c_per_group;
  __device__ __forceinline__ double coefficients(int64_t plane, int64_t) const {
    return mean[c_per_group.divide(plane)];
  }
  __device__ __forceinline__ void add(double mean, Nothing, const acc_t<S> (&v)[2], double& a, double& b) const {
    const double g = v[0];
    a += g;
    b += g * (v[1] - mean);
  }
};
struct Finish {
  double* sums;  // [images * channels][2]
  const double* var;
  double eps;
  Divider c_per_group;
  __device__ __forceinline__ void operator()(int64_t plane, double a, double b) const {
    sums[2 * plane] = a;
    sums[2 * plane + 1] = b / sqrt(var[c_per_group.divide(plane)] + eps);
  }
};

// Per group, a warp each: the means of weight * gradient and of weight * gradient * normal.
__global__ void __launch_bounds__(kThreads)
    group_means_kernel(const GroupNormBackwardParams p, const Divider groups, const double* sums, double* means) {
  const int64_t d = p.c / p.groups;
  for (int64_t group = global_thread() / kWarp; group < p.n * p.groups; group += global_threads() / kWarp) {
    int64_t g = group;
    const int64_t first = groups.split(g) * p.c;
    double a = 0, b = 0;
    for (int64_t c = g * d + threadIdx.x % kWarp; c < (g + 1) * d; c += kWarp) {
      const double weight = get(p.weight, c, 1);
      a += weight * sums[2 * (first + c)];
      b += weight * sums[2 * (first + c) + 1];
    }
    a = reduce_warp(a, Sum());
    b = reduce_warp(b, Sum());
    if (threadIdx.x % kWarp != 0) continue;
    means[2 * group] = a / static_cast<double>(d * p.s);
    means[2 * group + 1] = b / static_cast<double>(d * p.s);
  }
}

// Per channel, a warp each: the sums over the images.
__global__ void __launch_bounds__(kThreads) parameters_kernel(const GroupNormBackwardParams p, const double* sums) {
  for (int64_t c = global_thread() / kWarp; c < p.c; c += global_threads() / kWarp) {
    double a = 0, b = 0;
    for (int64_t n = threadIdx.x % kWarp; n < p.n; n += kWarp) {
      a += sums[2 * (n * p.c + c)];
      b += sums[2 * (n * p.c + c) + 1];
    }
    a = reduce_warp(a, Sum());
    b = reduce_warp(b, Sum());
    if (threadIdx.x % kWarp != 0) continue;
    put(p.dbias, c, a);
    put(p.dweight, c, b);
  }
}

template <class S>
struct Backward {
  using T = acc_t<S>;
  static constexpr int kInputs = 2, kOutputs = 1;
  struct alignas(16) Coefficients {
    Spread<T> spread;
    T weight, mean_g, mean_gx;
  };
  const S* in[2];  // gradient, x
  S* out[1];
  NormVector weight;
  const double *mean, *var, *means;
  double eps;
  Divider c, c_per_group;
  __device__ __forceinline__ Coefficients coefficients(int64_t plane) const {
    const int64_t group = c_per_group.divide(plane);
    int64_t channel = plane;
    c.split(channel);
    Coefficients made;
    made.spread.set(mean[group], var[group], eps);
    made.weight = static_cast<T>(get(weight, channel, 1));
    made.mean_g = static_cast<T>(means[2 * group]);
    made.mean_gx = static_cast<T>(means[2 * group + 1]);
    return made;
  }
  __device__ __forceinline__ void operator()(const Coefficients& k, const T (&v)[2], T (&dx)[1]) const {
    const T g = v[0] * k.weight;
    dx[0] = k.spread.invstd * (g - k.mean_g - k.spread.normal(v[1]) * k.mean_gx);
  }
};

}  // namespace

int group_norm(const GroupNormParams& p, void* workspace, CUstream_st* stream) {
  return by_dtype(p.dtype, [&]<class S>() {
    const S* x = static_cast<const S*>(p.x);
    const int error = moments(group_sets(p), x, p.mean, p.var, static_cast<double*>(workspace), stream);
    if (error != 0 || p.n * p.c * p.s == 0) return error;
    const Forward<S> rule{{x},          {static_cast<S*>(p.y)}, p.weight, p.bias, p.mean, p.var, p.eps,
                          Divider(p.c), Divider(p.c / p.groups)};
    return sweep<S>(rule, p.n, p.c, p.s, p.channels_last, stream);
  });
}

// Workspace: sums of every image and channel, means of every group, partial sums.
int group_norm_backward(const GroupNormBackwardParams& p, void* workspace, CUstream_st* stream) {
  double* sums = static_cast<double*>(workspace);
  double* means = sums + 2 * p.n * p.c;
  const Divider c_per_group(p.groups == 0 ? 1 : p.c / p.groups);
  return by_dtype(p.dtype, [&]<class S>() {
    const S *grad = static_cast<const S*>(p.grad), *x = static_cast<const S*>(p.x);
    int error = reduce_sets<S>(image_channel_sets(p), Terms<S>{{grad, x}, p.mean, c_per_group},
                               Finish{sums, p.var, p.eps, c_per_group}, means + 2 * p.n * p.groups, stream);
    if (error == 0 && p.c > 0 && (p.dweight.data != nullptr || p.dbias.data != nullptr))
      error = launch(parameters_kernel, grid_for(p.c, kThreads / kWarp), kThreads, 0, stream, p, sums);
    if (error != 0 || p.n * p.c * p.s == 0 || p.dx == nullptr) return error;
    error = launch(group_means_kernel, grid_for(p.n * p.groups, kThreads / kWarp), kThreads, 0, stream, p,
                   Divider(p.groups), sums, means);
    if (error != 0) return error;
    const Backward<S> rule{{grad, x},  {static_cast<S*>(p.dx)}, p.weight, p.mean, p.var, means, p.eps, Divider(p.c),
                           c_per_group};
    return sweep<S>(rule, p.n, p.c, p.s, p.channels_last, stream);
  });
}

}  // namespace fastcv::FASTCV_GPU
