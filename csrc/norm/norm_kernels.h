// The inner loops of the norm family, one set per dtype, behind pointers: the drivers (batch_norm.cpp,
// group_norm.cpp) cut the work, know no element and no instruction set, and are compiled once.
// Two shapes of memory:
//   runs   contiguous elements that share one parameter set (a plane of NCHW, a group)   norm_runs_simd.cpp
//   rows   contiguous channels, each with parameters of its own (a pixel of NHWC)         norm_rows_simd.cpp
//
// Statistics: within a chunk of at most kChunk elements (a block of rows) the deviations from a guess of its mean, made
// from its first elements, are summed in the accumulation type; where the guess turns out to be more than a standard
// deviation off, once more about the better one. Chunks are merged in double by Chan's formula, always in index order.
// A large mean costs nothing and an outlier spoils only its own chunk.
// Normalisation: y = (x - hi) * scale + shift, where hi is the mean rounded to the accumulation type and shift carries
// what the rounding left, so that no cancellation happens after rounding.
#pragma once
#include "norm/norm.h"

namespace fastcv {

// y = act((x - hi) * scale + shift). Parameters travel as doubles and are used in the accumulation type; hi is exact in
// it.
struct Affine {
  double hi, scale, shift;
};
// dx = a * g + b * (x - hi) + c
struct GradAffine {
  double a, b, c;
};
struct Moments {
  double mean, m2;  // m2: sum of squared deviations from the mean
};
struct GradSums {
  double g, gd;  // sum of the gradient, and of the gradient times (x - hi)
};

// `count` stretches of `len` elements, `stride` elements from one to the next (forwards or backwards).
struct Pieces {
  int64_t count, stride, len;
};
// [rows][channels], with parameters as arrays [channels].
struct Rows {
  int64_t count, channels;
};
struct RowAffine {
  const double *hi, *scale, *shift;
};
struct RowGradAffine {
  const double *a, *b, *c;
};

// Where the gradient of an element comes from: g through the activation's gate, which is read off y (the saved result)
// or, if that is null, off the pre-activation recomputed from x.
struct GradSource {
  const void *g, *x, *y;
};

// apply: residual may be null. grad_apply: dresidual = the gradient behind the gate; dx and dresidual may be null;
// without `full` only a counts, and x is not looked at, so that its infinities do no harm.
struct NormKernels {
  Moments (*run_moments)(const void* x, Pieces);
  void (*run_apply)(const void* x, const void* residual, void* y, Pieces, Affine, Activation);
  GradSums (*run_grad_sums)(GradSource, Pieces, Affine, Activation);
  void (*run_grad_apply)(GradSource, void* dx, void* dresidual, Pieces, bool full, Affine, GradAffine, Activation);
  // Merges the moments of these rows into mean and m2, which hold those of `before` rows.
  void (*row_moments)(const void* x, Rows, int64_t before, double* mean, double* m2);
  void (*row_apply)(const void* x, const void* residual, void* y, Rows, RowAffine, Activation);
  // Adds to sum_g and sum_gd.
  void (*row_grad_sums)(GradSource, Rows, RowAffine, Activation, double* sum_g, double* sum_gd);
  void (*row_grad_apply)(GradSource, void* dx, void* dresidual, Rows, bool full, RowAffine, RowGradAffine, Activation);
};

#define FASTCV_NORM_KERNELS(isa)             \
  namespace isa {                            \
  void set_run_kernels(DType, NormKernels&); \
  void set_row_kernels(DType, NormKernels&); \
  }
FASTCV_NORM_KERNELS(portable)
FASTCV_NORM_KERNELS(avx2)
FASTCV_NORM_KERNELS(avx512)
#undef FASTCV_NORM_KERNELS

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline bool is_identity(const Activation& a) { return a.slope == 1 && !(a.cap > 0); }

// Adds nb values with moments b to na values with moments a. An infinite mean stays infinite, its m2 is NaN.
static inline void merge(double na, Moments& a, double nb, Moments b) {
  if (na == 0) {
    a = b;
    return;
  }
  const double delta = b.mean - a.mean, share = nb / (na + nb);
  if (!__builtin_isfinite(delta)) {
    a = {a.mean + b.mean, __builtin_nan("")};
  } else {
    a.mean += delta * share;
    a.m2 += b.m2 + delta * delta * (na * share);
  }
}

}  // namespace fastcv
