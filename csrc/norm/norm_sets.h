// The sets whose sums the CUDA kernels of this family need, and the scratch memory for them: host arithmetic on shapes.
#pragma once
#include "norm/batch_norm.h"
#include "norm/group_norm.h"
#include "norm/layer_norm.h"

namespace fastcv {

// Where the sets lie: set (a, b) of outer x inner, its element (e, f) of rows x run, at
// a * outer_step + b * inner_step + e * row_step + f.
struct Sets {
  int64_t outer, inner, rows, run, outer_step, inner_step, row_step;

  int64_t sets() const { return outer * inner; }
  int64_t count() const { return rows * run; }
  // Neighbouring sets are neighbours in memory: lanes then take sets, else elements.
  bool side_by_side() const { return inner_step == 1 && run == 1; }
  int64_t segment() const {
    const int64_t least = side_by_side() ? 1024 : 16384, most_segments = 65535;
    const int64_t needed = (count() + most_segments - 1) / most_segments;
    return needed > least ? needed : least;
  }
  int64_t segments() const { return count() == 0 ? 0 : (count() + segment() - 1) / segment(); }
  // Partial sums: [sets][segments][2] doubles.
  size_t bytes() const { return static_cast<size_t>(sets() * segments()) * 2 * sizeof(double); }
};

// Batch norm: the values of a channel.
template <class Params>
Sets channel_sets(const Params& p) {
  if (p.channels_last) return {1, p.c, p.n * p.s, 1, 0, 1, p.c};
  return {p.c, 1, p.n, p.s, p.s, 0, p.c * p.s};
}
// Group norm: the values of a group of an image, and of a channel of an image.
template <class Params>
Sets group_sets(const Params& p) {
  const int64_t d = p.groups == 0 ? 0 : p.c / p.groups;
  if (p.channels_last) return {p.n, p.groups, p.s, d, p.s * p.c, d, p.c};
  return {p.n * p.groups, 1, 1, d * p.s, d * p.s, 0, 0};
}
template <class Params>
Sets image_channel_sets(const Params& p) {
  if (p.channels_last) return {p.n, p.c, p.s, 1, p.s * p.c, 1, p.c};
  return {p.n * p.c, 1, 1, p.s, p.s, 0, 0};
}
// Layer norm: the values of a row, and of a column.
template <class Params>
Sets row_sets(const Params& p) {
  return {p.m, 1, 1, p.l, p.l, 0, 0};
}
template <class Params>
Sets column_sets(const Params& p) {
  return {1, p.l, p.m, 1, 0, 1, p.l};
}

}  // namespace fastcv
