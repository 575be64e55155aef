// Bugs of copies that end later, by cp.async and by TMA through barriers in shared memory; and what TMA's copies of
// boxes and of convolutions' pixels must bring.
#pragma once
#include "common/ptx.cuh"
#include "common/ptx_sm90.cuh"
#include "planted.h"

namespace fastcv::emulated {
namespace {

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

enum class Pipeline { full_not_awaited, empty_not_awaited, bytes_miscounted };

// One thread copies four tiles through two places in shared memory; a warp adds up what it reads of each.
template <Pipeline bug>
__global__ void pipeline(const float* x, float* y, bool right) {
  constexpr int kTile = 512, kSteps = 4;  // 8 rows of 64 16-bit elements
  FASTCV_SHARED(bf16, tiles, 2 * kTile);
  FASTCV_SHARED(uint64_t, full, 2);
  FASTCV_SHARED(uint64_t, empty, 2);
  const int t = threadIdx.x;
  const TensorTile rows = eight_rows(x);
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

void show_copies() {
  show_both("copy_not_awaited", copy_not_awaited);
  show_both("copy_lands_early", copy_lands_early);
  show_both("stays_in_flight", stays_in_flight);
  show_both("full_not_awaited", pipeline<Pipeline::full_not_awaited>);
  show_both("empty_not_awaited", pipeline<Pipeline::empty_not_awaited>);
  show_both("bytes_miscounted", pipeline<Pipeline::bytes_miscounted>);
  show("box_copy", box_copy, true);
  show("im2col_copy", im2col_copy, true);
}

}  // namespace
}  // namespace fastcv::emulated
