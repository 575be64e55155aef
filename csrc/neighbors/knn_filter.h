// knn for p = 2 and k <= 32: a product of matrices bounds every distance from both sides (filter.h), and what the
// bounds cannot exclude, little more than k pairs a query, is summed as the tiles sum it. For k = 1 and 2 (the step of
// k-means, and its bounds) the best upper bounds of a query stay in registers. The same bits as the tiles.
#pragma once
#include "neighbors/knn.h"

namespace fastcv {

constexpr int64_t kMaxFilterK = 32, kMaxFilterDepth = 1 << 16;

// nullptr, or what these params lack; and where the tiles are faster.
const char* knn_filter_why_not(const KnnParams&);
const char* knn_filter_slower(const KnnParams&);
const char* knn_filter_slower_amx(const KnnParams&);
const char* knn_filter_slower_avx512(const KnnParams&);
const char* knn_filter_slower_avx2(const KnnParams&);

#define FASTCV_DECLARE(isa, linked)                                  \
  namespace isa {                                                    \
  linked void knn_filter(const KnnParams&, const Exec&);             \
  linked size_t knn_filter_workspace(const KnnParams&, int threads); \
  }
FASTCV_DECLARE(portable, )
FASTCV_DECLARE(avx2, )
FASTCV_DECLARE(avx512, )
FASTCV_DECLARE(avx512bf16, )
FASTCV_DECLARE(amx, )
FASTCV_DECLARE(amxmodel, FASTCV_IF_LINKED)  // on a software model of the tiles, in builds for tests
#undef FASTCV_DECLARE

}  // namespace fastcv
