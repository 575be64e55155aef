// 3x3 convolution of stride 1 on Hopper's tensor cores, and its input gradient, which is one with the kernel turned
// around: images are read once for all nine taps.
//
// A block makes 64 output channels. It is two groups of four warps that multiply, 8 x 16 pixels each, and one warp that
// copies. A step is 64 channels of the input: the 10 x 18 pixels that a group's taps reach, one copy, and nine tiles of
// weights, which both groups share. Up to 128 channels the weights stay for as long as the block does; beyond, the
// slices' weights take turns. A warp makes two lines of 16 pixels, an address of ldmatrix being a pixel moved by a tap;
// what it loads for a line of the input serves both of its lines: 12 loads for 18 products. The sum runs over slices of
// 64 channels, then taps, then channels.
#include "conv/conv.h"

#include "common/ptx_sm90.cuh"
#include "conv/conv_axis.cuh"
#include "conv/conv_chunks.cuh"
#include "conv/conv_gpu.h"
#include "conv/conv_statistics.cuh"
#include "conv/conv_store.cuh"

namespace fastcv::FASTCV_GPU {
namespace {

constexpr int kLines = kHaloTile[0], kColumns = kHaloTile[1], kHaloLines = kLines + 2, kHaloColumns = kColumns + 2;
constexpr int kChannels = 64, kOutputs = 64, kTaps = 9, kGroups = 2, kThreads = 128 * kGroups + 32;
constexpr int kHaloPixels = kHaloLines * kHaloColumns, kTile = kOutputs * kChannels, kWeights = kTaps * kTile;
constexpr int kHalo = (kHaloPixels * kChannels * 2 + 1023) / 1024 * 512;  // elements of a stage: whole swizzled tiles
constexpr int kSlots = 2, kMostStages = 4, kPitch = kOutputs + 8;
constexpr size_t kSharedBytes = 227 * 1024 - 1024;      // less what the barriers take
static_assert(4 * kColumns * kPitch * 4 <= kHalo * 2);  // a group's sums go where its images were

// Weights of `slots` slices, then as many stages of images as there is room for.
constexpr int stages_beside(int slots) {
  const int room = (static_cast<int>(kSharedBytes) / 2 - slots * kWeights) / kHalo;
  return room < kMostStages ? room : kMostStages;
}
static_assert(stages_beside(kSlots) > kGroups);

struct Halo3x3 {
  ConvParams p;
  int64_t tiles_h, tiles_w, tiles_n, units;  // a unit is a tile of pixels for each group
  int pad_h, pad_w, slices, slots, stages;
  Divider by_tiles_h, by_tiles_w;
  bool packs;
  double* moments = nullptr;  // where statistics are wanted: [tile][even and odd lines][output channel][2]
  Halo3x3(const ConvParams& params, const IgemmPlan& plan)
      : p(params),
        tiles_h((p.out[1] + kLines - 1) / kLines),
        tiles_w((p.out[2] + kColumns - 1) / kColumns),
        tiles_n((p.k + kOutputs - 1) / kOutputs),
        units((p.n * tiles_h * tiles_w + kGroups - 1) / kGroups),
        pad_h(static_cast<int>(sm90_pad(p, 1))),
        pad_w(static_cast<int>(sm90_pad(p, 2))),
        slices(static_cast<int>((plan.padded + kChannels - 1) / kChannels)),
        slots(std::min(slices, kSlots)),
        stages(stages_beside(slots)),
        by_tiles_h(tiles_h),
        by_tiles_w(tiles_w),
        packs(p.k % plan.chunk == 0 && aligned_to(p.y, 16) && aligned_to(p.residual, 16)) {}

  // The first output of a tile; an odd number of tiles leaves the last group one behind the last image.
  __device__ __forceinline__ int64_t place(int64_t tile, int64_t& h, int64_t& w) const {
    w = tile;
    h = by_tiles_w.split(w);
    const int64_t image = by_tiles_h.split(h);
    h *= kLines;
    w *= kColumns;
    return image;
  }
};

// Of a tile's even or odd lines of 16 columns, one after the other, the pixels that stand in the image.
struct LineRows {
  int columns, count;
  __device__ __forceinline__ LineRows(const Halo3x3& g, int64_t h, int64_t w, int odd)
      : columns(static_cast<int>(min(g.p.out[2] - w, int64_t{kColumns}))),
        count((static_cast<int>(min(g.p.out[1] - h, int64_t{kLines})) + 1 - odd) / 2 * columns) {}
  __device__ __forceinline__ int end() const { return count / columns * kColumns; }
  __device__ __forceinline__ bool has(int row) const { return row % kColumns < columns; }
};
struct HalfTiles {
  Halo3x3 g;
  __device__ __forceinline__ int64_t operator()(int64_t half) const {
    int64_t h, w;
    g.place(half / 2, h, w);
    return LineRows(g, h, w, static_cast<int>(half % 2)).count;
  }
};

// A place in a ring in shared memory, and the parity of its phase.
struct Turn {
  int at = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void forward(int steps, int length) {
    at += steps;
    if (at < length) return;
    at -= length;
    parity ^= 1;
  }
};

// Adds nine taps of 64 channels to two lines of 16 pixels and 64 outputs. `pixel` is the lane's row of an operand for
// the first tap, counted from the first stage; `chunk` its 16 bytes of the pixel's 128.
template <class S>
__device__ __forceinline__ void add_taps(float (&upper)[kOutputs / 2], float (&lower)[kOutputs / 2],
                                         Shared<uint16_t> halos, Shared<uint16_t> weights, int pixel, int chunk,
                                         bool accumulate) {
  constexpr int kParts = kChannels / 16, kTapApart = kTile * 2 / 16;  // in a descriptor's units
  const uint64_t from_b = operand(weights);
  Fragment4 a[2][kParts];  // one is loaded while the other is multiplied
#pragma unroll
  for (int step = 0; step < 12; ++step) {
    const int line = step / 3, column = step % 3, from = pixel + line * kHaloColumns + column;
    const int at = from * kChannels + (chunk ^ from % 8) * 8;
#pragma unroll
    for (int k = 0; k < kParts; ++k) a[step % 2][k] = load_matrix_x4(halos + (at ^ 16 * k));
    group_begin();
#pragma unroll
    for (int k = 0; k < kParts; ++k) {
      if (line < 3)
        multiply_group<S, kOutputs>(upper, a[step % 2][k], from_b + step * kTapApart + 2 * k,
                                    accumulate || step > 0 || k > 0);
      if (line > 0)
        multiply_group<S, kOutputs>(lower, a[step % 2][k], from_b + (step - 3) * kTapApart + 2 * k,
                                    accumulate || step > 3 || k > 0);
    }
    group_commit();
    group_wait<1>();
  }
  group_wait<0>();
}

// A warp's line of sums to y, through shared memory, so that neighbouring threads write neighbouring elements.
template <class S>
__device__ __forceinline__ void store_line(const Halo3x3& g, const float (&d)[kOutputs / 2], Shared<float> sums,
                                           int64_t image, int64_t h, int64_t w, int64_t n0) {
  const ConvParams& p = g.p;
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < kOutputs / 2; i += 2)
    store_shared(sums + ((lane / 4 + i / 2 % 2 * 8) * kPitch + i / 4 * 8 + lane % 4 * 2),
                 Pack<float, 2>{d[i], d[i + 1]});
  __syncwarp();
  constexpr int chunk = 8;
  const int width = g.packs ? chunk : 1, columns = kOutputs / width;
  for (int i = lane; i < kColumns * columns; i += 32) {
    const int m = i / columns, n = i % columns * width;
    if (image >= p.n || h >= p.out[1] || w + m >= p.out[2] || n0 + n >= p.k) continue;
    const int64_t k = n0 + n, to = ((image * p.out[1] + h) * p.out[2] + w + m) * p.k + k;
    if (!g.packs) {
      static_cast<S*>(p.y)[to] = finished<S>(p, sums[m * kPitch + n], k, to);
      continue;
    }
    float pack[chunk];
#pragma unroll
    for (int e = 0; e < chunk; ++e) pack[e] = sums[m * kPitch + n + e];
    store_channels<S, chunk>(p, pack, k, to);
  }
  __syncwarp();
}

// The moments of the even or odd lines that the four warps of a group have just stored; `sums` holds them.
// `barrier`: the group's own.
template <class S>
__device__ __forceinline__ void line_moments(const Halo3x3& g, Shared<float> sums, int64_t tile, int odd, int64_t n0,
                                             int barrier) {
  int64_t h, w;
  if (g.moments == nullptr || g.place(tile, h, w) >= g.p.n) return;
  const LineRows rows(g, h, w, odd);
  if (rows.count <= 0) return;
  const auto sync = [&] { sync_threads(barrier, 128); };
  sync();
  const int channels = static_cast<int>(min(g.p.k - n0, int64_t{kOutputs}));
  tile_moments<S, 128, kOutputs>(g.p, sums, kPitch, rows, channels, n0, g.moments + 2 * ((tile * 2 + odd) * g.p.k + n0),
                                 threadIdx.x % 128, sync);
}

template <class S>
__global__ void __launch_bounds__(kThreads, 1)
    halo_sm90_kernel(const Halo3x3 g, const __grid_constant__ TensorMap images,
                     const __grid_constant__ TensorMap weights) {
  if constexpr (!kHasGroups) {
    trap("needs sm_90a");
  } else {
    FASTCV_DYNAMIC_SHARED(uint16_t, shared);
    FASTCV_SHARED(uint64_t, full, kMostStages);
    FASTCV_SHARED(uint64_t, empty, kMostStages);
    FASTCV_SHARED(uint64_t, weights_full, kSlots);
    FASTCV_SHARED(uint64_t, weights_empty, kSlots);
    const ConvParams& p = g.p;
    const int t = threadIdx.x, warp = t / 32, lane = t % 32;
    if (t == 0) {
      for (int i = 0; i < kMostStages; ++i) {
        barrier_init(full + i, 1);
        barrier_init(empty + i, 4);
      }
      for (int i = 0; i < kSlots; ++i) {
        barrier_init(weights_full + i, 1);
        barrier_init(weights_empty + i, 4 * kGroups);
      }
      barriers_ready();
    }
    __syncthreads();

    const Shared<uint16_t> halos = shared + g.slots * kWeights;
    const int64_t first = blockIdx.x / g.tiles_n, apart = gridDim.x / g.tiles_n;
    const int64_t n0 = (blockIdx.x - first * g.tiles_n) * kOutputs;
    const bool stay = g.slices <= kSlots;
    Turn turn, slot;
    if (warp == 4 * kGroups) {
      if (lane != 0) return;
      for (int64_t unit = first; unit < g.units; unit += apart)
        for (int c = 0; c < g.slices; ++c) {
          if (!stay || unit == first) {
            barrier_wait(weights_empty + slot.at, slot.parity ^ 1);
            barrier_expect(weights_full + slot.at, kWeights * 2);
            for (int tap = 0; tap < kTaps; ++tap)
              copy_tile_3d(shared + (slot.at * kWeights + tap * kTile), weights, c * kChannels,
                           p.transposed ? kTaps - 1 - tap : tap, static_cast<int>(n0), weights_full + slot.at);
            slot.forward(1, g.slots);
          }
          for (int group = 0; group < kGroups; ++group, turn.forward(1, g.stages)) {
            int64_t h, w;
            const int64_t image = g.place(unit * kGroups + group, h, w);
            barrier_wait(empty + turn.at, turn.parity ^ 1);
            barrier_expect(full + turn.at, kHaloPixels * kChannels * 2);
            copy_tile_4d(halos + turn.at * kHalo, images, c * kChannels, static_cast<int>(w) - g.pad_w,
                         static_cast<int>(h) - g.pad_h, static_cast<int>(image), full + turn.at);
          }
        }
      return;
    }

    const int group = warp / 4, line = warp % 4 * 2;  // the first of this warp's two
    const int pixel = line * kHaloColumns + lane % 16, chunk = lane / 16;
    turn.forward(group, g.stages);
    for (int64_t unit = first; unit < g.units; unit += apart) {
      float upper[kOutputs / 2] = {}, lower[kOutputs / 2] = {};
      if (stay) slot = Turn();
      for (int c = 0; c < g.slices; ++c) {
        if (c > 0) {
          if (lane == 0) barrier_arrive(empty + turn.at);
          turn.forward(kGroups, g.stages);
        }
        barrier_wait(weights_full + slot.at, slot.parity);
        barrier_wait(full + turn.at, turn.parity);
        add_taps<S>(upper, lower, halos, shared + slot.at * kWeights, turn.at * (kHalo / kChannels) + pixel, chunk,
                    c > 0);
        if (!stay && lane == 0) barrier_arrive(weights_empty + slot.at);
        slot.forward(1, g.slots);
      }

      const int64_t tile = unit * kGroups + group;
      int64_t h, w;
      const int64_t image = g.place(tile, h, w);
      sync_threads(1 + group, 128);  // all four warps have read the images, whose place the sums take
      const Shared<float> sums = shared_cast<float>(halos + turn.at * kHalo);
      const Shared<float> own = sums + warp % 4 * (kColumns * kPitch);
      store_line<S>(g, upper, own, image, h + line, w, n0);
      line_moments<S>(g, sums, tile, 0, n0, 1 + group);
      store_line<S>(g, lower, own, image, h + line + 1, w, n0);
      line_moments<S>(g, sums, tile, 1, n0, 1 + group);
      publish_shared();  // before the next copy
      __syncwarp();
      if (lane == 0) barrier_arrive(empty + turn.at);
      turn.forward(kGroups, g.stages);
    }
  }
}

template <class S>
int run(const ConvParams& p, void* workspace, CUstream_st* stream) {
  const IgemmPlan plan(p);
  const void *x, *w;
  if (const int error = chunked_operands<S>(p, plan, workspace, x, w, stream); error != 0) return error;
  const auto size = [](int64_t n) { return static_cast<uint64_t>(n); };
  const uint64_t row = size(plan.padded) * 2;
  TensorTile images{};
  images.base = x;
  images.dtype = p.dtype;
  images.rank = 4;
  const uint64_t sizes[4] = {size(plan.padded), size(p.in[2]), size(p.in[1]), size(p.n)};
  const uint64_t strides[3] = {row, row * size(p.in[2]), row * size(p.in[2] * p.in[1])};
  const uint32_t box[4] = {kChannels, kHaloColumns, kHaloLines, 1};
  for (int i = 0; i < 4; ++i) images.size[i] = sizes[i], images.box[i] = box[i];
  for (int i = 0; i < 3; ++i) images.stride[i] = strides[i];
  TensorTile weights{};
  weights.base = w;
  weights.dtype = p.dtype;
  weights.rank = 3;
  weights.size[0] = size(plan.padded);
  weights.size[1] = kTaps;
  weights.size[2] = size(p.k);
  weights.stride[0] = row;
  weights.stride[1] = row * kTaps;
  weights.box[0] = kChannels;
  weights.box[1] = 1;
  weights.box[2] = kOutputs;
  TensorMap image_map, weight_map;
  if (!encode(images, image_map) || !encode(weights, weight_map)) return cudaErrorInvalidValue;
  Halo3x3 g(p, plan);
  if (p.statistics != nullptr)
    g.moments = reinterpret_cast<double*>(static_cast<char*>(workspace) + plan.x_bytes + plan.w_bytes);
  constexpr int64_t kMultiprocessors = 132;
  const int64_t blocks = std::min(g.units, std::max(kMultiprocessors / g.tiles_n, int64_t{1})) * g.tiles_n;
  const size_t shared_bytes = (size_t{2} * kWeights * g.slots) + size_t{2} * kHalo * g.stages;
  const int error = launch(halo_sm90_kernel<S>, static_cast<unsigned>(blocks), kThreads, shared_bytes, stream, g,
                           image_map, weight_map);
  if (error != 0 || g.moments == nullptr) return error;
  return merge_moments(g.moments, p.n * g.tiles_h * g.tiles_w * 2, HalfTiles{g}, p.n * p.out[1] * p.out[2], p.k,
                       *p.statistics, stream);
}

}  // namespace

int conv_halo_sm90(const ConvParams& p, void* workspace, CUstream_st* stream) {
  return p.dtype == DType::bf16 ? run<bf16>(p, workspace, stream) : run<f16>(p, workspace, stream);
}

}  // namespace fastcv::FASTCV_GPU
