// The one loop under all distances: tiles of pairs (lane row, broadcast row), each pair's sum over the depth kept in
// one lane of a register. For *_simd.cpp files only; everything stands in the instruction set's namespace.
//
// One side of the pairs, the lanes, is packed into panels [unit][kLanes]; the other side, the rows, is read as it lies
// and broadcast. A unit is what one lane holds: one number, or 2 or 8 bytes of a uint8 row. The sum of a pair runs over
// the depth in blocks of kDepthBlock units: in order within a block, blocks in order. It depends on nothing else, so a
// pair's distance has the same bits in any batch, tile, role (lane or row) and thread.
#pragma once
#include "common/parallel.h"
#include "common/simd.h"
#include "common/types.h"
#include "neighbors/byte_products.h"

namespace fastcv::FASTCV_ISA {

// What is summed over the depth. Differences are subtracted directly: nothing cancels.
enum class Metric : int32_t {
  l1,     // |a - b|
  l2,     // (a - b)^2
  linf,   // max |a - b|; like torch's, it passes over NaN
  l0,     // 1 where a != b
  lp,     // |a - b|^p
  u8_l1,  // |a - b| of bytes, summed exactly in int64 lanes
  u8_l2,  // (a - b)^2 of bytes, summed exactly in int32 lanes: depth at most kMaxDepthU8L2
};

inline constexpr int kPanelVectors = 2;
inline constexpr int kRowTile =
    kVectorBytes == 64 ? 8 : 4;  // with 2 vectors: 16 accumulators of 32 registers, or 8 of 16
inline constexpr int kDepthBlock = 128;
inline constexpr int kRowBlock = 64;
inline constexpr int64_t kMaxDepthU8L2 = 33024;  // 255^2 times this stays below 2^31

template <class T>
inline constexpr int kLanes = kPanelVectors * Vec<T>::width;
// One row of a block of rows: padded, so that rows do not fall on each other in the cache.
template <class T>
inline constexpr int kRowStride = kDepthBlock + 64 / static_cast<int>(sizeof(T));

template <class T>
struct DistanceKernel {
  Metric metric;
  double p;
  int unit;  // elements of a row in one T
  // Units [begin, begin + count) of a row of `depth` elements, widened to T; what lies beyond the depth is zero.
  void (*read)(const void* row, int64_t depth, int64_t begin, int count, T* to);
  // sums[r][lane] = (first ? nothing : sums[r][lane]) + the sum over `count` units, for nr rows (rounded up to a tile).
  void (*block)(const DistanceKernel&, const T* panel, const T* rows, int count, int nr, T* sums, bool first,
                bool last);
  int64_t source_bytes;                    // of one element in the tensor
  const ByteProducts* products = nullptr;  // lanes are read by another function, and a unit of terms ends each row

  int64_t units(int64_t depth) const { return (depth + unit - 1) / unit + (products != nullptr); }
};

// How many threads are worth waking for this many steps of one pair and one unit.
inline int threads_for(int64_t pairs, int64_t units, int threads) {
  constexpr int64_t kStepsPerThread = 1 << 19;
  const int64_t worth = 1 + pairs * (units + 8) / kStepsPerThread;
  return static_cast<int>(worth < threads ? worth : threads);
}

// The kernel of a metric on a storage type. T is double for f64 and for uint8 too deep for int32, int64/int32 for the
// uint8 metrics, float for everything else.
void distance_kernel(DType storage, Metric metric, double p, DistanceKernel<float>& kernel);
void distance_kernel(DType storage, Metric metric, double p, DistanceKernel<double>& kernel);
void distance_kernel(DType storage, Metric metric, double p, DistanceKernel<int32_t>& kernel);
void distance_kernel(DType storage, Metric metric, double p, DistanceKernel<int64_t>& kernel);
DistanceKernel<int32_t> product_kernel(const ByteProducts& products);

// `count` rows from `rows` on into panels, missing lanes zero. to: [panels][units][kLanes].
void pack_panels(const DistanceKernel<float>&, const void* rows, int64_t count, int64_t depth, float* to);
void pack_panels(const DistanceKernel<double>&, const void* rows, int64_t count, int64_t depth, double* to);
void pack_panels(const DistanceKernel<int32_t>&, const void* rows, int64_t count, int64_t depth, int32_t* to);
void pack_panels(const DistanceKernel<int64_t>&, const void* rows, int64_t count, int64_t depth, int64_t* to);

inline Metric metric_of(double p) {
  return p == 1                 ? Metric::l1
         : p == 2               ? Metric::l2
         : p == 0               ? Metric::l0
         : p == __builtin_inf() ? Metric::linf
                                : Metric::lp;
}

// f(kernel) with the kernel for this dtype, p and depth.
template <class F>
FASTCV_INLINE void with_kernel(DType dtype, double p, int64_t depth, F&& f) {
  const Metric metric = metric_of(p);
  const auto call = [&](auto zero, Metric m) {
    DistanceKernel<decltype(zero)> kernel;
    distance_kernel(dtype, m, p, kernel);
    f(kernel);
  };
  if (dtype == DType::u8 && metric == Metric::l1) call(int64_t{}, Metric::u8_l1);
  else if (dtype == DType::u8 && metric == Metric::l2 && depth <= kMaxDepthU8L2) call(int32_t{}, Metric::u8_l2);
  else if (dtype == DType::f64 || (dtype == DType::u8 && metric != Metric::lp)) call(double{}, metric);
  else call(float{}, metric);
}

// Scratch of one sweep, in elements of T and in this order; each part is a multiple of 64 bytes.
template <class T>
struct SweepScratch {
  T *packed, *rows, *sums;

  static int64_t elements(int panels, int64_t units) {
    return panels * units * kLanes<T> + kRowBlock * kRowStride<T> + int64_t{panels} * kRowBlock * kLanes<T>;
  }
  SweepScratch(T* memory, int panels, int64_t units)
      : packed(memory), rows(packed + panels * units * kLanes<T>), sums(rows + kRowBlock * kRowStride<T>) {}
};

// All pairs of the packed lanes with rows [begin, end): done(first_row, count) is called after each block of rows, rows
// ascending, when sums hold [panel][row of the block][lane].
template <class T, class F>
FASTCV_INLINE void sweep(const DistanceKernel<T>& kernel, const SweepScratch<T>& scratch, int panels, const void* rows,
                         int64_t begin, int64_t end, int64_t depth, F&& done) {
  const int64_t units = kernel.units(depth);
  for (int64_t row = begin; row < end; row += kRowBlock) {
    const int nr = static_cast<int>(end - row < kRowBlock ? end - row : kRowBlock);
    for (int64_t unit = 0; unit < units; unit += kDepthBlock) {
      const int count = static_cast<int>(units - unit < kDepthBlock ? units - unit : kDepthBlock);
      for (int r = 0; r < nr; ++r)
        kernel.read(static_cast<const char*>(rows) + (row + r) * depth * kernel.source_bytes, depth, unit, count,
                    scratch.rows + r * kRowStride<T>);
      for (int r = nr; r % kRowTile != 0; ++r) __builtin_memset(scratch.rows + r * kRowStride<T>, 0, count * sizeof(T));
      for (int p = 0; p < panels; ++p)
        kernel.block(kernel, scratch.packed + (p * units + unit) * kLanes<T>, scratch.rows, count, nr,
                     scratch.sums + p * kRowBlock * kLanes<T>, unit == 0, unit + count == units);
    }
    if (units == 0) __builtin_memset(scratch.sums, 0, sizeof(T) * panels * kRowBlock * kLanes<T>);
    done(row, nr);
  }
}

// Keys: sums >= 0 as integers of the same order, above them one for NaN and one for no sum at all.
template <class T>
using KeyOf = std::conditional_t<std::is_integral_v<T>, T, int_of<T>>;

template <class T>
inline constexpr KeyOf<T> kNanKey = sizeof(T) == 8 ? static_cast<KeyOf<T>>(0x7ff8000000000000) : 0x7fc00000;
template <class T>
inline constexpr KeyOf<T> kNoKey = sizeof(T) == 8 ? static_cast<KeyOf<T>>(INT64_MAX) : INT32_MAX;

// The sum that a key stands for.
template <class T>
FASTCV_INLINE T sum_of(int64_t key) {
  const KeyOf<T> narrow = static_cast<KeyOf<T>>(key);
  T sum;
  std::memcpy(&sum, &narrow, sizeof sum);
  return sum;
}

}  // namespace fastcv::FASTCV_ISA
