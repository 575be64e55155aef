#include "neighbors/topk.h"

#include <algorithm>

namespace fastcv {
namespace {

bool closer(const Neighbor& a, const Neighbor& b) { return a.key != b.key ? a.key < b.key : a.index < b.index; }

}  // namespace

int64_t keep_smallest(Neighbor* neighbors, int64_t count, int64_t k) {
  std::nth_element(neighbors, neighbors + (k - 1), neighbors + count, closer);
  return neighbors[k - 1].key;
}

void sort_neighbors(Neighbor* neighbors, int64_t count) { std::sort(neighbors, neighbors + count, closer); }

}  // namespace fastcv
