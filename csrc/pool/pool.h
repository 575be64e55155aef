// Pooling over windows of two-dimensional maps: max, average (and sum), each forward and backward.
//
// Layouts: x and y are dense, both row-major [n, c, h, w] or both channels_last [n, h, w, c]; they do not overlap.
// dtypes f32 f64 bf16 f16; 16-bit sums are made in float, maxima are exact.
// Windows: output o of an axis sees the inputs o * stride - padding + t * dilation, t < kernel, that lie in [0, in).
// With `adaptive` it sees [floor(o * in / out), ceil((o + 1) * in / out)) instead; kernel .. dilation are then unused.
//
// Max: NaN wins over every number; of equal maxima the first in row-major order is named, of NaNs the last. A window
// of -inf (or of padding only) gives -inf and names its first element. Where no map is asked for, of equal zeros
// either sign may be returned. Average: the sum over the window divided by `divisor`, or, if that is 0, by the number
// of its elements (with count_include_pad: of its positions inside the padded map).
//
// Backward: x is the gradient of the output, y that of the input; every input element gathers from the windows that
// cover it, in row-major order of the windows, so the result depends on nothing but the data.
#pragma once
#include "common/parallel.h"
#include "common/types.h"
#include "common/variant.h"

namespace fastcv {

struct PoolAxis {
  int64_t in, out;  // sizes of the pooled map's input and output, forward and backward
  int64_t kernel, stride, padding, dilation;
};

struct PoolParams {
  const void* x;
  void* y;
  // Max only. Forward: written; nullptr for values only. Backward: read.
  // uint8_t: number of the maximum in its window (row * kernel width + column), needs at most 256 window elements;
  // int64_t: its place in the map (row * width + column).
  void* where;
  int64_t n, c;
  PoolAxis h, w;
  int64_t divisor;
  DType dtype;
  bool where_is_offset;
  bool adaptive;
  bool count_include_pad;
  bool channels_last;
};

extern const VariantTable<PoolParams> max_pool2d_table, adaptive_max_pool2d_table, max_pool2d_backward_table;
extern const VariantTable<PoolParams> avg_pool2d_table, adaptive_avg_pool2d_table;
extern const VariantTable<PoolParams> avg_pool2d_backward_table, adaptive_avg_pool2d_backward_table;

void max_pool2d_ref(const PoolParams&, const Exec&);
void max_pool2d_backward_ref(const PoolParams&, const Exec&);  // not adaptive: see max_unpool2d.h
void avg_pool2d_ref(const PoolParams&, const Exec&);
void avg_pool2d_backward_ref(const PoolParams&, const Exec&);

// The NCHW kernels work row by row in scratch memory, pool_workspace bytes of it.
size_t pool_workspace(const PoolParams&, int threads);
size_t pool_planes_workspace(const PoolParams&, int threads);
size_t pool_planes_backward_workspace(const PoolParams&, int threads);
// Of the rows that pool blocks of planes as channels: a clause, or nullptr where they can.
const char* pool_planes_why_not(const PoolParams&);

#define FASTCV_POOL_KERNELS(isa)                                   \
  namespace isa {                                                  \
  void max_pool2d_nchw(const PoolParams&, const Exec&);            \
  void max_pool2d_nhwc(const PoolParams&, const Exec&);            \
  void max_pool2d_backward_nchw(const PoolParams&, const Exec&);   \
  void max_pool2d_backward_nhwc(const PoolParams&, const Exec&);   \
  void avg_pool2d_nchw(const PoolParams&, const Exec&);            \
  void avg_pool2d_nhwc(const PoolParams&, const Exec&);            \
  void avg_pool2d_backward_nchw(const PoolParams&, const Exec&);   \
  void avg_pool2d_backward_nhwc(const PoolParams&, const Exec&);   \
  void max_pool2d_planes(const PoolParams&, const Exec&);          \
  void max_pool2d_backward_planes(const PoolParams&, const Exec&); \
  void avg_pool2d_planes(const PoolParams&, const Exec&);          \
  void avg_pool2d_backward_planes(const PoolParams&, const Exec&); \
  }
FASTCV_POOL_KERNELS(portable)
FASTCV_POOL_KERNELS(avx2)
FASTCV_POOL_KERNELS(avx512)
#undef FASTCV_POOL_KERNELS

#define FASTCV_POOL_KERNELS(gpu)                                                                     \
  namespace gpu {                                                                                    \
  FASTCV_IF_LINKED int max_pool2d(const PoolParams&, void* workspace, CUstream_st* stream);          \
  FASTCV_IF_LINKED int max_pool2d_backward(const PoolParams&, void* workspace, CUstream_st* stream); \
  FASTCV_IF_LINKED int avg_pool2d(const PoolParams&, void* workspace, CUstream_st* stream);          \
  FASTCV_IF_LINKED int avg_pool2d_backward(const PoolParams&, void* workspace, CUstream_st* stream); \
  }
FASTCV_POOL_KERNELS(cuda)
FASTCV_POOL_KERNELS(emulated)
#undef FASTCV_POOL_KERNELS

}  // namespace fastcv
