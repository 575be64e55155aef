// How the CUDA kernels of knn divide their work, and the scratch memory for it: host arithmetic on shapes.
#pragma once
#include "neighbors/knn.h"

namespace fastcv {

inline int64_t knn_key_bytes(const KnnParams& p) { return p.dtype == DType::f64 || p.dtype == DType::u8 ? 8 : 4; }

// lists: a block takes 64 queries and a part of y, whose best it keeps in shared memory. Where there are few queries, y
// is divided among blocks, to occupy the device.
struct KnnLists {
  int64_t tiles, parts, length;  // of x; of y; points in a part

  explicit KnnLists(const KnnParams& p) {
    constexpr int64_t kEnoughBlocks = 1024, kLeastPart = 512;
    tiles = p.batch * ((p.m + 63) / 64);
    const int64_t wanted = tiles == 0 ? 1 : (kEnoughBlocks + tiles - 1) / tiles;
    const int64_t most = (p.n + kLeastPart - 1) / kLeastPart;
    parts = wanted < most ? wanted : most < 1 ? 1 : most;
    length = ((p.n + parts - 1) / parts + 63) / 64 * 64;
    parts = length == 0 ? 1 : (p.n + length - 1) / length;
  }
  // Of a block: its queries' lists, and the keys of a tile of pairs.
  static size_t shared_bytes(const KnnParams& p) {
    return 64 * static_cast<size_t>(p.k * (knn_key_bytes(p) + 4) + 68 * knn_key_bytes(p));
  }
  // [query][part][k] keys and indices.
  size_t bytes(const KnnParams& p) const { return static_cast<size_t>(p.batch * p.m * parts * p.k) * 12; }
};

// select: the keys of some queries to all of y, and each one's k best, which are then sorted.
struct KnnSelect {
  int64_t queries, sorted;  // queries at a time; k rounded up to a power of two

  explicit KnnSelect(const KnnParams& p) : sorted(1) {
    while (sorted < p.k) sorted *= 2;
    constexpr int64_t kMemory = 256 << 20;
    const int64_t each = p.n * 8 + sorted * 12, all = p.batch * p.m;
    queries = each == 0 ? all : kMemory / each / 64 * 64;
    if (queries < 64) queries = 64;
    if (queries > all) queries = all;
  }
  size_t bytes(const KnnParams& p) const { return static_cast<size_t>(queries * (p.n * 8 + sorted * 12)); }
};

}  // namespace fastcv
