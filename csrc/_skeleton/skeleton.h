// skeleton: y = x, element for element. Does nothing; shows where everything of an op stands.
//
// Contract: input and output are dense and have the same order of elements; n >= 0; they do not overlap.
// dtypes f32 f64 bf16 f16. NaN payloads and signed zeros are kept.
#pragma once
#include "common/parallel.h"
#include "common/types.h"
#include "common/variant.h"

namespace fastcv {

struct SkeletonParams {
  const void* x;
  void* y;
  int64_t n;
  DType dtype;
};

extern const VariantTable<SkeletonParams> skeleton_table;

void skeleton_ref(const SkeletonParams&, const Exec&);
namespace portable {
void skeleton(const SkeletonParams&, const Exec&);
}
namespace avx2 {
void skeleton(const SkeletonParams&, const Exec&);
}
namespace avx512 {
void skeleton(const SkeletonParams&, const Exec&);
}

// On a GPU, and the same source on the emulator.
namespace cuda {
FASTCV_IF_LINKED int skeleton(const SkeletonParams&, void* workspace, CUstream_st* stream);
}
namespace emulated {
FASTCV_IF_LINKED int skeleton(const SkeletonParams&, void* workspace, CUstream_st* stream);
}

}  // namespace fastcv
