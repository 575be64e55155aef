// Weight gradient on Hopper's tensor cores: a product of gradients and inputs whose rows are output channels, whose
// columns are input channels tap by tap, and whose sum runs over the pixels of the batch, in segments. Both operands
// lie pixel by pixel, as tensor cores take transposed ones.
//
// A block is one warp that copies and two groups of four warps that multiply, 64 x 128 each: 128 output channels, or
// where there are at most 64 of those, 64 and twice as many columns. A step is 64 pixels: a copy per 64 channels of
// either operand, the gradient's as it lies, the input's by im2col at its column's tap. A full barrier says that a
// step's copies have landed, an empty one that both groups are done with it. Segments are written in float and added up
// in their order by a second kernel.
//
// In a cluster two blocks make tiles beside each other, of the same output channels: each copies the gradients of half
// of a step's pixels to both, and a stage is empty when the groups of both are done with it.
#include "conv/conv_wgrad.h"

#include "common/divide.cuh"
#include "common/ptx_cluster.cuh"
#include "common/ptx_wgmma_transposed.cuh"
#include "conv/conv_chunks.cuh"
#include "conv/conv_gpu.h"

namespace fastcv::FASTCV_GPU {
namespace {

using Plan = WgradSm90Plan;
constexpr int kSide = Plan::kSide, kGroups = 2, kThreads = 128 * kGroups + 32, kAddThreads = 256;
constexpr int kBlock = kSide * kSide, kBlockBytes = kBlock * 2;  // 64 channels of 64 pixels
constexpr int kColumns = 2 * kSide;                              // of a group

// The tile: rows, columns and steps in flight, all but the last in blocks of 64. `share`: the pixels of a step whose
// gradients a block of the cluster copies.
template <int blocks_m, int cluster>
struct Tile {
  static constexpr int m = blocks_m, n = 4 / blocks_m, blocks = m + n, stages = 24 / blocks, share = kSide / cluster;
  static constexpr size_t shared_bytes = size_t{stages} * blocks * kBlockBytes;
  static_assert(shared_bytes <= 227 * 1024);
};

struct IgemmWgradSm90 {
  float* partial;  // [segment][output channel][tap][channel, padded]
  int64_t units;   // clusters' worth of tiles, of all segments
  int64_t kg, taps, padded_c;
  int columns, steps_c, steps, length;  // 64 channels of a tap: all, of a tap; 64 pixels: all, of a segment
  int kernel_w, pad_h, pad_w, stride_h, stride_w, dilation_h, dilation_w;
  Divider by_tiles_m, by_clusters_n, by_out_h, by_out_w;

  IgemmWgradSm90(const ConvWgradParams& p, const Plan& plan, int cluster, void* sums)
      : partial(static_cast<float*>(sums)),
        units(plan.tiles_m * (plan.tiles_n / cluster) * plan.segments),
        kg(plan.operands.kg),
        taps(plan.operands.taps),
        padded_c(plan.operands.padded_c),
        columns(static_cast<int>(plan.columns)),
        steps_c(static_cast<int>(plan.columns / taps)),
        steps(static_cast<int>(plan.steps)),
        length(static_cast<int>(plan.length)),
        kernel_w(static_cast<int>(p.kernel[2])),
        pad_h(static_cast<int>(p.pad[1])),
        pad_w(static_cast<int>(p.pad[2])),
        stride_h(static_cast<int>(p.stride[1])),
        stride_w(static_cast<int>(p.stride[2])),
        dilation_h(static_cast<int>(p.dilation[1])),
        dilation_w(static_cast<int>(p.dilation[2])),
        by_tiles_m(plan.tiles_m),
        by_clusters_n(plan.tiles_n / cluster),
        by_out_h(p.out[1]),
        by_out_w(p.out[2]) {}
};

// Whose turn it is: the step's place in shared memory, and the parity of its phase.
template <int stages>
struct Turn {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void next() {
    if (++stage < stages) return;
    stage = 0;
    parity ^= 1;
  }
};

// This warp is done with a stage.
template <int cluster>
__device__ __forceinline__ void release(Shared<uint64_t> empty) {
  if (threadIdx.x % 32 != 0) return;
  if constexpr (cluster == 1) {
    barrier_arrive(empty);
  } else {
#pragma unroll
    for (unsigned rank = 0; rank < cluster; ++rank) barrier_arrive_at(empty, rank);
  }
}

template <class S, int blocks_m, int cluster>
__global__ void __launch_bounds__(kThreads, 1)
    wgrad_igemm_sm90_kernel(const IgemmWgradSm90 g, const __grid_constant__ TensorMap images,
                            const __grid_constant__ TensorMap gradients) {
  if constexpr (!kHasGroups) {
    trap("needs sm_90a");
  } else {
    using T = Tile<blocks_m, cluster>;
    FASTCV_DYNAMIC_SHARED(uint16_t, shared);
    FASTCV_SHARED(uint64_t, full, T::stages);
    FASTCV_SHARED(uint64_t, empty, T::stages);
    const int t = threadIdx.x, warp = t / 32, lane = t % 32, group = warp / 4;
    if (t == 0) {
      for (int i = 0; i < T::stages; ++i) {
        barrier_init(full + i, 1);
        barrier_init(empty + i, kGroups * 4 * cluster);
      }
      barriers_ready();
    }
    unsigned rank = 0;
    if constexpr (cluster > 1) {
      rank = cluster_rank();
      cluster_sync();
    } else {
      __syncthreads();
    }

    Turn<T::stages> turn;
    for (int64_t unit = blockIdx.x / cluster; unit < g.units; unit += gridDim.x / cluster) {
      int64_t row = unit;  // tiles of one segment run together: they read the same pixels
      int64_t column = g.by_tiles_m.split(row);
      const int64_t segment = g.by_clusters_n.split(column);
      const int m0 = static_cast<int>(row) * T::m;
      const int n0 = (static_cast<int>(column) * cluster + static_cast<int>(rank)) * T::n;
      const int begin = static_cast<int>(segment) * g.length, end = min(begin + g.length, g.steps);

      if (group == kGroups) {
        if (lane != 0) break;
        int channel[T::n], off_h[T::n], off_w[T::n];
#pragma unroll
        for (int j = 0; j < T::n; ++j) {  // beyond the last column: channels that are not there, so zeros
          const int at = n0 + j, tap = at < g.columns ? at / g.steps_c : 0;
          channel[j] = (at - tap * g.steps_c) * kSide;
          off_h[j] = tap / g.kernel_w * g.dilation_h;
          off_w[j] = tap % g.kernel_w * g.dilation_w;
        }
        for (int step = begin; step < end; ++step, turn.next()) {
          int64_t w = int64_t{step} * kSide;
          int64_t h = g.by_out_w.split(w);
          const int image = static_cast<int>(g.by_out_h.split(h));
          const int at_h = static_cast<int>(h) * g.stride_h - g.pad_h;
          const int at_w = static_cast<int>(w) * g.stride_w - g.pad_w;
          if constexpr (cluster == 1) barrier_wait(empty + turn.stage, turn.parity ^ 1);
          else barrier_wait_cluster(empty + turn.stage, turn.parity ^ 1);
          const Shared<uint16_t> to = shared + turn.stage * T::blocks * kBlock;
          barrier_expect(full + turn.stage, T::blocks * kBlockBytes);
#pragma unroll
          for (int i = 0; i < T::m; ++i) {
            const int first = static_cast<int>(rank) * T::share, channels = (m0 + i) * kSide;
            const Shared<uint16_t> rows = to + (i * kBlock + first * kSide);
            if constexpr (cluster == 1) copy_tile_3d(rows, gradients, channels, step * kSide, 0, full + turn.stage);
            else
              copy_tile_3d_multicast(rows, gradients, channels, step * kSide + first, 0, full + turn.stage,
                                     (1u << cluster) - 1);
          }
#pragma unroll
          for (int j = 0; j < T::n; ++j)
            copy_im2col_4d(to + (T::m + j) * kBlock, images, channel[j], at_w, at_h, image, off_w[j], off_h[j],
                           full + turn.stage);
        }
        continue;
      }

      const int m = blocks_m == 2 ? group : 0, n = blocks_m == 2 ? 0 : 2 * group;  // this group's first blocks
      float d[kColumns / 2];
      int before = 0;  // the stage that the step before this one read
      for (int step = begin; step < end; ++step, turn.next()) {
        barrier_wait(full + turn.stage, turn.parity);
        const Shared<uint16_t> from = shared + turn.stage * T::blocks * kBlock;
        const uint64_t a = operand_transposed(from + m * kBlock, kBlockBytes);
        const uint64_t b = operand_transposed(from + (T::m + n) * kBlock, kBlockBytes);
        group_begin();
#pragma unroll
        for (int k = 0; k < kSide / 16; ++k)
          multiply_group_transposed<S, kColumns>(d, a + 128 * k, b + 128 * k, step > begin || k > 0);
        group_commit();
        group_wait<1>();
        if (step > begin) release<cluster>(empty + before);
        before = turn.stage;
      }
      group_wait<0>();
      release<cluster>(empty + before);
      // What lies outside was multiplied too: products that only some groups make, the compiler would have wait for
      // each other.
      if ((m0 + m) * kSide >= g.kg) continue;

#pragma unroll
      for (int block = 0; block < 2; ++block) {
        const int at = n0 + n + block;
        if (at >= g.columns) break;
        const int tap = at / g.steps_c, c0 = (at - tap * g.steps_c) * kSide + lane % 4 * 2;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int64_t k = (m0 + m) * kSide + warp % 4 * 16 + lane / 4 + half * 8;
          if (k >= g.kg) continue;
          float* to = g.partial + ((segment * g.kg + k) * g.taps + tap) * g.padded_c + c0;
#pragma unroll
          for (int i = 0; i < kSide / 8; ++i) {
            const int from = (block * (kSide / 8) + i) * 4 + half * 2;
            if (c0 + i * 8 < g.padded_c) store_pack(to + i * 8, Pack<float, 2>{{d[from], d[from + 1]}});
          }
        }
      }
    }
    if constexpr (cluster > 1) {
      __syncwarp();
      cluster_sync();  // no block leaves while the other copies to it or arrives at its barriers
    }
  }
}

// to = the sums of all segments, in double and in their order.
template <class S>
__global__ void __launch_bounds__(kAddThreads)
    add_kernel(const float* partial, S* to, int64_t segments, int64_t kg, int64_t taps, int64_t padded, int64_t cg,
               bool channels_last) {
  constexpr int kWide = 4;
  const int64_t size = kg * taps * padded;
  for (int64_t i = global_thread() * kWide; i < size; i += global_threads() * kWide) {
    double sum[kWide] = {};
#pragma unroll 4
    for (int64_t s = 0; s < segments; ++s) {
      const auto part = load_pack<Pack<float, kWide>>(partial + s * size + i);
#pragma unroll
      for (int e = 0; e < kWide; ++e) sum[e] += static_cast<double>(part.at[e]);
    }
    const int64_t c = i % padded, tap = i / padded % taps, k = i / padded / taps;
#pragma unroll
    for (int e = 0; e < kWide; ++e)
      if (c + e < cg)
        to[channels_last ? (k * taps + tap) * cg + c + e : (k * cg + c + e) * taps + tap] =
            narrow<S>(static_cast<float>(sum[e]));
  }
}

// The input by im2col, its corners as in the convolution that this is the gradient of.
TensorTile image_tile(const ConvWgradParams& p, const void* x, int64_t padded) {
  const auto size = [](int64_t n) { return static_cast<uint64_t>(n); };
  TensorTile tile{};
  tile.base = x;
  tile.dtype = p.dtype;
  tile.rank = 4;
  tile.im2col = true;
  tile.pixels = kSide;
  const uint64_t row = size(padded) * 2;
  const uint64_t sizes[4] = {size(padded), size(p.in[2]), size(p.in[1]), size(p.batch)};
  const uint64_t strides[3] = {row, row * size(p.in[2]), row * size(p.in[2] * p.in[1])};
  for (int i = 0; i < 4; ++i) tile.size[i] = sizes[i];
  for (int i = 0; i < 3; ++i) tile.stride[i] = strides[i];
  for (int i = 0; i < 2; ++i) {
    const int dim = 2 - i;  // width first
    tile.lower[i] = static_cast<int>(-p.pad[dim]);
    tile.upper[i] = static_cast<int>(wgrad_sm90_upper_corner(p, dim));
    tile.step[i] = static_cast<uint32_t>(p.stride[dim]);
  }
  return tile;
}

// The gradient as one long image: [pixel][channel]; `pixels` of a copy.
TensorTile gradient_tile(const ConvWgradParams& p, const void* grad, int64_t padded, uint32_t pixels) {
  TensorTile tile{};
  tile.base = grad;
  tile.dtype = p.dtype;
  tile.rank = 3;
  tile.size[0] = static_cast<uint64_t>(padded);
  tile.size[1] = static_cast<uint64_t>(pixels_of(p));
  tile.size[2] = 1;
  tile.stride[0] = tile.size[0] * 2;
  tile.stride[1] = tile.stride[0] * tile.size[1];
  tile.box[0] = kSide;
  tile.box[1] = pixels;
  tile.box[2] = 1;
  return tile;
}

template <class S, int blocks_m, int cluster>
int multiply(const ConvWgradParams& p, const Plan& plan, const S* x, const S* grad, void* partial,
             CUstream_st* stream) {
  using T = Tile<blocks_m, cluster>;
  TensorMap images, gradients;
  if (!encode(image_tile(p, x, plan.operands.padded_c), images) ||
      !encode(gradient_tile(p, grad, plan.operands.padded_k, T::share), gradients))
    return cudaErrorInvalidValue;
  const IgemmWgradSm90 g(p, plan, cluster, partial);
  const auto blocks = static_cast<unsigned>(std::min(g.units, Plan::kMultiprocessors / cluster) * cluster);
  return launch_clusters(wgrad_igemm_sm90_kernel<S, blocks_m, cluster>, blocks, cluster, kThreads, T::shared_bytes,
                         stream, g, images, gradients);
}

template <class S, int cluster>
int run(const ConvWgradParams& p, void* workspace, CUstream_st* stream) {
  const Plan plan(p, cluster);
  const WgradPlan& operands = plan.operands;
  float* partial = reinterpret_cast<float*>(static_cast<char*>(workspace) + operands.x_bytes + operands.y_bytes);
  if (plan.segments > 0) {
    const S *x, *grad;
    if (const int error = chunked_gradients(p, operands, workspace, x, grad, stream); error != 0) return error;
    const int error = plan.blocks_m == 2 ? multiply<S, 2, cluster>(p, plan, x, grad, partial, stream)
                                         : multiply<S, 1, cluster>(p, plan, x, grad, partial, stream);
    if (error != 0) return error;
  }
  const int64_t packs = operands.kg * operands.taps * operands.padded_c / 4;
  return launch(add_kernel<S>, grid_for(packs, kAddThreads), kAddThreads, 0, stream, partial,
                static_cast<S*>(p.grad_weight), plan.segments, operands.kg, operands.taps, operands.padded_c,
                operands.cg, p.weight_channels_last);
}

}  // namespace

int conv_wgrad_igemm_sm90(const ConvWgradParams& p, void* workspace, CUstream_st* stream) {
  return p.dtype == DType::bf16 ? run<bf16, 1>(p, workspace, stream) : run<f16, 1>(p, workspace, stream);
}
int conv_wgrad_igemm_multicast_sm90(const ConvWgradParams& p, void* workspace, CUstream_st* stream) {
  return p.dtype == DType::bf16 ? run<bf16, 2>(p, workspace, stream) : run<f16, 2>(p, workspace, stream);
}

}  // namespace fastcv::FASTCV_GPU
