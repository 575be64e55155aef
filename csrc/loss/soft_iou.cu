// soft_iou_loss and its gradients on CUDA: each group is summed in segments, whose sums are added in order.
#include "loss/soft_iou.h"

#include "loss/loss.cuh"

namespace fastcv::FASTCV_GPU {
namespace {

// partial[group][segment] = (I, U) of the segment.
template <class S>
__global__ void __launch_bounds__(kThreads)
    segments_kernel(const SoftIouParams p, int64_t segments, int64_t length, double* partial, int access) {
  using T = acc_t<S>;
  constexpr int n = kPack<S>;
  FASTCV_SHARED(double, scratch, kThreads / kWarp);
  for (int64_t job = blockIdx.x; job < p.groups * segments; job += gridDim.x) {
    const int64_t group = job / segments, begin = job % segments * length;
    const int64_t end = begin + length < p.n ? begin + length : p.n;
    const S *x = static_cast<const S*>(p.x) + group * p.n, *target = static_cast<const S*>(p.target) + group * p.n;
    double both = 0, either = 0;
    for (int64_t at = begin + threadIdx.x * n; at < end; at += kThreads * n) {
      T v[n], t[n], product = 0, sum = 0;
      load_widened(x + at, end - at, access, v);
      load_widened(target + at, end - at, access, t);
#pragma unroll
      for (int i = 0; i < n; ++i) {
        product += v[i] * t[i];
        sum += v[i] + t[i] - v[i] * t[i];
      }
      both += product;
      either += sum;
    }
    both = reduce_block(both, scratch, Sum());
    either = reduce_block(either, scratch, Sum());
    if (threadIdx.x == 0) {
      partial[2 * job] = both;
      partial[2 * job + 1] = either;
    }
  }
}

template <class S>
__global__ void __launch_bounds__(kThreads)
    groups_kernel(const SoftIouParams p, int64_t segments, const double* partial) {
  for (int64_t group = global_thread(); group < p.groups; group += global_threads()) {
    double both = 0, either = 0;
    for (int64_t i = group * segments; i < (group + 1) * segments; ++i) {
      both += partial[2 * i];
      either += partial[2 * i + 1];
    }
    p.sums[2 * group] = both;
    p.sums[2 * group + 1] = either;
    const double loss = either + p.eps == 0 ? 0 : 1 - (both + p.eps) / (either + p.eps);
    static_cast<S*>(p.loss)[group] = narrow<S>(static_cast<acc_t<S>>(loss));
  }
}

template <class S>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const SoftIouParams p, int64_t segments, int64_t length, int access) {
  using T = acc_t<S>;
  constexpr int n = kPack<S>;
  for (int64_t job = blockIdx.x; job < p.groups * segments; job += gridDim.x) {
    const int64_t group = job / segments, begin = job % segments * length;
    const int64_t end = begin + length < p.n ? begin + length : p.n;
    const double both = p.sums[2 * group] + p.eps, either = p.sums[2 * group + 1] + p.eps;
    const double g = widen(static_cast<const S*>(p.grad_loss)[group]);
    // g (both (1 - other) - either other) / either^2
    const T at_zero = static_cast<T>(either == 0 ? 0 : g * both / (either * either));
    const T slope = static_cast<T>(either == 0 ? 0 : g * (both + either) / (either * either));
    const auto write = [&](const void* from, void* to) {
      if (to == nullptr) return;
      const S* other = static_cast<const S*>(from) + group * p.n;
      S* grad = static_cast<S*>(to) + group * p.n;
      for (int64_t at = begin + threadIdx.x * n; at < end; at += kThreads * n) {
        T v[n];
        load_widened(other + at, end - at, access, v);
#pragma unroll
        for (int i = 0; i < n; ++i) v[i] = at_zero - slope * v[i];
        store_narrowed(grad + at, end - at, access, v);
      }
    };
    write(p.target, p.grad_x);
    write(p.x, p.grad_target);
  }
}

// In every group.
template <class S>
int access_of(const SoftIouParams& p) {
  return access_bytes({p.x, p.target, p.grad_x, p.grad_target}, {p.groups > 1 ? p.n : 0}, sizeof(S));
}

}  // namespace

int soft_iou(const SoftIouParams& p, void* workspace, CUstream_st* stream) {
  if (p.groups == 0) return cudaSuccess;
  double* partial = static_cast<double*>(workspace);
  const SumChunks s(p.n);
  return by_dtype(p.dtype, [&]<class S>() {
    if (p.n > 0)
      if (const int error = launch(segments_kernel<S>, grid_for(p.groups * s.count(), 1), kThreads, 0, stream, p,
                                   s.count(), s.length(), partial, access_of<S>(p)))
        return error;
    return launch(groups_kernel<S>, grid_for(p.groups, kThreads), kThreads, 0, stream, p, s.count(),
                  static_cast<const double*>(partial));
  });
}

int soft_iou_backward(const SoftIouParams& p, void*, CUstream_st* stream) {
  if (p.groups == 0 || p.n == 0) return cudaSuccess;
  const SumChunks s(p.n);
  return by_dtype(p.dtype, [&]<class S>() {
    return launch(backward_kernel<S>, grid_for(p.groups * s.count(), 1), kThreads, 0, stream, p, s.count(), s.length(),
                  access_of<S>(p));
  });
}

}  // namespace fastcv::FASTCV_GPU
