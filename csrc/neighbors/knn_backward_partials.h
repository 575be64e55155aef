// knn_backward for p = 2 where many queries choose among few points, as the update of k-means does: the queries in
// blocks, one pass over memory. Each block adds to a partial gradient of its own, which stays in the cache; these are
// then added in order. Blocks depend on the number of queries alone: the same bits for any thread count and batch.
#pragma once
#include "neighbors/knn_backward.h"

namespace fastcv {

// nullptr, or what these params lack; and where sorted choices are faster.
const char* knn_backward_partials_why_not(const KnnBackwardParams&);
const char* knn_backward_partials_slower(const KnnBackwardParams&);

#define FASTCV_DECLARE(isa)                                                      \
  namespace isa {                                                                \
  void knn_backward_partials(const KnnBackwardParams&, const Exec&);             \
  size_t knn_backward_partials_workspace(const KnnBackwardParams&, int threads); \
  }
FASTCV_DECLARE(portable)
FASTCV_DECLARE(avx2)
FASTCV_DECLARE(avx512)
#undef FASTCV_DECLARE

}  // namespace fastcv
