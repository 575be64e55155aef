// knn of unsigned bytes for p = 2 on integer tensor cores: |a|^2 + |b|^2 - 2 a.b modulo 2^32, which is the distance
// itself as long as that fits into 32 bits. Pairs that beat a query's list go there by the way of all
// (knn_product.cuh).
#include "neighbors/byte_products.h"

#include "neighbors/knn_product.cuh"

namespace fastcv::FASTCV_GPU {
namespace {

struct ByteProduct {
  using S = uint8_t;
  using Sum = uint32_t;
  static constexpr int pieces = 1, segments = 1;
  static constexpr bool one = false;

  __device__ static __forceinline__ void multiply(uint32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    multiply_add_u8(d, a, b);
  }

  template <int groups>
  struct Rows {
    uint32_t square[groups], least[groups], most[groups];

    __device__ __forceinline__ void start(const ByteProduct&, int i, const uint32_t* terms, int64_t, bool exists) {
      square[i] = terms[0];
      most[i] = exists ? ~uint32_t{0} : 0;
    }
    __device__ __forceinline__ void after_sums(const ByteProduct&, int i, uint32_t key) { most[i] = key; }
    // Makes distances of products. Whether any of this thread's pairs may matter.
    template <class Sums>
    __device__ __forceinline__ bool scan(const ByteProduct&, Sums& sum, Shared<uint32_t> terms) {
#pragma unroll
      for (int i = 0; i < groups; ++i) least[i] = ~uint32_t{0};
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) {
        const auto here = load_shared<Pack<uint32_t, 2>>(terms + (n * 8 + threadIdx.x % 4 * 2));
#pragma unroll
        for (int i = 0; i < groups; ++i)
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            uint32_t& s = sum[i / 2][n][i % 2 * 2 + j];
            s = square[i] + here.at[j] - 2 * s;
            least[i] = min(least[i], s);
          }
      }
      bool any = false;
#pragma unroll
      for (int i = 0; i < groups; ++i) any = any || may_pass(i);
      return any;
    }
    __device__ __forceinline__ bool may_pass(int i) const { return least[i] <= most[i]; }
    // A bit for each of the thread's pairs with this query that beats its list.
    __device__ __forceinline__ uint32_t passing(const ByteProduct&, int i, const uint32_t (&keys)[kColumnTiles][4],
                                                Shared<uint32_t>, int column0, int end, Ranked last) const {
      uint32_t bits = 0;
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int column = column0 + n * 8 + threadIdx.x % 4 * 2 + j;
          if (column < end && ranked(keys[n][i % 2 * 2 + j], column) < last) bits |= 1u << (2 * n + j);
        }
      return bits;
    }
  };
};

// Points padded to whole steps and tiles, by a warp each, and the sums of their squares.
__global__ void __launch_bounds__(kThreads)
    bytes_kernel(const uint8_t* points, int64_t items, int64_t rows, int64_t padded_rows, int64_t depth,
                 int64_t item_step, int64_t row_bytes, int access, char* operands, uint32_t* terms) {
  const int lane = threadIdx.x % kWarp;
  for (int64_t i = global_thread() / kWarp; i < items * padded_rows; i += global_threads() / kWarp) {
    const int64_t row = i % padded_rows, there = row < rows ? depth : 0;
    const uint8_t* from = points + i / padded_rows * item_step + row * depth;
    uint32_t square = 0;
    for (int64_t d = lane * 16; d < row_bytes; d += kWarp * 16) {
      const auto pack = load_elements(from + d, there - d, access);
      uint32_t words[4];
      memcpy(words, &pack, sizeof words);
#pragma unroll
      for (int w = 0; w < 4; ++w) square = __dp4a(words[w], words[w], square);
      store_pack(operands + i * row_bytes + d, pack);
    }
    square = reduce_warp(square, Sum());
    if (lane == 0) terms[i] = square;
  }
}

}  // namespace

int knn_products(const KnnParams& p, void* workspace, CUstream_st* stream) {
  if (p.batch * p.m == 0) return cudaSuccess;
  const KnnProduct plan(p, ByteProduct::pieces, false);
  char* memory = static_cast<char*>(workspace);
  const Operands g(p, plan, memory);
  const auto write = [&](const void* points, int64_t items, int64_t rows, int64_t padded_rows, int64_t item_step,
                         char* operands, char* terms) {
    return launch(bytes_kernel, grid_for(items * padded_rows, kThreads / kWarp), kThreads, 0, stream,
                  static_cast<const uint8_t*>(points), items, rows, padded_rows, p.depth, item_step, plan.row_bytes,
                  g.access, operands, reinterpret_cast<uint32_t*>(terms));
  };
  int error = cudaSuccess;
  if (p.k > 0) error = write(p.x, plan.x_items, p.m, plan.x_rows, p.x_batch, memory, memory + plan.x_terms);
  if (error == 0 && p.k > 0)
    error = write(p.y, plan.y_items, p.n, plan.y_rows, p.y_batch, memory + plan.y_at, memory + plan.y_terms);
  return error != 0 ? error : search_products(g, ByteProduct{}, L2Bytes(2), stream);
}

}  // namespace fastcv::FASTCV_GPU
