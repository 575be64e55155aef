#include "neighbors/knn_filter.h"

namespace fastcv {

const char* knn_filter_why_not(const KnnParams& p) {
  if (p.p != 2 || p.dtype > DType::f16) return "needs p = 2 and a floating point type";
  if (p.k < 1 || p.k > kMaxFilterK) return "needs k from 1 to 32";
  if (p.depth < 1 || p.depth > kMaxFilterDepth || p.n > INT32_MAX) return "needs 1 to 65536 coordinates";
  return nullptr;
}

// Packing and what remains to be summed cost more than the product saves.
const char* knn_filter_slower(const KnnParams& p) {
  if (p.batch * p.m < 64) return "comes after the tiles for fewer than 64 queries";
  if (p.k <= 2) return p.depth < 32 || p.n < 32 ? "comes after the tiles below 32 coordinates or 32 points" : nullptr;
  return p.depth < 64 || p.n < 2048 ? "comes after the tiles below 64 coordinates or 2048 points" : nullptr;
}

// On tiles of their own products cost so little that few queries pay as well.
const char* knn_filter_slower_amx(const KnnParams& p) {
  if (p.depth < 32) return "comes after the tiles below 32 coordinates";
  if (p.k <= 2) return p.n * p.depth < 4096 ? "comes after the tiles below 4096 coordinates of all points" : nullptr;
  return p.n * p.depth < 10000 * p.k ? "comes after the tiles below 10000 k coordinates of all points" : nullptr;
}
// Without 16-bit products it pays in fewer shapes; with vectors of eight or four, in few.
const char* knn_filter_slower_avx512(const KnnParams& p) {
  if (p.k > 2 && p.depth < 96) return "comes after the tiles below 96 coordinates";
  return knn_filter_slower(p);
}
const char* knn_filter_slower_avx2(const KnnParams& p) {
  return p.depth < 512 ? "comes after the tiles below 512 coordinates" : knn_filter_slower(p);
}

}  // namespace fastcv
