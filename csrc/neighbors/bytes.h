// float32 points whose coordinates are all integers in 0..255 (images), for p = 1: as bytes, 64 of which one
// instruction compares. The sums are integers that float32 holds exactly up to kMaxBytesDepth coordinates: the same
// bits as from the floats. Points that are something else are found out by their first coordinates and go to the tiles.
#pragma once
#include "neighbors/cdist.h"
#include "neighbors/knn.h"

namespace fastcv {

constexpr int64_t kMaxBytesDepth = (int64_t{1} << 24) / 255;

// nullptr, or what these params lack for the bytes to be exact and worth making.
const char* bytes_why_not(const CdistParams&);
const char* bytes_why_not(const KnnParams&);

#define FASTCV_DECLARE(isa)                                      \
  namespace isa {                                                \
  void cdist_bytes(const CdistParams&, const Exec&);             \
  size_t cdist_bytes_workspace(const CdistParams&, int threads); \
  void knn_bytes(const KnnParams&, const Exec&);                 \
  size_t knn_bytes_workspace(const KnnParams&, int threads);     \
  }
FASTCV_DECLARE(avx2)
FASTCV_DECLARE(avx512)
#undef FASTCV_DECLARE

}  // namespace fastcv
