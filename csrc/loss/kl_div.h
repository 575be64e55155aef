// Kullback-Leibler divergence, element by element: t (log t - x), or exp(t) (t - x) if the target is logarithmic; 0 log
// 0 = 0.
//
// Contract: all tensors are dense with the same order of n elements; dtypes f32 f64 bf16 f16 (16-bit types compute in
// float). kl_div: loss receives n terms, or with `reduce` their sum / divisor. kl_div_backward: grad_x and grad_target,
// each may be null, receive the derivatives times grad_loss (n values, or one with `reduce`). The derivative in a
// target of 0 is NaN, as in torch. Sums run in double over fixed blocks.
#pragma once
#include "common/parallel.h"
#include "common/types.h"
#include "common/variant.h"

namespace fastcv {

struct KlDivParams {
  const void* x;
  const void* target;
  const void* grad_loss;
  void* loss;
  void* grad_x;
  void* grad_target;
  int64_t n;
  double divisor;
  DType dtype;
  bool reduce;
  bool log_target;
};

extern const VariantTable<KlDivParams> kl_div_table, kl_div_backward_table;

void kl_div_ref(const KlDivParams&, const Exec&);
void kl_div_backward_ref(const KlDivParams&, const Exec&);

#define FASTCV_DECLARE(isa)                              \
  namespace isa {                                        \
  size_t kl_div_workspace(const KlDivParams&, int);      \
  void kl_div(const KlDivParams&, const Exec&);          \
  void kl_div_backward(const KlDivParams&, const Exec&); \
  }
FASTCV_DECLARE(portable)
FASTCV_DECLARE(avx2)
FASTCV_DECLARE(avx512)
#undef FASTCV_DECLARE

// On a GPU, and the same source on the emulator.
#define FASTCV_DECLARE(gpu)                                                                       \
  namespace gpu {                                                                                 \
  FASTCV_IF_LINKED int kl_div(const KlDivParams&, void* workspace, CUstream_st* stream);          \
  FASTCV_IF_LINKED int kl_div_backward(const KlDivParams&, void* workspace, CUstream_st* stream); \
  }
FASTCV_DECLARE(cuda)
FASTCV_DECLARE(emulated)
#undef FASTCV_DECLARE

}  // namespace fastcv
