// Convolution on Hopper's tensor cores, and its input gradient where the stride is 1, which is a convolution with the
// kernel turned around: an implicit product of pixels and weights, fed by the tensor memory
// accelerator.
//
// A block is one warp that copies and two groups of four warps that multiply, 64 pixels x 128 output channels each. A
// step is 64 channels of one tap: one im2col copy of 128 pixels, one tile of weights, four products. Four steps are in
// flight; a full barrier says that a step's copies have landed, an empty one that both groups are done with it. Blocks
// stay for several tiles, so that the copies of the next begin under the end of the last. The sum runs over taps, then
// channels.
#include "conv/conv.h"

#include "common/ptx_sm90.cuh"
#include "conv/conv_axis.cuh"
#include "conv/conv_chunks.cuh"
#include "conv/conv_gpu.h"
#include "conv/conv_igemm_sm90.cuh"
#include "conv/conv_store.cuh"

namespace fastcv::FASTCV_GPU {
namespace {

constexpr int kPixels = 128, kOutputs = 128, kChannels = 64, kStages = 4, kGroups = 2, kThreads = 128 * (kGroups + 1);
constexpr int kTileElements = kPixels * kChannels, kStage = 2 * kTileElements, kPitch = kOutputs + 4;
constexpr size_t kSharedBytes = kStages * kStage * 2 + size_t{kPixels} * kPitch * 4;
static_assert(kSharedBytes <= 227 * 1024);

struct IgemmSm90 {
  ConvParams p;
  Steps y;
  int64_t rows, tiles_m, tiles_n;
  int64_t pad_h, pad_w;
  int steps_c;  // of a tap
  Divider by_tiles_n, by_out_h, by_out_w;
  bool packs;
  IgemmSm90(const ConvParams& params, const IgemmPlan& plan, const Steps& steps_y)
      : p(params),
        y(steps_y),
        rows(p.n * p.out[1] * p.out[2]),
        tiles_m((rows + kPixels - 1) / kPixels),
        tiles_n((p.k + kOutputs - 1) / kOutputs),
        pad_h(sm90_pad(p, 1)),
        pad_w(sm90_pad(p, 2)),
        steps_c(static_cast<int>((plan.padded + kChannels - 1) / kChannels)),
        by_tiles_n(tiles_n),
        by_out_h(p.out[1]),
        by_out_w(p.out[2]),
        packs(p.channels_last && p.k % plan.chunk == 0 && aligned_to(p.y, 16) && aligned_to(p.residual, 16)) {}
};

// Whose turn it is: the step's place in shared memory, and the parity of its phase.
struct Turn {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void next() {
    if (++stage < kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

template <class S>
__global__ void __launch_bounds__(kThreads, 1)
    igemm_sm90_kernel(const IgemmSm90 g, const __grid_constant__ TensorMap images,
                      const __grid_constant__ TensorMap weights) {
  if constexpr (!kHasGroups) {
    trap("needs sm_90a");
  } else {
    FASTCV_DYNAMIC_SHARED(uint16_t, shared);
    FASTCV_SHARED(uint64_t, full, kStages);
    FASTCV_SHARED(uint64_t, empty, kStages);
    const ConvParams& p = g.p;
    const int t = threadIdx.x, warp = t / 32, lane = t % 32;
    const int kernel_h = static_cast<int>(p.kernel[1]), kernel_w = static_cast<int>(p.kernel[2]);
    const int taps = kernel_h * kernel_w;
    if (t == 0) {
      for (int i = 0; i < kStages; ++i) {
        barrier_init(full + i, 1);
        barrier_init(empty + i, kGroups * 4);
      }
      barriers_ready();
    }
    __syncthreads();

    Turn turn;
    if (warp >= kGroups * 4) {
      if (t != kGroups * 128) return;
      for (int64_t tile = blockIdx.x; tile < g.tiles_m * g.tiles_n; tile += gridDim.x) {
        int64_t n0 = tile, w = g.by_tiles_n.split(n0) * kPixels;
        int64_t h = g.by_out_w.split(w);
        const int image = static_cast<int>(g.by_out_h.split(h)), k = static_cast<int>(n0 * kOutputs);
        const int at_w = static_cast<int>(w * p.stride[2] - g.pad_w);
        const int at_h = static_cast<int>(h * p.stride[1] - g.pad_h);
        for (int tap = 0; tap < taps; ++tap) {
          const int off_h = tap / kernel_w * static_cast<int>(p.dilation[1]);
          const int off_w = tap % kernel_w * static_cast<int>(p.dilation[2]);
          for (int c = 0; c < g.steps_c; ++c, turn.next()) {
            barrier_wait(empty + turn.stage, turn.parity ^ 1);
            const Shared<uint16_t> a = shared + turn.stage * kStage, b = a + kTileElements;
            barrier_expect(full + turn.stage, kStage * 2);
            copy_im2col_4d(a, images, c * kChannels, at_w, at_h, image, off_w, off_h, full + turn.stage);
            copy_tile_3d(b, weights, c * kChannels, p.transposed ? taps - 1 - tap : tap, k, full + turn.stage);
          }
        }
      }
      return;
    }

    const int group = warp / 4, steps = taps * g.steps_c;
    const Shared<float> sums = shared_cast<float>(shared + kStages * kStage) + group * 64 * kPitch;
    for (int64_t tile = blockIdx.x; tile < g.tiles_m * g.tiles_n; tile += gridDim.x) {
      int64_t n0 = tile;
      const int64_t m0 = g.by_tiles_n.split(n0) * kPixels + group * 64;
      n0 *= kOutputs;
      float d[kOutputs / 2] = {};
      int before = 0;  // the stage that the step before this one read
      for (int step = 0; step < steps; ++step, turn.next()) {
        barrier_wait(full + turn.stage, turn.parity);
        const Shared<uint16_t> a = shared + turn.stage * kStage, b = a + kTileElements;
        const uint64_t from_a = operand(a + group * 64 * kChannels), from_b = operand(b);
        group_begin();
#pragma unroll
        for (int k = 0; k < kChannels / 16; ++k)
          multiply_group<S, kOutputs>(d, from_a + 2 * k, from_b + 2 * k, step > 0 || k > 0);
        group_commit();
        group_wait<1>();
        if (step > 0 && lane == 0) barrier_arrive(empty + before);
        before = turn.stage;
      }
      group_wait<0>();
      if (lane == 0) barrier_arrive(empty + before);

      // Through shared memory, so that neighbouring threads write neighbouring elements.
      sync_threads(1 + group, 128);
#pragma unroll
      for (int i = 0; i < kOutputs / 2; ++i)
        sums[(warp % 4 * 16 + lane / 4 + i / 2 % 2 * 8) * kPitch + i / 4 * 8 + lane % 4 * 2 + i % 2] = d[i];
      sync_threads(1 + group, 128);
      constexpr int chunk = 8;
      const int width = g.packs ? chunk : 1, columns = kOutputs / width;
      for (int i = t % 128; i < 64 * columns; i += 128) {
        const int m = p.channels_last ? i / columns : i % 64;
        const int n = (p.channels_last ? i % columns : i / 64) * width;
        if (m0 + m >= g.rows || n0 + n >= p.k) continue;
        int64_t ow = m0 + m;
        int64_t oh = g.by_out_w.split(ow);
        const int64_t image = g.by_out_h.split(oh), k = n0 + n;
        const int64_t to = image * g.y.n + k * g.y.c + oh * g.y.at[1] + ow * g.y.at[2];
        if (!g.packs) {
          static_cast<S*>(p.y)[to] = finished<S>(p, sums[m * kPitch + n], k, to);
          continue;
        }
        float pack[chunk];
#pragma unroll
        for (int e = 0; e < chunk; ++e) pack[e] = sums[m * kPitch + n + e];
        store_channels<S, chunk>(p, pack, k, to);
      }
    }
  }
}

template <class S>
int multiply(const ConvParams& p, const IgemmPlan& plan, const void* x, const void* w, const Steps& y,
             CUstream_st* stream) {
  const auto size = [](int64_t n) { return static_cast<uint64_t>(n); };
  TensorTile images{};
  images.base = x;
  images.dtype = p.dtype;
  images.rank = 4;
  images.im2col = true;
  images.pixels = kPixels;
  const uint64_t row = size(plan.padded) * 2;
  const uint64_t sizes[4] = {size(plan.padded), size(p.in[2]), size(p.in[1]), size(p.n)};
  const uint64_t strides[3] = {row, row * size(p.in[2]), row * size(p.in[2] * p.in[1])};
  for (int i = 0; i < 4; ++i) images.size[i] = sizes[i];
  for (int i = 0; i < 3; ++i) images.stride[i] = strides[i];
  for (int i = 0; i < 2; ++i) {
    const int dim = 2 - i;  // width first
    images.lower[i] = static_cast<int>(-sm90_pad(p, dim));
    images.upper[i] = static_cast<int>(sm90_upper_corner(p, dim));
    images.step[i] = static_cast<uint32_t>(p.stride[dim]);
  }
  TensorTile weights{};
  weights.base = w;
  weights.dtype = p.dtype;
  weights.rank = 3;
  weights.size[0] = size(plan.padded);
  weights.size[1] = size(plan.taps);
  weights.size[2] = size(p.k);
  weights.stride[0] = row;
  weights.stride[1] = row * size(plan.taps);
  weights.box[0] = kChannels;
  weights.box[1] = 1;
  weights.box[2] = kOutputs;
  TensorMap image_map, weight_map;
  if (!encode(images, image_map) || !encode(weights, weight_map)) return cudaErrorInvalidValue;
  const IgemmSm90 g(p, plan, y);
  constexpr int64_t kMultiprocessors = 132;
  const auto blocks = static_cast<unsigned>(std::min(g.tiles_m * g.tiles_n, kMultiprocessors));
  return launch(igemm_sm90_kernel<S>, blocks, kThreads, kSharedBytes, stream, g, image_map, weight_map);
}

template <class S>
int run(const ConvParams& p, void* workspace, CUstream_st* stream) {
  const IgemmPlan plan(p);
  const void *x, *w;
  if (const int error = chunked_operands<S>(p, plan, workspace, x, w, stream); error != 0) return error;
  return multiply<S>(p, plan, x, w, Steps(p.k, p.out, p.channels_last), stream);
}

}  // namespace

int multiply_sm90(const ConvParams& p, const IgemmPlan& plan, const void* x, const void* w, const Steps& y,
                  CUstream_st* stream) {
  return p.dtype == DType::bf16 ? multiply<bf16>(p, plan, x, w, y, stream) : multiply<f16>(p, plan, x, w, y, stream);
}

int conv_igemm_sm90(const ConvParams& p, void* workspace, CUstream_st* stream) {
  return p.dtype == DType::bf16 ? run<bf16>(p, workspace, stream) : run<f16>(p, workspace, stream);
}

}  // namespace fastcv::FASTCV_GPU
