// Bugs of the threads of one block: barriers that some miss, collectives without a lane, shared memory before it is
// written and outside of what there is, lost updates, wrong steps, outputs that nobody writes.
#pragma once
#include "common/gpu.cuh"
#include "common/ptx_sm90.cuh"
#include "common/reduce.cuh"
#include "planted.h"

namespace fastcv::emulated {
namespace {

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

// Warps meet at a barrier of their own number; a warp that comes to another one waits for ever.
__global__ void named_barriers(const float* x, float* y, bool same) {
  FASTCV_SHARED(float, box, kThreads);
  box[threadIdx.x] = x[threadIdx.x];
  sync_threads(same || threadIdx.x < 32 ? 1 : 2, kThreads);
  sync_threads(2 + threadIdx.x / 32, 32);  // each warp's own
  y[threadIdx.x] = box[(threadIdx.x + 32) % kThreads];
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

__global__ void lane_stays_away(const float* x, float* y, bool all) {
  float value = x[threadIdx.x];
  if (all || threadIdx.x % 32 != 5) value += __shfl_xor_sync(kAllLanes, value, 1);
  y[threadIdx.x] = value;
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

__global__ void too_many_threads(const float*, float* y, bool) { y[threadIdx.x] = 1; }

void show_block() {
  show_both("rotate", rotate);
  show_both("rotate_twice", rotate_twice);
  show_both("rotate_in_warp", rotate_in_warp);
  show_both("half_of_the_block", half_of_the_block);
  show_both("two_barriers", two_barriers);
  show_both("named_barriers", named_barriers);
  show_both("reads_unwritten", reads_unwritten);
  show_both("beyond_the_end", beyond_the_end);
  show_both("votes", votes);
  show_both("lane_stays_away", lane_stays_away);
  show_both("atomics", atomics);
  show_both("advance", advance);
  show_both("leaves_an_output", leaves_an_output);
  show("too_many_threads", too_many_threads, true);
  show("too_many_threads", too_many_threads, false, {.threads = 1056});
}

}  // namespace
}  // namespace fastcv::emulated
