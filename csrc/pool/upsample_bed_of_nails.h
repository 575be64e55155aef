// Bed-of-nails upsampling: y[n, c, h * scale_h, w * scale_w] = x[n, c, h, w], zeros elsewhere; and backward, which
// reads those places: x is then the big map, y the small one.
//
// Both maps dense and in one layout; n, c, h, w are the small map's. dtypes f32 f64 bf16 f16; values move untouched.
#pragma once
#include "common/parallel.h"
#include "common/types.h"
#include "common/variant.h"

namespace fastcv {

struct BedOfNailsParams {
  const void* x;
  void* y;
  int64_t n, c, h, w, scale_h, scale_w;
  DType dtype;
  bool channels_last;
};

extern const VariantTable<BedOfNailsParams> upsample_bed_of_nails_table, upsample_bed_of_nails_backward_table;

void upsample_bed_of_nails_ref(const BedOfNailsParams&, const Exec&);
void upsample_bed_of_nails_backward_ref(const BedOfNailsParams&, const Exec&);

#define FASTCV_NAILS_KERNELS(isa)                                            \
  namespace isa {                                                            \
  void upsample_bed_of_nails(const BedOfNailsParams&, const Exec&);          \
  void upsample_bed_of_nails_backward(const BedOfNailsParams&, const Exec&); \
  }
FASTCV_NAILS_KERNELS(portable)
FASTCV_NAILS_KERNELS(avx2)
FASTCV_NAILS_KERNELS(avx512)
#undef FASTCV_NAILS_KERNELS

#define FASTCV_NAILS_KERNELS(gpu)                                                                                     \
  namespace gpu {                                                                                                     \
  FASTCV_IF_LINKED int upsample_bed_of_nails(const BedOfNailsParams&, void* workspace, CUstream_st* stream);          \
  FASTCV_IF_LINKED int upsample_bed_of_nails_backward(const BedOfNailsParams&, void* workspace, CUstream_st* stream); \
  }
FASTCV_NAILS_KERNELS(cuda)
FASTCV_NAILS_KERNELS(emulated)
#undef FASTCV_NAILS_KERNELS

}  // namespace fastcv
