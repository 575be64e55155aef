// Layer norm on CUDA: rows are the sets of norm.cuh, and for dweight and dbias columns are.
#include "norm/layer_norm.h"

#include "norm/norm.cuh"

namespace fastcv::FASTCV_GPU {
namespace {

template <class S>
__global__ void __launch_bounds__(kThreads) apply_kernel(const LayerNormParams p, const Divider l) {
  using T = acc_t<S>;
  for (int64_t i = global_thread(); i < p.m * p.l; i += global_threads()) {
    int64_t column = i;
    const int64_t row = l.split(column);
    const T scale = static_cast<T>(get(p.weight, column, 1) / sqrt(p.var[row] + p.eps));
    const T normal = Split<T>(p.mean[row]).below(widen(static_cast<const S*>(p.x)[i]));
    static_cast<S*>(p.y)[i] = narrow<S>(normal * scale + static_cast<T>(get(p.bias, column, 0)));
  }
}

template <class S>
struct Gradient {
  LayerNormBackwardParams p;
  __device__ __forceinline__ double grad(int64_t at) const { return widen(static_cast<const S*>(p.grad)[at]); }
  __device__ __forceinline__ double normal(int64_t row, int64_t at) const {
    return (widen(static_cast<const S*>(p.x)[at]) - p.mean[row]) / sqrt(p.var[row] + p.eps);
  }
};
template <class S>
struct RowTerms {
  Gradient<S> of;
  __device__ __forceinline__ void operator()(int64_t row, int64_t at, int64_t base, double& a, double& b) const {
    const double g = of.grad(at) * get(of.p.weight, at - base, 1);
    a += g;
    b += g * of.normal(row, at);
  }
};
struct RowFinish {
  double* means;  // [m][2]
  double l;
  __device__ __forceinline__ void operator()(int64_t row, double a, double b) const {
    means[2 * row] = a / l;
    means[2 * row + 1] = b / l;
  }
};
template <class S>
struct ColumnTerms {
  Gradient<S> of;
  Divider l;
  __device__ __forceinline__ void operator()(int64_t, int64_t at, int64_t, double& a, double& b) const {
    const double g = of.grad(at);
    a += g;
    b += g * of.normal(l.divide(at), at);
  }
};
struct ColumnFinish {
  NormVector dweight, dbias;
  __device__ __forceinline__ void operator()(int64_t column, double a, double b) const {
    put(dbias, column, a);
    put(dweight, column, b);
  }
};

template <class S>
__global__ void __launch_bounds__(kThreads)
    apply_backward_kernel(const LayerNormBackwardParams p, const Divider l, const double* means) {
  using T = acc_t<S>;
  for (int64_t i = global_thread(); i < p.m * p.l; i += global_threads()) {
    int64_t column = i;
    const int64_t row = l.split(column);
    const T invstd = static_cast<T>(1 / sqrt(p.var[row] + p.eps));
    const T normal = Split<T>(p.mean[row]).below(widen(static_cast<const S*>(p.x)[i])) * invstd;
    const T g = static_cast<T>(widen(static_cast<const S*>(p.grad)[i])) * static_cast<T>(get(p.weight, column, 1));
    static_cast<S*>(p.dx)[i] =
        narrow<S>(invstd * (g - static_cast<T>(means[2 * row]) - normal * static_cast<T>(means[2 * row + 1])));
  }
}

}  // namespace

int layer_norm(const LayerNormParams& p, void* workspace, CUstream_st* stream) {
  return by_dtype(p.dtype, [&]<class S>() {
    const int error =
        moments(row_sets(p), static_cast<const S*>(p.x), p.mean, p.var, static_cast<double*>(workspace), stream);
    if (error != 0 || p.m * p.l == 0) return error;
    return launch(apply_kernel<S>, grid_for(p.m * p.l, kThreads), kThreads, 0, stream, p, Divider(p.l));
  });
}

// Workspace: means of every row, and the partial sums of rows or of columns.
int layer_norm_backward(const LayerNormBackwardParams& p, void* workspace, CUstream_st* stream) {
  double* means = static_cast<double*>(workspace);
  double* partial = means + 2 * p.m;
  return by_dtype(p.dtype, [&]<class S>() {
    int error = cudaSuccess;
    if (p.dweight.data != nullptr || p.dbias.data != nullptr)
      error = reduce_sets(column_sets(p), ColumnTerms<S>{{p}, Divider(p.l)}, ColumnFinish{p.dweight, p.dbias}, partial,
                          stream);
    if (error != 0 || p.dx == nullptr || p.m * p.l == 0) return error;
    error = reduce_sets(row_sets(p), RowTerms<S>{{p}}, RowFinish{means, static_cast<double>(p.l)}, partial, stream);
    if (error != 0) return error;
    return launch(apply_backward_kernel<S>, grid_for(p.m * p.l, kThreads), kThreads, 0, stream, p, Divider(p.l),
                  static_cast<const double*>(means));
  });
}

}  // namespace fastcv::FASTCV_GPU
