// Soft intersection over union of x and t in [0, 1], per group of n elements:
//   I = sum x t, U = sum (x + t - x t), loss = 1 - (I + eps) / (U + eps), and 0 where U + eps is 0 (two empty masks
//   agree).
//
// Contract: x, target and the gradients are dense (groups, n), dtypes f32 f64 bf16 f16 (16-bit types compute in float).
// loss receives one value per group; sums the groups' (I, U) in double, for the backward. soft_iou_backward: grad_x and
// grad_target, each may be null, receive the derivatives times grad_loss[group].
#pragma once
#include "common/parallel.h"
#include "common/types.h"
#include "common/variant.h"

namespace fastcv {

struct SoftIouParams {
  const void* x;
  const void* target;
  const void* grad_loss;
  void* loss;
  double* sums;  // [groups][2]: written by the forward, read by the backward
  void* grad_x;
  void* grad_target;
  int64_t groups, n;
  double eps;
  DType dtype;
};

extern const VariantTable<SoftIouParams> soft_iou_loss_table, soft_iou_loss_backward_table;

void soft_iou_ref(const SoftIouParams&, const Exec&);
void soft_iou_backward_ref(const SoftIouParams&, const Exec&);

#define FASTCV_DECLARE(isa)                                  \
  namespace isa {                                            \
  size_t soft_iou_workspace(const SoftIouParams&, int);      \
  void soft_iou(const SoftIouParams&, const Exec&);          \
  void soft_iou_backward(const SoftIouParams&, const Exec&); \
  }
FASTCV_DECLARE(portable)
FASTCV_DECLARE(avx2)
FASTCV_DECLARE(avx512)
#undef FASTCV_DECLARE

// On a GPU, and the same source on the emulator.
#define FASTCV_DECLARE(gpu)                                                                           \
  namespace gpu {                                                                                     \
  FASTCV_IF_LINKED int soft_iou(const SoftIouParams&, void* workspace, CUstream_st* stream);          \
  FASTCV_IF_LINKED int soft_iou_backward(const SoftIouParams&, void* workspace, CUstream_st* stream); \
  }
FASTCV_DECLARE(cuda)
FASTCV_DECLARE(emulated)
#undef FASTCV_DECLARE

}  // namespace fastcv
