// Kernels with one planted bug each, and their right twins: prints "<kernel> <seed>: <the emulator's words, or ok>".
#include <cstdio>
#include <string>
#include <vector>

#include "common/ptx.cuh"
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

using Kernel = void (*)(const float*, float*, bool);
void show(const char* name, Kernel kernel, bool right) {
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    std::vector<float> x(kThreads * 4, 1.0f), y(kThreads, -1.0f);
    emulator::seed(seed);
    const int threads = kernel == too_many_threads && !right ? 1056 : kThreads;
    const unsigned cluster = kernel == across_blocks ? kCluster : 1;
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
  SHOW(stays_in_flight);
  SHOW(across_blocks);
  SHOW(too_many_threads);
  show("matrix_product", matrix_product, true);
}
