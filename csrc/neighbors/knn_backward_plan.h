// The scratch memory of knn_backward's CUDA kernels: host arithmetic on shapes.
#pragma once
#include "neighbors/knn_backward.h"

namespace fastcv {

// The chosen pairs, to be sorted by the point of y that was chosen.
struct ChosenPairs {
  static constexpr int64_t kChunk = 2048, kDigits = 256;
  int64_t pairs, points, chunks;
  int passes;  // over 8 bits of the point's number each

  explicit ChosenPairs(const KnnBackwardParams& p)
      : pairs(p.batch * p.m * p.k), points(p.batch * p.n), chunks((pairs + kChunk - 1) / kChunk), passes(1) {
    while (passes < 7 && points >> 8 * passes > 0) ++passes;
  }
  // Two copies of keys and of values, a count per digit and chunk, and where each point's pairs begin.
  size_t bytes() const { return static_cast<size_t>(4 * pairs + kDigits * chunks + points + 1) * sizeof(int64_t); }
};

}  // namespace fastcv
