// cdist: out[b][m][n] = (sum over d of |x1[b][m][d] - x2[b][n][d]|^p)^(1/p), as torch.cdist defines it for every p >=
// 0: p = 0 counts the differing coordinates, p = inf takes the largest difference and passes over NaN, any other p
// keeps NaN.
//
// Contract: rows row-major; a side with batch stride 0 is shared by the whole batch; any of B, M, N, D may be 0.
// Differences are subtracted directly for every p, so nothing cancels. 16-bit types are summed in float32. uint8 gives
// float32; its sums for p = 1 and 2 are exact integers before the root, rounded once.
#pragma once
#include "common/parallel.h"
#include "common/types.h"
#include "common/variant.h"

namespace fastcv {

struct CdistParams {
  const void* x1;  // [B][M][D]
  const void* x2;  // [B][N][D]
  void* out;       // [B][M][N], of out_dtype
  int64_t batch, m, n, depth;
  int64_t x1_batch, x2_batch;  // elements from one batch item to the next
  double p;
  DType dtype;      // f32 f64 bf16 f16 u8
  DType out_dtype;  // f32 for u8, else dtype
};

extern const VariantTable<CdistParams> cdist_table;

void cdist_ref(const CdistParams&, const Exec&);
namespace portable {
void cdist(const CdistParams&, const Exec&);
size_t cdist_workspace(const CdistParams&, int threads);
}  // namespace portable
namespace avx2 {
void cdist(const CdistParams&, const Exec&);
size_t cdist_workspace(const CdistParams&, int threads);
}  // namespace avx2
namespace avx512 {
void cdist(const CdistParams&, const Exec&);
size_t cdist_workspace(const CdistParams&, int threads);
}  // namespace avx512

// On a GPU, and the same source on the emulator.
#define FASTCV_DECLARE(gpu)                                                             \
  namespace gpu {                                                                       \
  FASTCV_IF_LINKED int cdist(const CdistParams&, void* workspace, CUstream_st* stream); \
  }
FASTCV_DECLARE(cuda)
FASTCV_DECLARE(emulated)
#undef FASTCV_DECLARE

}  // namespace fastcv
