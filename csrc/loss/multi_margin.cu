// multi_margin_loss and its gradient on CUDA: a warp per row, which it reads twice where it writes a gradient.
#include "loss/multi_margin.h"

#include "loss/loss.cuh"

namespace fastcv::FASTCV_GPU {
namespace {

template <class S>
__global__ void __launch_bounds__(kThreads) rows_kernel(const MultiMarginParams p, double* losses) {
  using T = acc_t<S>;
  const bool each = p.reduction == Reduction::none;
  const int lane = threadIdx.x % kWarp;
  for (int64_t r = global_thread() / kWarp; r < p.rows; r += global_threads() / kWarp) {
    const S* x = static_cast<const S*>(p.x) + r * p.classes;
    const int64_t t = p.target[r];
    if (t < 0 || t >= p.classes) {
      report(p.bad, r);
      continue;
    }
    const T weight = p.weight == nullptr ? T(1) : widen(static_cast<const S*>(p.weight)[t]);
    const T scale = weight / static_cast<T>(p.classes), reach = static_cast<T>(p.margin) - widen(x[t]);
    // How far class c is inside the margin; a NaN counts as outside.
    const auto slack = [&](int64_t c) {
      const T z = reach + widen(x[c]);
      return c != t && z > 0 ? z : T(0);
    };
    if (p.loss != nullptr) {
      T loss = 0;
      for (int64_t c = lane; c < p.classes; c += kWarp) loss += p.p == 1 ? slack(c) : slack(c) * slack(c);
      loss = reduce_warp(loss, Sum()) * scale;
      if (lane == 0 && each) static_cast<S*>(p.loss)[r] = narrow<S>(loss);
      if (lane == 0 && !each) losses[r] = loss;
    }
    if (p.grad == nullptr) continue;
    S* grad = static_cast<S*>(p.grad) + r * p.classes;
    T g = widen(static_cast<const S*>(p.grad_loss)[each ? r : 0]) * scale, pull = 0;
    if (p.reduction == Reduction::mean) g /= static_cast<T>(p.rows);
    for (int64_t c = lane; c < p.classes; c += kWarp) {
      const T z = slack(c), slope = z > 0 ? (p.p == 1 ? g : 2 * g * z) : T(0);
      pull += slope;
      if (c != t) grad[c] = narrow<S>(slope);
    }
    pull = reduce_warp(pull, Sum());
    if (lane == 0) grad[t] = narrow<S>(-pull);
  }
}

struct Terms {
  const double* losses;
  __device__ __forceinline__ void operator()(int64_t r, double& a, double&) const { a += losses[r]; }
};
template <class S>
struct Finish {
  S* loss;
  double divisor;
  __device__ __forceinline__ void operator()(double a, double) const {
    *loss = narrow<S>(static_cast<acc_t<S>>(a / divisor));
  }
};

}  // namespace

int multi_margin(const MultiMarginParams& p, void* workspace, CUstream_st* stream) {
  double* losses = static_cast<double*>(workspace);
  return by_dtype(p.dtype, [&]<class S>() {
    const int error =
        p.rows == 0 ? 0 : launch(rows_kernel<S>, grid_for(p.rows, kThreads / kWarp), kThreads, 0, stream, p, losses);
    if (error != 0 || p.loss == nullptr || p.reduction == Reduction::none) return error;
    const double divisor = p.reduction == Reduction::mean ? static_cast<double>(p.rows) : 1;
    return sum_all(p.rows, Terms{losses}, Finish<S>{static_cast<S*>(p.loss), divisor}, losses + p.rows, stream);
  });
}

}  // namespace fastcv::FASTCV_GPU
