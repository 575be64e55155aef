// How the CUDA kernels of this family cut a sum over n terms into chunks, and the scratch memory for it: host
// arithmetic on shapes.
#pragma once
#include <cstddef>
#include <cstdint>

namespace fastcv {

struct SumChunks {
  int64_t n;

  explicit SumChunks(int64_t n) : n(n) {}
  // A multiple of 8; at most 1024 chunks, so that one block adds them up in no time.
  int64_t length() const {
    constexpr int64_t kLeast = 4096, kMostChunks = 1024;
    const int64_t needed = (n + kMostChunks - 1) / kMostChunks;
    return needed > kLeast ? (needed + 7) / 8 * 8 : kLeast;
  }
  int64_t count() const { return (n + length() - 1) / length(); }
  // Two doubles a chunk.
  size_t bytes() const { return static_cast<size_t>(count()) * 2 * sizeof(double); }
};

}  // namespace fastcv
