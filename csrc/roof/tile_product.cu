// tile_product by mma.sync: four warps of 16 rows each, whose fragments come from shared memory by ldmatrix, as they
// lie, transposed, or after stmatrix has put them elsewhere; or, in tf32, from memory by hand.
#include "roof/probes.h"

#include "common/ptx.cuh"

namespace fastcv::FASTCV_GPU {
namespace {

constexpr int kThreads = 128, kRows = 64, kColumns = 128, kDepth = 64;

// The four sums of a lane in the 16 x 8 tile whose first row and column these are.
__device__ __forceinline__ void store_tile(float* d, int row0, int column0, const float (&sums)[4]) {
  const int lane = threadIdx.x % 32;
  for (int i = 0; i < 4; ++i) d[(row0 + lane / 4 + i / 2 * 8) * kColumns + column0 + lane % 4 * 2 + i % 2] = sums[i];
}

// transposed: shared memory holds a and b column by column.
template <class S, bool transposed>
__global__ void __launch_bounds__(kThreads) ldmatrix_kernel(const S* a, const S* b, float* d) {
  constexpr int kPitchA = (transposed ? kRows : kDepth) + 8, kPitchB = (transposed ? kColumns : kDepth) + 8;
  FASTCV_SHARED(S, tile_a, (transposed ? kDepth : kRows) * kPitchA);
  FASTCV_SHARED(S, tile_b, (transposed ? kDepth : kColumns) * kPitchB);
  for (int i = threadIdx.x; i < kRows * kDepth; i += kThreads) {
    const int row = i / kDepth, k = i % kDepth;
    tile_a[transposed ? k * kPitchA + row : row * kPitchA + k] = a[i];
  }
  for (int i = threadIdx.x; i < kColumns * kDepth; i += kThreads) {
    const int column = i / kDepth, k = i % kDepth;
    tile_b[transposed ? k * kPitchB + column : column * kPitchB + k] = b[i];
  }
  __syncthreads();
  const int lane = threadIdx.x % 32, tile = lane / 8, line = lane % 8, row0 = threadIdx.x / 32 * 16;
  for (int column0 = 0; column0 < kColumns; column0 += 16) {
    float sums[2][4] = {};
    for (int k = 0; k < kDepth; k += 16) {
      Fragment4 fa, fb;
      if constexpr (transposed) {
        fa = load_matrix_x4_transposed(tile_a + ((k + line + tile / 2 * 8) * kPitchA + row0 + tile % 2 * 8));
        fb = load_matrix_x4_transposed(tile_b + ((k + line + tile % 2 * 8) * kPitchB + column0 + tile / 2 * 8));
      } else {
        fa = load_matrix_x4(tile_a + ((row0 + line + tile % 2 * 8) * kPitchA + k + tile / 2 * 8));
        fb = load_matrix_x4(tile_b + ((column0 + line + tile / 2 * 8) * kPitchB + k + tile % 2 * 8));
      }
      for (int i = 0; i < 2; ++i) {
        const uint32_t columns[2] = {fb.at[2 * i], fb.at[2 * i + 1]};
        multiply_add<S>(sums[i], fa.at, columns);
      }
    }
    for (int i = 0; i < 2; ++i) store_tile(d, row0, column0 + 8 * i, sums[i]);
  }
}

__global__ void __launch_bounds__(kThreads) tf32_kernel(const float* a, const float* b, float* d) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, row0 = threadIdx.x / 32 * 16;
  for (int column0 = 0; column0 < kColumns; column0 += 8) {
    float sums[4] = {};
    for (int k = 0; k < kDepth; k += 8) {
      const auto at = [&](int row, int column) { return to_tf32(a[(row0 + row) * kDepth + k + column]); };
      const uint32_t fa[4] = {at(g, t), at(g + 8, t), at(g, t + 4), at(g + 8, t + 4)};
      const uint32_t fb[2] = {to_tf32(b[(column0 + g) * kDepth + k + t]),
                              to_tf32(b[(column0 + g) * kDepth + k + t + 4])};
      multiply_add_tf32(sums, fa, fb);
    }
    store_tile(d, row0, column0, sums);
  }
}

// Rows of a by stmatrix from registers into a swizzled tile, from where ldmatrix takes them.
template <class S>
__global__ void __launch_bounds__(kThreads) stmatrix_kernel(const S* a, const S* b, float* d) {
  FASTCV_SHARED(S, tile, kRows * kDepth);
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, row0 = threadIdx.x / 32 * 16;
  const int row = row0 + lane % 8 + lane / 8 % 2 * 8;
  const auto place = [&](int k) { return tile + (row * kDepth + ((k + lane / 16 * 8) ^ row % 8 * 8)); };
  const auto pair = [](const S* from) { return from[0].bits | uint32_t{from[1].bits} << 16; };
  for (int k = 0; k < kDepth; k += 16) {
    Fragment4 f;
    for (int i = 0; i < 4; ++i) f.at[i] = pair(a + (row0 + g + i % 2 * 8) * kDepth + k + 2 * t + i / 2 * 8);
    store_matrix_x4(place(k), f);
  }
  __syncwarp();
  for (int column0 = 0; column0 < kColumns; column0 += 8) {
    float sums[4] = {};
    for (int k = 0; k < kDepth; k += 16) {
      const Fragment4 fa = load_matrix_x4(place(k));
      const S* from = b + (column0 + g) * kDepth + k + 2 * t;
      const uint32_t fb[2] = {pair(from), pair(from + 8)};
      multiply_add<S>(sums, fa.at, fb);
    }
    store_tile(d, row0, column0, sums);
  }
}

template <class S, bool transposed>
int run(const TileProductParams& p, CUstream_st* stream) {
  return launch(ldmatrix_kernel<S, transposed>, 1, kThreads, 0, stream, static_cast<const S*>(p.a),
                static_cast<const S*>(p.b), p.d);
}

}  // namespace

int tile_product_ldmatrix(const TileProductParams& p, void*, CUstream_st* stream) {
  return p.dtype == DType::bf16 ? run<bf16, false>(p, stream) : run<f16, false>(p, stream);
}
int tile_product_transposed(const TileProductParams& p, void*, CUstream_st* stream) {
  return p.dtype == DType::bf16 ? run<bf16, true>(p, stream) : run<f16, true>(p, stream);
}
int tile_product_stmatrix(const TileProductParams& p, void*, CUstream_st* stream) {
  const auto go = [&]<class S>(void (*kernel)(const S*, const S*, float*)) {
    return launch(kernel, 1, kThreads, 0, stream, static_cast<const S*>(p.a), static_cast<const S*>(p.b), p.d);
  };
  return p.dtype == DType::bf16 ? go(stmatrix_kernel<bf16>) : go(stmatrix_kernel<f16>);
}
int tile_product_tf32(const TileProductParams& p, void*, CUstream_st* stream) {
  return launch(tf32_kernel, 1, kThreads, 0, stream, static_cast<const float*>(p.a), static_cast<const float*>(p.b),
                p.d);
}

}  // namespace fastcv::FASTCV_GPU
