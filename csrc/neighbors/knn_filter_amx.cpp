// The filter of knn_filter.h on AMX: tiles of 16 references times 16 queries, of which two by two share their operands.
// A row of pairs is a row of the left tile, a unit of a panel one of the right.
#include "neighbors/knn_filter_lanes.h"

#include "common/amx.h"

namespace fastcv::FASTCV_ISA {
namespace {

constexpr int kTile = 16 * 16;

struct TileProduct : Bf16Pairs<kTile> {
  using Session = TileSession;
  static constexpr int kUnitStep = 16, kRows = 16;
  // Tiles of 16 rows one after the other, so that a CPU foresees what is loaded next.
  static constexpr int row_at(int r, int units) { return r / 16 * 16 * units + r % 16 * 16; }

  // Of one instruction, 16 pairs: the products of one place in the pair are summed by fused multiply-add, both sums are
  // added, and then what stood in the tile. What is less than 2^-126 becomes zero, at any of these: kTiny is more.
  static constexpr int64_t roundings(int64_t units) { return 16 + 1 + (units + kUnitStep - 1) / kUnitStep; }

  template <int tiles>
  static void multiply_tiles(const T* panel, const T* rows, int units, T* sums, bool first) {
    constexpr int64_t lanes = kLanes<T> * sizeof(T);
    if (first) {
      Tiles::zero<0>(), Tiles::zero<1>();
      if constexpr (tiles == 2) Tiles::zero<2>(), Tiles::zero<3>();
    } else {
      Tiles::load<0>(sums, lanes), Tiles::load<1>(sums + 16, lanes);
      if constexpr (tiles == 2)
        Tiles::load<2>(sums + 16 * kLanes<T>, lanes), Tiles::load<3>(sums + 16 * kLanes<T> + 16, lanes);
    }
    for (int u = 0; u < units; u += kUnitStep) {
      Tiles::load<4>(rows + u * 16, 64);
      Tiles::load<6>(panel + u * kLanes<T>, lanes);
      Tiles::multiply_add_bf16<0, 4, 6>();
      Tiles::load<7>(panel + u * kLanes<T> + 16, lanes);
      Tiles::multiply_add_bf16<1, 4, 7>();
      if constexpr (tiles == 2) {
        Tiles::load<5>(rows + 16 * units + u * 16, 64);
        Tiles::multiply_add_bf16<2, 5, 6>();
        Tiles::multiply_add_bf16<3, 5, 7>();
      }
    }
    Tiles::store<0>(sums, lanes), Tiles::store<1>(sums + 16, lanes);
    if constexpr (tiles == 2)
      Tiles::store<2>(sums + 16 * kLanes<T>, lanes), Tiles::store<3>(sums + 16 * kLanes<T> + 16, lanes);
  }
  static void multiply(const T* panel, const T* rows, int units, int nr, T* sums, bool first) {
    Tiles::fence();
    for (int r = 0; r < nr; r += 32) {
      if (nr - r > 16) multiply_tiles<2>(panel, rows + row_at(r, units), units, sums + r * kLanes<T>, first);
      else multiply_tiles<1>(panel, rows + row_at(r, units), units, sums + r * kLanes<T>, first);
    }
  }
};

}  // namespace

void knn_filter(const KnnParams& p, const Exec& exec) {
  run_filter<TileProduct>(p, exec, &avx512::knn, &avx512::knn_workspace);
}
size_t knn_filter_workspace(const KnnParams& p, int threads) {
  return FilterPlan<TileProduct>::bytes(p, threads, &avx512::knn_workspace);
}

}  // namespace fastcv::FASTCV_ISA
