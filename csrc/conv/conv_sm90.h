// The rungs of Hopper's ladder beside conv_igemm_sm90, and their host arithmetic: which tile a layer gets, and the
// memory that float32 in two parts needs.
#pragma once
#include <algorithm>

#include "conv/conv_gpu.h"

namespace fastcv {

// A tile of pixels x output channels, made by one block; a cluster of blocks shares the weights of tiles that stand
// below each other.
struct Sm90Tile {
  int pixels, outputs, cluster;
  bool operator==(const Sm90Tile&) const = default;
};
inline constexpr Sm90Tile kSm90Tiles[] = {{128, 128, 1}, {256, 64, 1}, {128, 256, 1}, {256, 128, 1},
                                          {128, 128, 2}, {256, 64, 2}, {128, 256, 2}, {256, 128, 2}};
inline constexpr int64_t kSm90Multiprocessors = 132;

// Clocks that a layer of so many pixels, output channels and steps (of 64 channels of one tap) would take in this tile,
// by a model and not by measurement. A step takes the longest of its products (4096 16-bit operations a clock), its
// reads of shared memory (128 bytes a clock; every 64 pixels read the weights anew) and its copies from the
// second-level cache (6154 bytes a clock for all multiprocessors: DeepGEMM, csrc/jit_kernels/heuristics/sm90.hpp). A
// tile ends with its store at the memory's speed (18 bytes a clock) and a fixed part; whole waves of tiles follow each
// other.
inline double sm90_clocks(const Sm90Tile& tile, int64_t pixels, int64_t outputs, int64_t steps) {
  constexpr double kSharedBytes = 128, kStoreBytes = 18, kFixed = 500;
  constexpr double kCacheBytes = 6154.0 / kSm90Multiprocessors;
  const auto parts = [](int64_t n, int64_t of) { return (n + of - 1) / of; };
  const double m = tile.pixels, n = tile.outputs;
  const double products = m * n * 64 * 2 / 4096;
  const double shared = (m + m / 64 * n) * 128 / kSharedBytes;
  const double copies = (m + n / tile.cluster) * 128 / kCacheBytes;
  const int64_t clusters = parts(parts(pixels, tile.pixels), tile.cluster) * parts(outputs, tile.outputs);
  const auto waves = static_cast<double>(parts(clusters, kSm90Multiprocessors / tile.cluster));
  const double end = kFixed + m * std::min<double>(n, static_cast<double>(outputs)) * 2 / kStoreBytes;
  return waves * (static_cast<double>(steps) * std::max({products, shared, copies}) + end);
}

// The fastest tile by that model, the first of equals. It decides the speed and nothing else: every sum is made by the
// same instructions in any.
inline Sm90Tile sm90_tile(int64_t pixels, int64_t outputs, int64_t steps) {
  Sm90Tile best = kSm90Tiles[0];
  double least = sm90_clocks(best, pixels, outputs, steps);
  for (const Sm90Tile& tile : kSm90Tiles) {
    const double clocks = sm90_clocks(tile, pixels, outputs, steps);
    if (clocks < least) least = clocks, best = tile;
  }
  return best;
}

// float32 as two tf32 numbers: both operands are always converted, into a plane of high and a plane of low parts.
inline IgemmPlan split_plan(const ConvParams& p) {
  IgemmPlan plan(p);
  const auto bytes = [](int64_t elements) { return (static_cast<size_t>(elements) * 8 + 255) / 256 * 256; };
  plan.convert_x = plan.convert_w = true;
  plan.x_bytes = bytes(p.n * p.in[0] * p.in[1] * p.in[2] * p.groups * plan.padded);
  plan.w_bytes = bytes(p.k * plan.taps * plan.padded);
  return plan;
}
inline size_t split_gpu_workspace(const ConvParams& p) {
  const IgemmPlan plan = split_plan(p);
  return plan.x_bytes + plan.w_bytes + moments_bytes(p);
}

#define FASTCV_CONV_KERNELS(gpu)                                                                             \
  namespace gpu {                                                                                            \
  FASTCV_IF_LINKED int conv_igemm_serial_sm90(const ConvParams&, void* workspace, CUstream_st* stream);      \
  FASTCV_IF_LINKED int conv_igemm_specialised_sm90(const ConvParams&, void* workspace, CUstream_st* stream); \
  FASTCV_IF_LINKED int conv_igemm_multicast_sm90(const ConvParams&, void* workspace, CUstream_st* stream);   \
  FASTCV_IF_LINKED int conv_igemm_pingpong_sm90(const ConvParams&, void* workspace, CUstream_st* stream);    \
  FASTCV_IF_LINKED int conv_igemm_planned_sm90(const ConvParams&, void* workspace, CUstream_st* stream);     \
  FASTCV_IF_LINKED int conv_igemm_tf32_sm90(const ConvParams&, void* workspace, CUstream_st* stream);        \
  FASTCV_IF_LINKED int conv_igemm_tf32x3_sm90(const ConvParams&, void* workspace, CUstream_st* stream);      \
  }
FASTCV_CONV_KERNELS(cuda)
FASTCV_CONV_KERNELS(emulated)
#undef FASTCV_CONV_KERNELS

}  // namespace fastcv
