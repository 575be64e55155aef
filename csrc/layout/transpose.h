// transpose: y[i][c][r] = x[i][r][c], which turns channels_last images into row-major ones and back.
//
// Contract: x is dense [n][rows][columns], y dense [n][columns][rows]; they do not overlap. Elements of 1, 4 or 8
// bytes, whatever they mean, keep their bits. Those of 2 bytes are floats, and a NaN may become another.
#pragma once
#include "common/parallel.h"
#include "common/types.h"
#include "common/variant.h"

namespace fastcv {

struct TransposeParams {
  const void* x;
  void* y;
  int64_t n, rows, columns;
  int64_t bytes;  // of an element
};

extern const VariantTable<TransposeParams> transpose_table;

void transpose_ref(const TransposeParams&, const Exec&);
namespace portable {
void transpose_images(const TransposeParams&, const Exec&);
}
namespace avx2 {
void transpose_images(const TransposeParams&, const Exec&);
}
namespace avx512 {
void transpose_images(const TransposeParams&, const Exec&);
}

}  // namespace fastcv
