// Negative log likelihood of log-probabilities x: loss_r = -w_t x_t, 0 where t == ignore_index. Params, layouts,
// reductions and the treatment of bad targets are cross_entropy.h's (class indices only, no smoothing).
//
// nll_loss needs loss; nll_loss_backward needs grad and grad_loss and does not read x.
#pragma once
#include "loss/cross_entropy.h"

namespace fastcv {

extern const VariantTable<CrossEntropyParams> nll_loss_table, nll_loss_backward_table;

void nll_ref(const CrossEntropyParams&, const Exec&);

#define FASTCV_DECLARE(isa)                             \
  namespace isa {                                       \
  size_t nll_workspace(const CrossEntropyParams&, int); \
  void nll(const CrossEntropyParams&, const Exec&);     \
  }
FASTCV_DECLARE(portable)
FASTCV_DECLARE(avx2)
FASTCV_DECLARE(avx512)
#undef FASTCV_DECLARE

// On a GPU, and the same source on the emulator.
#define FASTCV_DECLARE(gpu)                                                                           \
  namespace gpu {                                                                                     \
  FASTCV_IF_LINKED int nll(const CrossEntropyParams&, void* workspace, CUstream_st* stream);          \
  FASTCV_IF_LINKED int nll_backward(const CrossEntropyParams&, void* workspace, CUstream_st* stream); \
  }
FASTCV_DECLARE(cuda)
FASTCV_DECLARE(emulated)
#undef FASTCV_DECLARE

}  // namespace fastcv
