// Bugs of blocks that share memory: the peer's is read, written or left at the wrong time.
#pragma once
#include "common/ptx_cluster.cuh"
#include "planted.h"

namespace fastcv::emulated {
namespace {

constexpr unsigned kCluster = 4;

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
  const TensorTile rows = eight_rows(x);
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

void show_clusters() {
  show_both("across_blocks", across_blocks, {.cluster = kCluster});
  show_both("cluster_peer_not_awaited", multicast<Together::peer_not_awaited>, {.cluster = 2});
  show_both("cluster_left_early", multicast<Together::leaves_early>, {.cluster = 2});
  show_both("cluster_begun_early", multicast<Together::begins_early>, {.cluster = 2});
  show_both("cluster_bytes_miscounted", multicast<Together::half_announced>, {.cluster = 2});
}

}  // namespace
}  // namespace fastcv::emulated
