// Elements to and from named places of a map: max unpooling, its gradient, and the gradients of those.
//
// scatter: y[n, c, index[n, c, i]] = x[n, c, i], zeros elsewhere; of several values for one place the last stays, or,
// with `accumulate`, their sum in order. gather: y[n, c, i] = x[n, c, index[n, c, i]].
// Small maps: the one that the indices belong to; big map: the one they point into. All dense, all in one layout.
// dtypes f32 f64 bf16 f16 (sums in float for 16 bits). An index outside [0, big) writes nothing and reads as zero;
// the position of the first such element in memory order is left in *bad, which starts at INT64_MAX. On a GPU `bad` is
// null, and such an index ends the kernel with an error, as it does in torch.
#pragma once
#include "common/parallel.h"
#include "common/types.h"
#include "common/variant.h"

namespace fastcv {

struct MaxUnpool2dParams {
  const void* x;  // scatter: small map; gather: big map
  const int64_t* index;
  void* y;  // scatter: big map; gather: small map
  int64_t* bad;
  int64_t n, c, small, big;  // elements of one plane of either map
  DType dtype;
  bool accumulate;
  bool channels_last;
};

extern const VariantTable<MaxUnpool2dParams> max_unpool2d_table, max_unpool2d_backward_table;

void max_unpool2d_ref(const MaxUnpool2dParams&, const Exec&);
void max_unpool2d_backward_ref(const MaxUnpool2dParams&, const Exec&);

// Sums of 16-bit values need a float plane a thread.
size_t max_unpool2d_workspace(const MaxUnpool2dParams&, int threads);

#define FASTCV_UNPOOL_KERNELS(isa)                                   \
  namespace isa {                                                    \
  void max_unpool2d(const MaxUnpool2dParams&, const Exec&);          \
  void max_unpool2d_backward(const MaxUnpool2dParams&, const Exec&); \
  }
FASTCV_UNPOOL_KERNELS(portable)
FASTCV_UNPOOL_KERNELS(avx2)
FASTCV_UNPOOL_KERNELS(avx512)
#undef FASTCV_UNPOOL_KERNELS

#define FASTCV_UNPOOL_KERNELS(gpu)                                                                            \
  namespace gpu {                                                                                             \
  FASTCV_IF_LINKED int max_unpool2d(const MaxUnpool2dParams&, void* workspace, CUstream_st* stream);          \
  FASTCV_IF_LINKED int max_unpool2d_backward(const MaxUnpool2dParams&, void* workspace, CUstream_st* stream); \
  }
FASTCV_UNPOOL_KERNELS(cuda)
FASTCV_UNPOOL_KERNELS(emulated)
#undef FASTCV_UNPOOL_KERNELS

}  // namespace fastcv
