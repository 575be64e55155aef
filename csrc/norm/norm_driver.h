// What the drivers of batch, group and layer norm share: vectors of any dtype, the affine maps of a normalisation and
// of its gradient, and statistics of NHWC tensors over all rows.
//
// Rows are cut into blocks and blocks into at most kNormSupers runs (norm.h); a thread takes whole runs, and runs are
// merged in order, so the sums do not depend on the number of threads.
#pragma once
#include "common/scalar.h"
#include "norm/norm_kernels.h"

namespace fastcv {
namespace {

constexpr int64_t kGrain = 1 << 14;  // elements below which a second thread costs more than it saves

[[maybe_unused]] inline int64_t grain_of(int64_t elements_per_task) {
  return max64(1, kGrain / max64(1, elements_per_task));
}
[[maybe_unused]] inline int64_t element_bytes(DType dtype) {
  return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2;
}
[[maybe_unused]] inline double inverse_std(double var, double eps) { return 1 / __builtin_sqrt(var + eps); }

// p + i elements; null stays null.
[[maybe_unused]] inline const void* at(const void* p, int64_t i, int64_t bytes) {
  return p == nullptr ? nullptr : static_cast<const char*>(p) + i * bytes;
}
[[maybe_unused]] inline void* at(void* p, int64_t i, int64_t bytes) {
  return p == nullptr ? nullptr : static_cast<char*>(p) + i * bytes;
}
[[maybe_unused]] inline GradSource at(const GradSource& s, int64_t i, int64_t bytes) {
  return {at(s.g, i, bytes), at(s.x, i, bytes), at(s.y, i, bytes)};
}

[[maybe_unused]] inline double read(const NormVector& v, int64_t i, double absent) {
  if (v.data == nullptr) return absent;
  if (v.dtype == DType::f32) return static_cast<const float*>(v.data)[i];
  if (v.dtype == DType::f64) return static_cast<const double*>(v.data)[i];
  if (v.dtype == DType::bf16) return widen(static_cast<const bf16*>(v.data)[i]);
  return widen(static_cast<const f16*>(v.data)[i]);
}
[[maybe_unused]] inline void write(const NormVector& v, int64_t i, double x) {
  if (v.data == nullptr) return;
  void* p = const_cast<void*>(v.data);
  if (v.dtype == DType::f32) narrow(x, static_cast<float*>(p) + i);
  else if (v.dtype == DType::f64) narrow(x, static_cast<double*>(p) + i);
  else if (v.dtype == DType::bf16) narrow(x, static_cast<bf16*>(p) + i);
  else narrow(x, static_cast<f16*>(p) + i);
}

// Hands out 64-byte aligned pieces of the workspace.
struct Carver {
  char* next;
  template <class T>
  T* take(int64_t count) {
    T* p = reinterpret_cast<T*>(next);
    next += (static_cast<size_t>(count) * sizeof(T) + 63) & ~size_t{63};
    return p;
  }
};

// x as the accumulation type of dtype holds it.
[[maybe_unused]] inline double rounded(DType dtype, double x) {
  return dtype == DType::f64 ? x : static_cast<double>(static_cast<float>(x));
}

[[maybe_unused]] inline Affine affine_of(DType dtype, double mean, double invstd, double weight, double bias) {
  const double scale = invstd * weight, hi = rounded(dtype, mean);
  return {hi, scale, bias - (__builtin_isfinite(mean) ? mean - hi : 0) * scale};
}

// With G = weight * g: dx = invstd * (G - mean(G) - (x - mean) * invstd^2 * mean(G * (x - mean))).
// sum_g and sum_gd are the sums of G and of G * (x - mean) over n values.
[[maybe_unused]] inline GradAffine grad_affine(DType dtype, double n, double mean, double invstd, double weight,
                                               double sum_g, double sum_gd) {
  const double slope = -invstd * invstd * invstd * (sum_gd / n), lo = mean - rounded(dtype, mean);
  return {invstd * weight, slope, -invstd * (sum_g / n) - slope * lo};
}

// f(first row, rows, rows before it in its run, sums of its run) over the blocks of [R][C], a thread per run.
template <class F>
void each_block(const Exec& exec, int64_t R, int64_t C, double* partial, F&& f) {
  const int64_t supers = norm_supers(R, C), super_rows = norm_super_rows(R, C), block = norm_block_rows(C);
  parallel_for(exec, supers, grain_of(super_rows * C), [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) {
      double* a = partial + 2 * u * C;
      for (int64_t c = 0; c < 2 * C; ++c) a[c] = 0;
      const int64_t first = u * super_rows, last = min64(first + super_rows, R);
      for (int64_t r = first; r < last; r += block) f(r, min64(block, last - r), r - first, a, a + C);
    }
  });
}

// mean[c] and m2[c] of the R rows at x; partial has 2 * norm_supers(R, C) * C doubles.
[[maybe_unused]] void rows_moments(const Exec& exec, const NormKernels& kernels, const void* x, int64_t bytes,
                                   int64_t R, int64_t C, double* partial, double* __restrict mean,
                                   double* __restrict m2) {
  each_block(exec, R, C, partial, [&](int64_t first, int64_t rows, int64_t before, double* a, double* b) {
    kernels.row_moments(at(x, first * C, bytes), {rows, C}, before, a, b);
  });
  const int64_t supers = norm_supers(R, C), super_rows = norm_super_rows(R, C);
  for (int64_t c = 0; c < C; ++c) {
    mean[c] = partial[c];
    m2[c] = partial[C + c];
  }
  for (int64_t u = 1; u < supers; ++u) {
    const double* __restrict a = partial + 2 * u * C;
    const double before = static_cast<double>(u * super_rows);
    const double rows = static_cast<double>(min64(super_rows, R - u * super_rows)), share = rows / (before + rows);
    for (int64_t c = 0; c < C; ++c) {
      const double delta = a[c] - mean[c], next = mean[c] + delta * share, both = mean[c] + a[c];
      m2[c] = m2[c] + a[C + c] + delta * delta * (before * share);
      mean[c] = delta - delta == 0 ? next : both;
    }
  }
}

// sum_g[c] and sum_gd[c] over the R rows at `from`; partial as in rows_moments.
// also(first, rows) runs behind each block of rows while it is in cache.
template <class Also>
void rows_grad_sums(const Exec& exec, const NormKernels& kernels, const GradSource& from, int64_t bytes, int64_t R,
                    int64_t C, RowAffine affine, const Activation& act, double* partial, double* __restrict sum_g,
                    double* __restrict sum_gd, Also&& also) {
  each_block(exec, R, C, partial, [&](int64_t first, int64_t rows, int64_t, double* a, double* b) {
    kernels.row_grad_sums(at(from, first * C, bytes), {rows, C}, affine, act, a, b);
    also(first, rows);
  });
  for (int64_t c = 0; c < C; ++c) sum_g[c] = sum_gd[c] = 0;
  for (int64_t u = 0; u < norm_supers(R, C); ++u) {
    const double* __restrict a = partial + 2 * u * C;
    for (int64_t c = 0; c < C; ++c) {
      sum_g[c] += a[c];
      sum_gd[c] += a[C + c];
    }
  }
}

// f(first row, rows) over R rows of C elements in parallel; each thread goes backwards, because what it read last is
// still in its cache.
template <class F>
void rows_backwards(const Exec& exec, int64_t R, int64_t C, F&& f) {
  const int64_t step = max64(1, kGrain / max64(1, C)), steps = ceil_div(R, step);
  parallel_for(exec, steps, 1, [&](int64_t begin, int64_t end) {
    for (int64_t u = end - 1; u >= begin; --u) f(u * step, min64(step, R - u * step));
  });
}

// isa::batch_norm and the like: the driver `drive` with the kernels of one instruction set.
#define FASTCV_NORM_ISA(isa, op, Params)       \
  namespace isa {                              \
  void op(const Params& p, const Exec& exec) { \
    NormKernels kernels{};                     \
    set_run_kernels(p.dtype, kernels);         \
    set_row_kernels(p.dtype, kernels);         \
    drive(p, exec, kernels);                   \
  }                                            \
  }
#if defined(__x86_64__)
#define FASTCV_NORM_DRIVER(op, Params)  \
  FASTCV_NORM_ISA(portable, op, Params) \
  FASTCV_NORM_ISA(avx2, op, Params)     \
  FASTCV_NORM_ISA(avx512, op, Params)
#else
#define FASTCV_NORM_DRIVER(op, Params) FASTCV_NORM_ISA(portable, op, Params)
#endif

}  // namespace
}  // namespace fastcv
