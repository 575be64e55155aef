// batch_norm_max_pool2d: y = max_pool2d(act(batch_norm(x))), and the offsets of the maxima, without the map in between.
//
// The arithmetic is that of the two ops one after the other, to the bit: an element is normalised, activated and
// rounded to its dtype as batch_norm (norm/batch_norm.h) does it, and then compared as max_pool2d (pool/pool.h) does
// it, NaN, ties and zeros included. Layouts, dtypes, statistics and windows are those two ops'; maps have a height and
// a width of at least one. There is no backward pass of its own: max_pool2d's and batch norm's, which recomputes the
// gate, take only x and the offsets.
#pragma once
#include "norm/batch_norm.h"
#include "pool/pool.h"

namespace fastcv {

struct BatchNormMaxPool2dParams {
  BatchNormParams norm;  // no residual, no y; s = height * width
  PoolParams pool;       // no x, not adaptive; `where` offsets (at most 256 window elements) or null
  DType dtype;
};

extern const VariantTable<BatchNormMaxPool2dParams> batch_norm_max_pool2d_table;

void batch_norm_max_pool2d_ref(const BatchNormMaxPool2dParams&, const Exec&);
namespace portable {
void batch_norm_max_pool2d(const BatchNormMaxPool2dParams&, const Exec&);
}
namespace avx2 {
void batch_norm_max_pool2d(const BatchNormMaxPool2dParams&, const Exec&);
}
namespace avx512 {
void batch_norm_max_pool2d(const BatchNormMaxPool2dParams&, const Exec&);
}
// Scratch bytes of these: batch norm's, and for each thread a unit and what pooling it takes.
size_t batch_norm_max_pool2d_workspace(const BatchNormMaxPool2dParams&, int threads);

#define FASTCV_POOL_KERNELS(gpu)                                                                              \
  namespace gpu {                                                                                             \
  FASTCV_IF_LINKED int batch_norm_max_pool2d(const BatchNormMaxPool2dParams&, void* workspace, CUstream_st*); \
  }
FASTCV_POOL_KERNELS(cuda)
FASTCV_POOL_KERNELS(emulated)
#undef FASTCV_POOL_KERNELS

}  // namespace fastcv
