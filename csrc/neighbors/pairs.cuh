// Tiles of pairs of points on CUDA: what cdist and knn sum over the coordinates, and the loop that does it.
//
// A block takes 64 x 64 pairs, a thread 4 x 4 of them. Both sides pass through shared memory, 16 units of every point
// at a time; a unit is one coordinate, or 4 bytes of a uint8 point. A pair's sum runs over the units in order within
// blocks of 128, blocks in order: the same bits in any batch, tile or role. Differences are subtracted directly.
#pragma once
#include <limits>

#include "common/numbers.cuh"

namespace fastcv::FASTCV_GPU {

constexpr int kThreads = 256;
constexpr int kTile = 64;        // points of either side in a block's tile
constexpr int kMine = 4;         // and in a thread's
constexpr int kUnits = 16;       // units of a point in shared memory
constexpr int kSumUnits = 128;   // units summed before the sum joins the total
constexpr int kRow = kTile + 4;  // of a unit of all points in shared memory: aligned, and few share a bank

// |x|^p: multiples of one half up to 8 are products and a square root.
template <class T>
struct PowAbs {
  T p;
  int halves;  // 2p where that is a small integer, else -1
  explicit PowAbs(double power)
      : p(static_cast<T>(power)),
        halves(power >= 0 && power <= 8 && 2 * power == static_cast<int>(2 * power) ? static_cast<int>(2 * power)
                                                                                    : -1) {}
  __device__ __forceinline__ T operator()(T difference) const {
    const T x = fabs(difference);
    if (halves < 0) return pow(x, p);
    T r = halves % 2 == 1 ? sqrt(x) : T(1);
    for (int i = 1; i < halves; i += 2) r *= x;
    return r;
  }
};

// Metrics: add one unit's difference to a sum; join a sum with the total; the distance of a total. unroll: of the loop
// over units.
template <class T_>
struct L1 {
  using T = T_;
  static constexpr int unroll = 4;
  explicit L1(double) {}
  __device__ __forceinline__ void add(T& sum, T a, T b) const { sum += fabs(a - b); }
  __device__ __forceinline__ void join(T& total, T sum) const { total += sum; }
  __device__ __forceinline__ T root(T sum, bool) const { return sum; }
};
template <class T_>
struct L2 {
  using T = T_;
  static constexpr int unroll = 4;
  explicit L2(double) {}
  __device__ __forceinline__ void add(T& sum, T a, T b) const {
    const T d = a - b;
    sum = fma(d, d, sum);
  }
  __device__ __forceinline__ void join(T& total, T sum) const { total += sum; }
  __device__ __forceinline__ T root(T sum, bool squared) const { return squared ? sum : sqrt(sum); }
};
// Passes over NaN, as torch's.
template <class T_>
struct Linf {
  using T = T_;
  static constexpr int unroll = 4;
  explicit Linf(double) {}
  __device__ __forceinline__ void add(T& sum, T a, T b) const {
    const T d = fabs(a - b);
    sum = d > sum ? d : sum;
  }
  __device__ __forceinline__ void join(T& total, T sum) const { total = sum > total ? sum : total; }
  __device__ __forceinline__ T root(T sum, bool) const { return sum; }
};
template <class T_>
struct L0 {
  using T = T_;
  static constexpr int unroll = 2;
  explicit L0(double) {}
  __device__ __forceinline__ void add(T& sum, T a, T b) const {
    const T d = a - b;
    sum += d != d ? d : d != 0 ? T(1) : T(0);
  }
  __device__ __forceinline__ void join(T& total, T sum) const { total += sum; }
  __device__ __forceinline__ T root(T sum, bool) const { return sum; }
};
template <class T_>
struct Lp {
  using T = T_;
  static constexpr int unroll = 1;
  PowAbs<T> power;
  double inverse;
  explicit Lp(double p) : power(p), inverse(1 / p) {}
  __device__ __forceinline__ void add(T& sum, T a, T b) const { sum += power(a - b); }
  __device__ __forceinline__ void join(T& total, T sum) const { total += sum; }
  __device__ __forceinline__ T root(T sum, bool) const {
    return static_cast<T>(pow(static_cast<double>(sum), inverse));  // rounded once
  }
};
// Four bytes at a time, exact: kMaxDepthU8 keeps the sums below 2^32 - 2.
constexpr int64_t kMaxDepthU8L1 = 16'843'008, kMaxDepthU8L2 = 66'051;
struct L1Bytes {
  using T = uint32_t;
  static constexpr int unroll = 4;
  explicit L1Bytes(double) {}
  __device__ __forceinline__ void add(T& sum, T a, T b) const { sum += __vsadu4(a, b); }
  __device__ __forceinline__ void join(T& total, T sum) const { total += sum; }
  __device__ __forceinline__ double root(T sum, bool) const { return sum; }
};
struct L2Bytes {
  using T = uint32_t;
  static constexpr int unroll = 4;
  explicit L2Bytes(double) {}
  __device__ __forceinline__ void add(T& sum, T a, T b) const {
    const T d = __vabsdiffu4(a, b);
    sum = __dp4a(d, d, sum);
  }
  __device__ __forceinline__ void join(T& total, T sum) const { total += sum; }
  __device__ __forceinline__ double root(T sum, bool squared) const {
    return squared ? static_cast<double>(sum) : sqrt(static_cast<double>(sum));
  }
};

// f(metric) for this dtype, p and depth.
template <class F>
int with_metric(DType dtype, double p, int64_t depth, F&& f) {
  const auto by_p = [&]<class T>(T) {
    if (p == 0) return f(L0<T>(p));
    if (p == 1) return f(L1<T>(p));
    if (p == 2) return f(L2<T>(p));
    return p == std::numeric_limits<double>::infinity() ? f(Linf<T>(p)) : f(Lp<T>(p));
  };
  if (dtype == DType::u8 && p == 1 && depth <= kMaxDepthU8L1) return f(L1Bytes(p));
  if (dtype == DType::u8 && p == 2 && depth <= kMaxDepthU8L2) return f(L2Bytes(p));
  return dtype == DType::f64 || dtype == DType::u8 ? by_p(double{}) : by_p(float{});
}

// One side of the pairs: `rows` points of `depth` coordinates, row-major.
struct PointRows {
  const void* data;
  int64_t rows, depth;
  DType dtype;

  // The same from element `at` on.
  __device__ __forceinline__ PointRows from(int64_t at) const {
    const int bytes = dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : dtype == DType::u8 ? 1 : 2;
    return {static_cast<const char*>(data) + at * bytes, rows, depth, dtype};
  }
};

// Unit i of a point, zeros beyond its depth. `whole`: four bytes may be read at once.
template <class T, class S>
__device__ __forceinline__ T read_unit(const S* point, int64_t i, int64_t depth, bool whole) {
  if constexpr (std::is_same_v<T, uint32_t>) {
    if (whole) return 4 * i < depth ? *reinterpret_cast<const uint32_t*>(point + 4 * i) : 0;
    uint32_t word = 0;
#pragma unroll
    for (int byte = 0; byte < 4; ++byte)
      if (4 * i + byte < depth) word |= uint32_t{point[4 * i + byte]} << 8 * byte;
    return word;
  } else if constexpr (std::is_same_v<S, uint8_t>) {
    return i < depth ? static_cast<T>(point[i]) : T(0);
  } else {
    return i < depth ? static_cast<T>(widen(point[i])) : T(0);
  }
}

// tile[unit][point] = kUnits units of kTile points, zeros where there are none.
template <class T, class S>
__device__ __forceinline__ void read_tile_of(const PointRows& points, int64_t first, int64_t unit, Shared<T> tile) {
  const bool whole = (reinterpret_cast<uintptr_t>(points.data) | static_cast<uintptr_t>(points.depth)) % 4 == 0;
#pragma unroll
  for (int i = threadIdx.x; i < kTile * kUnits; i += kThreads) {
    const int64_t row = first + i / kUnits;
    const S* point = static_cast<const S*>(points.data) + row * points.depth;
    tile[i % kUnits * kRow + i / kUnits] =
        row < points.rows ? read_unit<T>(point, unit + i % kUnits, points.depth, whole) : T(0);
  }
}
template <class T>
__device__ __forceinline__ void read_tile(const PointRows& points, int64_t first, int64_t unit, Shared<T> tile) {
  if constexpr (std::is_same_v<T, uint32_t>) {
    read_tile_of<T, uint8_t>(points, first, unit, tile);
  } else if constexpr (std::is_same_v<T, double>) {
    if (points.dtype == DType::u8) read_tile_of<T, uint8_t>(points, first, unit, tile);
    else read_tile_of<T, double>(points, first, unit, tile);
  } else {
    if (points.dtype == DType::bf16) read_tile_of<T, bf16>(points, first, unit, tile);
    else if (points.dtype == DType::f16) read_tile_of<T, f16>(points, first, unit, tile);
    else read_tile_of<T, float>(points, first, unit, tile);
  }
}

// This thread's place in the tile.
__device__ __forceinline__ int my_row() { return threadIdx.x / (kTile / kMine) * kMine; }
__device__ __forceinline__ int my_column() { return threadIdx.x % (kTile / kMine) * kMine; }

// total[i][j] = the sum under the root for points (x0 + my_row() + i, y0 + my_column() + j). For the whole block.
template <class Metric, class T = typename Metric::T>
__device__ __forceinline__ void sum_tile(const Metric& metric, const PointRows& x, const PointRows& y, int64_t x0,
                                         int64_t y0, T (&total)[kMine][kMine]) {
  FASTCV_SHARED(T, xs, kUnits * kRow);
  FASTCV_SHARED(T, ys, kUnits * kRow);
  constexpr int coordinates = std::is_same_v<T, uint32_t> ? 4 : 1;
  const int64_t units = (x.depth + coordinates - 1) / coordinates;
  T sum[kMine][kMine] = {};
#pragma unroll
  for (int i = 0; i < kMine * kMine; ++i) total[i / kMine][i % kMine] = 0;
  for (int64_t unit = 0; unit < units; unit += kUnits) {
    __syncthreads();
    read_tile(x, x0, unit, xs);
    read_tile(y, y0, unit, ys);
    __syncthreads();
#pragma unroll Metric::unroll
    for (int k = 0; k < kUnits; ++k) {
      const auto a = load_shared<Pack<T, kMine>>(xs + (k * kRow + my_row()));
      const auto b = load_shared<Pack<T, kMine>>(ys + (k * kRow + my_column()));
#pragma unroll
      for (int i = 0; i < kMine; ++i)
#pragma unroll
        for (int j = 0; j < kMine; ++j) metric.add(sum[i][j], a.at[i], b.at[j]);
    }
    if ((unit + kUnits) % kSumUnits != 0 && unit + kUnits < units) continue;
#pragma unroll
    for (int i = 0; i < kMine * kMine; ++i) {
      metric.join(total[i / kMine][i % kMine], sum[i / kMine][i % kMine]);
      sum[i / kMine][i % kMine] = 0;
    }
  }
}

// Stores a distance, rounded to the tensor's dtype.
template <class V>
__device__ __forceinline__ void store_distance(void* out, DType dtype, int64_t at, V distance) {
  switch (dtype) {
    case DType::f64:
      static_cast<double*>(out)[at] = distance;
      return;
    case DType::bf16:
      static_cast<bf16*>(out)[at] = narrow<bf16>(static_cast<float>(distance));
      return;
    case DType::f16:
      static_cast<f16*>(out)[at] = narrow<f16>(static_cast<float>(distance));
      return;
    default:
      static_cast<float*>(out)[at] = static_cast<float>(distance);
  }
}

__host__ __device__ inline int64_t tiles(int64_t points) { return (points + kTile - 1) / kTile; }

}  // namespace fastcv::FASTCV_GPU
