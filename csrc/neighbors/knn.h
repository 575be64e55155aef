// knn: for each row of x the k nearest rows of y, nearest first, equal distances by the lowest index, NaN last.
//
// Contract: rows row-major; 1 <= k <= k_out; where k < k_out the rest of each output row is (inf, -1); k <= N.
// The order is that of the sums under the root (cdist.h), which is what makes it exact: integers for uint8 and p =
// 1, 2. `squared` leaves the root of p = 2 away. Memory beyond inputs and outputs: O(M k) and a few MB a thread, and
// for products on a GPU a copy of both sides; never M x N.
#pragma once
#include "common/parallel.h"
#include "common/types.h"
#include "common/variant.h"

namespace fastcv {

struct KnnParams {
  const void* x;     // [B][M][D]
  const void* y;     // [B][N][D]
  void* distances;   // [B][M][k_out], of out_dtype
  int64_t* indices;  // [B][M][k_out]
  int64_t batch, m, n, depth, k, k_out;
  int64_t x_batch, y_batch;  // elements from one batch item to the next
  double p;
  bool squared;
  DType dtype;      // f32 f64 bf16 f16 u8
  DType out_dtype;  // f32 for u8, else dtype
};

extern const VariantTable<KnnParams> knn_table;

void knn_ref(const KnnParams&, const Exec&);
namespace portable {
void knn(const KnnParams&, const Exec&);
size_t knn_workspace(const KnnParams&, int threads);
}  // namespace portable
namespace avx2 {
void knn(const KnnParams&, const Exec&);
size_t knn_workspace(const KnnParams&, int threads);
}  // namespace avx2
namespace avx512 {
void knn(const KnnParams&, const Exec&);
size_t knn_workspace(const KnnParams&, int threads);
}  // namespace avx512
// On a GPU, and the same source on the emulator. The last four search by products on tensor cores (knn_product.cuh).
#define FASTCV_DECLARE(gpu)                                                                       \
  namespace gpu {                                                                                 \
  FASTCV_IF_LINKED int knn_lists(const KnnParams&, void* workspace, CUstream_st* stream);         \
  FASTCV_IF_LINKED int knn_select(const KnnParams&, void* workspace, CUstream_st* stream);        \
  FASTCV_IF_LINKED int knn_filter(const KnnParams&, void* workspace, CUstream_st* stream);        \
  FASTCV_IF_LINKED int knn_filter_bf16x3(const KnnParams&, void* workspace, CUstream_st* stream); \
  FASTCV_IF_LINKED int knn_minimum(const KnnParams&, void* workspace, CUstream_st* stream);       \
  FASTCV_IF_LINKED int knn_products(const KnnParams&, void* workspace, CUstream_st* stream);      \
  }
FASTCV_DECLARE(cuda)
FASTCV_DECLARE(emulated)
#undef FASTCV_DECLARE

}  // namespace fastcv
