// local_response_norm: y = x * (k + alpha / size * sum of x[j]^2)^-beta, j over the channels c - before .. c + after
// that exist, and its gradient.
//
// x and y are dense: [n][c][s] or, channels_last, [n][s][c]. before = size / 2 and after = (size - 1) / 2, both cut to
// c. scale = alpha / size. A base below zero gives NaN, as pow.
#pragma once
#include "norm/norm.h"

namespace fastcv {

struct LocalResponseNormParams {
  const void* x;
  const void* grad;  // backward only
  void* y;           // the result, or dx
  int64_t n, c, s, before, after;
  bool channels_last;
  DType dtype;
  double scale, beta, k;
};

extern const VariantTable<LocalResponseNormParams> local_response_norm_table;
extern const VariantTable<LocalResponseNormParams> local_response_norm_backward_table;

// Scratch bytes per thread: channels of four vectors, twice, and three rows with margins.
static inline size_t local_response_norm_scratch(int64_t c) { return static_cast<size_t>(c) * 640 + 4096; }

void local_response_norm_ref(const LocalResponseNormParams&, const Exec&);
void local_response_norm_backward_ref(const LocalResponseNormParams&, const Exec&);
namespace portable {
void local_response_norm(const LocalResponseNormParams&, const Exec&);
void local_response_norm_backward(const LocalResponseNormParams&, const Exec&);
}  // namespace portable
namespace avx2 {
void local_response_norm(const LocalResponseNormParams&, const Exec&);
void local_response_norm_backward(const LocalResponseNormParams&, const Exec&);
}  // namespace avx2
namespace avx512 {
void local_response_norm(const LocalResponseNormParams&, const Exec&);
void local_response_norm_backward(const LocalResponseNormParams&, const Exec&);
}  // namespace avx512

#define FASTCV_NORM_KERNELS(gpu)                                                                                  \
  namespace gpu {                                                                                                 \
  FASTCV_IF_LINKED int local_response_norm(const LocalResponseNormParams&, void* workspace, CUstream_st* stream); \
  FASTCV_IF_LINKED int local_response_norm_backward(const LocalResponseNormParams&, void* workspace,              \
                                                    CUstream_st* stream);                                         \
  }
FASTCV_NORM_KERNELS(cuda)
FASTCV_NORM_KERNELS(emulated)
#undef FASTCV_NORM_KERNELS

}  // namespace fastcv
