// tma_tile: one thread asks for one copy, all wait for it and write out shared memory as it is.
#include "roof/probes.h"

#include "common/ptx_sm90.cuh"

namespace fastcv::FASTCV_GPU {
namespace {

constexpr int kThreads = 128, kDepth = 64;

struct Place {
  int at[4], offset[2], pixels;
  bool im2col;
};

__global__ void __launch_bounds__(kThreads)
    tile_kernel(const __grid_constant__ TensorMap map, const Place place, uint16_t* y) {
  if constexpr (!kHasGroups) {
    trap("needs sm_90a");
  } else {
    FASTCV_DYNAMIC_SHARED(uint16_t, tile);
    FASTCV_SHARED(uint64_t, full, 1);
    if (threadIdx.x == 0) {
      barrier_init(full, 1);
      barriers_ready();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      barrier_expect(full, place.pixels * kDepth * 2);
      if (place.im2col)
        copy_im2col_4d(tile, map, place.at[0], place.at[1], place.at[2], place.at[3], place.offset[0], place.offset[1],
                       full);
      else copy_tile_3d(tile, map, place.at[0], place.at[1], place.at[2], full);
    }
    barrier_wait(full, 0);
    for (int i = threadIdx.x; i < place.pixels * kDepth; i += kThreads) y[i] = tile[i];
  }
}

}  // namespace

int tma_tile(const TmaTileParams& p, void*, CUstream_st* stream) {
  const auto size = [](int64_t n) { return static_cast<uint64_t>(n); };
  const uint64_t row = size(p.c) * 2;
  TensorTile tile{};
  tile.base = p.x;
  tile.dtype = p.dtype;
  tile.im2col = p.im2col;
  tile.rank = p.im2col ? 4 : 3;
  tile.size[0] = size(p.c);
  tile.size[1] = size(p.w);
  tile.size[2] = size(p.im2col ? p.h : p.n * p.h);
  tile.size[3] = size(p.n);
  tile.stride[0] = row;
  tile.stride[1] = row * size(p.w);
  tile.stride[2] = row * size(p.w * p.h);
  tile.box[0] = kDepth;
  tile.box[1] = 1;
  tile.box[2] = static_cast<uint32_t>(p.pixels);
  tile.pixels = static_cast<uint32_t>(p.pixels);
  Place place{};
  for (int i = 0; i < 4; ++i) place.at[i] = static_cast<int>(p.at[i]);
  for (int i = 0; i < 2; ++i) {
    place.offset[i] = static_cast<int>(p.offset[i]);
    tile.lower[i] = static_cast<int>(p.lower[i]);
    tile.upper[i] = static_cast<int>(p.upper[i]);
    tile.step[i] = static_cast<uint32_t>(p.step[i]);
  }
  place.pixels = static_cast<int>(p.pixels);
  place.im2col = p.im2col;
  TensorMap map;
  if (!encode(tile, map, p.corrected)) return cudaErrorInvalidValue;
  return launch(tile_kernel, 1, kThreads, static_cast<size_t>(p.pixels) * kDepth * 2, stream, map, place,
                static_cast<uint16_t*>(p.y));
}

}  // namespace fastcv::FASTCV_GPU
