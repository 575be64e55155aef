// Multi-class hinge loss: loss_r = w_t / C sum_{c != t} max(0, margin - x_t + x_c)^p, p in {1, 2}. A NaN term counts 0,
// as in torch.
//
// Contract: x and grad are dense (rows, classes); target holds int64 class indices; weight, loss and grad_loss have x's
// dtype (f32 f64 bf16 f16; 16-bit types compute in float). loss may be null. grad may be null or receives
// dloss / dx * grad_loss (one value, or one per row for reduction none). *bad receives the first row whose target is
// not in [0, classes), else -1; then nothing else is written.
#pragma once
#include "loss/cross_entropy.h"

namespace fastcv {

struct MultiMarginParams {
  const void* x;
  const int64_t* target;
  const void* weight;  // [classes] or null
  const void* grad_loss;
  void* loss;
  void* grad;
  int64_t* bad;
  int64_t rows, classes;
  double margin;
  int32_t p;
  DType dtype;
  Reduction reduction;
};

extern const VariantTable<MultiMarginParams> multi_margin_loss_table, multi_margin_loss_backward_table;

void multi_margin_ref(const MultiMarginParams&, const Exec&);

#define FASTCV_DECLARE(isa)                                     \
  namespace isa {                                               \
  size_t multi_margin_workspace(const MultiMarginParams&, int); \
  void multi_margin(const MultiMarginParams&, const Exec&);     \
  }
FASTCV_DECLARE(portable)
FASTCV_DECLARE(avx2)
FASTCV_DECLARE(avx512)
#undef FASTCV_DECLARE

// On a GPU, and the same source on the emulator. `bad` as in cross_entropy.h.
#define FASTCV_DECLARE(gpu)                                                                          \
  namespace gpu {                                                                                    \
  FASTCV_IF_LINKED int multi_margin(const MultiMarginParams&, void* workspace, CUstream_st* stream); \
  }
FASTCV_DECLARE(cuda)
FASTCV_DECLARE(emulated)
#undef FASTCV_DECLARE

}  // namespace fastcv
