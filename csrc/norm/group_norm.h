// group_norm: y = (x - mean) / sqrt(var + eps) * weight[c] + bias[c] with mean and biased variance over the c / groups
// channels and s positions of each group of each image, and its gradients. Instance norm is groups == c.
//
// x and y are dense: [n][c][s] or, channels_last (which also serves s == 1 best), [n][s][c]. groups divides c.
// mean and var are [n][groups] in double: written by the forward kernel, read by the backward kernel.
// Outputs that are null are not computed. n * s * c == 0 gives zero statistics and zero dweight and dbias.
#pragma once
#include "norm/norm.h"

namespace fastcv {

struct GroupNormParams {
  const void* x;
  void* y;
  NormVector weight, bias;
  double* mean;
  double* var;
  int64_t n, c, s, groups;
  bool channels_last;
  DType dtype;
  double eps;
};

struct GroupNormBackwardParams {
  const void* grad;
  const void* x;
  void* dx;
  NormVector weight, dweight, dbias;
  const double* mean;
  const double* var;
  int64_t n, c, s, groups;
  bool channels_last;
  DType dtype;
  double eps;
};

// Channels_last: scratch for one image: its partial sums and at most eight numbers per channel.
static inline int64_t group_norm_image_bytes(int64_t c, int64_t s) {
  return c * (2 * norm_supers(s, c) + 8) * static_cast<int64_t>(sizeof(double)) + 16 * 64;
}

extern const VariantTable<GroupNormParams> group_norm_table;
extern const VariantTable<GroupNormBackwardParams> group_norm_backward_table;

void group_norm_ref(const GroupNormParams&, const Exec&);
void group_norm_backward_ref(const GroupNormBackwardParams&, const Exec&);
namespace portable {
void group_norm(const GroupNormParams&, const Exec&);
void group_norm_backward(const GroupNormBackwardParams&, const Exec&);
}  // namespace portable
namespace avx2 {
void group_norm(const GroupNormParams&, const Exec&);
void group_norm_backward(const GroupNormBackwardParams&, const Exec&);
}  // namespace avx2
namespace avx512 {
void group_norm(const GroupNormParams&, const Exec&);
void group_norm_backward(const GroupNormBackwardParams&, const Exec&);
}  // namespace avx512

#define FASTCV_NORM_KERNELS(gpu)                                                                                  \
  namespace gpu {                                                                                                 \
  FASTCV_IF_LINKED int group_norm(const GroupNormParams&, void* workspace, CUstream_st* stream);                  \
  FASTCV_IF_LINKED int group_norm_staged(const GroupNormParams&, void* workspace, CUstream_st* stream);           \
  FASTCV_IF_LINKED int group_norm_backward(const GroupNormBackwardParams&, void* workspace, CUstream_st* stream); \
  }
FASTCV_NORM_KERNELS(cuda)
FASTCV_NORM_KERNELS(emulated)
#undef FASTCV_NORM_KERNELS

}  // namespace fastcv
