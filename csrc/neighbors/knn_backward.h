// knn_backward: gradients of knn's distances. With d = distance of x[b][m] and y[b][index[b][m][j]]:
//   grad_x[b][m] = sum over j of grad[b][m][j] * (d d / d x),
//   grad_y[b][n] = sum over the (m, j) that chose n of grad[b][m][j] * (d d / d y).
//
// Contract: all row-major, f32 or f64; an index of -1 (padding) contributes nothing; either output may be null.
// grad_x sums over j, grad_y over (m, j), 32 at a time in order and these sums in order: the same bits for any thread
// count and batch.
#pragma once
#include "common/parallel.h"
#include "common/types.h"
#include "common/variant.h"

namespace fastcv {

struct KnnBackwardParams {
  const void* grad;      // [B][M][K]
  const void* x;         // [B][M][D]
  const void* y;         // [B][N][D]
  const void* distance;  // [B][M][K]
  const int64_t* index;  // [B][M][K], each -1 or in [0, N)
  void* grad_x;          // [B][M][D] or null
  void* grad_y;          // [B][N][D] or null
  int64_t batch, m, n, depth, k;
  int64_t x_batch, y_batch;  // elements from one batch item to the next
  double p;
  bool squared;
  DType dtype;
};

extern const VariantTable<KnnBackwardParams> knn_backward_table;

void knn_backward_ref(const KnnBackwardParams&, const Exec&);
namespace portable {
void knn_backward(const KnnBackwardParams&, const Exec&);
size_t knn_backward_workspace(const KnnBackwardParams&, int threads);
}  // namespace portable
namespace avx2 {
void knn_backward(const KnnBackwardParams&, const Exec&);
size_t knn_backward_workspace(const KnnBackwardParams&, int threads);
}  // namespace avx2
namespace avx512 {
void knn_backward(const KnnBackwardParams&, const Exec&);
size_t knn_backward_workspace(const KnnBackwardParams&, int threads);
}  // namespace avx512

// On a GPU, and the same source on the emulator. An index outside of [-1, N) ends
// the kernel with an error.
#define FASTCV_DECLARE(gpu)                                                                          \
  namespace gpu {                                                                                    \
  FASTCV_IF_LINKED int knn_backward(const KnnBackwardParams&, void* workspace, CUstream_st* stream); \
  }
FASTCV_DECLARE(cuda)
FASTCV_DECLARE(emulated)
#undef FASTCV_DECLARE

}  // namespace fastcv
