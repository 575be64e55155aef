// Weight gradient on tensor cores: rows are the output channels of a group, columns its input channels tap by tap, and
// the sum runs over the pixels of the batch, in segments. Both operands lie pixel by pixel, so what is multiplied are
// their transposes: ldmatrix turns 16-bit tiles around, 32-bit numbers are read one by one.
//
// A tile is 64 x 64; a step takes 32 pixels (float32: 16), four of them are in flight. In shared memory a pixel is one
// row of 64 channels, whose chunks lie in an order that differs between neighbouring pixels: a tile's reads fall into
// different banks.
#pragma once
#include "common/divide.cuh"
#include "conv/conv_chunks.cuh"
#include "conv/conv_gpu.h"
#include "conv/conv_operands.cuh"
#include "conv/conv_sums.cuh"

namespace fastcv::FASTCV_GPU {

struct IgemmWgrad {
  ConvWgradParams p;
  const void *x, *grad;
  float* partial;
  int64_t cg, kg, taps, padded_c, padded_k, step_x[3], step_n, step_y, pixels, tiles_m, tiles_n, tiles;
  int chunks;  // of a tap
  Segments segments;
  Divider by_out_d, by_out_h, by_out_w, by_tiles_m, by_tiles_n, by_groups, by_chunks, by_kernel_h, by_kernel_w;

  IgemmWgrad(const ConvWgradParams& params, const WgradPlan& plan, const void* input, const void* gradient, void* sums)
      : p(params),
        x(input),
        grad(gradient),
        partial(static_cast<float*>(sums)),
        cg(plan.cg),
        kg(plan.kg),
        taps(plan.taps),
        padded_c(plan.padded_c),
        padded_k(plan.padded_k),
        step_y(p.groups * padded_k),
        pixels(pixels_of(p)),
        tiles_m((padded_k + kWgradTile - 1) / kWgradTile),
        tiles_n((taps * padded_c + kWgradTile - 1) / kWgradTile),
        tiles(tiles_m * tiles_n * p.groups * plan.segments.count),
        chunks(static_cast<int>(padded_c / plan.chunk)),
        segments(plan.segments),
        by_out_d(p.out[0]),
        by_out_h(p.out[1]),
        by_out_w(p.out[2]),
        by_tiles_m(tiles_m),
        by_tiles_n(tiles_n),
        by_groups(p.groups),
        by_chunks(chunks),
        by_kernel_h(p.kernel[1]),
        by_kernel_w(p.kernel[2]) {
    step_x[2] = p.groups * padded_c;
    step_x[1] = step_x[2] * p.in[2];
    step_x[0] = step_x[1] * p.in[1];
    step_n = step_x[0] * p.in[0];
  }
};

// How fragments of a transposed operand are read: `slab` holds rows of 64 elements, one per pixel.
template <class Kind>
struct Slab {
  using S = typename Kind::S;
  static constexpr int chunks = kWgradTile * sizeof(S) / 16, pitch = kWgradTile * sizeof(S) / 2;  // in 16-bit elements
  __device__ static __forceinline__ int place(int pixel, int chunk) {
    return pixel * pitch + (sizeof(S) == 2 ? chunk ^ pixel % 8 : chunk ^ pixel % 4 * 2) * 8;
  }
  __device__ static __forceinline__ uint32_t number(Shared<uint16_t> slab, int pixel, int column) {
    return load_shared<Pack<uint32_t, 1>>(slab + (place(pixel, column / 4) + column % 4 * 2)).at[0];
  }
  // 16 columns from `column` on, of the mma's pixels from `pixel` on.
  __device__ static __forceinline__ Fragment4 rows16(Shared<uint16_t> slab, int pixel, int column, int lane) {
    if constexpr (sizeof(S) == 2) {
      return load_matrix_x4_transposed(slab + place(pixel + lane % 8 + lane / 16 * 8, column / 8 + lane / 8 % 2));
    } else {
      const int k = pixel + lane % 4, m = column + lane / 4;
      return {{number(slab, k, m), number(slab, k, m + 8), number(slab, k + 4, m), number(slab, k + 4, m + 8)}};
    }
  }
  // Two times 8 columns: the registers of the first, then of the second.
  __device__ static __forceinline__ Fragment4 columns16(Shared<uint16_t> slab, int pixel, int column, int lane) {
    if constexpr (sizeof(S) == 2) {
      return load_matrix_x4_transposed(slab + place(pixel + lane % 8 + lane / 8 % 2 * 8, column / 8 + lane / 16));
    } else {
      const int k = pixel + lane % 4, n = column + lane / 4;
      return {{number(slab, k, n), number(slab, k + 4, n), number(slab, k, n + 8), number(slab, k + 4, n + 8)}};
    }
  }
};

constexpr int kWgradThreads = 128, kWgradStages = 4;

template <class Kind>
__global__ void __launch_bounds__(kWgradThreads) wgrad_igemm_kernel(const IgemmWgrad g) {
  using S = typename Kind::S;
  using Half = uint16_t;
  using Operands = Slab<Kind>;
  constexpr int per_chunk = 16 / sizeof(S), chunks = Operands::chunks, rows_apart = kWgradThreads / chunks;
  constexpr int step_pixels = 2 * rows_apart, mma_pixels = step_pixels / 2, slab = step_pixels * Operands::pitch;
  constexpr int subs_m = 2, subs_n = 4;  // 16 x 8 tiles of a warp, of which 2 x 2 make a block
  FASTCV_SHARED(Half, shared, kWgradStages * 2 * slab);
  const ConvWgradParams& p = g.p;
  const S* x = static_cast<const S*>(g.x);
  const S* grad = static_cast<const S*>(g.grad);
  const int t = threadIdx.x, lane = t % 32, warp_m = t / 64 * 32, warp_n = t / 32 % 2 * 32;
  const int my_chunk = t % chunks, my_row = t / chunks;

  for (int64_t tile = blockIdx.x; tile < g.tiles; tile += gridDim.x) {
    int64_t m0, n0, group, segment = tile;
    m0 = segment, segment = g.by_tiles_m.split(m0);
    n0 = segment, segment = g.by_tiles_n.split(n0);
    group = segment, segment = g.by_groups.split(group);
    m0 *= kWgradTile;
    n0 *= kWgradTile;
    const int64_t begin = segment * g.segments.length, end = min(begin + g.segments.length, g.pixels);
    const int steps = static_cast<int>((end - begin + step_pixels - 1) / step_pixels);

    // The chunk of either operand that this thread copies, of pixels my_row and my_row + rows_apart of every step.
    const bool in_grad = m0 + my_chunk * per_chunk < g.padded_k;
    const S* my_grad = grad + group * g.padded_k + m0 + my_chunk * per_chunk;
    int64_t chunk = n0 / per_chunk + my_chunk;
    int64_t tap_w = g.by_chunks.split(chunk);
    const bool in_x = tap_w < g.taps;
    int64_t tap_h = g.by_kernel_w.split(tap_w);
    const int64_t tap_d = g.by_kernel_h.split(tap_h);
    const int off_d = static_cast<int>(tap_d * p.dilation[0] - p.pad[0]);
    const int off_h = static_cast<int>(tap_h * p.dilation[1] - p.pad[1]);
    const int off_w = static_cast<int>(tap_w * p.dilation[2] - p.pad[2]);
    const int64_t my_x = group * g.padded_c + chunk * per_chunk;

    const auto fetch = [&](int step) {
      if (step < steps) {
        const Shared<Half> a = shared + step % kWgradStages * 2 * slab, b = a + slab;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int row = my_row + j * rows_apart;
          const int64_t pixel = begin + int64_t{step} * step_pixels + row;
          const bool inside = pixel < end, valid_grad = inside && in_grad;
          copy_async(a + Operands::place(row, my_chunk),
                     reinterpret_cast<const Half*>(valid_grad ? my_grad + pixel * g.step_y : grad), valid_grad);
          int64_t w = pixel;
          int64_t h = g.by_out_w.split(w);
          int64_t d = g.by_out_h.split(h);
          const int64_t n = g.by_out_d.split(d);
          const int at_d = static_cast<int>(d * p.stride[0]) + off_d, at_h = static_cast<int>(h * p.stride[1]) + off_h,
                    at_w = static_cast<int>(w * p.stride[2]) + off_w;
          const bool valid = inside && in_x && static_cast<unsigned>(at_d) < static_cast<unsigned>(p.in[0]) &&
                             static_cast<unsigned>(at_h) < static_cast<unsigned>(p.in[1]) &&
                             static_cast<unsigned>(at_w) < static_cast<unsigned>(p.in[2]);
          const S* from =
              valid ? x + n * g.step_n + my_x + at_d * g.step_x[0] + at_h * g.step_x[1] + at_w * g.step_x[2] : x;
          copy_async(b + Operands::place(row, my_chunk), reinterpret_cast<const Half*>(from), valid);
        }
      }
      commit_async();
    };

    float sum[subs_m][subs_n][4] = {};
    const bool busy = m0 + warp_m < g.padded_k && n0 + warp_n < g.taps * g.padded_c;  // this warp has sums to make
#pragma unroll
    for (int step = 0; step < kWgradStages - 1; ++step) fetch(step);
    for (int step = 0; step < steps; ++step) {
      wait_async<kWgradStages - 2>();
      __syncthreads();
      fetch(step + kWgradStages - 1);
      const Shared<Half> a = shared + step % kWgradStages * 2 * slab, b = a + slab;
      if (!busy) continue;
      multiply_step<Kind>(
          sum, [&](int half, int m) { return Operands::rows16(a, half * mma_pixels, warp_m + m * 16, lane); },
          [&](int half, int n) { return Operands::columns16(b, half * mma_pixels, warp_n + n * 8, lane); });
    }
    wait_async<0>();
    __syncthreads();  // the next tile's copies go where this one's are read

    float* partial = g.partial + segment * p.out_channels * g.taps * g.cg;
#pragma unroll
    for (int n = 0; n < subs_n; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int64_t column = n0 + warp_n + n * 8 + lane % 4 * 2 + i;
        int64_t in_chunk = column / per_chunk;
        const int64_t tap = g.by_chunks.split(in_chunk), c = in_chunk * per_chunk + column % per_chunk;
        if (tap >= g.taps || c >= g.cg) continue;
        const int64_t to = p.weight_channels_last ? tap * g.cg + c : c * g.taps + tap;
#pragma unroll
        for (int m = 0; m < subs_m; ++m)
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const int64_t k = m0 + warp_m + m * 16 + lane / 4 + j * 8;
            if (k < g.kg) partial[(group * g.kg + k) * g.taps * g.cg + to] = sum[m][n][j * 2 + i];
          }
      }
  }
}

template <class Kind>
int launch_wgrad_igemm(const ConvWgradParams& p, void* workspace, CUstream_st* stream) {
  using S = typename Kind::S;
  const WgradPlan plan(p);
  const S *x, *grad;
  if (const int error = chunked_gradients(p, plan, workspace, x, grad, stream); error != 0) return error;
  const IgemmWgrad g(p, plan, x, grad, static_cast<char*>(workspace) + plan.x_bytes + plan.y_bytes);
  const int error = launch(wgrad_igemm_kernel<Kind>, grid_for(g.tiles, 1), kWgradThreads, 0, stream, g);
  if (error != 0) return error;
  return add_segments<S>(g.partial, p.grad_weight, weight_size(p), plan.segments.count, stream);
}

}  // namespace fastcv::FASTCV_GPU
