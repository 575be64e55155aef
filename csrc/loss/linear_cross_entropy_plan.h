// How the CUDA kernels of linear_cross_entropy divide the rows, and the scratch memory for it: host arithmetic on
// shapes.
#pragma once
#include "loss/linear_cross_entropy.h"
#include "loss/loss_sums.h"

namespace fastcv {

struct LinearChunks {
  int64_t rows;  // at a time: those whose scores fill 16 M elements, at least a tile's and at most 2048
  bool narrow;   // gradients of 16 bits, whose sums over chunks are kept in float

  explicit LinearChunks(const LinearCrossEntropyParams& p) : narrow(p.dtype == DType::bf16 || p.dtype == DType::f16) {
    constexpr int64_t kScores = 1 << 24, kLeast = 128, kMost = 2048;
    rows = p.classes == 0 ? kMost : kScores / p.classes / kLeast * kLeast;
    if (rows < kLeast) rows = kLeast;
    if (rows > kMost) rows = kMost;
    if (rows > p.rows) rows = p.rows;
  }
  static int64_t element(const LinearCrossEntropyParams& p) { return p.dtype == DType::f64 ? 8 : 4; }
  // In bytes, in this order, each a multiple of 16.
  static size_t padded(size_t bytes) { return (bytes + 15) / 16 * 16; }
  size_t counts_bytes(const LinearCrossEntropyParams& p) const { return padded(SumChunks(p.rows).bytes() + 8); }
  size_t losses_bytes(const LinearCrossEntropyParams& p) const { return padded(static_cast<size_t>(p.rows) * 8); }
  size_t scores_bytes(const LinearCrossEntropyParams& p) const {
    return padded(static_cast<size_t>(rows * p.classes * element(p)));
  }
  size_t grad_w_bytes(const LinearCrossEntropyParams& p) const {
    return narrow && p.grad_w != nullptr ? padded(static_cast<size_t>(p.classes * p.features) * 4) : 0;
  }
  size_t grad_b_bytes(const LinearCrossEntropyParams& p) const {
    return narrow && p.grad_b != nullptr ? padded(static_cast<size_t>(p.classes) * 4) : 0;
  }
  size_t bytes(const LinearCrossEntropyParams& p) const {
    return counts_bytes(p) + losses_bytes(p) + scores_bytes(p) + grad_w_bytes(p) + grad_b_bytes(p);
  }
};

}  // namespace fastcv
