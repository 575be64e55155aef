// Products of a warpgroup (wgmma), of which two warps run: bugs of what they read and when, and what each form must
// give.
#pragma once
#include "common/numbers.cuh"
#include "common/ptx.cuh"
#include "common/ptx_cluster.cuh"
#include "common/ptx_wgmma_transposed.cuh"
#include "planted.h"

namespace fastcv::emulated {
namespace {

// D = A B' of a warpgroup's first two warps: 32 of 64 rows, 128 columns, 16 of 64 elements along k.
template <bool overwrites>
__global__ void group_product(const float*, float* y, bool right) {
  FASTCV_SHARED(bf16, a, 64 * 64);
  FASTCV_SHARED(bf16, b, 128 * 64);
  const int t = threadIdx.x;
  const auto place = [](int row, int k) { return row * 64 + (k ^ row % 8 * 8); };
  for (int i = t; i < 64 * 64; i += kThreads) a[place(i / 64, i % 64)] = narrow<bf16>(a_at(i / 64, i % 64));
  for (int i = t; i < 128 * 64; i += kThreads) b[place(i / 64, i % 64)] = narrow<bf16>(b_at(i % 64, i / 64));
  __syncthreads();
  float d[64] = {};
  group_begin();
  multiply_group<bf16, 128>(d, operand(a) + 2, operand(b) + 2, false);  // k from 16 to 31
  group_commit();
  if (overwrites && !right) b[place(2 * t, 20)] = narrow<bf16>(0.0f);
  if (overwrites || right) group_wait<0>();
  const bool same = group_sums_are(d, t, [](int row, int column) { return dot(row, column, 16, 32); });
  y[t] = same ? 1.0f : -1.0f;
}

// The same in tf32: 8 of 32 elements along k, whose bits beyond ten of the mantissa the product cuts off; the second
// block of a cluster finds them in its own memory.
__global__ void tf32_group_product(const float*, float* y, bool) {
  FASTCV_SHARED(float, a, 64 * 32);
  FASTCV_SHARED(float, b, 64 * 32);
  const int t = threadIdx.x, rank = static_cast<int>(cluster_rank());
  const auto place = [](int row, int k) { return row * 32 + (k ^ row % 8 * 4); };
  for (int i = t; i < 64 * 32; i += kThreads) {
    a[place(i / 32, i % 32)] = a_at(i / 32, i % 32, rank) * (1 + 0x1p-12f);
    b[place(i / 32, i % 32)] = b_at(i % 32, i / 32);
  }
  __syncthreads();
  float d[32] = {};
  group_begin();
  multiply_group<float, 64>(d, operand(a) + 4, operand(b) + 4, false);  // k from 16 to 23
  group_commit();
  group_wait<0>();
  const bool same = group_sums_are(d, t, [&](int row, int column) {
    float sum = 0;
    for (int k = 16; k < 24; ++k) sum += a_at(row, k, rank) * b_at(k, column);
    return sum;
  });
  y[t] = same ? 1.0f : -1.0f;
}

// The same product of operands that lie with a row per k: A' is 64 x 64, B two tiles of 64 columns.
template <int columns_apart>
__global__ void transposed_group_product(const float*, float* y, bool) {
  FASTCV_SHARED(f16, a, 64 * 64);
  FASTCV_SHARED(f16, b, 2 * columns_apart);
  const int t = threadIdx.x;
  const auto place = [](int k, int mn) { return mn / 64 * columns_apart + k * 64 + (mn % 64 ^ k % 8 * 8); };
  for (int i = t; i < 64 * 64; i += kThreads) a[place(i / 64, i % 64)] = narrow<f16>(a_at(i % 64, i / 64));
  for (int i = t; i < 64 * 128; i += kThreads) b[place(i / 128, i % 128)] = narrow<f16>(b_at(i / 128, i % 128));
  __syncthreads();
  float d[64];
  for (float& v : d) v = 1000;
  group_begin();
  const uint64_t from_a = operand_transposed(a, 8192), from_b = operand_transposed(b, columns_apart * 2);
  multiply_group_transposed<f16, 128>(d, from_a + 128, from_b + 128, false);         // k from 16 to 31
  multiply_group_transposed<f16, 128>(d, from_a + 3 * 128, from_b + 3 * 128, true);  // and from 48 to 63
  group_commit();
  group_wait<0>();
  const bool same =
      group_sums_are(d, t, [](int row, int column) { return dot(row, column, 16, 32) + dot(row, column, 48, 64); });
  y[t] = same ? 1.0f : -1.0f;
}

// The same of A in registers, which must be left alone until the product has been waited for; 64 columns.
template <bool overwrites>
__global__ void register_product(const float*, float* y, bool right) {
  FASTCV_SHARED(bf16, a, 32 * 16);
  FASTCV_SHARED(bf16, b, 64 * 64);  // aligned, behind 1024 bytes
  const int t = threadIdx.x, lane = t % 32;
  for (int i = t; i < 32 * 16; i += kThreads) a[i] = narrow<bf16>(a_at(i / 16, i % 16));
  for (int i = t; i < 64 * 64; i += kThreads)
    b[i / 64 * 64 + (i % 64 ^ i / 64 % 8 * 8)] = narrow<bf16>(b_at(i % 64, i / 64));
  __syncthreads();
  Fragment4 rows = load_matrix_x4(a + (t / 32 * 16 + lane % 16) * 16 + lane / 16 * 8);
  float d[32];
  for (int i = 0; i < 32; ++i) d[i] = 1;
  group_begin();
  multiply_group<bf16, 64>(d, rows, operand(b) + 4, true);  // k from 32 to 47
  group_commit();
  if (overwrites && !right) rows.at[lane % 4] ^= 1;
  if (overwrites || right) group_wait<0>();
  const bool same = group_sums_are(d, t, [](int row, int column) {
    float sum = 1;
    for (int k = 0; k < 16; ++k) sum += a_at(row, k) * b_at(32 + k, column);
    return sum;
  });
  y[t] = same ? 1.0f : -1.0f;
}

void show_group_products() {
  show_both("product_not_awaited", group_product<false>);
  show_both("operand_overwritten", group_product<true>);
  show_both("register_product_not_awaited", register_product<false>);
  show_both("registers_overwritten", register_product<true>);
  show("tf32_group_product", tf32_group_product, true, {.cluster = 2});
  show("transposed_group_product", transposed_group_product<64 * 64>, true);
  show("spread_group_product", transposed_group_product<64 * 64 + 1024>, true);
}

}  // namespace
}  // namespace fastcv::emulated
