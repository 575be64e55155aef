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

// product: tensor cores multiply operands, which both sides are written out as first, in whole tiles of 128 points. A
// block takes `rows` queries and a part of y.
struct KnnProduct {
  static constexpr int64_t kTilePoints = 128, kMaxK = 64, kStep = 64;  // points; k; bytes of a point in a step
  static constexpr int64_t kTerms = 3, kTileTerms = 4;                 // numbers of a point and of a tile
  int64_t x_items, y_items;                                            // of the batch: one where all share it
  int64_t x_rows, y_rows;                                              // of an item
  int64_t row_bytes;                                                   // of an operand
  int64_t rows, tiles, parts, length;
  int64_t y_at, x_terms, y_terms, x_tiles, y_tiles, center, neighbors,
      bytes;  // places in the scratch memory; x is first

  // pieces: 16-bit numbers that a coordinate is written as. centred: on a point near each item of y.
  KnnProduct(const KnnParams& p, int pieces, bool centred) {
    constexpr int64_t kEnoughBlocks = 1024, kLeastPart = 1024;
    const auto up = [](int64_t n, int64_t to) { return (n + to - 1) / to * to; };
    y_items = p.y_batch == 0 && p.batch > 1 ? 1 : p.batch;
    x_items = p.x_batch == 0 && p.batch > 1 && (y_items == 1 || !centred) ? 1 : p.batch;
    x_rows = up(p.m, kTilePoints);
    y_rows = up(p.n, kTilePoints);
    row_bytes = up(p.depth < 1 ? 1 : p.depth * (p.dtype == DType::u8 ? 1 : 2), kStep) * pieces;
    rows = p.k <= 16 ? 128 : 64;
    tiles = p.batch * ((p.m + rows - 1) / rows);
    const int64_t wanted = tiles == 0 ? 1 : (kEnoughBlocks + tiles - 1) / tiles;
    const int64_t most = (p.n + kLeastPart - 1) / kLeastPart;
    parts = wanted < most ? wanted : most < 1 ? 1 : most;
    length = up((p.n + parts - 1) / parts, kTilePoints);
    parts = length == 0 ? 1 : (p.n + length - 1) / length;
    bytes = 0;
    const auto take = [&](int64_t n) { return (bytes += up(n, 64)) - up(n, 64); };
    take(x_items * x_rows * row_bytes);
    y_at = take(y_items * y_rows * row_bytes);
    x_terms = take(x_items * x_rows * kTerms * 4);
    y_terms = take(y_items * y_rows * kTerms * 4);
    x_tiles = take(x_items * x_rows / kTilePoints * kTileTerms * 4);
    y_tiles = take(y_items * y_rows / kTilePoints * kTileTerms * 4);
    center = take(centred ? y_items * row_bytes / pieces / 2 * 4 : 0);
    neighbors = take(p.batch * p.m * parts * p.k * 8);
  }
};

}  // namespace fastcv
