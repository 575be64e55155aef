// cdist_backward: the gradient of cdist by its first argument,
//   out[b][m][d] = sum over n of grad[b][m][n] * (d distance[b][m][n] / d x1[b][m][d]).
// The gradient by the second argument is the same with the two arguments swapped and the strides of grad exchanged.
//
// Contract: x1, x2, out row-major; grad and distance have any strides; distance is the forward's result. f32 and f64.
// The sum runs over n in blocks of 128, these in order: the same bits for any thread count and batch.
// torch's subgradients: zero where the distance is zero, whole gradients to every coordinate that attains the maximum.
#pragma once
#include "common/parallel.h"
#include "common/types.h"
#include "common/variant.h"

namespace fastcv {

struct CdistBackwardParams {
  const void* grad;      // [B][M][N]
  const void* x1;        // [B][M][D]
  const void* x2;        // [B][N][D]
  const void* distance;  // [B][M][N]
  void* out;             // [B][M][D]
  int64_t batch, m, n, depth;
  int64_t x1_batch, x2_batch;  // elements from one batch item to the next
  int64_t grad_stride[3], distance_stride[3];
  double p;
  DType dtype;
};

extern const VariantTable<CdistBackwardParams> cdist_backward_table;

void cdist_backward_ref(const CdistBackwardParams&, const Exec&);
namespace portable {
void cdist_backward(const CdistBackwardParams&, const Exec&);
}
namespace avx2 {
void cdist_backward(const CdistBackwardParams&, const Exec&);
}
namespace avx512 {
void cdist_backward(const CdistBackwardParams&, const Exec&);
}

// On a GPU, and the same source on the emulator.
#define FASTCV_DECLARE(gpu)                                                                              \
  namespace gpu {                                                                                        \
  FASTCV_IF_LINKED int cdist_backward(const CdistBackwardParams&, void* workspace, CUstream_st* stream); \
  }
FASTCV_DECLARE(cuda)
FASTCV_DECLARE(emulated)
#undef FASTCV_DECLARE

}  // namespace fastcv
