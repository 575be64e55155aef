// What the convolutions on Hopper's tensor cores share (conv_igemm*_sm90.cu): an implicit product of pixels and weights
// whose operands the tensor memory accelerator brings, with the input gradient of stride 1 as a convolution with the
// kernel turned around.
//
// A step of the sum is 128 bytes of channels of one tap, 64 or, of float32, 32: an im2col copy of a tile's pixels (a
// plain box where the kernel is 1x1 and moves by 1) and a tile of weights. A full barrier says that a step's copies
// have landed, an empty one that every group of four warps is done with them. The sum runs over taps, then channels,
// whatever the tile. float32 in two parts brings both parts of both operands in a step, makes three of their four
// products, and adds each step's sums by ordinary arithmetic, because tensor cores truncate where they add.
#pragma once
#include "common/ptx_cluster.cuh"
#include "conv/conv_axis.cuh"
#include "conv/conv_chunks.cuh"
#include "conv/conv_sm90.h"
#include "conv/conv_statistics.cuh"
#include "conv/conv_store.cuh"

namespace fastcv::FASTCV_GPU {

constexpr int kGroups = 2, kGroupThreads = 128;  // groups of a block that multiply

// A tile: `outputs` output channels of 64 x `subs` pixels for each of the `sharing` groups that make it together.
// `most_stages`: of the steps in flight, which shared memory bounds too.
template <class Storage, int parts_, int sharing_, int subs_, int outputs_, int cluster_, int most_stages = 8>
struct Sm90Shape {
  using S = Storage;
  static constexpr int parts = parts_, sharing = sharing_, subs = subs_, outputs = outputs_, cluster = cluster_;
  static constexpr int pixels = 64 * subs * sharing, channels = 128 / sizeof(S);
  static constexpr int slab = 64, slabs = outputs / slab, pitch = slab + 4;  // the end takes 64 x 64 sums at a time
  static constexpr int pixel_bytes = pixels * 128, weight_bytes = outputs * 128;
  static constexpr int stage_bytes = parts * (pixel_bytes + weight_bytes);
  static constexpr int slab_bytes = 64 * pitch * 4;
  // The last KB is for barriers and what aligns the dynamic part.
  static constexpr int fitting = (226 * 1024 - kGroups * slab_bytes) / stage_bytes;
  static constexpr int stages = fitting < most_stages ? fitting : most_stages;
  static constexpr size_t shared_bytes = size_t{stages} * stage_bytes + kGroups * slab_bytes;
  static_assert(stages > 0 && outputs / cluster % 8 == 0);
};

struct Sm90Problem {
  ConvParams p;
  Steps y;
  int64_t rows, tiles_m, tiles_n, units;  // pixels; tiles; clusters' worth of tiles
  int pad_h, pad_w, kernel_w, taps, steps_c;
  Divider by_tiles_n, by_out_h, by_out_w;
  bool box;    // pixels are copied as they lie
  bool packs;  // y can be written 16 bytes at a time
  // Where statistics are wanted: of the outputs, kLeastTileRows pixels at a time.
  double* moments = nullptr;

  template <class Shape>
  static Sm90Problem of(const ConvParams& p, const IgemmPlan& plan, const Steps& y) {
    const auto parts = [](int64_t n, int64_t of) { return (n + of - 1) / of; };
    const int64_t rows = p.n * p.out[1] * p.out[2], tiles_n = parts(p.k, Shape::outputs);
    const int64_t tiles_m = parts(rows, Shape::pixels);
    const bool still = sm90_pad(p, 1) == 0 && sm90_pad(p, 2) == 0 && p.stride[1] == 1 && p.stride[2] == 1;
    return {.p = p,
            .y = y,
            .rows = rows,
            .tiles_m = tiles_m,
            .tiles_n = tiles_n,
            .units = parts(tiles_m, Shape::cluster) * tiles_n,
            .pad_h = static_cast<int>(sm90_pad(p, 1)),
            .pad_w = static_cast<int>(sm90_pad(p, 2)),
            .kernel_w = static_cast<int>(p.kernel[2]),
            .taps = static_cast<int>(plan.taps),
            .steps_c = static_cast<int>(parts(plan.padded, Shape::channels)),
            .by_tiles_n = Divider(tiles_n),
            .by_out_h = Divider(p.out[1]),
            .by_out_w = Divider(p.out[2]),
            .box = still && plan.taps == 1 && p.in[1] == p.out[1] && p.in[2] == p.out[2] &&
                   rows < (int64_t{1} << 31) / Shape::parts,
            .packs = p.channels_last && p.k % plan.chunk == 0 && aligned_to(p.y, 16) && aligned_to(p.residual, 16)};
  }
  __device__ __forceinline__ int steps() const { return taps * steps_c; }
};

// The maps of a layer's operands. Parts stand as further images and output channels behind the first ones, so that rows
// of a tile beyond the last pixel or channel may hold another part's: they are not stored.
template <class Shape>
bool sm90_maps(const ConvParams& p, const IgemmPlan& plan, const Sm90Problem& g, const void* x, const void* w,
               TensorMap& image_map, TensorMap& weight_map) {
  const auto size = [](int64_t n) { return static_cast<uint64_t>(n); };
  const uint64_t row = size(plan.padded) * sizeof(typename Shape::S);
  TensorTile images{};
  images.base = x;
  images.dtype = p.dtype;
  images.size[0] = size(plan.padded);
  images.stride[0] = row;
  if (g.box) {
    images.rank = 3;
    images.size[1] = 1;
    images.size[2] = size(g.rows) * Shape::parts;
    images.stride[1] = row;
    images.box[0] = Shape::channels;
    images.box[1] = 1;
    images.box[2] = Shape::pixels;
  } else {
    images.rank = 4;
    images.im2col = true;
    images.pixels = Shape::pixels;
    images.size[1] = size(p.in[2]);
    images.size[2] = size(p.in[1]);
    images.size[3] = size(p.n) * Shape::parts;
    images.stride[1] = row * size(p.in[2]);
    images.stride[2] = row * size(p.in[2] * p.in[1]);
    for (int i = 0; i < 2; ++i) {
      const int dim = 2 - i;  // width first
      images.lower[i] = static_cast<int>(-sm90_pad(p, dim));
      images.upper[i] = static_cast<int>(sm90_upper_corner(p, dim));
      images.step[i] = static_cast<uint32_t>(p.stride[dim]);
    }
  }
  TensorTile weights{};
  weights.base = w;
  weights.dtype = p.dtype;
  weights.rank = 3;
  weights.size[0] = size(plan.padded);
  weights.size[1] = size(plan.taps);
  weights.size[2] = size(p.k) * Shape::parts;
  weights.stride[0] = row;
  weights.stride[1] = row * size(plan.taps);
  weights.box[0] = Shape::channels;
  weights.box[1] = 1;
  weights.box[2] = Shape::outputs / Shape::cluster;
  return encode(images, image_map) && encode(weights, weight_map);
}

// Whose turn it is: a step's place in shared memory, and the parity of its phase.
template <int stages>
struct Turn {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void next() {
    if (++stage < stages) return;
    stage = 0;
    parity ^= 1;
  }
  __device__ __forceinline__ void skip(int steps) {
    stage += steps % stages;
    parity ^= steps / stages & 1;
    if (stage < stages) return;
    stage -= stages;
    parity ^= 1;
  }
};

// The pixels and weights of a tile's steps.
template <class Shape>
class TileCopies {
 public:
  __device__ __forceinline__ TileCopies(const Sm90Problem& g, const TensorMap& images, const TensorMap& weights,
                                        int64_t m0, int64_t n0)
      : g_(g), images_(images), weights_(weights), m0_(static_cast<int>(m0)), k_(static_cast<int>(n0)) {
    int64_t w = m0, h = g.by_out_w.split(w);
    image_ = static_cast<int>(g.by_out_h.split(h));
    at_w_ = static_cast<int>(w * g.p.stride[2] - g.pad_w);
    at_h_ = static_cast<int>(h * g.p.stride[1] - g.pad_h);
  }
  // One step's copies into its stage, which count at `full`. In a cluster each block brings its part of the weights to
  // all.
  __device__ __forceinline__ void bring(int tap, int c, Shared<uint8_t> to, Shared<uint64_t> full,
                                        unsigned rank) const {
    const ConvParams& p = g_.p;
    const int first = c * Shape::channels, from = p.transposed ? g_.taps - 1 - tap : tap;
    const int off_h = tap / g_.kernel_w * static_cast<int>(p.dilation[1]);
    const int off_w = tap % g_.kernel_w * static_cast<int>(p.dilation[2]);
    barrier_expect(full, Shape::stage_bytes);
#pragma unroll
    for (int part = 0; part < Shape::parts; ++part) {
      const Shared<uint8_t> a = to + part * Shape::pixel_bytes;
      const Shared<uint8_t> b = to + Shape::parts * Shape::pixel_bytes + part * Shape::weight_bytes;
      if (g_.box) copy_tile_3d(a, images_, first, 0, m0_ + part * static_cast<int>(g_.rows), full);
      else copy_im2col_4d(a, images_, first, at_w_, at_h_, image_ + part * static_cast<int>(p.n), off_w, off_h, full);
      const int k = k_ + part * static_cast<int>(p.k);
      if constexpr (Shape::cluster == 1) {
        copy_tile_3d(b, weights_, first, from, k, full);
      } else {
        constexpr int share = Shape::outputs / Shape::cluster;
        copy_tile_3d_multicast(b + rank * share * 128, weights_, first, from, k + static_cast<int>(rank) * share, full,
                               (1u << Shape::cluster) - 1);
      }
    }
  }

 private:
  const Sm90Problem& g_;
  const TensorMap &images_, &weights_;
  int m0_, k_, image_, at_w_, at_h_;
};

// All of a tile's copies, each into its stage as soon as that is empty: by one thread.
template <class Shape>
__device__ __forceinline__ void bring_tile(const Sm90Problem& g, const TileCopies<Shape>& copies,
                                           Shared<uint8_t> stages, Shared<uint64_t> full, Shared<uint64_t> empty,
                                           Turn<Shape::stages>& turn, unsigned rank) {
  for (int tap = 0; tap < g.taps; ++tap)
    for (int c = 0; c < g.steps_c; ++c, turn.next()) {
      if constexpr (Shape::cluster == 1) barrier_wait(empty + turn.stage, turn.parity ^ 1);
      else barrier_wait_cluster(empty + turn.stage, turn.parity ^ 1);
      copies.bring(tap, c, stages + turn.stage * Shape::stage_bytes, full + turn.stage, rank);
    }
}

template <class Shape>
using Sums = float[Shape::subs][Shape::outputs / 2];

// One step's products of a group's pixels, from its stage, as one group of wgmma.
template <class Shape>
__device__ __forceinline__ void multiply_stage(Sums<Shape>& d, Shared<uint8_t> stage, int group, bool accumulate) {
  using S = typename Shape::S;
  constexpr int kSub = 64 * 128 / 16, kPixels = Shape::pixel_bytes / 16, kWeights = Shape::weight_bytes / 16;
  const uint64_t a = operand(stage) + group * Shape::subs * kSub;
  const uint64_t b = operand(stage + Shape::parts * Shape::pixel_bytes);
  group_begin();
#pragma unroll
  for (int k = 0; k < 4; ++k)
#pragma unroll
    for (int sub = 0; sub < Shape::subs; ++sub) {
      const uint64_t from = a + sub * kSub + 2 * k, to = b + 2 * k;
      if constexpr (Shape::parts == 2) {
        multiply_group<S, Shape::outputs>(d[sub], from + kPixels, to, accumulate || k > 0);
        multiply_group<S, Shape::outputs>(d[sub], from, to + kWeights, true);
        multiply_group<S, Shape::outputs>(d[sub], from, to, true);
      } else {
        multiply_group<S, Shape::outputs>(d[sub], from, to, accumulate || k > 0);
      }
    }
  group_commit();
}

template <class Shape>
__device__ __forceinline__ void release(Shared<uint64_t> empty) {
  if (threadIdx.x % 32 != 0) return;
  if constexpr (Shape::cluster == 1) {
    barrier_arrive(empty);
  } else {
#pragma unroll
    for (unsigned rank = 0; rank < Shape::cluster; ++rank) barrier_arrive_at(empty, rank);
  }
}

// A group's sums of a tile, whose steps come from `turn` on. all_there(): every step has landed.
template <class Shape, class AllThere>
__device__ __forceinline__ void multiply_tile(Sums<Shape>& d, int steps, Shared<uint8_t> stages, Shared<uint64_t> full,
                                              Shared<uint64_t> empty, Turn<Shape::stages>& turn, int group,
                                              const AllThere& all_there) {
  if constexpr (Shape::parts == 2) {
    for (int step = 0; step < steps; ++step, turn.next()) {
      Sums<Shape> fresh;
      barrier_wait(full + turn.stage, turn.parity);
      if (step == steps - 1) all_there();
      multiply_stage<Shape>(fresh, stages + turn.stage * Shape::stage_bytes, group, false);
      group_wait<0>();
      release<Shape>(empty + turn.stage);
#pragma unroll
      for (int sub = 0; sub < Shape::subs; ++sub)
#pragma unroll
        for (int i = 0; i < Shape::outputs / 2; ++i) d[sub][i] = step > 0 ? d[sub][i] + fresh[sub][i] : fresh[sub][i];
    }
  } else {
    int before = 0;  // the stage that the step before this one read
    for (int step = 0; step < steps; ++step, turn.next()) {
      barrier_wait(full + turn.stage, turn.parity);
      if (step == steps - 1) all_there();
      multiply_stage<Shape>(d, stages + turn.stage * Shape::stage_bytes, group, step > 0);
      group_wait<1>();
      if (step > 0) release<Shape>(empty + before);
      before = turn.stage;
    }
    group_wait<0>();
    release<Shape>(empty + before);
  }
}

// A group's sums to y, 64 x 64 at a time through shared memory, so that neighbouring threads write neighbouring
// elements; and, where they are wanted, the moments of each 64 x 64, which are the same in every tile. `barrier`: a
// named barrier of the group's own.
template <class Shape>
__device__ __forceinline__ void store_tile(const Sm90Problem& g, const Sums<Shape>& d, int64_t m_first, int64_t n_first,
                                           Shared<float> sums, int barrier) {
  using S = typename Shape::S;
  using Two = Pack<float, 2>;
  static_assert(kLeastTileRows == 64);
  constexpr int chunk = 16 / sizeof(S), pitch = Shape::pitch;
  const ConvParams& p = g.p;
  const int t = threadIdx.x % 128, lane = t % 32, row = t / 32 * 16 + lane / 4;
  const int width = g.packs ? chunk : 1, columns = Shape::slab / width;
#pragma unroll 1
  for (int piece = 0; piece < Shape::subs * Shape::slabs; ++piece) {
    const int64_t m0 = m_first + piece / Shape::slabs * 64, n0 = n_first + piece % Shape::slabs * Shape::slab;
    if (m0 >= g.rows || n0 >= p.k) continue;
    sync_threads(barrier, 128);
#pragma unroll
    for (int sub = 0; sub < Shape::subs; ++sub)
#pragma unroll
      for (int slab = 0; slab < Shape::slabs; ++slab)
        if (piece == sub * Shape::slabs + slab)
#pragma unroll
          for (int i = 0; i < Shape::slab / 2; i += 2) {
            const float* from = d[sub] + slab * (Shape::slab / 2) + i;
            store_shared(sums + (row + i / 2 % 2 * 8) * pitch + i / 4 * 8 + lane % 4 * 2, Two{from[0], from[1]});
          }
    sync_threads(barrier, 128);
    for (int i = t; i < 64 * columns; i += 128) {
      const int m = p.channels_last ? i / columns : i % 64;
      const int n = (p.channels_last ? i % columns : i / 64) * width;
      if (m0 + m >= g.rows || n0 + n >= p.k) continue;
      int64_t ow = m0 + m;
      int64_t oh = g.by_out_w.split(ow);
      const int64_t image = g.by_out_h.split(oh), k = n0 + n;
      const int64_t to = image * g.y.n + k * g.y.c + oh * g.y.at[1] + ow * g.y.at[2];
      if (!g.packs) {
        static_cast<S*>(p.y)[to] = finished<S>(p, sums[m * pitch + n], k, to);
        continue;
      }
      float pack[chunk];
#pragma unroll
      for (int e = 0; e < chunk; e += 4) {
        const auto four = load_shared<Pack<float, 4>>(sums + m * pitch + n + e);
#pragma unroll
        for (int j = 0; j < 4; ++j) pack[e + j] = four.at[j];
      }
      store_channels<S, chunk>(p, pack, k, to);
    }
    if (g.moments != nullptr) {
      const FirstRows rows{static_cast<int>(min(g.rows - m0, kLeastTileRows))};
      const int channels = static_cast<int>(min(p.k - n0, int64_t{Shape::slab}));
      tile_moments<S, 128, Shape::slab>(p, sums, pitch, rows, channels, n0,
                                        g.moments + 2 * (m0 / kLeastTileRows * p.k + n0), t,
                                        [&] { sync_threads(barrier, 128); });
    }
  }
}

}  // namespace fastcv::FASTCV_GPU
