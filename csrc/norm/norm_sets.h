// The sets whose sums the CUDA kernels of this family need, how blocks share them, and the scratch memory for them:
// host arithmetic on shapes.
#pragma once
#include "norm/batch_norm.h"
#include "norm/group_norm.h"
#include "norm/layer_norm.h"

namespace fastcv {

constexpr int kNormThreads = 256, kNormLanes = 32;  // of a block, and the most of them that take packs side by side

// Lanes that share `packs` packs side by side: a power of two, so that a block covers few packs that are not there.
static inline int norm_lanes(int64_t packs) {
  int lanes = 1;
  while (lanes < kNormLanes && lanes < packs) lanes *= 2;
  const auto covered = [&](int by) { return (packs + by - 1) / by * by; };
  for (int fewer = lanes / 2; fewer >= 8; fewer /= 2)
    if (covered(fewer) < covered(lanes)) lanes = fewer;
  return lanes;
}

// Where the sets lie: set (a, b) of outer x inner, its element (e, f) of rows x run, at
// a * outer_step + b * inner_step + e * row_step + f. `merged` neighbours, whose elements count as those of one set,
// are added up together in the end.
struct Sets {
  int64_t outer, inner, rows, run, outer_step, inner_step, row_step, merged;
  int pack;  // elements in 16 bytes

  int64_t sets() const { return outer * inner; }
  int64_t count() const { return rows * run * merged; }
  int64_t merged_sets() const { return sets() / merged; }
  // Neighbouring sets are neighbours in memory: a thread takes a pack of sets and strides over rows. Otherwise it takes
  // packs of one set.
  bool side_by_side() const { return inner_step == 1 && run == 1; }

  int64_t run_packs() const { return (run + pack - 1) / pack; }
  int64_t inner_packs() const { return (inner + pack - 1) / pack; }
  int lanes() const { return norm_lanes(inner_packs()); }
  int64_t chunks() const { return (inner_packs() + lanes() - 1) / lanes(); }
  // Packs of a set, or rows of a pack of sets, and how many of them are one block's: enough that a block outlives its
  // start, and at most so many segments that their sums stay few.
  int64_t length() const { return side_by_side() ? rows : rows * run_packs(); }
  int64_t segment() const {
    const int64_t least = side_by_side() ? 16 * (kNormThreads / lanes()) : 2048;
    const int64_t most = side_by_side() ? (chunks() < 512 ? 1024 / chunks() : 2) : 65535;
    const int64_t needed = (length() + most - 1) / most;
    return needed > least ? needed : least;
  }
  int64_t segments() const { return sets() == 0 || count() == 0 ? 0 : (length() + segment() - 1) / segment(); }
  // Partial sums: [sets][segments][2] doubles.
  size_t bytes() const { return static_cast<size_t>(sets() * segments()) * 2 * sizeof(double); }
};

static inline int norm_pack(DType dtype) { return dtype == DType::f64 ? 2 : dtype == DType::f32 ? 4 : 8; }

// Batch norm: the values of a channel.
template <class Params>
Sets channel_sets(const Params& p) {
  const int pack = norm_pack(p.dtype);
  if (p.channels_last) return {1, p.c, p.n * p.s, 1, 0, 1, p.c, 1, pack};
  return {p.c, 1, p.n, p.s, p.s, 0, p.c * p.s, 1, pack};
}
// Group norm: the values of a channel of an image, and of a group of an image.
template <class Params>
Sets image_channel_sets(const Params& p) {
  const int pack = norm_pack(p.dtype);
  if (p.channels_last) return {p.n, p.c, p.s, 1, p.s * p.c, 1, p.c, 1, pack};
  return {p.n * p.c, 1, 1, p.s, p.s, 0, 0, 1, pack};
}
template <class Params>
Sets group_sets(const Params& p) {
  const int64_t d = p.groups == 0 ? 1 : p.c / p.groups;
  Sets sets = image_channel_sets(p);
  if (p.channels_last) sets.merged = d < 1 ? 1 : d;
  else sets.outer = p.n * p.groups, sets.run = sets.outer_step = d * p.s;
  return sets;
}
// Layer norm: the values of a row, and of a column.
template <class Params>
Sets row_sets(const Params& p) {
  return {p.m, 1, 1, p.l, p.l, 0, 0, 1, norm_pack(p.dtype)};
}
template <class Params>
Sets column_sets(const Params& p) {
  return {1, p.l, p.m, 1, 0, 1, p.l, 1, norm_pack(p.dtype)};
}

}  // namespace fastcv
