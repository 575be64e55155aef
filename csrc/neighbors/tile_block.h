// The register tile of any metric: kRowTile broadcast rows against one panel of lanes. For ISA files only.
// A metric has T, step(sum, lane, row) and join(sum of earlier blocks, sum of this one).
#pragma once
#include "neighbors/tile.h"

namespace fastcv::FASTCV_ISA {
namespace {

template <class M, class T = typename M::T>
void tile(const M& metric, const T* panel, const T* rows, int count, T* sums, bool first) {
  constexpr int w = Vec<T>::width;
  Vec<T> sum[kRowTile][kPanelVectors];
  for (auto& row : sum)
    for (auto& s : row) s = Vec<T>(T(0));
  for (int u = 0; u < count; ++u, panel += kLanes<T>) {
    Vec<T> lane[kPanelVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kPanelVectors; ++v) lane[v] = detail::load_raw(panel + v * w);
#pragma GCC unroll 8
    for (int r = 0; r < kRowTile; ++r) {
      const Vec<T> b(rows[r * kRowStride<T> + u]);
#pragma GCC unroll 2
      for (int v = 0; v < kPanelVectors; ++v) sum[r][v] = metric.step(sum[r][v], lane[v], b);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRowTile; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kPanelVectors; ++v) {
      T* to = sums + r * kLanes<T> + v * w;
      detail::store_raw(to, first ? sum[r][v] : M::join(detail::load_raw(to), sum[r][v]));
    }
}

template <class M, class T = typename M::T>
void block(const DistanceKernel<T>& kernel, const T* panel, const T* rows, int count, int nr, T* sums, bool first,
           bool) {
  const M metric(kernel.p);
  for (int r = 0; r < nr; r += kRowTile)
    tile<M>(metric, panel, rows + r * kRowStride<T>, count, sums + r * kLanes<T>, first);
}

}  // namespace
}  // namespace fastcv::FASTCV_ISA
