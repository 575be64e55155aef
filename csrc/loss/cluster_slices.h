// How a cluster of blocks divides a long row of scores: host arithmetic on shapes.
#pragma once
#include <cstdint>

namespace fastcv {

struct ClusterSlices {
  static constexpr int64_t kMostBlocks = 8, kFewBytes = 96 << 10, kMostBytes = 216 << 10;
  int64_t blocks, length;  // scores of a block, a multiple of 16 bytes

  // As few blocks as leave room for another one on the same multiprocessor, else as many as there may be.
  ClusterSlices(int64_t classes, int64_t bytes) : blocks(2) {
    while (blocks < kMostBlocks && classes * bytes > blocks * kFewBytes) blocks *= 2;
    const int64_t pack = 16 / bytes;
    length = ((classes + blocks - 1) / blocks + pack - 1) / pack * pack;
  }
  bool fits(int64_t bytes) const { return length * bytes <= kMostBytes; }
};

}  // namespace fastcv
