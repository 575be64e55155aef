// cross_entropy(x W^T + b) without the rows x classes matrix of scores: a chunk of rows at a time is multiplied,
// reduced to its losses and, where gradients are wanted, turned into score gradients in place and multiplied back.
//
// Contract: x (rows, features), w (classes, features), bias (classes) or null, dense; target, class_weight,
// ignore_index, smoothing, reduction, loss, grad_loss and bad as in cross_entropy.h (probabilities are (rows,
// classes)). grad_x, grad_w, grad_b may be null; gradients are of the loss times grad_loss (null: 1; then reduction is
// not none). dtypes f32 f64 bf16 f16: 16-bit tensors are widened and multiplied in float. A score sums the features in
// segments of a fixed length, the gradient of x the classes; gradients of w and b sum the rows so, chunk by chunk:
// nothing depends on the number of threads. On a CPU numbers below the normal range are taken for zeros.
#pragma once
#include "loss/cross_entropy.h"

namespace fastcv {

struct LinearCrossEntropyParams {
  const void* x;
  const void* w;
  const void* bias;
  const void* target;
  const void* class_weight;
  const void* grad_loss;
  void* loss;
  void* grad_x;
  void* grad_w;
  void* grad_b;
  int64_t* bad;
  int64_t rows, features, classes;
  int64_t ignore_index;
  double smoothing;
  DType dtype;
  Target target_kind;
  Reduction reduction;
};

extern const VariantTable<LinearCrossEntropyParams> linear_cross_entropy_table, linear_cross_entropy_backward_table;

void linear_cross_entropy_ref(const LinearCrossEntropyParams&, const Exec&);

#define FASTCV_DECLARE(isa, linked)                                                   \
  namespace isa {                                                                     \
  linked size_t linear_cross_entropy_workspace(const LinearCrossEntropyParams&, int); \
  linked void linear_cross_entropy(const LinearCrossEntropyParams&, const Exec&);     \
  }
FASTCV_DECLARE(portable, )
FASTCV_DECLARE(avx2, )
FASTCV_DECLARE(avx512, )
FASTCV_DECLARE(amx, )
FASTCV_DECLARE(amxmodel, FASTCV_IF_LINKED)  // on a software model of the tiles, in builds for tests
#undef FASTCV_DECLARE

// On a GPU, and the same source on the emulator. `bad` as in cross_entropy.h.
#define FASTCV_DECLARE(gpu)                                                                                         \
  namespace gpu {                                                                                                   \
  FASTCV_IF_LINKED int linear_cross_entropy(const LinearCrossEntropyParams&, void* workspace, CUstream_st* stream); \
  }
FASTCV_DECLARE(cuda)
FASTCV_DECLARE(emulated)
#undef FASTCV_DECLARE

}  // namespace fastcv
