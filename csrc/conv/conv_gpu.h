// Host arithmetic on shapes that the CUDA rows of this family and their tables share.
#pragma once
#include <algorithm>

#include "conv/conv.h"
#include "conv/conv_bias_grad.h"
#include "conv/conv_phases.h"
#include "conv/conv_wgrad.h"

namespace fastcv {

// `terms` terms of each of `sums` independent groups of sums, cut into segments: enough to fill a GPU, none of them
// empty, none too long to be added in float. Their number depends on the shape alone.
struct Segments {
  int64_t length, count;
  Segments(int64_t terms, int64_t sums, int64_t granule) {
    constexpr int64_t kBlocks = 1024, kShortest = 512, kLongest = 1 << 16;
    int64_t wanted = (kBlocks + sums - 1) / std::max<int64_t>(sums, 1);
    wanted = std::min(wanted, (terms + kShortest - 1) / kShortest);
    wanted = std::max({wanted, (terms + kLongest - 1) / kLongest, int64_t{1}});
    length = ((terms + wanted - 1) / wanted + granule - 1) / granule * granule;
    count = terms == 0 ? 1 : (terms + length - 1) / length;
  }
};

// Segments of one pixel sum per output channel, added up by 32 channels (channels_last) or by one to a block.
inline Segments bias_grad_segments(const ConvBiasGradParams& p) {
  const int64_t wide = p.channels_last ? 32 : 1;
  return {p.batch * p.inner, (p.channels + wide - 1) / wide, 1};
}
inline size_t bias_grad_gpu_workspace(const ConvBiasGradParams& p) {
  return static_cast<size_t>(bias_grad_segments(p).count * p.channels) * sizeof(double);
}

inline int64_t taps_of(const int64_t (&kernel)[3]) { return kernel[0] * kernel[1] * kernel[2]; }
inline int64_t pixels_of(const ConvWgradParams& p) { return p.batch * p.out[0] * p.out[1] * p.out[2]; }
inline int64_t weight_size(const ConvWgradParams& p) {
  return p.out_channels * (p.in_channels / p.groups) * taps_of(p.kernel);
}

// Weight gradient as a product: tiles of 64 (taps and input channels) x 64 (output channels).
inline constexpr int64_t kWgradTile = 64, kWgradStep = 32;
inline Segments wgrad_segments(const ConvWgradParams& p) {
  const auto tiles = [](int64_t n) { return (n + kWgradTile - 1) / kWgradTile; };
  const int64_t kg = p.out_channels / p.groups, rows = p.in_channels / p.groups * taps_of(p.kernel);
  return {pixels_of(p), p.groups * tiles(rows) * tiles(kg), kWgradStep};
}
inline size_t wgrad_gpu_workspace(const ConvWgradParams& p) {
  const Segments s = wgrad_segments(p);
  return s.count > 1 ? static_cast<size_t>(s.count * weight_size(p)) * (p.dtype == DType::f64 ? 8 : 4) : 0;
}

// Weight gradient on tensor cores: both tensors in chunks of channels, as IgemmPlan has them, and the sums of every
// segment in float.
struct WgradPlan {
  int64_t cg, kg, taps, element, chunk, padded_c, padded_k;
  bool convert_x, convert_y;
  size_t x_bytes, y_bytes, partial_bytes;
  Segments segments;

  explicit WgradPlan(const ConvWgradParams& p)
      : cg(p.in_channels / p.groups),
        kg(p.out_channels / p.groups),
        taps(taps_of(p.kernel)),
        element(p.dtype == DType::f32 ? 4 : 2),
        chunk(16 / element),
        padded_c((cg + chunk - 1) / chunk * chunk),
        padded_k((kg + chunk - 1) / chunk * chunk),
        segments(wgrad_segments(p)) {
    const auto aligned = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
    convert_x = !p.input_channels_last || padded_c != cg || !aligned(p.input);
    convert_y = !p.grad_channels_last || padded_k != kg || !aligned(p.grad_output);
    const auto bytes = [&](bool convert, int64_t elements) {
      return convert ? (static_cast<size_t>(elements * element) + 255) / 256 * 256 : 0;
    };
    x_bytes = bytes(convert_x, p.batch * p.in[0] * p.in[1] * p.in[2] * p.groups * padded_c);
    y_bytes = bytes(convert_y, pixels_of(p) * p.groups * padded_k);
    partial_bytes = static_cast<size_t>(segments.count * weight_size(p)) * sizeof(float);
  }
};
inline size_t wgrad_igemm_gpu_workspace(const ConvWgradParams& p) {
  const WgradPlan plan(p);
  return plan.x_bytes + plan.y_bytes + plan.partial_bytes;
}

// Weight gradient on Hopper's tensor cores: tiles of 128 x 128 (output channels x channels of a tap), or 64 x 256 where
// output channels are few, over steps of 64 pixels. The blocks of a cluster make tiles that stand beside each other.
struct WgradSm90Plan {
  static constexpr int64_t kSide = 64, kMultiprocessors = 132;
  WgradPlan operands;  // its segments are not these
  int64_t blocks_m, tiles_m, columns, tiles_n, steps, length, segments;

  WgradSm90Plan(const ConvWgradParams& p, int64_t cluster) : operands(p) {
    const auto parts = [](int64_t n, int64_t part) { return (n + part - 1) / part; };
    blocks_m = operands.kg > kSide ? 2 : 1;
    tiles_m = parts(operands.kg, blocks_m * kSide);
    columns = operands.taps * parts(operands.padded_c, kSide);
    tiles_n = parts(columns, cluster * (4 / blocks_m)) * cluster;
    steps = p.in[1] * p.in[2] == 0 ? 0 : parts(pixels_of(p), kSide);
    length = segment_length(tiles_m * tiles_n, steps);
    segments = steps == 0 ? 0 : parts(steps, length);
  }

  // The steps of a segment that cost least, in units of a step of one tile: tiles go in waves, each with a start and an
  // end of about four steps, and a segment's float sums are written and read at a sixteenth of a step per tile. A
  // segment has 16 steps or more, and no more than can be added up in float.
  static int64_t segment_length(int64_t tiles, int64_t steps) {
    constexpr int64_t kShortest = 16, kLongest = 1024, kEnds = 4, kMost = 2 * kMultiprocessors;
    const int64_t least = std::max<int64_t>(1, (steps + kLongest - 1) / kLongest);
    int64_t best = 1, lowest = INT64_MAX;
    for (int64_t wanted = least; wanted <= std::max(least, std::min(steps / kShortest, kMost)); ++wanted) {
      const int64_t length = std::max<int64_t>(1, (steps + wanted - 1) / wanted), count = (steps + length - 1) / length;
      const int64_t waves = (tiles * count + kMultiprocessors - 1) / kMultiprocessors;
      const int64_t cost = 16 * waves * (length + kEnds) + tiles * count;
      if (cost < lowest) lowest = cost, best = length;
    }
    return best;
  }
};
template <int64_t cluster>
size_t wgrad_sm90_gpu_workspace(const ConvWgradParams& p) {
  const WgradSm90Plan plan(p, cluster);
  const WgradPlan& operands = plan.operands;
  return operands.x_bytes + operands.y_bytes +
         static_cast<size_t>(plan.segments * operands.kg * operands.taps * operands.padded_c) * sizeof(float);
}
// As sm90_upper_corner below.
inline int64_t wgrad_sm90_upper_corner(const ConvWgradParams& p, int dim) {
  return (p.out[dim] - 1) * p.stride[dim] + 1 - p.in[dim] - p.pad[dim];
}

// Weight gradient with one input channel per group: kDepthwiseTaps taps of 32 (channels_last) or one channel.
inline constexpr int64_t kDepthwiseTaps = 9;
inline Segments wgrad_depthwise_segments(const ConvWgradParams& p) {
  const int64_t wide = p.input_channels_last ? 32 : 1;
  const int64_t parts = (taps_of(p.kernel) + kDepthwiseTaps - 1) / kDepthwiseTaps;
  return {pixels_of(p), (p.out_channels + wide - 1) / wide * parts, 1};
}
inline size_t wgrad_depthwise_gpu_workspace(const ConvWgradParams& p) {
  return static_cast<size_t>(wgrad_depthwise_segments(p).count * weight_size(p)) * sizeof(double);
}

// Convolution on tensor cores reads images as channels_last with a whole number of 16-byte chunks of channels per
// group, and weights as [output channel][tap][channel], padded alike. What is not so yet is converted into the
// workspace.
struct IgemmPlan {
  int64_t cg, kg, taps, element, chunk, padded;  // bytes of an element, channels of a chunk, of a padded group
  bool convert_x, convert_w;
  size_t x_bytes, w_bytes;

  explicit IgemmPlan(const ConvParams& p)
      : cg(p.c / p.groups),
        kg(p.k / p.groups),
        taps(taps_of(p.kernel)),
        element(p.dtype == DType::f32 ? 4 : 2),
        chunk(16 / element),
        padded((cg + chunk - 1) / chunk * chunk) {
    const auto aligned = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
    convert_x = !p.channels_last || padded != cg || !aligned(p.x);
    convert_w = p.transposed || !p.weight_channels_last || padded != cg || !aligned(p.w);
    const auto bytes = [&](bool convert, int64_t elements) {
      return convert ? (static_cast<size_t>(elements * element) + 255) / 256 * 256 : 0;
    };
    x_bytes = bytes(convert_x, p.n * p.in[0] * p.in[1] * p.in[2] * p.groups * padded);
    w_bytes = bytes(convert_w, p.k * taps * padded);
  }
};
// An input gradient of stride 1 as a convolution: its padding.
inline int64_t sm90_pad(const ConvParams& p, int dim) {
  return p.transposed ? (p.kernel[dim] - 1) * p.dilation[dim] - p.pad[dim] : p.pad[dim];
}
// The last position of a window in the padded image, counted from the last of the image; what TMA calls a corner.
inline int64_t sm90_upper_corner(const ConvParams& p, int dim) {
  return (p.out[dim] - 1) * p.stride[dim] + 1 - p.in[dim] - sm90_pad(p, dim);
}
// For statistics two doubles per output channel and tile of rows, which are at least so many.
inline constexpr int64_t kLeastTileRows = 64;
inline size_t moments_bytes(const ConvParams& p) {
  const int64_t rows = p.n * p.out[0] * p.out[1] * p.out[2];
  return p.statistics == nullptr ? 0 : static_cast<size_t>((rows + kLeastTileRows - 1) / kLeastTileRows * p.k) * 16;
}
inline size_t igemm_gpu_workspace(const ConvParams& p) {
  const IgemmPlan plan(p);
  return plan.x_bytes + plan.w_bytes + moments_bytes(p);
}

// 3x3 convolution on tiles of 8 x 16 pixels; for statistics two doubles per output channel and half a tile, its even
// and its odd lines.
inline constexpr int64_t kHaloTile[2] = {8, 16};
inline size_t halo_gpu_workspace(const ConvParams& p) {
  const IgemmPlan plan(p);
  const auto tiles = [&](int i) { return (p.out[i + 1] + kHaloTile[i] - 1) / kHaloTile[i]; };
  const int64_t halves = p.statistics == nullptr ? 0 : p.n * tiles(0) * tiles(1) * 2;
  return plan.x_bytes + plan.w_bytes + static_cast<size_t>(halves * p.k) * 16;
}

// Few pixels and a long sum: the sum in segments, so that more blocks share it. Their length, in steps of four chunks,
// depends on the layer and never on the batch, so that an image has the same bits in any; only who adds them up does:
// with few tiles in the batch each segment has a block of its own and goes through memory (`apart`).
struct SegmentedPlan {
  static constexpr int64_t kTile = 64, kMultiprocessors = 132, kBlocks = 2 * kMultiprocessors, kShortest = 8;
  int64_t tiles, steps, length, segments;  // of the batch; of the phase with most taps; 1: nothing is cut
  bool apart;

  explicit SegmentedPlan(const ConvParams& p) {
    const IgemmPlan plan(p);
    const auto parts = [](int64_t n, int64_t part) { return (n + part - 1) / part; };
    int64_t cells = 1, phases = 1, taps = 1;
    for (int i = 0; i < 3; ++i) {
      const Axis axis(p, i);
      cells *= axis.cells;
      phases *= axis.phases;
      taps *= axis.most_taps();
    }
    const int64_t others = parts(plan.kg, kTile) * phases * p.groups;  // tiles per 64 pixels of every phase
    tiles = parts(p.n * cells, kTile) * others;
    steps = parts(taps * plan.padded / plan.chunk, 4);
    const int64_t alone = std::max<int64_t>(1, parts(cells, kTile) * others);
    const int64_t wanted = std::max<int64_t>(1, std::min(parts(kBlocks, alone), steps / kShortest));
    length = std::max<int64_t>(1, parts(steps, wanted));
    segments = std::max<int64_t>(1, parts(steps, length));
    apart = tiles < kMultiprocessors;
  }
  size_t partial_bytes() const { return apart ? static_cast<size_t>(segments * tiles * kTile * kTile) * 4 : 0; }
};
inline size_t igemm_splitk_gpu_workspace(const ConvParams& p) {
  return igemm_gpu_workspace(p) + SegmentedPlan(p).partial_bytes();
}

// The first convolution of a network, up to four channels and a stride of 2 along rows, as one of eight channels: two
// neighbouring pixels of four. A row of pairs begins where windows do, one pixel before the image if the padding is
// odd, so a window is whole pairs, or all but half of the last.
struct PairPlan {
  int64_t before, pairs, taps;  // pixels before the image; of a row of the image, of a row of the kernel
  size_t x_bytes, w_bytes;
  explicit PairPlan(const ConvParams& p)
      : before(p.pad[2] % 2), pairs((p.in[2] + before + 1) / 2), taps((p.kernel[2] + 1) / 2) {
    const auto bytes = [](int64_t packs) { return (static_cast<size_t>(packs) * 16 + 255) / 256 * 256; };
    x_bytes = bytes(p.n * p.in[1] * pairs);
    w_bytes = bytes(p.k * p.kernel[1] * taps);
  }
  ConvParams of(ConvParams p) const {
    p.c = 8;
    p.in[2] = pairs;
    p.kernel[2] = taps;
    p.pad[2] /= 2;
    p.stride[2] = 1;
    return p;
  }
};
inline size_t igemm_pairs_gpu_workspace(const ConvParams& p) {
  const PairPlan plan(p);
  return plan.x_bytes + plan.w_bytes;
}

// Depthwise convolution of channels_last images: the weights, tap by tap.
inline size_t depthwise_gpu_workspace(const ConvParams& p) {
  return p.channels_last ? static_cast<size_t>(p.k * taps_of(p.kernel)) * (p.dtype == DType::f64 ? 8 : 4) : 0;
}

}  // namespace fastcv
