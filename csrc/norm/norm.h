// What the ops of the norm family share: per-channel vectors of any dtype, and the activation fused behind batch norm.
#pragma once
#include "common/parallel.h"
#include "common/types.h"
#include "common/variant.h"

namespace fastcv {

// A dense vector of weights, biases or statistics in its own dtype; data == nullptr means it was not given.
struct NormVector {
  const void* data;
  DType dtype;
};

// f(v) = min(v > 0 ? v : slope * v, cap), NaN stays NaN. slope == 1 with cap <= 0 is the identity, cap <= 0 is no cap,
// slope == 0 sends -inf to 0. The gradient is slope at v <= 0 and 0 at v >= cap, as torch's relu, leaky_relu and relu6.
struct Activation {
  double slope;
  double cap;
};

// How the rows of an NHWC tensor are cut for statistics: blocks of norm_block_rows rows whose sums stay in the
// accumulation type, and at most kNormSupers runs of blocks that threads work on. Depends on the shape alone, never on
// the threads.
constexpr int64_t kNormSupers = 64;
static inline int64_t norm_block_rows(int64_t channels) {
  const int64_t rows = 32768 / (channels < 1 ? 1 : channels);
  return rows < 128 ? 128 : rows > 1024 ? 1024 : rows;
}
static inline int64_t norm_super_rows(int64_t rows, int64_t channels) {
  const int64_t block = norm_block_rows(channels), blocks = (rows + block - 1) / block;
  return (blocks + kNormSupers - 1) / kNormSupers * block;
}
static inline int64_t norm_supers(int64_t rows, int64_t channels) {
  return rows == 0 ? 0 : (rows + norm_super_rows(rows, channels) - 1) / norm_super_rows(rows, channels);
}

// Elements of one NCHW channel or group that are one unit of parallel work.
constexpr int64_t kNormSegment = 1 << 15;
static inline int64_t norm_parts(int64_t len) { return (len + kNormSegment - 1) / kNormSegment; }
static inline int64_t norm_segments(int64_t n, int64_t s) {
  if (n == 0 || s == 0) return 0;
  if (s > kNormSegment) return n * norm_parts(s);
  const int64_t planes = kNormSegment / s;
  return (n + planes - 1) / planes;
}

}  // namespace fastcv
