// knn of floating point for p = 2 on tensor cores: their products bound every squared distance from both sides, and
// what the bounds cannot exclude is summed directly. The same bits as the tiles of pairs.cuh.
//
// Rows are taken less c, a point amid y (which cancels in q - r; 16-bit points keep c = 0 and stay as they are), and
// float32 is rounded to bfloat16, or split into two. With A = q - c and R = r - c, b() what is multiplied, u = 2^-24:
//   s = rho - 2 dot,  rho = |R|^2 as summed here,  dot = b(A).b(R) as summed by the tensor cores,
//   |(|A - R|^2 - |A|^2) - s| <= 2 (|A - b(A)| |R| + |b(A)| |R - b(R)|) + rounding of the sums
//                             <= a(q) |R| + b(q) |R - b(R)| + g rho + tiny.
// Norms of what rounding took away are measured, not assumed. How tensor cores round is not documented: each addend of
// one of their sums (16 products and what was there, at most in two halves) may lose 2^-23 of the largest one, which is
// twice what has been found of any (Fasi, Higham, Mikaitis, Pranesh, "Numerical behavior of NVIDIA tensor cores",
// PeerJ Computer Science 7, 2021), and subnormal operands may count as zeros.
// A row whose square nears the end of the range, or is NaN, is multiplied as zeros and excludes nothing.
#include "neighbors/knn_filter.h"

#include "neighbors/knn_product.cuh"

namespace fastcv::FASTCV_GPU {
namespace {

constexpr float kUnit = 0x1p-24f;   // rounding to float, relative
constexpr float kTiny = 1e-30f;     // more than underflow can take from a sum
constexpr float kLost = 0x1p-126f;  // what it can take from one square
constexpr float kHuge = 1e37f;      // squares up to here leave room for products and sums

// What depends on the depth alone.
struct Bounds {
  float product;  // of dot, relative to |b(A)| |b(R)|
  float square;   // of rho
  float lost;     // of rho by underflow, absolute
  float direct;   // of the direct sums that decide, relative

  Bounds(int64_t depth, const KnnProduct& plan, int pieces, int segments) {
    const double products = static_cast<double>(plan.row_bytes / pieces / 2) * segments;
    const int64_t block = depth < kSumUnits ? depth : kSumUnits;
    // 20 losses of 2 u for 16 products; of two pieces, the product of the low ones is left out: 2^-9 times 2^-9.
    product = static_cast<float>((2.5 * products * 1.02 + 8 + (pieces == 2 ? 80 : 0)) * kUnit);
    square = static_cast<float>(depth / kWarp + 32) * kUnit;
    lost = static_cast<float>(depth) * kLost;
    direct = static_cast<float>(block + depth / kSumUnits + 16) * kUnit;
  }
};

// nearest: for k = 1, upper bounds exclude pairs before any is summed.
template <class Storage, int pieces_, bool nearest>
struct FloatProduct {
  using S = Storage;
  using Operand = std::conditional_t<std::is_same_v<S, float>, bf16, S>;
  using Sum = float;
  static constexpr bool centred = std::is_same_v<S, float>, one = nearest;
  static constexpr int pieces = pieces_, segments = pieces == 1 ? 1 : 3;
  Bounds bounds;

  __device__ static __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    multiply_add<Operand>(d, a, b);
  }

  template <int groups>
  struct Rows {
    float a[groups], b[groups], square[groups], limit[groups], least[groups], width[groups], upper[groups];

    __device__ __forceinline__ void start(const FloatProduct& kind, int i, const uint32_t* terms, int64_t step,
                                          bool exists) {
      const float norm = __uint_as_float(terms[step]), error = __uint_as_float(terms[2 * step]);
      square[i] = __uint_as_float(terms[0]);
      a[i] = 2.02f * fma(kind.bounds.product, norm + error, error);
      b[i] = 2.02f * (1 + kind.bounds.product) * (norm + error);
      limit[i] = exists ? INFINITY : -INFINITY;
      upper[i] = INFINITY;
    }
    // What |A - R|^2 - |A|^2 may be at most for a pair to matter, where the list's last place has a direct sum's key.
    // Nothing is excluded where that is NaN's or nobody's, or where |A|^2 was too large (-infinity here).
    __device__ __forceinline__ void after_sums(const FloatProduct& kind, int i, uint32_t key) {
      if (key >= Keys<float>::nan) return;
      const float sum = Keys<float>::sum(key);
      const float mine = fma(sum, 1 + (2.2f * kind.bounds.direct + 8 * kUnit), kTiny) -
                         square[i] * (1 - (kind.bounds.square + 8 * kUnit));
      limit[i] = min(limit[i], mine);
    }
    // Makes bounds' middles of products. Whether any of this thread's pairs may matter.
    template <class Sums>
    __device__ __forceinline__ bool scan(const FloatProduct& kind, Sums& sum, Shared<uint32_t> terms) {
      const auto rho = shared_cast<float>(terms) + threadIdx.x % 4 * 2;
      const auto tile = load_shared<Pack<float, 4>>(shared_cast<float>(terms) + KnnProduct::kTerms * kColumns);
#pragma unroll
      for (int i = 0; i < groups; ++i) least[i] = INFINITY;
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) {
        const auto here = load_shared<Pack<float, 2>>(rho + n * 8);
#pragma unroll
        for (int i = 0; i < groups; ++i)
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            float& s = sum[i / 2][n][i % 2 * 2 + j];
            s = fma(-2.0f, s, here.at[j]);
            least[i] = min(least[i], s);
          }
      }
      bool any = false;
#pragma unroll
      for (int i = 0; i < groups; ++i) {
        width[i] = fma(a[i], tile.at[1], fma(b[i], tile.at[2], fma(kind.bounds.square, tile.at[0], kTiny)));
        if constexpr (nearest) {
          float of_row = min(least[i], __shfl_xor_sync(kAllLanes, least[i], 1));
          of_row = min(of_row, __shfl_xor_sync(kAllLanes, of_row, 2));
          if (of_row > -INFINITY && square[i] >= 0) {
            upper[i] = min(upper[i], of_row + width[i]);
            const float whole = max(fma(square[i], 1 + kind.bounds.square, upper[i]), 0.0f);
            limit[i] = min(limit[i], fma(whole, 2.2f * kind.bounds.direct, upper[i]) +
                                         fma(fabs(upper[i]) + square[i], 8 * kUnit, kTiny));
          }
        }
        any = any || may_pass(i);
      }
      return any;
    }
    __device__ __forceinline__ bool may_pass(int i) const {
      return least[i] <= limit[i] + fma(fabs(limit[i]) + width[i], 4 * kUnit, width[i]);
    }
    // A bit for each of the thread's pairs with this query that may matter, by the bounds of its own point.
    __device__ __forceinline__ uint32_t passing(const FloatProduct& kind, int i, const float (&s)[kColumnTiles][4],
                                                Shared<uint32_t> terms, int column0, int end, Ranked) const {
      const auto rho = shared_cast<float>(terms) + threadIdx.x % 4 * 2;
      const float most = limit[i] + fabs(limit[i]) * (4 * kUnit);
      uint32_t bits = 0;
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) {
        const auto square_here = load_shared<Pack<float, 2>>(rho + n * 8),
                   norm = load_shared<Pack<float, 2>>(rho + (kColumns + n * 8)),
                   error = load_shared<Pack<float, 2>>(rho + (2 * kColumns + n * 8));
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const float wide =
              fma(a[i], norm.at[j], fma(b[i], error.at[j], fma(kind.bounds.square, square_here.at[j], kTiny)));
          const bool there = column0 + n * 8 + static_cast<int>(threadIdx.x) % 4 * 2 + j < end;
          // Where the point's square is -infinity the difference is NaN, and greater than nothing.
          if (there && !(s[n][i % 2 * 2 + j] - wide > most)) bits |= 1u << (2 * n + j);
        }
      }
      return bits;
    }
  };
};

// ---- operands ------------------------------------------------------------------------------------------------------

constexpr int kCenterSamples = 16;

// A point amid the rows of each item of y: coordinate by coordinate the middle one of three means of a few rows, so
// that one huge row moves it little. Any point serves.
__global__ void __launch_bounds__(kThreads) center_kernel(const float* y, int64_t items, int64_t rows, int64_t depth,
                                                          int64_t item_step, int64_t padded, float* center) {
  for (int64_t i = global_thread(); i < items * padded; i += global_threads()) {
    const int64_t item = i / padded, d = i % padded;
    float mean[3];
    for (int part = 0; part < 3; ++part) {
      float sum = 0;
      for (int s = 0; s < kCenterSamples && d < depth; ++s) {
        const int64_t row = rows * (part * kCenterSamples + s) / (3 * kCenterSamples);
        sum += y[item * item_step + row * depth + d];
      }
      mean[part] = sum * (1.0f / kCenterSamples);
    }
    const float middle = fmax(fmin(mean[0], mean[1]), fmin(fmax(mean[0], mean[1]), mean[2]));
    center[i] = fabs(middle) < kHuge ? middle : 0.0f;
  }
}

// One side: where its points are and where its operands go.
struct Side {
  const void* points;
  int64_t items, rows, padded_rows, depth, item_step, row_bytes;
  int access;
  char* operands;
  float *terms, *tiles;
};

// A block takes 128 points, a warp one at a time: its operands, |R|^2 and upper bounds of |R| and |R - b(R)|; and the
// largest of these in the tile.
template <class Kind>
__global__ void __launch_bounds__(kThreads)
    operands_kernel(const Side side, const float* center, int64_t center_step, const Bounds bounds) {
  using S = typename Kind::S;
  using T = typename Kind::Operand;
  constexpr int n = kPack<T>, warps = kThreads / kWarp, points = KnnProduct::kTilePoints;
  FASTCV_SHARED(float, largest, warps * 3);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t piece = side.row_bytes / Kind::pieces, chunks = piece / 16;
  for (int64_t tile = blockIdx.x; tile < side.items * side.padded_rows / points; tile += gridDim.x) {
    const int64_t item = tile * points / side.padded_rows, row0 = tile * points % side.padded_rows;
    const float* middle = Kind::centred ? center + item * center_step : nullptr;
    float most[3] = {};
    for (int i = warp; i < points; i += warps) {
      const int64_t row = row0 + i, depth = row < side.rows ? side.depth : 0;
      const S* from = static_cast<const S*>(side.points) + item * side.item_step + row * side.depth;
      char* to = side.operands + (tile * points + i) * side.row_bytes;
      float square = 0, error = 0;
      for (int64_t chunk = lane; chunk < chunks; chunk += kWarp) {
        Pack<T, n> high, low;
#pragma unroll
        for (int at = 0; at < n; at += kPack<S>) {
          const int64_t d = chunk * n + at;
          const auto coordinates = load_elements(from + d, depth - d, side.access);
#pragma unroll
          for (int e = 0; e < kPack<S>; ++e) {
            float v = widen(coordinates.at[e]);
            if constexpr (Kind::centred) {
              if (d + e < depth) v -= middle[d + e];
              const T rounded = narrow<T>(v);
              float left = v - widen(rounded);
              high.at[at + e] = rounded;
              if constexpr (Kind::pieces == 2) {
                low.at[at + e] = narrow<T>(left);
                left -= widen(low.at[at + e]);
              }
              error = fma(left, left, error);
            } else {
              high.at[at + e] = coordinates.at[e];
              if (std::is_same_v<T, f16> && fabs(v) < 0x1p-14f) error = fma(v, v, error);  // may count as zero
            }
            square = fma(v, v, square);
          }
        }
        store_pack(reinterpret_cast<T*>(to + chunk * 16), high);
        if constexpr (Kind::pieces == 2) store_pack(reinterpret_cast<T*>(to + piece + chunk * 16), low);
      }
      square = reduce_warp(square, Sum());
      error = reduce_warp(error, Sum());
      float rho = INFINITY, norm = 0, lost = 0;  // beyond the points: excluded by any other
      if (row < side.rows && square < kHuge) {
        rho = square;
        norm = sqrt(fma(square, 1 + bounds.square, bounds.lost)) * (1 + 4 * kUnit);
        lost = fma(2 * kUnit, norm, sqrt(fma(error, 1 + bounds.square, bounds.lost)) * (1 + 4 * kUnit));
        most[0] = max(most[0], rho);
        most[1] = max(most[1], norm);
        most[2] = max(most[2], lost);
      } else if (row < side.rows) {
        rho = -INFINITY;
        __syncwarp();  // behind the stores above
        for (int64_t chunk = lane; chunk < side.row_bytes / 16; chunk += kWarp)
          store_pack(to + chunk * 16, Pack<char, 16>{});
      }
      if (lane < 3)
        side.terms[lane * side.items * side.padded_rows + tile * points + i] = lane == 0   ? rho
                                                                               : lane == 1 ? norm
                                                                                           : lost;
    }
    __syncthreads();  // the tile before may still be read
    if (lane < 3) largest[warp * 3 + lane] = lane == 0 ? most[0] : lane == 1 ? most[1] : most[2];
    __syncthreads();
    if (threadIdx.x < KnnProduct::kTileTerms) {
      float value = 0;
      for (int w = 0; w < warps && threadIdx.x < 3; ++w)
        value = max(value, static_cast<float>(largest[w * 3 + threadIdx.x]));
      side.tiles[tile * KnnProduct::kTileTerms + threadIdx.x] = value;
    }
  }
}

template <class Kind>
int search(const KnnParams& p, void* workspace, CUstream_st* stream) {
  const KnnProduct plan(p, Kind::pieces, Kind::centred);
  char* memory = static_cast<char*>(workspace);
  const Operands g(p, plan, memory);
  const Kind kind{Bounds(p.depth, plan, Kind::pieces, Kind::segments)};
  float* center = reinterpret_cast<float*>(memory + plan.center);
  const int64_t padded = plan.row_bytes / Kind::pieces / 2;
  int error = cudaSuccess;
  if constexpr (Kind::centred)
    if (p.k > 0)
      error = launch(center_kernel, grid_for(plan.y_items * padded, kThreads), kThreads, 0, stream,
                     static_cast<const float*>(p.y), plan.y_items, p.n, p.depth, p.y_batch, padded, center);
  const Side sides[] = {
      {p.x, plan.x_items, p.m, plan.x_rows, p.depth, p.x_batch, plan.row_bytes, g.access, memory,
       reinterpret_cast<float*>(memory + plan.x_terms), reinterpret_cast<float*>(memory + plan.x_tiles)},
      {p.y, plan.y_items, p.n, plan.y_rows, p.depth, p.y_batch, plan.row_bytes, g.access, memory + plan.y_at,
       reinterpret_cast<float*>(memory + plan.y_terms), reinterpret_cast<float*>(memory + plan.y_tiles)},
  };
  for (const Side& side : sides)
    if (error == 0 && p.k > 0)
      error = launch(operands_kernel<Kind>, grid_for(side.items * side.padded_rows / KnnProduct::kTilePoints, 1),
                     kThreads, 0, stream, side, center, plan.y_items == 1 ? int64_t{0} : padded, kind.bounds);
  return error != 0 ? error : search_products(g, kind, L2<float>(2), stream);
}

template <int pieces, bool nearest>
int search_floats(const KnnParams& p, void* workspace, CUstream_st* stream) {
  if (p.batch * p.m == 0) return cudaSuccess;
  switch (p.dtype) {
    case DType::f32:
      return search<FloatProduct<float, pieces, nearest>>(p, workspace, stream);
    case DType::bf16:
      if constexpr (pieces == 1) return search<FloatProduct<bf16, 1, nearest>>(p, workspace, stream);
      return cudaErrorInvalidValue;
    case DType::f16:
      if constexpr (pieces == 1) return search<FloatProduct<f16, 1, nearest>>(p, workspace, stream);
      return cudaErrorInvalidValue;
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace

int knn_filter(const KnnParams& p, void* workspace, CUstream_st* stream) {
  return search_floats<1, false>(p, workspace, stream);
}
int knn_filter_bf16x3(const KnnParams& p, void* workspace, CUstream_st* stream) {
  return search_floats<2, false>(p, workspace, stream);
}
int knn_minimum(const KnnParams& p, void* workspace, CUstream_st* stream) {
  return search_floats<1, true>(p, workspace, stream);
}

}  // namespace fastcv::FASTCV_GPU
