// batch_norm: y = act((x - mean[c]) / sqrt(var[c] + eps) * weight[c] + bias[c] + residual), and its gradients.
//
// training: mean and var (biased) are those of the n * s values of each channel; they are written to save_mean and
// save_var in double. Otherwise mean and var are read. x, residual and y are dense and share one order of elements:
// [n][c][s] or, channels_last (which also serves s == 1 best), [n][s][c]. residual may be null. y overlaps no input.
// backward: `y` is the saved result where a residual was added (the activation's gate is read off it) and null
// elsewhere (the gate is recomputed from x). Outputs that are null are not computed; dresidual is the gradient behind
// the gate. An infinity or NaN in a channel makes that channel's results NaN (training), as torch; n * s == 0 gives
// zero statistics and zero dweight and dbias.
// Of a batch that is spread over processes, each part takes three calls: the forward in training with y == nullptr,
// which leaves its statistics; the forward with the merged ones; and the backward with sums, the two totals that its
// formula needs, and their count.
#pragma once
#include "norm/norm.h"

namespace fastcv {

struct BatchNormParams {
  const void* x;
  const void* residual;
  void* y;
  NormVector weight, bias, mean, var;
  double* save_mean;
  double* save_var;
  int64_t n, c, s;
  bool channels_last, training;
  DType dtype;
  double eps;
  Activation act;
};

struct BatchNormBackwardParams {
  const void* grad;
  const void* x;
  const void* y;
  void* dx;
  void* dresidual;
  NormVector weight, bias, mean, var, dweight, dbias;
  int64_t n, c, s;
  bool channels_last, training;
  DType dtype;
  double eps;
  Activation act;
  const double*
      sums;  // training: [2][c], of grad and of grad * (x - mean) / std over `count` values; null: of these n * s
  int64_t count;
};

// running = (1 - momentum) * running + momentum * statistic, with the unbiased variance of `count` values; statistics
// are [copies][c] and averaged over copies (instance norm keeps one set for all images).
struct BatchNormUpdateParams {
  NormVector running_mean, running_var;  // written
  const double* mean;
  const double* var;
  int64_t copies, c, count;
  double momentum;
};

extern const VariantTable<BatchNormParams> batch_norm_table;
extern const VariantTable<BatchNormBackwardParams> batch_norm_backward_table;
extern const VariantTable<BatchNormUpdateParams> batch_norm_update_table;

// Scratch bytes of the kernels of any instruction set, and of the CUDA kernel.
size_t batch_norm_workspace(const BatchNormParams&);
size_t batch_norm_gpu_workspace(const BatchNormParams&);

void batch_norm_ref(const BatchNormParams&, const Exec&);
void batch_norm_backward_ref(const BatchNormBackwardParams&, const Exec&);
void batch_norm_update_ref(const BatchNormUpdateParams&, const Exec&);
namespace portable {
void batch_norm(const BatchNormParams&, const Exec&);
void batch_norm_backward(const BatchNormBackwardParams&, const Exec&);
}  // namespace portable
namespace avx2 {
void batch_norm(const BatchNormParams&, const Exec&);
void batch_norm_backward(const BatchNormBackwardParams&, const Exec&);
}  // namespace avx2
namespace avx512 {
void batch_norm(const BatchNormParams&, const Exec&);
void batch_norm_backward(const BatchNormBackwardParams&, const Exec&);
}  // namespace avx512

#define FASTCV_NORM_KERNELS(gpu)                                                                                  \
  namespace gpu {                                                                                                 \
  FASTCV_IF_LINKED int batch_norm(const BatchNormParams&, void* workspace, CUstream_st* stream);                  \
  FASTCV_IF_LINKED int batch_norm_backward(const BatchNormBackwardParams&, void* workspace, CUstream_st* stream); \
  FASTCV_IF_LINKED int batch_norm_update(const BatchNormUpdateParams&, void* workspace, CUstream_st* stream);     \
  }
FASTCV_NORM_KERNELS(cuda)
FASTCV_NORM_KERNELS(emulated)
#undef FASTCV_NORM_KERNELS

}  // namespace fastcv
