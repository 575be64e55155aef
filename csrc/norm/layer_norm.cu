// Layer norm on CUDA: rows are the sets of norm_sums.cuh, and for dweight and dbias columns are; one pass over the
// matrix (norm_sweeps.cuh).
//
// Bytes, of each tensor once: forward 2 reads + 1 write, backward 6 + 1. Prediction for an H200: 85 % of its copy
// bandwidth (4.3 TB/s) on tensors beyond its L2 (60 MB).
#include "norm/layer_norm.h"

#include "norm/norm_sums.cuh"
#include "norm/norm_sweeps.cuh"

namespace fastcv::FASTCV_GPU {
namespace {

template <class S>
struct Forward {
  using T = acc_t<S>;
  static constexpr int kInputs = 1, kOutputs = 1;
  struct Coefficients {
    double weight;
    T bias;
  };
  struct alignas(16) Row {
    double invstd;
    T high, low;
  };
  const S* in[1];
  S* out[1];
  NormVector weight, bias;
  const double *mean, *var;
  double eps;
  __device__ __forceinline__ Row row(int64_t i) const {
    Row made;
    made.invstd = 1 / sqrt(var[i] + eps);
    split(mean[i], made.high, made.low);
    return made;
  }
  template <int n>
  __device__ __forceinline__ void columns(int64_t first, int64_t last, Coefficients (&c)[n]) const {
    double w[n];
    T b[n];
    get_run(weight, first, last, 1.0, w);
    get_run(bias, first, last, T(0), b);
#pragma unroll
    for (int i = 0; i < n; ++i) c[i] = {w[i], b[i]};
  }
  __device__ __forceinline__ void operator()(const Coefficients& k, const Row& row, const T (&x)[1], T (&y)[1]) const {
    y[0] = ((x[0] - row.high) - row.low) * static_cast<T>(k.weight * row.invstd) + k.bias;
  }
};

// Sums along a row: of weight * gradient and of its product with the normalised input, whose standard deviation waits
// for the end.
template <class S>
struct RowTerms {
  static constexpr int kInputs = 2;
  static constexpr bool kByRow = false, kWeighted = true;
  using Coefficients = double;  // mean
  using Row = Nothing;
  const S* in[2];  // x, gradient
  NormVector weights;
  const double* mean;
  __device__ __forceinline__ double coefficients(int64_t row, int64_t) const { return mean[row]; }
  __device__ __forceinline__ void add(double mean, Nothing, const acc_t<S> (&v)[2], double& a, double& b) const {
    const double g = v[1];
    a += g;
    b += g * (v[0] - mean);
  }
};
struct RowFinish {
  double* means;  // [m][2]
  const double* var;
  double eps, l;
  __device__ __forceinline__ void operator()(int64_t row, double a, double b) const {
    means[2 * row] = a / l;
    means[2 * row + 1] = b / sqrt(var[row] + eps) / l;
  }
};
// Sums along a column: of the gradient and of its product with the normalised input.
template <class S>
struct ColumnTerms {
  static constexpr int kInputs = 2;
  static constexpr bool kByRow = true, kWeighted = false;
  using Coefficients = Nothing;
  struct alignas(16) Row {
    double mean, invstd;
  };
  const S* in[2];  // gradient, x
  const double *mean, *var;
  double eps;
  __device__ __forceinline__ Row row(int64_t i) const { return {mean[i], 1 / sqrt(var[i] + eps)}; }
  __device__ __forceinline__ void add(Nothing, const Row& row, const acc_t<S> (&v)[2], double& a, double& b) const {
    const double g = v[0];
    a += g;
    b += g * ((v[1] - row.mean) * row.invstd);
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
struct Backward {
  using T = acc_t<S>;
  static constexpr int kInputs = 2, kOutputs = 1;
  using Coefficients = T;  // weight
  struct Row {
    Spread<T> spread;
    T mean_g, mean_gx;
  };
  const S* in[2];  // gradient, x
  S* out[1];
  NormVector weight;
  const double *mean, *var, *means;
  double eps;
  __device__ __forceinline__ Row row(int64_t i) const {
    Row made;
    made.spread.set(mean[i], var[i], eps);
    made.mean_g = static_cast<T>(means[2 * i]);
    made.mean_gx = static_cast<T>(means[2 * i + 1]);
    return made;
  }
  template <int n>
  __device__ __forceinline__ void columns(int64_t first, int64_t last, T (&c)[n]) const {
    get_run(weight, first, last, T(1), c);
  }
  __device__ __forceinline__ void operator()(T w, const Row& row, const T (&v)[2], T (&dx)[1]) const {
    const T g = v[0] * w;
    dx[0] = row.spread.invstd * (g - row.mean_g - row.spread.normal(v[1]) * row.mean_gx);
  }
};

}  // namespace

int layer_norm(const LayerNormParams& p, void* workspace, CUstream_st* stream) {
  return by_dtype(p.dtype, [&]<class S>() {
    const S* x = static_cast<const S*>(p.x);
    const int error = moments(row_sets(p), x, p.mean, p.var, static_cast<double*>(workspace), stream);
    if (error != 0) return error;
    const Forward<S> rule{{x}, {static_cast<S*>(p.y)}, p.weight, p.bias, p.mean, p.var, p.eps};
    return sweep_matrix<S>(rule, p.m, p.l, stream);
  });
}

// Workspace: means of every row, and the partial sums of rows or of columns.
int layer_norm_backward(const LayerNormBackwardParams& p, void* workspace, CUstream_st* stream) {
  double* means = static_cast<double*>(workspace);
  double* partial = means + 2 * p.m;
  return by_dtype(p.dtype, [&]<class S>() {
    const S *grad = static_cast<const S*>(p.grad), *x = static_cast<const S*>(p.x);
    int error = cudaSuccess;
    if (p.dweight.data != nullptr || p.dbias.data != nullptr)
      error = reduce_sets<S>(column_sets(p), ColumnTerms<S>{{grad, x}, p.mean, p.var, p.eps},
                             ColumnFinish{p.dweight, p.dbias}, partial, stream);
    if (error != 0 || p.dx == nullptr || p.m * p.l == 0) return error;
    error = reduce_sets<S>(row_sets(p), RowTerms<S>{{x, grad}, p.weight, p.mean},
                           RowFinish{means, p.var, p.eps, static_cast<double>(p.l)}, partial, stream);
    if (error != 0) return error;
    const Backward<S> rule{{grad, x}, {static_cast<S*>(p.dx)}, p.weight, p.mean, p.var, means, p.eps};
    return sweep_matrix<S>(rule, p.m, p.l, stream);
  });
}

}  // namespace fastcv::FASTCV_GPU
