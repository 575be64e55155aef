// knn for k = 1 and 2 (the step of k-means, and its bounds): a product bounds every distance from both sides
// (filter.h), the best two of each query stay in registers, and what the bounds cannot exclude, little more than k
// pairs a query, is summed directly. The same bits as the tiles.
#pragma once
#include "neighbors/knn.h"

namespace fastcv {

// nullptr, or what these params lack.
const char* nearest_why_not(const KnnParams&);

#define FASTCV_DECLARE(isa)                                \
  namespace isa {                                          \
  void nearest(const KnnParams&, const Exec&);             \
  size_t nearest_workspace(const KnnParams&, int threads); \
  }
FASTCV_DECLARE(portable)
FASTCV_DECLARE(avx2)
FASTCV_DECLARE(avx512)
FASTCV_DECLARE(avx512bf16)
#undef FASTCV_DECLARE

}  // namespace fastcv
