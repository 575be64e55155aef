// Class indices of a loss: checked and counted before anything is computed. For files compiled per instruction set.
#pragma once
#include "common/simd.h"
#include "loss/cross_entropy.h"

namespace fastcv::FASTCV_ISA {

inline constexpr int64_t kTargets = 1 << 14;  // targets checked and counted per block

FASTCV_INLINE int64_t target_blocks(const CrossEntropyParams& p) {
  return (p.outer * p.inner + kTargets - 1) / kTargets;
}
// The class index of sample r.
FASTCV_INLINE int64_t target_at(const CrossEntropyParams& p, int64_t r) {
  return p.target_kind == Target::i64 ? static_cast<const int64_t*>(p.target)[r]
                                      : int64_t{static_cast<const uint8_t*>(p.target)[r]};
}

struct TargetBlock {
  double count;
  int64_t bad;
};

// Checks and counts the targets [begin, end).
template <class S, class Index>
static inline TargetBlock check_block(const CrossEntropyParams& p, int64_t begin, int64_t end, const Index* target) {
  TargetBlock block{0, -1};
  const S* weight = static_cast<const S*>(p.weight);
  const uint64_t classes = static_cast<uint64_t>(p.classes);
  int64_t count = 0, outside = 0;
  for (int64_t r = begin; r < end; ++r) {
    const int64_t t = target[r];
    const bool counts = t != p.ignore_index;
    count += counts;
    outside += counts & (static_cast<uint64_t>(t) >= classes);
  }
  if (outside) {
    for (int64_t r = begin; r < end && block.bad < 0; ++r) {
      const int64_t t = target[r];
      if (t != p.ignore_index && static_cast<uint64_t>(t) >= classes) block.bad = r;
    }
    return block;
  }
  block.count = static_cast<double>(count);
  if (weight) {
    block.count = 0;
    for (int64_t r = begin; r < end; ++r)
      if (target[r] != p.ignore_index) block.count += load_one(weight + target[r]);
  }
  return block;
}

// The divisor of the mean, or sets *p.bad.
template <class S>
static inline double check_targets(const CrossEntropyParams& p, const Exec& exec, TargetBlock* blocks) {
  const int64_t rows = p.outer * p.inner, n = target_blocks(p);
  *p.bad = -1;
  if (p.target_kind == Target::probability) return static_cast<double>(rows);
  parallel_for(exec, n, 1, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      const int64_t begin = b * kTargets, end = begin + kTargets < rows ? begin + kTargets : rows;
      blocks[b] = p.target_kind == Target::i64 ? check_block<S>(p, begin, end, static_cast<const int64_t*>(p.target))
                                               : check_block<S>(p, begin, end, static_cast<const uint8_t*>(p.target));
    }
  });
  double count = 0;
  for (int64_t b = 0; b < n && *p.bad < 0; ++b) {
    count += blocks[b].count;
    *p.bad = blocks[b].bad;
  }
  return count;
}

}  // namespace fastcv::FASTCV_ISA
