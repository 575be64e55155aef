// How pooling is cut where the input passes through scratch memory: into units of whole maps (planes of row-major
// tensors, images of channels_last ones) or, of larger maps, of output rows. Input rows that two units' windows share
// belong to both.
#pragma once
#include "pool/pool_geometry.h"

namespace fastcv {
namespace {

struct PoolBands {
  int64_t count;   // of maps
  int64_t maps;    // of a unit
  int64_t bands;   // units to a map; 1 where a unit has whole maps
  int64_t rows;    // output rows of a unit, in each of its maps
  int64_t inputs;  // elements of the largest unit's input

  int64_t units() const { return bands == 1 ? (count + maps - 1) / maps : count * bands; }
};

// Units of up to `budget` input elements, and `most_maps` maps; at least one output row.
[[maybe_unused]] PoolBands pool_bands(const PoolParams& p, int64_t budget, int64_t most_maps) {
  const int64_t row = p.w.in * (p.channels_last ? p.c : 1), map = row * p.h.in;
  const int64_t count = p.n * (p.channels_last ? 1 : p.c);
  if (map <= budget) {
    int64_t maps = budget / map;
    maps = maps < most_maps ? maps : most_maps;
    maps = maps < count ? maps : count;
    if (maps < 1) maps = 1;
    return {count, maps, 1, p.h.out, maps * map};
  }
  const int64_t ring = input_ring(p), room = budget / row - ring;
  const int64_t most = room > 0 ? room / p.h.stride + 1 : 1, parts = (p.h.out + most - 1) / most;
  const int64_t rows = (p.h.out + parts - 1) / parts, bands = (p.h.out + rows - 1) / rows;
  const int64_t span = bands == 1 ? p.h.in : (rows - 1) * p.h.stride + ring;
  return {count, 1, bands, rows, (span < p.h.in ? span : p.h.in) * row};
}

// Maps [map, map + maps), output rows [row, row + rows) of each, and the input rows [top, top + height) that they see.
struct PoolUnit {
  int64_t map, maps, row, rows, top, height;
};
FASTCV_POOL_INLINE PoolUnit pool_unit(const PoolParams& p, const PoolBands& b, int64_t unit) {
  if (b.bands == 1) {
    const int64_t map = unit * b.maps, left = b.count - map;
    return {map, left < b.maps ? left : b.maps, 0, p.h.out, 0, p.h.in};
  }
  const int64_t map = unit / b.bands, row = (unit - map * b.bands) * b.rows;
  const int64_t rows = p.h.out - row < b.rows ? p.h.out - row : b.rows;
  const int64_t start = row * p.h.stride - p.h.padding, stop = start + (rows - 1) * p.h.stride + input_ring(p);
  const int64_t top = start > 0 ? start : 0, bottom = stop < p.h.in ? stop : p.h.in;
  return {map, 1, row, rows, top, bottom - top};
}
// Of the windows of a unit within its own input rows.
FASTCV_POOL_INLINE int64_t unit_padding(const PoolParams& p, const PoolUnit& u) {
  return u.top - (u.row * p.h.stride - p.h.padding);
}

}  // namespace
}  // namespace fastcv
