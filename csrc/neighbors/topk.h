// The k best of a query: pairs of an order-preserving integer key and an index. Ties go to the lowest index.
#pragma once
#include <cstdint>

namespace fastcv {

// A distance as an integer of the same order (the bits of a number >= 0), NaN above infinity.
struct Neighbor {
  int64_t key;
  int64_t index;
};

// Moves the k smallest of `count` (k <= count) to the front, in any order; returns the largest of their keys.
int64_t keep_smallest(Neighbor* neighbors, int64_t count, int64_t k);
void sort_neighbors(Neighbor* neighbors, int64_t count);

}  // namespace fastcv
