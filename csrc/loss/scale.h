// y = x * factor (y may be x) for dense tensors of n elements, factor one value of the same dtype (f32 f64 bf16 f16):
// what remains to be done with a gradient that was written together with the loss.
#pragma once
#include "common/parallel.h"
#include "common/types.h"
#include "common/variant.h"

namespace fastcv {

struct ScaleParams {
  const void* x;
  const void* factor;
  void* y;
  int64_t n;
  DType dtype;
};

extern const VariantTable<ScaleParams> scale_gradient_table;

void scale_ref(const ScaleParams&, const Exec&);
namespace portable {
void scale(const ScaleParams&, const Exec&);
}
namespace avx2 {
void scale(const ScaleParams&, const Exec&);
}
namespace avx512 {
void scale(const ScaleParams&, const Exec&);
}

// On a GPU, and the same source on the emulator.
#define FASTCV_DECLARE(gpu)                                                             \
  namespace gpu {                                                                       \
  FASTCV_IF_LINKED int scale(const ScaleParams&, void* workspace, CUstream_st* stream); \
  }
FASTCV_DECLARE(cuda)
FASTCV_DECLARE(emulated)
#undef FASTCV_DECLARE

}  // namespace fastcv
