// layer_norm: y = (x - mean) / sqrt(var + eps) * weight[l] + bias[l] with mean and biased variance over each of m rows
// of l contiguous elements, and its gradients.
//
// mean and var are [m] in double: written by the forward kernel, read by the backward kernel. weight, bias, dweight and
// dbias have l elements. Outputs that are null are not computed. m * l == 0 gives zero statistics, dweight and dbias.
#pragma once
#include "norm/norm.h"

namespace fastcv {

struct LayerNormParams {
  const void* x;
  void* y;
  NormVector weight, bias;
  double* mean;
  double* var;
  int64_t m, l;
  DType dtype;
  double eps;
};

struct LayerNormBackwardParams {
  const void* grad;
  const void* x;
  void* dx;
  NormVector weight, dweight, dbias;
  const double* mean;
  const double* var;
  int64_t m, l;
  DType dtype;
  double eps;
};

// Rows that share one partial sum of dweight and dbias; depends on the shape alone.
static inline int64_t layer_norm_super_rows(int64_t m) {
  const int64_t rows = (m + kNormSupers - 1) / kNormSupers;
  return rows < 16 ? 16 : rows;
}

// Packs of 16 bytes of the longest row that a warp keeps in its registers on CUDA.
constexpr int64_t kLayerNormWarpPacks = 256;

extern const VariantTable<LayerNormParams> layer_norm_table;
extern const VariantTable<LayerNormBackwardParams> layer_norm_backward_table;

void layer_norm_ref(const LayerNormParams&, const Exec&);
void layer_norm_backward_ref(const LayerNormBackwardParams&, const Exec&);
namespace portable {
void layer_norm(const LayerNormParams&, const Exec&);
void layer_norm_backward(const LayerNormBackwardParams&, const Exec&);
}  // namespace portable
namespace avx2 {
void layer_norm(const LayerNormParams&, const Exec&);
void layer_norm_backward(const LayerNormBackwardParams&, const Exec&);
}  // namespace avx2
namespace avx512 {
void layer_norm(const LayerNormParams&, const Exec&);
void layer_norm_backward(const LayerNormBackwardParams&, const Exec&);
}  // namespace avx512

#define FASTCV_NORM_KERNELS(gpu)                                                                                  \
  namespace gpu {                                                                                                 \
  FASTCV_IF_LINKED int layer_norm(const LayerNormParams&, void* workspace, CUstream_st* stream);                  \
  FASTCV_IF_LINKED int layer_norm_warp(const LayerNormParams&, void* workspace, CUstream_st* stream);             \
  FASTCV_IF_LINKED int layer_norm_backward(const LayerNormBackwardParams&, void* workspace, CUstream_st* stream); \
  FASTCV_IF_LINKED int layer_norm_backward_warp(const LayerNormBackwardParams&, void* workspace, CUstream_st*);   \
  }
FASTCV_NORM_KERNELS(cuda)
FASTCV_NORM_KERNELS(emulated)
#undef FASTCV_NORM_KERNELS

}  // namespace fastcv
