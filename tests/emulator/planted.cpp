// Kernels with one planted bug each, and their right twins: prints "<kernel> <seed>: <the emulator's words, or ok>".
#include <cstdio>
#include <string>
#include <vector>

#include "common/ptx_cluster.cuh"
#include "common/ptx_wgmma_transposed.cuh"
#include "common/reduce.cuh"

namespace fastcv::emulated {
namespace {

constexpr int kThreads = 64;
constexpr unsigned kCluster = 4;

// Each thread takes its neighbour's value through shared memory.
__global__ void rotate(const float* x, float* y, bool barrier) {
  FASTCV_SHARED(float, box, kThreads);
  box[threadIdx.x] = x[threadIdx.x];
  if (barrier) __syncthreads();
  y[threadIdx.x] = box[(threadIdx.x + 1) % kThreads];
}

// Writes over what others may still be reading.
__global__ void rotate_twice(const float* x, float* y, bool barrier) {
  FASTCV_SHARED(float, box, kThreads);
  float value = x[threadIdx.x];
  for (int i = 0; i < 2; ++i) {
    if (barrier) __syncthreads();
    box[threadIdx.x] = value;
    __syncthreads();
    value = box[(threadIdx.x + 1) % kThreads];
  }
  y[threadIdx.x] = value;
}

// The lanes of one warp need no block barrier, but a warp barrier they need: there is no lock-step.
__global__ void rotate_in_warp(const float* x, float* y, bool barrier) {
  FASTCV_SHARED(float, box, kThreads);
  box[threadIdx.x] = x[threadIdx.x];
  if (barrier) __syncwarp();
  y[threadIdx.x] = box[threadIdx.x / 32 * 32 + (threadIdx.x + 1) % 32];
}

__global__ void half_of_the_block(const float* x, float* y, bool all) {
  if (all || threadIdx.x < kThreads / 2) __syncthreads();
  y[threadIdx.x] = x[threadIdx.x];
}

__global__ void two_barriers(const float* x, float* y, bool same) {
  if (same || threadIdx.x < kThreads / 2) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  y[threadIdx.x] = x[threadIdx.x];
}

__global__ void reads_unwritten(const float* x, float* y, bool whole) {
  FASTCV_SHARED(float, box, kThreads);
  if (whole || threadIdx.x != 7) box[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = box[kThreads - 1 - threadIdx.x];
}

__global__ void beyond_the_end(const float* x, float* y, bool inside) {
  FASTCV_SHARED(float, box, kThreads);
  box[inside ? threadIdx.x : threadIdx.x + 1] = x[threadIdx.x];
  y[threadIdx.x] = x[threadIdx.x];
}

// Warps meet at a barrier of their own number; a warp that comes to another one waits for ever.
__global__ void named_barriers(const float* x, float* y, bool same) {
  FASTCV_SHARED(float, box, kThreads);
  box[threadIdx.x] = x[threadIdx.x];
  sync_threads(same || threadIdx.x < 32 ? 1 : 2, kThreads);
  sync_threads(2 + threadIdx.x / 32, 32);  // each warp's own
  y[threadIdx.x] = box[(threadIdx.x + 32) % kThreads];
}

__global__ void votes(const float*, float* y, bool all) {
  const unsigned lane = threadIdx.x % 32;
  bool right = __ballot_sync(kAllLanes, lane % 3 == 0) == 0x49249249u;
  right = right && __any_sync(kAllLanes, lane == 7) && !__any_sync(kAllLanes, false);
  right = right && __all_sync(kAllLanes, true) && !__all_sync(kAllLanes, lane != 7);
  if (lane < 16) right = right && __ballot_sync(0x0000ffffu, lane > 3) == 0xfff0u;
  else right = right && __ballot_sync(0xffff0000u, lane > 17) == 0xfffc0000u;
  if (all || lane != 5) right = right && __all_sync(kAllLanes, true);
  y[threadIdx.x] = right ? 1.0f : -1.0f;
}

// Each thread adds one to a number in global memory; what is read before others write is lost.
__global__ void atomics(const float*, float* y, bool atomic) {
  static int count;
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  if (atomic) {
    atomicAdd(&count, 1);
  } else {
    const int before = count;
    __syncwarp();
    count = before + 1;
  }
  __syncthreads();
  y[threadIdx.x] = count == kThreads ? 1.0f : -1.0f;
}

// Tiles of 64 products through shared memory; `wrong` goes on by one too few from tile to tile.
__global__ void advance(const float* x, float* y, bool right) {
  FASTCV_SHARED(float, tile, kThreads);
  float sum = 0;
  for (int step = 0; step < 4; ++step) {
    const int at = step * (right ? kThreads : kThreads - 1) + threadIdx.x;
    __syncthreads();
    tile[threadIdx.x] = x[at] * static_cast<float>(at);
    __syncthreads();
    for (int i = 0; i < kThreads; ++i) sum += tile[i];
  }
  y[threadIdx.x] = sum == 255 * 256 / 2 ? 1.0f : -1.0f;
}

// Outputs hold what no thread would write until one does.
__global__ void leaves_an_output(const float* x, float* y, bool all) {
  if (all || threadIdx.x != 63) y[threadIdx.x] = x[threadIdx.x];
}

__global__ void lane_stays_away(const float* x, float* y, bool all) {
  float value = x[threadIdx.x];
  if (all || threadIdx.x % 32 != 5) value += __shfl_xor_sync(kAllLanes, value, 1);
  y[threadIdx.x] = value;
}

// The next tile is used before its copy was waited for.
__global__ void copy_not_awaited(const float* x, float* y, bool wait) {
  FASTCV_SHARED(float, box, kThreads * 4);
  copy_async(box + threadIdx.x * 4, x + threadIdx.x * 4, true);
  commit_async();
  if (wait) wait_async<0>();
  __syncthreads();
  y[threadIdx.x] = box[(threadIdx.x * 4 + 4) % (kThreads * 4)];
  if (!wait) wait_async<0>();
}

// A place is copied to again while other warps may still be reading it: the barrier comes before the wait, not before
// the copy, which may land at once.
__global__ void copy_lands_early(const float* x, float* y, bool barrier) {
  FASTCV_SHARED(float, box, kThreads * 4);
  const auto copy = [&] {
    copy_async(box + threadIdx.x * 4, x + threadIdx.x * 4, true);
    commit_async();
  };
  copy();
  wait_async<0>();
  __syncthreads();
  float sum = box[(threadIdx.x * 4 + 128) % (kThreads * 4)];
  if (barrier) __syncthreads();
  copy();
  if (!barrier) __syncthreads();
  wait_async<0>();
  __syncthreads();
  sum += box[(threadIdx.x * 4 + 128) % (kThreads * 4)];
  y[threadIdx.x] = sum == 2 ? 1.0f : -1.0f;
}

__global__ void stays_in_flight(const float* x, float* y, bool wait) {
  FASTCV_SHARED(float, box, kThreads * 4);
  copy_async(box + threadIdx.x * 4, x + threadIdx.x * 4, true);
  commit_async();
  if (wait) wait_async<0>();
  y[threadIdx.x] = x[threadIdx.x];
}

// Each block of a cluster takes the values of the next one. A block's own barrier does not make it wait for the other.
__global__ void across_blocks(const float* x, float* y, bool wait) {
  FASTCV_SHARED(float, box, kThreads);
  box[threadIdx.x] = x[threadIdx.x];
  if (wait) cluster_sync();
  else __syncthreads();
  const float value = cluster_shared(box, (cluster_rank() + 1) % kCluster)[threadIdx.x];
  cluster_sync();
  y[threadIdx.x] = value;
}

__global__ void too_many_threads(const float*, float* y, bool) { y[threadIdx.x] = 1; }

// One warp: D (16x8) = A (16x16) B (16x8) by ldmatrix and mma.sync, against plain loops.
__global__ void matrix_product(const float*, float* y, bool) {
  if (threadIdx.x >= 32) return;
  const int lane = threadIdx.x;
  FASTCV_SHARED(bf16, a, 16 * 16);
  const auto at = [](int r, int c) { return static_cast<float>((r * 7 + c * 3) % 11 - 5); };
  const auto bt = [](int c, int k) { return static_cast<float>((c * 5 + k * 2) % 13 - 6); };  // B, column by column
  for (int i = lane; i < 256; i += 32) a[i] = narrow<bf16>(at(i / 16, i % 16));
  __syncwarp();
  // Tiles in the order of A's registers: rows 0-7, rows 8-15, then the same for columns 8-15.
  const int tile = lane / 8;
  const Fragment4 fa = load_matrix_x4(a + ((lane % 8 + tile % 2 * 8) * 16 + tile / 2 * 8));
  uint32_t fb[2];
  for (int i = 0; i < 2; ++i) {
    const int col = lane / 4, k = lane % 4 * 2 + i * 8;
    fb[i] = narrow<bf16>(bt(col, k)).bits | uint32_t{narrow<bf16>(bt(col, k + 1)).bits} << 16;
  }
  float d[4] = {};
  multiply_add<bf16>(d, fa.at, fb);
  bool right = true;
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + 8 * (i / 2), col = lane % 4 * 2 + i % 2;
    float sum = 0;
    for (int k = 0; k < 16; ++k) sum += at(row, k) * bt(col, k);
    right = right && sum == d[i];
  }
  y[lane] = y[lane + 32] = right ? 1.0f : -1.0f;
}

// The same from a transposed A: what lies column by column comes out of the transposing load.
__global__ void transposed_product(const float*, float* y, bool) {
  if (threadIdx.x >= 32) return;
  const int lane = threadIdx.x;
  FASTCV_SHARED(f16, a, 16 * 16);  // [k][row]
  FASTCV_SHARED(f16, b, 16 * 16);  // [k][col], columns 8 to 15 another product's
  const auto at = [](int r, int k) { return static_cast<float>((r * 7 + k * 3) % 11 - 5); };
  const auto bt = [](int k, int c) { return static_cast<float>((c * 5 + k * 2) % 13 - 6); };
  for (int i = lane; i < 256; i += 32) a[i] = narrow<f16>(at(i % 16, i / 16)), b[i] = narrow<f16>(bt(i / 16, i % 16));
  __syncwarp();
  const int tile = lane / 8;
  const Fragment4 fa = load_matrix_x4_transposed(a + ((lane % 8 + tile / 2 * 8) * 16 + tile % 2 * 8));
  const Fragment4 fb = load_matrix_x4_transposed(b + ((lane % 8 + tile % 2 * 8) * 16 + tile / 2 * 8));
  bool right = true;
  for (int n = 0; n < 2; ++n) {
    const uint32_t columns[2] = {fb.at[2 * n], fb.at[2 * n + 1]};
    float d[4] = {};
    multiply_add<f16>(d, fa.at, columns);
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + 8 * (i / 2), col = 8 * n + lane % 4 * 2 + i % 2;
      float sum = 0;
      for (int k = 0; k < 16; ++k) sum += at(row, k) * bt(k, col);
      right = right && sum == d[i];
    }
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
  const auto at = [](int r, int k) { return static_cast<float>((r * 7 + k * 3) % 11 - 5) + 0x1p-9f; };
  const auto bt = [](int k, int c) { return static_cast<float>((c * 5 + k * 2) % 13 - 6); };
  const uint32_t a[4] = {to_tf32(at(g, t)), to_tf32(at(g + 8, t)), to_tf32(at(g, t + 4)), to_tf32(at(g + 8, t + 4))};
  const uint32_t b[2] = {to_tf32(bt(t, g)), to_tf32(bt(t + 4, g))};
  float d[4] = {};
  multiply_add_tf32(d, a, b);
  const auto rounded = [](float x) { return __uint_as_float(to_tf32(x)); };
  bool right = rounded(5 + 0x1p-9f) == 5 + 0x1p-8f && rounded(1 + 0x1p-9f) == 1 + 0x1p-9f && rounded(-0.0f) == 0;
  for (int i = 0; i < 4; ++i) {
    const int row = g + 8 * (i / 2), col = 2 * t + i % 2;
    float sum = 0;
    for (int k = 0; k < 8; ++k) sum += rounded(at(row, k)) * bt(k, col);
    right = right && sum == d[i];
  }
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
  bool right = true;
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + 8 * (i / 2), col = lane % 4 * 2 + i % 2;
    uint32_t sum = kNearTheEnd;
    for (int k = 0; k < kDepth; ++k) sum += at(row, k) * at(16 + col, k);
    right = right && sum == d[i];
  }
  y[lane] = y[lane + 32] = right ? 1.0f : -1.0f;
}

enum class Pipeline { full_not_awaited, empty_not_awaited, bytes_miscounted };

// One thread copies four tiles through two places in shared memory; a warp adds up what it reads of each.
template <Pipeline bug>
__global__ void pipeline(const float* x, float* y, bool right) {
  constexpr int kTile = 512, kSteps = 4;  // 8 rows of 64 16-bit elements
  FASTCV_SHARED(bf16, tiles, 2 * kTile);
  FASTCV_SHARED(uint64_t, full, 2);
  FASTCV_SHARED(uint64_t, empty, 2);
  const int t = threadIdx.x;
  TensorTile rows{};  // x as bfloat16: 0, 1, 0, 1, ...
  rows.base = x;
  rows.dtype = DType::bf16;
  rows.size[0] = 64, rows.size[1] = 1, rows.size[2] = 8;
  rows.stride[0] = rows.stride[1] = 128;
  rows.box[0] = 64, rows.box[1] = 1, rows.box[2] = 8;
  if (t == 0)
    for (int i = 0; i < 2; ++i) barrier_init(full + i, 1), barrier_init(empty + i, 32);
  __syncthreads();
  float sum = 0;
  const int row = t % 8, column = t % 32 / 8 * 8 + 1;
  if (t == 0) {
    for (int step = 0; step < kSteps; ++step) {
      if (right || bug != Pipeline::empty_not_awaited) barrier_wait(empty + step % 2, (step / 2 & 1) ^ 1);
      barrier_expect(full + step % 2, right || bug != Pipeline::bytes_miscounted ? 1024 : 512);
      copy_tile_3d(tiles + step % 2 * kTile, rows, 0, 0, step, full + step % 2);
    }
  } else if (t >= 32) {
    for (int step = 0; step < kSteps; ++step) {
      if (right || bug != Pipeline::full_not_awaited) barrier_wait(full + step % 2, step / 2 & 1);
      sum += widen(tiles[step % 2 * kTile + row * 64 + (column ^ row * 8)]);
      barrier_arrive(empty + step % 2);
    }
  }
  const int inside = 8 - row < kSteps ? 8 - row : kSteps;  // the last rows of later tiles lie beyond the tensor
  y[t] = t < 32 || sum == static_cast<float>(inside) ? 1.0f : -1.0f;
}

enum class Together { peer_not_awaited, leaves_early, begins_early, half_announced };

// Each of two blocks copies every other one of four tiles to both, through one place in shared memory; a warp of each
// adds up what it reads.
template <Together bug>
__global__ void multicast(const float* x, float* y, bool right) {
  constexpr int kTile = 512, kSteps = 4;
  FASTCV_SHARED(bf16, tile, 2 * kTile);
  FASTCV_SHARED(uint64_t, full, 1);
  FASTCV_SHARED(uint64_t, empty, 1);
  const int t = threadIdx.x, rank = static_cast<int>(cluster_rank());
  TensorTile rows{};  // x as bfloat16: 0, 1, 0, 1, ...
  rows.base = x;
  rows.dtype = DType::bf16;
  rows.size[0] = 64, rows.size[1] = 1, rows.size[2] = 8;
  rows.stride[0] = rows.stride[1] = 128;
  rows.box[0] = 64, rows.box[1] = 1, rows.box[2] = 8;
  const bool both = right || bug != Together::peer_not_awaited;
  if (t == 0) {
    barrier_init(full, 1);
    barrier_init(empty, both ? 64 : 32);
    barriers_ready();
  }
  if (right || bug != Together::begins_early) cluster_sync();
  else __syncthreads();
  float sum = 0;
  const int row = t % 8, column = t % 32 / 8 * 8 + 1;
  if (t == 0) {
    for (int step = 0; step < kSteps; ++step) {
      barrier_wait_cluster(empty, (step & 1) ^ 1);
      barrier_expect(full, right || bug != Together::half_announced ? 2048 : 1024);  // its own and the other's
      copy_tile_3d_multicast(tile + rank * kTile, rows, 0, 0, step, full, 3);
    }
  } else if (t >= 32) {
    for (int step = 0; step < kSteps; ++step) {
      barrier_wait(full, step & 1);
      for (int from = 0; from < 2; ++from) sum += widen(tile[from * kTile + row * 64 + (column ^ row * 8)]);
      for (int to = 0; to < 2; ++to)
        if (both || to == rank) barrier_arrive_at(empty, to);
    }
  }
  if (right || bug != Together::leaves_early) cluster_sync();
  const int inside = 8 - row < kSteps ? 8 - row : kSteps;
  y[t] = t < 32 || sum == static_cast<float>(2 * inside) ? 1.0f : -1.0f;
}

// D = A B' of a warpgroup's first two warps: 32 of 64 rows, 128 columns, 16 of 64 elements along k.
template <bool overwrites>
__global__ void group_product(const float*, float* y, bool right) {
  FASTCV_SHARED(bf16, a, 64 * 64);
  FASTCV_SHARED(bf16, b, 128 * 64);
  const int t = threadIdx.x, lane = t % 32;
  const auto at = [](int r, int k) { return static_cast<float>((r * 7 + k * 3) % 11 - 5); };
  const auto bt = [](int k, int c) { return static_cast<float>((c * 5 + k * 2) % 13 - 6); };
  const auto place = [](int row, int k) { return row * 64 + (k ^ row % 8 * 8); };
  for (int i = t; i < 64 * 64; i += kThreads) a[place(i / 64, i % 64)] = narrow<bf16>(at(i / 64, i % 64));
  for (int i = t; i < 128 * 64; i += kThreads) b[place(i / 64, i % 64)] = narrow<bf16>(bt(i % 64, i / 64));
  __syncthreads();
  float d[64] = {};
  group_begin();
  multiply_group<bf16, 128>(d, operand(a) + 2, operand(b) + 2, false);  // k from 16 to 31
  group_commit();
  if (overwrites && !right) b[place(2 * t, 20)] = narrow<bf16>(0.0f);
  if (overwrites || right) group_wait<0>();
  bool same = true;
  for (int i = 0; i < 64; ++i) {
    const int row = t / 32 * 16 + lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
    float sum = 0;
    for (int k = 16; k < 32; ++k) sum += at(row, k) * bt(k, column);
    same = same && d[i] == sum;
  }
  y[t] = same ? 1.0f : -1.0f;
}

// The same in tf32: 8 of 32 elements along k, whose bits beyond ten of the mantissa the product cuts off; the second
// block of a cluster finds them in its own memory.
__global__ void tf32_group_product(const float*, float* y, bool) {
  FASTCV_SHARED(float, a, 64 * 32);
  FASTCV_SHARED(float, b, 64 * 32);
  const int t = threadIdx.x, lane = t % 32, rank = static_cast<int>(cluster_rank());
  const auto at = [=](int r, int k) { return static_cast<float>((r * 7 + k * 3 + rank) % 11 - 5); };
  const auto bt = [](int k, int c) { return static_cast<float>((c * 5 + k * 2) % 13 - 6); };
  const auto place = [](int row, int k) { return row * 32 + (k ^ row % 8 * 4); };
  for (int i = t; i < 64 * 32; i += kThreads) {
    a[place(i / 32, i % 32)] = at(i / 32, i % 32) * (1 + 0x1p-12f);
    b[place(i / 32, i % 32)] = bt(i % 32, i / 32);
  }
  __syncthreads();
  float d[32] = {};
  group_begin();
  multiply_group<float, 64>(d, operand(a) + 4, operand(b) + 4, false);  // k from 16 to 23
  group_commit();
  group_wait<0>();
  bool same = true;
  for (int i = 0; i < 32; ++i) {
    const int row = t / 32 * 16 + lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
    float sum = 0;
    for (int k = 16; k < 24; ++k) sum += at(row, k) * bt(k, column);
    same = same && d[i] == sum;
  }
  y[t] = same ? 1.0f : -1.0f;
}

// The same product of operands that lie with a row per k: A' is 64 x 64, B two tiles of 64 columns.
template <int columns_apart>
__global__ void transposed_group_product(const float*, float* y, bool) {
  FASTCV_SHARED(f16, a, 64 * 64);
  FASTCV_SHARED(f16, b, 2 * columns_apart);
  const int t = threadIdx.x, lane = t % 32;
  const auto at = [](int r, int k) { return static_cast<float>((r * 7 + k * 3) % 11 - 5); };
  const auto bt = [](int k, int c) { return static_cast<float>((c * 5 + k * 2) % 13 - 6); };
  const auto place = [](int k, int mn) { return mn / 64 * columns_apart + k * 64 + (mn % 64 ^ k % 8 * 8); };
  for (int i = t; i < 64 * 64; i += kThreads) a[place(i / 64, i % 64)] = narrow<f16>(at(i % 64, i / 64));
  for (int i = t; i < 64 * 128; i += kThreads) b[place(i / 128, i % 128)] = narrow<f16>(bt(i / 128, i % 128));
  __syncthreads();
  float d[64];
  for (float& v : d) v = 1000;
  group_begin();
  const uint64_t from_a = operand_transposed(a, 8192), from_b = operand_transposed(b, columns_apart * 2);
  multiply_group_transposed<f16, 128>(d, from_a + 128, from_b + 128, false);         // k from 16 to 31
  multiply_group_transposed<f16, 128>(d, from_a + 3 * 128, from_b + 3 * 128, true);  // and from 48 to 63
  group_commit();
  group_wait<0>();
  bool same = true;
  for (int i = 0; i < 64; ++i) {
    const int row = t / 32 * 16 + lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
    float sum = 0;
    for (int k = 16; k < 64; ++k) sum += k / 16 == 2 ? 0 : at(row, k) * bt(k, column);
    same = same && d[i] == sum;
  }
  y[t] = same ? 1.0f : -1.0f;
}

// The same of A in registers, which must be left alone until the product has been waited for; 64 columns.
template <bool overwrites>
__global__ void register_product(const float*, float* y, bool right) {
  FASTCV_SHARED(bf16, a, 32 * 16);
  FASTCV_SHARED(bf16, b, 64 * 64);  // aligned, behind 1024 bytes
  const int t = threadIdx.x, lane = t % 32;
  const auto at = [](int r, int k) { return static_cast<float>((r * 7 + k * 3) % 11 - 5); };
  const auto bt = [](int k, int c) { return static_cast<float>((c * 5 + k * 2) % 13 - 6); };
  for (int i = t; i < 32 * 16; i += kThreads) a[i] = narrow<bf16>(at(i / 16, i % 16));
  for (int i = t; i < 64 * 64; i += kThreads)
    b[i / 64 * 64 + (i % 64 ^ i / 64 % 8 * 8)] = narrow<bf16>(bt(i % 64, i / 64));
  __syncthreads();
  Fragment4 rows = load_matrix_x4(a + (t / 32 * 16 + lane % 16) * 16 + lane / 16 * 8);
  float d[32];
  for (int i = 0; i < 32; ++i) d[i] = 1;
  group_begin();
  multiply_group<bf16, 64>(d, rows, operand(b) + 4, true);  // k from 32 to 47
  group_commit();
  if (overwrites && !right) rows.at[lane % 4] ^= 1;
  if (overwrites || right) group_wait<0>();
  bool same = true;
  for (int i = 0; i < 32; ++i) {
    const int row = t / 32 * 16 + lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
    float sum = 1;
    for (int k = 0; k < 16; ++k) sum += at(row, k) * bt(32 + k, column);
    same = same && d[i] == sum;
  }
  y[t] = same ? 1.0f : -1.0f;
}

// A box of 8 x 2 pixels of the second of two 5 x 4 images, from a line and a column before the image on.
__global__ void box_copy(const float*, float* y, bool) {
  FASTCV_SHARED(bf16, tile, 16 * 64);
  FASTCV_SHARED(uint64_t, full, 1);
  static bf16 pixels[2 * 5 * 4 * 8];  // of eight channels
  const auto value = [](int n, int h, int w, int c) { return static_cast<float>(n * 100 + h * 10 + w + 1) + c * 0.5f; };
  for (int i = 0; i < 2 * 5 * 4 * 8; ++i) pixels[i] = narrow<bf16>(value(i / 160, i / 32 % 5, i / 8 % 4, i % 8));
  TensorTile map{};
  map.base = pixels;
  map.dtype = DType::bf16;
  const uint64_t size[4] = {8, 4, 5, 2}, stride[3] = {16, 64, 320};
  const uint32_t box[4] = {64, 8, 2, 1};
  for (int i = 0; i < 4; ++i) map.size[i] = size[i], map.box[i] = box[i];
  for (int i = 0; i < 3; ++i) map.stride[i] = stride[i];
  const int t = threadIdx.x;
  if (t == 0) barrier_init(full, 1);
  __syncthreads();
  if (t == 0) {
    barrier_expect(full, 16 * 128);
    copy_tile_4d(tile, map, 0, -1, -1, 1, full);
  }
  barrier_wait(full, 0);
  bool same = true;
  const int pixel = t % 16, h = pixel / 8 - 1, w = pixel % 8 - 1;
  for (int c = 0; c < 64; ++c) {
    const float expected = h >= 0 && w >= 0 && w < 4 && c < 8 ? value(1, h, w, c) : 0;
    same = same && widen(tile[pixel * 64 + (c ^ pixel % 8 * 8)]) == widen(narrow<bf16>(expected));
  }
  y[t] = same ? 1.0f : -1.0f;
}

// Six pixels of a 5 x 4 image with stride 2, at the tap (1, 2) of a 3 x 3 kernel with padding 1.
__global__ void im2col_copy(const float*, float* y, bool) {
  FASTCV_SHARED(bf16, tile, 8 * 64);
  FASTCV_SHARED(uint64_t, full, 1);
  FASTCV_SHARED(bf16, image, 1);  // keeps the tile first and aligned
  static_cast<void>(image);
  static bf16 pixels[2 * 5 * 4 * 8];  // two images of eight channels
  const auto value = [](int n, int h, int w) { return static_cast<float>(n * 100 + h * 10 + w + 1); };
  for (int i = 0; i < 2 * 5 * 4 * 8; ++i) pixels[i] = narrow<bf16>(value(i / 160, i / 32 % 5, i / 8 % 4));
  TensorTile map{};
  map.base = pixels;
  map.dtype = DType::bf16;
  map.size[0] = 8, map.size[1] = 4, map.size[2] = 5, map.size[3] = 2;
  map.stride[0] = 16, map.stride[1] = 64, map.stride[2] = 320;
  map.pixels = 8;
  map.lower[0] = map.lower[1] = -1;
  map.step[0] = map.step[1] = 2;
  map.upper[0] = 1 - 2, map.upper[1] = 1 - 2;  // padding 1 behind, less the kernel's reach
  const int t = threadIdx.x;
  if (t == 0) barrier_init(full, 1);
  __syncthreads();
  if (t == 0) {
    barrier_expect(full, 8 * 128);
    copy_im2col_4d(tile, map, 0, -1, 1, 0, 2, 1, full);  // from output (1, 0) of the first image on
  }
  barrier_wait(full, 0);
  // Outputs are 3 x 2: (1, 0) (1, 1) (2, 0) (2, 1) of the first image, then (0, 0) ... of the second.
  const int pixel = t % 8, n = (pixel + 2) / 6, h = (pixel + 2) % 6 / 2 * 2 - 1 + 1, w = (pixel + 2) % 2 * 2 - 1 + 2;
  const float expected = w < 4 && h < 5 && n < 2 ? value(n, h, w) : 0, got = widen(tile[pixel * 64 + (3 ^ pixel * 8)]);
  const float beyond = widen(tile[pixel * 64 + (8 ^ pixel * 8)]);  // there is no ninth channel
  y[t] = got == widen(narrow<bf16>(expected)) && beyond == 0 ? 1.0f : -1.0f;
}

using Kernel = void (*)(const float*, float*, bool);
void show(const char* name, Kernel kernel, bool right) {
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    std::vector<float> x(kThreads * 4, 1.0f), y(kThreads, -1.0f);
    emulator::seed(seed);
    const int threads = kernel == too_many_threads && !right ? 1056 : kThreads;
    const bool pair = std::string(name).starts_with("cluster_") || kernel == tf32_group_product;
    const unsigned cluster = kernel == across_blocks ? kCluster : pair ? 2 : 1;
    const int error = launch_clusters(kernel, cluster, cluster, threads, 0, nullptr, x.data(), y.data(), right);
    std::string words = error == 0 ? "ok" : emulator::last_error();
    for (float v : y)
      if (error == 0 && !(v > 0)) words = "wrong output";
    std::printf("%s %s %d: %s\n", name, right ? "right" : "planted", static_cast<int>(seed), words.c_str());
  }
}

}  // namespace
}  // namespace fastcv::emulated

int main() {
  using namespace fastcv::emulated;
#define SHOW(kernel) show(#kernel, kernel, true), show(#kernel, kernel, false)
  SHOW(rotate);
  SHOW(rotate_twice);
  SHOW(rotate_in_warp);
  SHOW(half_of_the_block);
  SHOW(two_barriers);
  SHOW(reads_unwritten);
  SHOW(beyond_the_end);
  SHOW(lane_stays_away);
  SHOW(copy_not_awaited);
  SHOW(copy_lands_early);
  SHOW(named_barriers);
  SHOW(votes);
  SHOW(atomics);
  SHOW(advance);
  SHOW(leaves_an_output);
  SHOW(stays_in_flight);
  SHOW(across_blocks);
  SHOW(too_many_threads);
#define SHOW_AS(name, kernel) show(name, kernel, true), show(name, kernel, false)
  SHOW_AS("full_not_awaited", pipeline<Pipeline::full_not_awaited>);
  SHOW_AS("empty_not_awaited", pipeline<Pipeline::empty_not_awaited>);
  SHOW_AS("bytes_miscounted", pipeline<Pipeline::bytes_miscounted>);
  SHOW_AS("product_not_awaited", group_product<false>);
  SHOW_AS("operand_overwritten", group_product<true>);
  SHOW_AS("cluster_peer_not_awaited", multicast<Together::peer_not_awaited>);
  SHOW_AS("cluster_left_early", multicast<Together::leaves_early>);
  SHOW_AS("cluster_begun_early", multicast<Together::begins_early>);
  SHOW_AS("cluster_bytes_miscounted", multicast<Together::half_announced>);
  SHOW_AS("register_product_not_awaited", register_product<false>);
  SHOW_AS("registers_overwritten", register_product<true>);
  show("box_copy", box_copy, true);
  show("im2col_copy", im2col_copy, true);
  show("matrix_product", matrix_product, true);
  show("matrix_store", matrix_store, true);
  show("transposed_product", transposed_product, true);
  show("tf32_product", tf32_product, true);
  show("tf32_group_product", tf32_group_product, true);
  show("byte_product", byte_product, true);
  show("transposed_group_product", transposed_group_product<64 * 64>, true);
  show("spread_group_product", transposed_group_product<64 * 64 + 1024>, true);
}
