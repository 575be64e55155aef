// Group norm on CUDA: mean and variance of each group of each image (norm.cuh), one pass over the elements. Backward
// adds up the gradient and its product with the normalised input for every image and channel; groups and parameters
// take their sums from those.
#include "norm/group_norm.h"

#include "norm/norm.cuh"

namespace fastcv::FASTCV_GPU {
namespace {

// (image * channels + channel) of element i.
struct ImageChannelOf {
  bool channels_last;
  int64_t c;
  Divider s, by_c, image;
  template <class Params>
  explicit ImageChannelOf(const Params& p)
      : channels_last(p.channels_last), c(p.c), s(p.s), by_c(p.c), image(p.s * p.c) {}
  __device__ __forceinline__ int64_t operator()(int64_t i) const {
    if (!channels_last) return s.divide(i);
    const int64_t n = image.split(i);
    by_c.split(i);
    return n * c + i;
  }
};

template <class S>
__global__ void __launch_bounds__(kThreads)
    apply_kernel(const GroupNormParams p, const ImageChannelOf channel_of, const Divider c_per_group) {
  using T = acc_t<S>;
  const int64_t total = p.n * p.c * p.s;
  for (int64_t i = global_thread(); i < total; i += global_threads()) {
    const int64_t nc = channel_of(i), group = c_per_group.divide(nc), c = nc % p.c;
    const T scale = static_cast<T>(get(p.weight, c, 1) / sqrt(p.var[group] + p.eps));
    const T normal = Split<T>(p.mean[group]).below(widen(static_cast<const S*>(p.x)[i]));
    static_cast<S*>(p.y)[i] = narrow<S>(normal * scale + static_cast<T>(get(p.bias, c, 0)));
  }
}

// Sums over s of the gradient and of its product with the normalised input: sums[n * c][2].
template <class S>
struct Terms {
  GroupNormBackwardParams p;
  Divider c_per_group;
  __device__ __forceinline__ void operator()(int64_t nc, int64_t at, int64_t, double& a, double& b) const {
    const int64_t group = c_per_group.divide(nc);
    const double g = widen(static_cast<const S*>(p.grad)[at]);
    a += g;
    b += g * (widen(static_cast<const S*>(p.x)[at]) - p.mean[group]) / sqrt(p.var[group] + p.eps);
  }
};
struct Finish {
  double* sums;
  __device__ __forceinline__ void operator()(int64_t nc, double a, double b) const {
    sums[2 * nc] = a;
    sums[2 * nc + 1] = b;
  }
};

// Per group: the means of weight * gradient and of weight * gradient * normal.
__global__ void __launch_bounds__(kThreads)
    group_means_kernel(const GroupNormBackwardParams p, const Divider groups, const double* sums, double* means) {
  const int64_t d = p.c / p.groups;
  for (int64_t group = global_thread(); group < p.n * p.groups; group += global_threads()) {
    int64_t g = group;
    const int64_t n = groups.split(g);
    double a = 0, b = 0;
    for (int64_t c = g * d; c < (g + 1) * d; ++c) {
      const double weight = get(p.weight, c, 1);
      a += weight * sums[2 * (n * p.c + c)];
      b += weight * sums[2 * (n * p.c + c) + 1];
    }
    means[2 * group] = a / static_cast<double>(d * p.s);
    means[2 * group + 1] = b / static_cast<double>(d * p.s);
  }
}

__global__ void __launch_bounds__(kThreads) parameters_kernel(const GroupNormBackwardParams p, const double* sums) {
  for (int64_t c = global_thread(); c < p.c; c += global_threads()) {
    double a = 0, b = 0;
    for (int64_t n = 0; n < p.n; ++n) {
      a += sums[2 * (n * p.c + c)];
      b += sums[2 * (n * p.c + c) + 1];
    }
    put(p.dbias, c, a);
    put(p.dweight, c, b);
  }
}

template <class S>
__global__ void __launch_bounds__(kThreads)
    apply_backward_kernel(const GroupNormBackwardParams p, const ImageChannelOf channel_of, const Divider c_per_group,
                          const double* means) {
  using T = acc_t<S>;
  const int64_t total = p.n * p.c * p.s;
  for (int64_t i = global_thread(); i < total; i += global_threads()) {
    const int64_t nc = channel_of(i), group = c_per_group.divide(nc), c = nc % p.c;
    const T invstd = static_cast<T>(1 / sqrt(p.var[group] + p.eps));
    const T normal = Split<T>(p.mean[group]).below(widen(static_cast<const S*>(p.x)[i])) * invstd;
    const T g = static_cast<T>(widen(static_cast<const S*>(p.grad)[i])) * static_cast<T>(get(p.weight, c, 1));
    static_cast<S*>(p.dx)[i] =
        narrow<S>(invstd * (g - static_cast<T>(means[2 * group]) - normal * static_cast<T>(means[2 * group + 1])));
  }
}

}  // namespace

int group_norm(const GroupNormParams& p, void* workspace, CUstream_st* stream) {
  const int64_t total = p.n * p.c * p.s;
  return by_dtype(p.dtype, [&]<class S>() {
    const int error =
        moments(group_sets(p), static_cast<const S*>(p.x), p.mean, p.var, static_cast<double*>(workspace), stream);
    if (error != 0 || total == 0) return error;
    return launch(apply_kernel<S>, grid_for(total, kThreads), kThreads, 0, stream, p, ImageChannelOf(p),
                  Divider(p.c / p.groups));
  });
}

// Workspace: sums of every image and channel, means of every group, partial sums.
int group_norm_backward(const GroupNormBackwardParams& p, void* workspace, CUstream_st* stream) {
  const int64_t total = p.n * p.c * p.s, d = p.groups == 0 ? 1 : p.c / p.groups;
  double* sums = static_cast<double*>(workspace);
  double* means = sums + 2 * p.n * p.c;
  return by_dtype(p.dtype, [&]<class S>() {
    int error =
        reduce_sets(image_channel_sets(p), Terms<S>{p, Divider(d)}, Finish{sums}, means + 2 * p.n * p.groups, stream);
    if (error == 0 && p.c > 0 && (p.dweight.data != nullptr || p.dbias.data != nullptr))
      error =
          launch(parameters_kernel, grid_for(p.c, kThreads), kThreads, 0, stream, p, static_cast<const double*>(sums));
    if (error != 0 || total == 0 || p.dx == nullptr) return error;
    error = launch(group_means_kernel, grid_for(p.n * p.groups, kThreads), kThreads, 0, stream, p, Divider(p.groups),
                   static_cast<const double*>(sums), means);
    if (error != 0) return error;
    return launch(apply_backward_kernel<S>, grid_for(total, kThreads), kThreads, 0, stream, p, ImageChannelOf(p),
                  Divider(d), static_cast<const double*>(means));
  });
}

}  // namespace fastcv::FASTCV_GPU
