// What a warp's matrix instructions must do: loads and stores of fragments, products of every type.
#pragma once
#include "common/numbers.cuh"
#include "common/ptx.cuh"
#include "planted.h"

namespace fastcv::emulated {
namespace {

// One warp: D (16x8) = A (16x16) B (16x8) by ldmatrix and mma.sync, against plain loops.
__global__ void matrix_product(const float*, float* y, bool) {
  if (threadIdx.x >= 32) return;
  const int lane = threadIdx.x;
  FASTCV_SHARED(bf16, a, 16 * 16);
  for (int i = lane; i < 256; i += 32) a[i] = narrow<bf16>(a_at(i / 16, i % 16));
  __syncwarp();
  // Tiles in the order of A's registers: rows 0-7, rows 8-15, then the same for columns 8-15.
  const int tile = lane / 8;
  const Fragment4 fa = load_matrix_x4(a + ((lane % 8 + tile % 2 * 8) * 16 + tile / 2 * 8));
  uint32_t fb[2];
  for (int i = 0; i < 2; ++i) {
    const int col = lane / 4, k = lane % 4 * 2 + i * 8;
    fb[i] = narrow<bf16>(b_at(k, col)).bits | uint32_t{narrow<bf16>(b_at(k + 1, col)).bits} << 16;
  }
  float d[4] = {};
  multiply_add<bf16>(d, fa.at, fb);
  const bool right = warp_sums_are(d, lane, [](int row, int column) { return dot(row, column, 0, 16); });
  y[lane] = y[lane + 32] = right ? 1.0f : -1.0f;
}

// The same from a transposed A: what lies column by column comes out of the transposing load.
__global__ void transposed_product(const float*, float* y, bool) {
  if (threadIdx.x >= 32) return;
  const int lane = threadIdx.x;
  FASTCV_SHARED(f16, a, 16 * 16);  // [k][row]
  FASTCV_SHARED(f16, b, 16 * 16);  // [k][col], columns 8 to 15 another product's
  for (int i = lane; i < 256; i += 32)
    a[i] = narrow<f16>(a_at(i % 16, i / 16)), b[i] = narrow<f16>(b_at(i / 16, i % 16));
  __syncwarp();
  const int tile = lane / 8;
  const Fragment4 fa = load_matrix_x4_transposed(a + ((lane % 8 + tile / 2 * 8) * 16 + tile % 2 * 8));
  const Fragment4 fb = load_matrix_x4_transposed(b + ((lane % 8 + tile % 2 * 8) * 16 + tile / 2 * 8));
  bool right = true;
  for (int n = 0; n < 2; ++n) {
    const uint32_t columns[2] = {fb.at[2 * n], fb.at[2 * n + 1]};
    float d[4] = {};
    multiply_add<f16>(d, fa.at, columns);
    right = right && warp_sums_are(d, lane, [=](int row, int column) { return dot(row, 8 * n + column, 0, 16); });
  }
  y[lane] = y[lane + 32] = right ? 1.0f : -1.0f;
}

// Sixteen by sixteen elements from registers into a swizzled tile, and read back one by one.
__global__ void matrix_store(const float*, float* y, bool) {
  if (threadIdx.x >= 32) return;
  const int lane = threadIdx.x;
  FASTCV_SHARED(bf16, tile, 16 * 64);
  const auto value = [](int r, int c) { return static_cast<float>(r * 16 + c); };
  Fragment4 f{};
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i % 2 * 8, column = lane % 4 * 2 + i / 2 * 8;
    f.at[i] = narrow<bf16>(value(row, column)).bits | uint32_t{narrow<bf16>(value(row, column + 1)).bits} << 16;
  }
  const int row = lane % 8 + lane / 8 % 2 * 8, column = lane / 16 * 8;
  store_matrix_x4(tile + (row * 64 + (column ^ row % 8 * 8)), f);
  __syncwarp();
  bool right = true;
  for (int i = lane; i < 256; i += 32) {
    const int r = i / 16, c = i % 16;
    right = right && widen(tile[r * 64 + (c ^ r % 8 * 8)]) == value(r, c);
  }
  y[lane] = y[lane + 32] = right ? 1.0f : -1.0f;
}

// D (16x8) = A (16x8) B (8x8) of tf32 numbers: what float has beyond ten bits of mantissa is rounded away.
__global__ void tf32_product(const float*, float* y, bool) {
  if (threadIdx.x >= 32) return;
  const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
  const auto at = [](int r, int k) { return a_at(r, k) + 0x1p-9f; };
  const uint32_t a[4] = {to_tf32(at(g, t)), to_tf32(at(g + 8, t)), to_tf32(at(g, t + 4)), to_tf32(at(g + 8, t + 4))};
  const uint32_t b[2] = {to_tf32(b_at(t, g)), to_tf32(b_at(t + 4, g))};
  float d[4] = {};
  multiply_add_tf32(d, a, b);
  const auto rounded = [](float x) { return __uint_as_float(to_tf32(x)); };
  bool right = rounded(5 + 0x1p-9f) == 5 + 0x1p-8f && rounded(1 + 0x1p-9f) == 1 + 0x1p-9f && rounded(-0.0f) == 0;
  right = right && warp_sums_are(d, lane, [&](int row, int column) {
            float sum = 0;
            for (int k = 0; k < 8; ++k) sum += rounded(at(row, k)) * b_at(k, column);
            return sum;
          });
  y[lane] = y[lane + 32] = right ? 1.0f : -1.0f;
}

// D (16x8) += A (16x32) B (32x8) of unsigned bytes by ldmatrix; what leaves 32 bits wraps around.
__global__ void byte_product(const float*, float* y, bool) {
  if (threadIdx.x >= 32) return;
  const int lane = threadIdx.x;
  constexpr int kDepth = 32;
  FASTCV_SHARED(uint16_t, rows, 24 * kDepth / 2);  // 16 of A, 8 of B's columns; two bytes to an element
  const auto at = [](int r, int k) { return static_cast<uint32_t>((r * 89 + k * 57 + 200) & 255); };
  for (int i = lane; i < 24 * kDepth / 2; i += 32) {
    const int r = i / (kDepth / 2), k = i % (kDepth / 2) * 2;
    rows[i] = static_cast<uint16_t>(at(r, k) | at(r, k + 1) << 8);
  }
  __syncwarp();
  const int tile = lane / 8;
  const Fragment4 a = load_matrix_x4(rows + ((lane % 8 + tile % 2 * 8) * (kDepth / 2) + tile / 2 * 8));
  const Fragment4 b = load_matrix_x4(rows + ((16 + lane % 8) * (kDepth / 2) + tile % 2 * 8));
  const uint32_t columns[2] = {b.at[0], b.at[1]};
  constexpr uint32_t kNearTheEnd = 0xffffff00u;
  uint32_t d[4] = {kNearTheEnd, kNearTheEnd, kNearTheEnd, kNearTheEnd};
  multiply_add_u8(d, a.at, columns);
  const bool right = warp_sums_are(d, lane, [&](int row, int column) {
    uint32_t sum = kNearTheEnd;
    for (int k = 0; k < kDepth; ++k) sum += at(row, k) * at(16 + column, k);
    return sum;
  });
  y[lane] = y[lane + 32] = right ? 1.0f : -1.0f;
}

void show_warp_products() {
  show("matrix_product", matrix_product, true);
  show("transposed_product", transposed_product, true);
  show("matrix_store", matrix_store, true);
  show("tf32_product", tf32_product, true);
  show("byte_product", byte_product, true);
}

}  // namespace
}  // namespace fastcv::emulated
