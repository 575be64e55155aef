// Squared distances of uint8 rows by products of bytes, exact in int32: the tiles, plans and lists are those of AVX-512
// (tile.h), and AVX-512 VNNI puts in what it multiplies faster. The instruction takes unsigned times signed bytes, so
//   |a - b|^2 = (|a|^2 - 256 sum(a)) + |b|^2 - 2 a.(b - 128):
// rows are read as a, lanes as b - 128, and behind the coordinates of either stands its own term.
#pragma once
#include "neighbors/cdist.h"
#include "neighbors/knn.h"

namespace fastcv {

constexpr int64_t kMaxProductsDepth = 33024;  // 255^2 times this stays below 2^31; what is in between wraps around it
constexpr int64_t kMaxGpuProductsDepth = 66051;  // and below 2^32 - 2, in unsigned sums

struct ByteProducts {
  // As DistanceKernel's, in units of four bytes and one of the term.
  void (*read_row)(const void* row, int64_t depth, int64_t begin, int count, int32_t* to);
  void (*read_lane)(const void* row, int64_t depth, int64_t begin, int count, int32_t* to);
  // last: the last of the units are the terms, and what is left in sums are distances.
  void (*block)(const int32_t* panel, const int32_t* rows, int count, int nr, int32_t* sums, bool first, bool last);
};

// nullptr, or what these params lack.
const char* products_why_not(const CdistParams&);
const char* products_why_not(const KnnParams&);

namespace avx512 {
void cdist_products(const CdistParams&, const ByteProducts&, const Exec&);
size_t cdist_products_workspace(const CdistParams&, const ByteProducts&, int threads);
void knn_products(const KnnParams&, const ByteProducts&, const Exec&);
size_t knn_products_workspace(const KnnParams&, const ByteProducts&, int threads);
}  // namespace avx512
namespace avx512vnni {
void cdist_products(const CdistParams&, const Exec&);
size_t cdist_products_workspace(const CdistParams&, int threads);
void knn_products(const KnnParams&, const Exec&);
size_t knn_products_workspace(const KnnParams&, int threads);
}  // namespace avx512vnni

}  // namespace fastcv
