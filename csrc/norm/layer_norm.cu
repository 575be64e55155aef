// Layer norm on CUDA: rows are the sets of norm_sums.cuh, and for dweight and dbias columns are; one pass over the
// matrix (norm_sweeps.cuh). Rows that fit a warp's registers are read once.
//
// Bytes, of each tensor once: forward 2 reads + 1 write, 1 + 1 by warps, backward 6 + 1, 4 + 1 by warps. Prediction for
// an H200: 85 % of its copy bandwidth (4.3 TB/s) on tensors beyond its L2 (60 MB).
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

// A warp takes `rows` rows at a time, lane by lane packs of each, of which it keeps kPacks. Mean and variance are those
// of x - (the mean as float sums give it), which costs no digits and no conversion to double.
template <class S, int packs, int rows>
__global__ void __launch_bounds__(kThreads, 2) warp_kernel(const LayerNormParams p, int access) {
  using T = acc_t<S>;
  constexpr int n = kPack<S>;
  const int lane = threadIdx.x % kWarp;
  const int64_t first = global_thread() / kWarp * rows;
  const S* x = static_cast<const S*>(p.x);
  const T one_over = T(1) / static_cast<T>(p.l);
  Pack<S, n> in[rows][packs];
#pragma unroll
  for (int r = 0; r < rows; ++r)
#pragma unroll
    for (int k = 0; k < packs; ++k) {
      const int column = (k * kWarp + lane) * n;
      if (first + r < p.m && column < p.l)
        in[r][k] = load_elements(x + (first + r) * p.l + column, p.l - column, access);
    }
#pragma unroll
  for (int r = 0; r < rows; ++r) {
    const int64_t row = first + r;
    if (row >= p.m) return;  // the whole warp
    const auto each = [&](auto&& f) {
#pragma unroll
      for (int k = 0; k < packs; ++k)
#pragma unroll
        for (int i = 0; i < n; ++i)
          if ((k * kWarp + lane) * n + i < p.l) f(widen(in[r][k].at[i]));
    };
    T near = 0, a = 0, b = 0;
    each([&](T v) { near += v * one_over; });
    near = reduce_warp(near, Sum());
    each([&](T v) {
      const T d = v - near;
      a += d;
      b += d * d;
    });
    const double shift = static_cast<double>(reduce_warp(a, Sum())) / static_cast<double>(p.l);
    const double v = static_cast<double>(reduce_warp(b, Sum())) / static_cast<double>(p.l) - shift * shift;
    const double mean = near + shift, var = v < 0 ? 0 : v;
    if (lane == 0) p.mean[row] = mean, p.var[row] = var;
    Spread<T> spread;
    spread.set(mean, var, p.eps);
#pragma unroll
    for (int k = 0; k < packs; ++k) {
      const int column = (k * kWarp + lane) * n;
      if (column >= p.l) continue;
      T w[n], bias[n];
      get_run(p.weight, column, p.l - 1, T(1), w);
      get_run(p.bias, column, p.l - 1, T(0), bias);
      Pack<S, n> made;
#pragma unroll
      for (int i = 0; i < n; ++i) made.at[i] = narrow<S>(spread.normal(widen(in[r][k].at[i])) * w[i] + bias[i]);
      store_elements(static_cast<S*>(p.y) + row * p.l + column, p.l - column, access, made);
    }
  }
}

// The gradient of x, from one look at both rows: a warp keeps them, and adds its lanes' sums up in double.
template <class S, int packs, int rows>
__global__ void __launch_bounds__(kThreads, packs* kPack<S> == 64 ? 1 : 2)
    backward_warp_kernel(const LayerNormBackwardParams p, int access) {
  using T = acc_t<S>;
  constexpr int n = kPack<S>;
  const int lane = threadIdx.x % kWarp;
  const int64_t first = global_thread() / kWarp * rows;
  const S* const in[2] = {static_cast<const S*>(p.grad), static_cast<const S*>(p.x)};
  Pack<S, n> kept[rows][packs][2];
#pragma unroll
  for (int r = 0; r < rows; ++r)
#pragma unroll
    for (int k = 0; k < packs; ++k) {
      const int column = (k * kWarp + lane) * n;
      if (first + r < p.m && column < p.l) load_all(in, (first + r) * p.l + column, p.l - column, access, kept[r][k]);
    }
#pragma unroll
  for (int r = 0; r < rows; ++r) {
    const int64_t row = first + r;
    if (row >= p.m) return;  // the whole warp
    Spread<T> spread;
    spread.set(p.mean[row], p.var[row], p.eps);
    // f(pack, column, weights) for each pack of this lane that is there.
    const auto each = [&](auto&& f) {
#pragma unroll
      for (int k = 0; k < packs; ++k) {
        const int column = (k * kWarp + lane) * n;
        if (column >= p.l) continue;
        T w[n];
        get_run(p.weight, column, p.l - 1, T(1), w);
        f(k, column, w);
      }
    };
    T a = 0, b = 0;
    each([&](int k, int column, const T(&w)[n]) {
#pragma unroll
      for (int i = 0; i < n; ++i) {
        if (column + i >= p.l) continue;
        const T g = static_cast<T>(widen(kept[r][k][0].at[i])) * w[i];
        a += g;
        b += g * spread.normal(widen(kept[r][k][1].at[i]));
      }
    });
    const double l = static_cast<double>(p.l);
    const T mean_g = static_cast<T>(reduce_warp(static_cast<double>(a), Sum()) / l);
    const T mean_gx = static_cast<T>(reduce_warp(static_cast<double>(b), Sum()) / l);
    each([&](int k, int column, const T(&w)[n]) {
      Pack<S, n> made;
#pragma unroll
      for (int i = 0; i < n; ++i) {
        const T g = static_cast<T>(widen(kept[r][k][0].at[i])) * w[i];
        made.at[i] = narrow<S>(spread.invstd * (g - mean_g - spread.normal(widen(kept[r][k][1].at[i])) * mean_gx));
      }
      store_elements(static_cast<S*>(p.dx) + row * p.l + column, p.l - column, access, made);
    });
  }
}

// run<packs, rows>(blocks) with so many packs a lane and rows a warp that rows of l elements fit.
template <class S, class Run>
int by_length(int64_t m, int64_t l, Run&& run) {
  const auto go = [&]<int packs, int rows>() {
    return run.template operator()<packs, rows>(
        static_cast<unsigned>((m * kWarp + kThreads * rows - 1) / (kThreads * rows)));
  };
  if (m == 0) return cudaSuccess;
  const int64_t lanes = packs<S>(l);
  if (lanes <= kWarp) return go.template operator()<1, 4>();
  if (lanes <= 2 * kWarp) return go.template operator()<2, 2>();
  if (lanes <= 4 * kWarp) return go.template operator()<4, 1>();
  return go.template operator()<8, 1>();
}

template <class S>
int parameter_gradients(const LayerNormBackwardParams& p, double* partial, CUstream_st* stream) {
  if (p.dweight.data == nullptr && p.dbias.data == nullptr) return cudaSuccess;
  const ColumnTerms<S> terms{{static_cast<const S*>(p.grad), static_cast<const S*>(p.x)}, p.mean, p.var, p.eps};
  return reduce_sets<S>(column_sets(p), terms, ColumnFinish{p.dweight, p.dbias}, partial, stream);
}

}  // namespace

int layer_norm_warp(const LayerNormParams& p, void*, CUstream_st* stream) {
  return by_dtype(p.dtype, [&]<class S>() {
    const int access = access_bytes({p.x, p.y}, {p.l}, sizeof(S));
    return by_length<S>(p.m, p.l, [&]<int packs, int rows>(unsigned blocks) {
      return launch(warp_kernel<S, packs, rows>, blocks, kThreads, 0, stream, p, access);
    });
  });
}

int layer_norm(const LayerNormParams& p, void* workspace, CUstream_st* stream) {
  return by_dtype(p.dtype, [&]<class S>() {
    const S* x = static_cast<const S*>(p.x);
    const int error = moments(row_sets(p), x, p.mean, p.var, static_cast<double*>(workspace), stream);
    if (error != 0) return error;
    const Forward<S> rule{{x}, {static_cast<S*>(p.y)}, p.weight, p.bias, p.mean, p.var, p.eps};
    return sweep_matrix<S>(rule, p.m, p.l, stream);
  });
}

// Workspace: the partial sums of columns.
int layer_norm_backward_warp(const LayerNormBackwardParams& p, void* workspace, CUstream_st* stream) {
  return by_dtype(p.dtype, [&]<class S>() {
    const int error = parameter_gradients<S>(p, static_cast<double*>(workspace), stream);
    if (error != 0 || p.dx == nullptr) return error;
    const int access = access_bytes({p.grad, p.x, p.dx}, {p.l}, sizeof(S));
    return by_length<S>(p.m, p.l, [&]<int packs, int rows>(unsigned blocks) {
      return launch(backward_warp_kernel<S, packs, rows>, blocks, kThreads, 0, stream, p, access);
    });
  });
}

// Workspace: means of every row, and the partial sums of rows or of columns.
int layer_norm_backward(const LayerNormBackwardParams& p, void* workspace, CUstream_st* stream) {
  double* means = static_cast<double*>(workspace);
  double* partial = means + 2 * p.m;
  return by_dtype(p.dtype, [&]<class S>() {
    const S *grad = static_cast<const S*>(p.grad), *x = static_cast<const S*>(p.x);
    int error = parameter_gradients<S>(p, partial, stream);
    if (error != 0 || p.dx == nullptr || p.m * p.l == 0) return error;
    error = reduce_sets<S>(row_sets(p), RowTerms<S>{{x, grad}, p.weight, p.mean},
                           RowFinish{means, p.var, p.eps, static_cast<double>(p.l)}, partial, stream);
    if (error != 0) return error;
    const Backward<S> rule{{grad, x}, {static_cast<S*>(p.dx)}, p.weight, p.mean, p.var, means, p.eps};
    return sweep_matrix<S>(rule, p.m, p.l, stream);
  });
}

}  // namespace fastcv::FASTCV_GPU
