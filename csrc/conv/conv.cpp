#include "conv/conv.h"

#include "conv/conv_algorithm.h"
#include "conv/conv_gpu.h"
#include "conv/conv_phases.h"
#include "conv/conv_sm90.h"

namespace fastcv {
namespace {

// Direct or Winograd: a model of the cost and of the error of one image's layer. Only the layer counts, never the batch
// or the threads: results must not depend on those.

// Vector multiply-adds per pair of an input and an output channel. What a call spends once, on weights, counts a
// quarter: as in a batch of four.
double cost(const ConvParams& p, Algorithm algorithm) {
  const double c = static_cast<double>(p.c / p.groups), k = static_cast<double>(p.k / p.groups);
  if (algorithm == Algorithm::direct) return 1.15 * products(p, p.transposed) + 10 * 9 / 4.0;
  const auto [tiles, points] = winograd_cut(algorithm, p.out, p.dilation);
  // A point of a tile costs its product, its share of the input's transform and its share of the output's. Less than
  // ten tiles are done before the next weights have come.
  return points * (std::max(10.0, tiles * (1.15 + 8 / k + 6 / c)) + 10 / 4.0);
}

// Whether the error stays within twice torch's on normal data. Rounding errors of F(4x4) come out about 7 times
// amplified, of F(4x2) 3.5 times (conv_winograd_algebra.h); how much that may be is given by torch's sums, which in
// channels_last images lose more with every channel, and which are most exact in images that are small.
bool accurate(const ConvParams& p, Algorithm algorithm) {
  const int64_t c = p.c / p.groups;
  if (algorithm == Algorithm::direct || algorithm == Algorithm::winograd2) return true;
  if (p.c * p.in[1] * p.in[2] <= 20480 || c < 32) return false;
  return algorithm == Algorithm::winograd4x2 || (p.channels_last && c >= 64);
}

Algorithm best(const ConvParams& p) { return cheapest(p, p.c / p.groups, p.k / p.groups, &cost, &accurate); }

template <Algorithm algorithm>
const char* inexact(const ConvParams& p) {
  return accurate(p, algorithm) ? nullptr
                                : "needs more channels, larger images or channels_last to be as exact as torch";
}
template <Algorithm algorithm>
const char* slower(const ConvParams& p) {
  return best(p) == algorithm ? nullptr : "another algorithm costs less";
}

// What the rows can run.

const char* why_not_depthwise_nchw(const ConvParams& p) {
  if (p.groups != p.c || p.groups != p.k) return "needs groups == input channels == output channels";
  if (p.channels_last) return "needs a row-major input";
  // Lines are copied with the zeros beyond their ends.
  const int64_t reach = p.pad[2] + p.kernel[2] * p.dilation[2];
  if (reach > 4096 + 2 * p.in[2] || p.stride[2] > 4096) return "needs padding and dilation within the image";
  return nullptr;
}

template <int vector_bytes>
const char* why_not_small_groups(const ConvParams& p) {
  const int64_t group = p.c / p.groups, vector = vector_bytes / (p.dtype == DType::f64 ? 8 : 4);
  if (p.c != p.k) return "needs as many output channels as input channels";
  if (group == 0 || 2 * group > vector || vector % group != 0) return "needs groups of which a vector holds several";
  if (p.kernel[0] != 1 || p.in[0] != 1 || p.out[0] != 1 || p.pad[0] != 0) return "needs one plane of depth";
  if (p.kernel[2] != 3 && (group > 1 || (p.kernel[2] != 5 && p.kernel[2] != 7)))
    return "needs a kernel 3 wide, or 5 or 7 where every channel is a group";
  if (p.kernel[1] > 16) return "needs a kernel up to 16 high";
  if (p.stride[2] > 2 || p.stride[1] > 16) return "needs a stride of 1 or 2";
  if (p.transposed && (p.stride[1] != 1 || p.stride[2] != 1)) return "needs stride 1";
  for (int i = 1; i < 3; ++i) {
    if (p.dilation[i] != 1) return "needs a kernel without dilation";
    if (p.pad[i] >= p.kernel[i] || (p.out[i] - 1) * p.stride[i] >= p.in[i] + p.kernel[i])
      return "needs padding within the kernel";
  }
  return nullptr;
}
const char* slower_small_groups(const ConvParams& p) {
  if (p.c < 8) return "is for 8 channels or more in all";
  return p.groups == 1 ? "is for more groups than one" : nullptr;
}

const char* why_not_subpixel(const ConvParams& p) {
  if (p.dtype != DType::f32) return "needs float32";
  if (p.precision == Precision::ieee) return "the precision 'ieee' asks for a direct sum";
  if (p.groups != 1) return "needs a convolution without groups";
  if (p.kernel[0] != 1 || p.in[0] != 1 || p.out[0] != 1 || p.pad[0] != 0) return "needs one plane of depth";
  for (int i = 1; i < 3; ++i) {
    if (p.stride[i] > (p.transposed ? kMostSubpixelStride : kMostSubpixelStride / 2))
      return "needs strides up to 4, transposed up to 8";
    if ((p.kernel[i] - 1) * p.dilation[i] > 64) return "needs a kernel that reaches over at most 64 pixels";
  }
  return nullptr;
}
// Products of vectors per output and input channel: of the cut, counting what the last cells compute beyond the image,
// and of the direct sum by phases.
struct SubpixelCosts {
  double whole, phases;
  double saved, spent;  // nanoseconds: of four images on two threads; on weights and further passes over the output
};
SubpixelCosts subpixel_costs(const ConvParams& p, const SubpixelCut& cut, int64_t lanes) {
  const auto number = [](int64_t n) { return static_cast<double>(n); };
  double whole = cut.products, phases = number(p.kernel[1] * p.kernel[2] * ((p.k + lanes - 1) / lanes));
  double weights = p.weights_kept ? 0 : number(p.c * p.k);
  for (int i = 0; i < 2; ++i) {
    const int64_t block = cut.block[i], out = std::max<int64_t>(1, p.out[1 + i]);
    whole *= number((out + block - 1) / block * block) / number(out);
    weights *= number(block * cut.offsets[i]);
    if (p.transposed) phases /= number(p.stride[1 + i]);
  }
  return {whole, phases, 0.32 * (phases - whole) * number(p.c * p.out[1] * p.out[2]), 20000 + weights};
}
template <int vector_bytes>
const char* slower_subpixel(const ConvParams& p) {
  constexpr int64_t kLanes = vector_bytes / 4;
  const SubpixelCosts costs = subpixel_costs(p, subpixel_cut(p, kLanes), kLanes);
  if (costs.whole > 0.75 * costs.phases) return "is for few output channels";
  return costs.saved < costs.spent ? "is for larger images" : nullptr;
}

const char* why_not_wide_stride(const ConvParams& p) {
  if (p.dtype != DType::f32) return "needs float32";
  if (p.precision == Precision::ieee) return "the precision 'ieee' asks for a direct sum";
  if (!p.transposed || p.stride[2] < 2) return "needs a transposed convolution with a stride along the width";
  if (p.kernel[0] != 1 || p.in[0] != 1 || p.out[0] != 1 || p.pad[0] != 0) return "needs one plane of depth";
  if (p.dilation[2] != 1) return "needs a kernel without dilation along the width";
  if (p.channels_last && p.groups > 1) return "needs row-major images or a convolution without groups";
  if (p.weight_channels_last != p.channels_last && p.k > p.groups) return "needs weights in the layout of the images";
  if (p.pad[2] >= p.stride[2] * (p.in[2] + 2) || p.kernel[2] > 1024) return "needs padding within the image";
  return nullptr;
}
const char* slower_wide_stride(const ConvParams& p) {
  // A window holds whole lines: 21 channels of 600 inputs gain 1.3 times, 80 channels of as many take 1.3 times as
  // long.
  if (p.in[2] * p.c > (1 << 14)) return "is for input lines that stay close to the first-level cache";
  // Row-major, a step of less than a vector leaves the rest of it empty.
  return p.stride[2] < (p.channels_last ? 8 : 16) ? "is for strides from 16 on, in channels_last from 8 on" : nullptr;
}

const char* why_not_winograd(const ConvParams& p) {
  if (p.dtype != DType::f32) return "needs float32";
  if (p.precision == Precision::ieee) return "the precision 'ieee' asks for a direct sum";
  if (p.kernel[0] != 1 || p.kernel[1] != 3 || p.kernel[2] != 3) return "needs a 3x3 kernel";
  if (p.stride[1] != 1 || p.stride[2] != 1) return "needs stride 1";
  if (p.in[0] != 1 || p.out[0] != 1 || p.pad[0] != 0) return "needs one plane of depth";
  if (p.dilation[1] > p.out[1] || p.dilation[2] > p.out[2]) return "needs a dilation within the image";
  return nullptr;
}
const char* why_not_im2col_nchw(const ConvParams& p) {
  if (p.dtype != DType::f32) return "needs float32";
  if (p.channels_last || p.weight_channels_last) return "needs row-major images and weights";
  if (p.transposed && (p.stride[0] != 1 || p.stride[1] != 1 || p.stride[2] != 1)) return "needs stride 1";
  return nullptr;
}
// It spares the packing of weights and, where one pixel makes an output, gathers nothing; where pixels are skipped, few
// of them do not earn the packing back, but must fill its vectors.
const char* slower_im2col_nchw(const ConvParams& p) {
  const int64_t pixels = p.out[0] * p.out[1] * p.out[2], taps = p.kernel[0] * p.kernel[1] * p.kernel[2];
  const bool pointwise = taps == 1 && pixels == p.in[0] * p.in[1] * p.in[2] && p.pad[0] + p.pad[1] + p.pad[2] == 0;
  if (taps > 1) return "is for 1x1 kernels";
  if (pixels < 32 || (pixels > 256 && !pointwise))
    return "is for maps of 32 pixels and more, with strides of up to 256";
  if (!pointwise && (p.k < 64 * p.groups || p.c < 64 * p.groups)) return "is for layers with many channels";
  return p.transposed ? "rearranges the weights of a gradient slowly" : nullptr;
}
constexpr auto slower_winograd4 = &slower<Algorithm::winograd4>;
constexpr auto slower_winograd4x2 = &slower<Algorithm::winograd4x2>;
constexpr auto slower_winograd2 = &slower<Algorithm::winograd2>;
constexpr auto inexact_winograd4 = &inexact<Algorithm::winograd4>;
constexpr auto inexact_winograd4x2 = &inexact<Algorithm::winograd4x2>;

#if defined(__x86_64__)
const char* why_not_bf16_dot(const ConvParams& p) {
  if (p.dtype != DType::bf16) return "needs bfloat16";
  if (p.groups > 1 && p.c / p.groups <= 8 && p.k / p.groups < 16) return "small groups have too few pairs of channels";
  return nullptr;
}

const char* why_not_tiles(const ConvParams& p) {
  if (p.groups > 1 && p.c / p.groups <= 8 && p.k / p.groups < 16) return "small groups fill no tiles";
  for (int i = 1; i < 3; ++i) {
    if (!p.transposed && p.stride[i] > kMostTileStride) return "needs strides up to 8";
    if ((p.kernel[i] - 1) * p.dilation[i] > 1024) return "needs a kernel that reaches over at most 1024 pixels";
  }
  return nullptr;
}
const char* why_not_bf16_tiles(const ConvParams& p) {
  if (p.dtype != DType::bf16 && (p.dtype != DType::f32 || p.precision != Precision::medium))
    return "needs bfloat16 or float32 of precision medium";
  return why_not_tiles(p);
}
const char* why_not_bf16x3_tiles(const ConvParams& p) {
  if (p.dtype != DType::f16 &&
      (p.dtype != DType::f32 || p.precision == Precision::highest || p.precision == Precision::ieee))
    return "needs float16 or float32 of precision high";
  return why_not_tiles(p);
}
const char* why_not_bf16x6_tiles(const ConvParams& p) {
  if (p.precision == Precision::ieee) return "the precision 'ieee' asks for a direct sum";
  return p.dtype != DType::f32 ? "needs float32" : why_not_tiles(p);
}
const char* why_not_winograd_bf16x3(const ConvParams& p) {
  if (p.dtype != DType::f32 || (p.precision != Precision::high && p.precision != Precision::medium))
    return "needs float32 of precision high";
  if (p.c > kMostWinogradTileChannels * p.groups) return "needs at most 2048 channels in a group";
  return why_not_winograd(p);
}
// On tiles the direct sum is a sixth of its price on vectors where it has stride 1: what the cut saves is less. Cutting
// an input into parts has to be earned back by several products.
const char* slower_subpixel_bf16x6(const ConvParams& p) {
  if (p.c < 32) return "fills tiles of 32 channels with zeros";
  const SubpixelCut cut = subpixel_cut(p, 16);
  const SubpixelCosts costs = subpixel_costs(p, cut, 16);
  double products = 1;  // of an input
  for (int i = 0; i < 2; ++i)
    products *= static_cast<double>(cut.offsets[i] * p.out[1 + i]) /
                static_cast<double>(cut.block[i] * std::max<int64_t>(1, p.in[1 + i]));
  if (products < 3) return "cuts many inputs into parts for few products";
  if (p.c * cut.offsets[0] * cut.offsets[1] > 6400) return "adds up long sums less exactly";
  if (costs.whole > 0.6 * costs.phases) return "is for few output channels";
  const bool by_phases = p.transposed && p.stride[1] * p.stride[2] > 1;
  return costs.saved < (by_phases ? 1 : 16) * costs.spent ? "is for larger images" : nullptr;
}
const char* slower_tiles(const ConvParams& p) {
  return p.groups > 1 && p.c / p.groups < 32 ? "fills tiles of 32 channels with zeros" : nullptr;
}
// First layers: what few channels leave empty in a tile costs three products, and gathering their taps as much again.
const char* slower_bf16x3(const ConvParams& p) {
  const int64_t c = p.c / p.groups;
  if (c < 8 && (!p.channels_last || c * p.kernel[2] <= 16)) return "fills tiles of 32 channels with zeros";
  return slower_tiles(p);
}
// F(4x4) instead of a direct sum, both of three products, for one image whose weights are kept. The unit is an output
// of the direct kernel, which many channels slow down because both factors then come from the second-level cache. A
// tile of 16 outputs costs 11, nine of them products, and its transforms, which few channels on the other side share;
// to fetch four times the bytes of weights costs as much as 250. Fitted to 73 layers on one and two threads.
const char* slower_winograd_bf16x3(const ConvParams& p) {
  const double c = static_cast<double>(p.c / p.groups), k = static_cast<double>(p.k / p.groups);
  if (c < 32) return "fills tiles of 32 channels with zeros";
  const double tiles = winograd_cut(Algorithm::winograd4, p.out, p.dilation).tiles;
  const double direct = static_cast<double>(p.out[1] * p.out[2]) * (1 + c / 768);
  return tiles * (11 + 50 / c + 100 / k) + 250 < direct ? nullptr : "is for larger images or more channels";
}
// Six products run at twice the speed of float32 arithmetic; cutting each input into parts and packing the weights cost
// more. Sums of 6400 products err up to 1.4 times as much as torch's, where they are not made of pieces.
const char* slower_bf16x6(const ConvParams& p) {
  const int64_t c = p.c / p.groups, k = p.k / p.groups, taps = p.kernel[0] * p.kernel[1] * p.kernel[2];
  const int64_t pixels = p.out[0] * p.out[1] * p.out[2], inputs = p.in[0] * p.in[1] * p.in[2];
  int64_t output_taps = 1;  // of one output: a phase's
  for (int i = 0; i < 3; ++i) output_taps *= Axis(p, i).most_taps();
  if (c < 32 || (k < 32 && p.groups > 1)) return "is for 32 channels and more";
  if (p.groups == 1 && slower_subpixel<64>(p) == nullptr && why_not_subpixel(p) == nullptr) {
    const SubpixelCut cut = subpixel_cut(p, 16);
    const SubpixelCosts costs = subpixel_costs(p, cut, 16);
    if (costs.whole < 0.3 * costs.phases) return "another algorithm costs less";
  }
  const bool in_pieces = taps == 1 && p.groups == 1 && p.channels_last;  // conv_pointwise.h
  if (!in_pieces && c * output_taps > 6400) return "adds up long sums less exactly";
  if (in_pieces ? !p.weights_kept && c > 1600 && (pixels < 256 || c * k > 1 << 21)
                : k >= 32 && c > 256 && c * output_taps > 1600)
    return "packs and reads the weights of many channels slowly";
  const bool sparse =
      taps == 1 && !p.transposed && p.stride[1] * p.stride[2] > 1 && c >= 1024;  // the direct sum is slow there
  const bool kept = in_pieces && p.weights_kept;
  const int64_t least_pixels = kept ? 32 : in_pieces ? 128 : 64;
  if (!sparse && (pixels < least_pixels || inputs < (kept ? 16 : 64)))
    return "packs weights too slowly for small images";
  if (!p.channels_last && taps == 1) return "transposes too much for a kernel of one tap";
  const double all = static_cast<double>(p.out[1] * p.kernel[1]) * static_cast<double>(p.out[2] * p.kernel[2]);
  if (p.stride[1] == 1 && p.stride[2] == 1 && fastcv::products(p, p.transposed) < 0.75 * all)
    return "multiplies what lies outside of the image";
  const int64_t products = p.transposed ? inputs * taps : pixels * taps;
  const int64_t columns = (k + 15) / 16 * 16;
  return products * columns < 32 * inputs ? "cuts many inputs into parts for few products" : nullptr;
}
#endif

// Both directions run the same kernels; two tables so that each can be studied and forced on its own.
constexpr Variant<ConvParams> kRows[] = {
#if defined(__x86_64__)
    {"igemm_bf16_amx", Isa::amx, &why_not_bf16_tiles, &amx::conv_igemm_bf16_workspace, &amx::conv_igemm_bf16,
     &slower_tiles, &amx::conv_igemm_bf16_kept},
    {"subpixel_bf16x6_amx", Isa::amx, &why_not_subpixel, &amx::conv_subpixel_bf16x6_workspace,
     &amx::conv_subpixel_bf16x6, &slower_subpixel_bf16x6, &amx::conv_subpixel_bf16x6_kept},
    {"winograd4_bf16x3_amx", Isa::amx, &why_not_winograd_bf16x3, &amx::conv_winograd4_bf16x3_workspace,
     &amx::conv_winograd4_bf16x3, &slower_winograd_bf16x3, &amx::conv_winograd4_bf16x3_kept},
    {"igemm_bf16x3_amx", Isa::amx, &why_not_bf16x3_tiles, &amx::conv_igemm_bf16x3_workspace, &amx::conv_igemm_bf16x3,
     &slower_bf16x3, &amx::conv_igemm_bf16x3_kept},
    {"igemm_bf16_avx512bf16", Isa::avx512bf16, &why_not_bf16_dot, &avx512bf16::conv_igemm_bf16_workspace,
     &avx512bf16::conv_igemm_bf16, nullptr, &avx512bf16::conv_igemm_bf16_kept},
    {"small_groups_avx512", Isa::avx512, &why_not_small_groups<64>, &avx512::conv_small_groups_workspace,
     &avx512::conv_small_groups, &slower_small_groups},
    {"wide_stride_f32_avx512", Isa::avx512, &why_not_wide_stride, &avx512::conv_wide_stride_workspace,
     &avx512::conv_wide_stride, &slower_wide_stride},
    {"depthwise_nchw_avx512", Isa::avx512, &why_not_depthwise_nchw, &avx512::conv_depthwise_workspace,
     &avx512::conv_depthwise},
    {"winograd4_f32_avx512", Isa::avx512, &why_not_winograd, &avx512::conv_winograd4_workspace, &avx512::conv_winograd4,
     slower_winograd4, &avx512::conv_winograd4_kept, inexact_winograd4},
    {"winograd4x2_f32_avx512", Isa::avx512, &why_not_winograd, &avx512::conv_winograd4x2_workspace,
     &avx512::conv_winograd4x2, slower_winograd4x2, &avx512::conv_winograd4x2_kept, inexact_winograd4x2},
    {"winograd2_f32_avx512", Isa::avx512, &why_not_winograd, &avx512::conv_winograd2_workspace, &avx512::conv_winograd2,
     slower_winograd2, &avx512::conv_winograd2_kept},
    {"igemm_bf16x6_amx", Isa::amx, &why_not_bf16x6_tiles, &amx::conv_igemm_bf16x6_workspace, &amx::conv_igemm_bf16x6,
     &slower_bf16x6, &amx::conv_igemm_bf16x6_kept},
    {"subpixel_f32_avx512", Isa::avx512, &why_not_subpixel, &avx512::conv_subpixel_workspace, &avx512::conv_subpixel,
     &slower_subpixel<64>, &avx512::conv_subpixel_kept},
    {"im2col_nchw_f32_avx512", Isa::avx512, &why_not_im2col_nchw, &avx512::conv_im2col_workspace, &avx512::conv_im2col,
     &slower_im2col_nchw},
    {"igemm_avx512", Isa::avx512, nullptr, &avx512::conv_igemm_workspace, &avx512::conv_igemm, nullptr,
     &avx512::conv_igemm_kept},
    {"small_groups_avx2", Isa::avx2, &why_not_small_groups<32>, &avx2::conv_small_groups_workspace,
     &avx2::conv_small_groups, &slower_small_groups},
    {"wide_stride_f32_avx2", Isa::avx2, &why_not_wide_stride, &avx2::conv_wide_stride_workspace,
     &avx2::conv_wide_stride, &slower_wide_stride},
    {"subpixel_f32_avx2", Isa::avx2, &why_not_subpixel, &avx2::conv_subpixel_workspace, &avx2::conv_subpixel,
     &slower_subpixel<32>, &avx2::conv_subpixel_kept},
    {"depthwise_nchw_avx2", Isa::avx2, &why_not_depthwise_nchw, &avx2::conv_depthwise_workspace, &avx2::conv_depthwise},
    {"winograd4_f32_avx2", Isa::avx2, &why_not_winograd, &avx2::conv_winograd4_workspace, &avx2::conv_winograd4,
     slower_winograd4, &avx2::conv_winograd4_kept, inexact_winograd4},
    {"winograd4x2_f32_avx2", Isa::avx2, &why_not_winograd, &avx2::conv_winograd4x2_workspace, &avx2::conv_winograd4x2,
     slower_winograd4x2, &avx2::conv_winograd4x2_kept, inexact_winograd4x2},
    {"winograd2_f32_avx2", Isa::avx2, &why_not_winograd, &avx2::conv_winograd2_workspace, &avx2::conv_winograd2,
     slower_winograd2, &avx2::conv_winograd2_kept},
    {"im2col_nchw_f32_avx2", Isa::avx2, &why_not_im2col_nchw, &avx2::conv_im2col_workspace, &avx2::conv_im2col,
     &slower_im2col_nchw},
    {"igemm_avx2", Isa::avx2, nullptr, &avx2::conv_igemm_workspace, &avx2::conv_igemm, nullptr, &avx2::conv_igemm_kept},
#endif
    {"small_groups_portable", Isa::portable, &why_not_small_groups<16>, &portable::conv_small_groups_workspace,
     &portable::conv_small_groups, &slower_small_groups},
    {"wide_stride_f32_portable", Isa::portable, &why_not_wide_stride, &portable::conv_wide_stride_workspace,
     &portable::conv_wide_stride, &slower_wide_stride},
    {"subpixel_f32_portable", Isa::portable, &why_not_subpixel, &portable::conv_subpixel_workspace,
     &portable::conv_subpixel, &slower_subpixel<16>, &portable::conv_subpixel_kept},
    {"depthwise_nchw_portable", Isa::portable, &why_not_depthwise_nchw, &portable::conv_depthwise_workspace,
     &portable::conv_depthwise},
    {"winograd4_f32_portable", Isa::portable, &why_not_winograd, &portable::conv_winograd4_workspace,
     &portable::conv_winograd4, slower_winograd4, &portable::conv_winograd4_kept, inexact_winograd4},
    {"winograd4x2_f32_portable", Isa::portable, &why_not_winograd, &portable::conv_winograd4x2_workspace,
     &portable::conv_winograd4x2, slower_winograd4x2, &portable::conv_winograd4x2_kept, inexact_winograd4x2},
    {"winograd2_f32_portable", Isa::portable, &why_not_winograd, &portable::conv_winograd2_workspace,
     &portable::conv_winograd2, slower_winograd2, &portable::conv_winograd2_kept},
    {"im2col_nchw_f32_portable", Isa::portable, &why_not_im2col_nchw, &portable::conv_im2col_workspace,
     &portable::conv_im2col, &slower_im2col_nchw},
    {"igemm_portable", Isa::portable, nullptr, &portable::conv_igemm_workspace, &portable::conv_igemm, nullptr,
     &portable::conv_igemm_kept},
#if defined(__x86_64__)
    // Behind a row that takes everything, so never taken unless asked for.
    {"igemm_bf16_amxmodel_avx512", Isa::avx512, &why_not_bf16_tiles, &amxmodel::conv_igemm_bf16_workspace,
     &amxmodel::conv_igemm_bf16, nullptr, &amxmodel::conv_igemm_bf16_kept},
    {"igemm_bf16x3_amxmodel_avx512", Isa::avx512, &why_not_bf16x3_tiles, &amxmodel::conv_igemm_bf16x3_workspace,
     &amxmodel::conv_igemm_bf16x3, nullptr, &amxmodel::conv_igemm_bf16x3_kept},
    {"subpixel_bf16x6_amxmodel_avx512", Isa::avx512, &why_not_subpixel, &amxmodel::conv_subpixel_bf16x6_workspace,
     &amxmodel::conv_subpixel_bf16x6, nullptr, &amxmodel::conv_subpixel_bf16x6_kept},
    {"winograd4_bf16x3_amxmodel_avx512", Isa::avx512, &why_not_winograd_bf16x3,
     &amxmodel::conv_winograd4_bf16x3_workspace, &amxmodel::conv_winograd4_bf16x3, nullptr,
     &amxmodel::conv_winograd4_bf16x3_kept},
    {"igemm_bf16x6_amxmodel_avx512", Isa::avx512, &why_not_bf16x6_tiles, &amxmodel::conv_igemm_bf16x6_workspace,
     &amxmodel::conv_igemm_bf16x6, &slower_bf16x6, &amxmodel::conv_igemm_bf16x6_kept},
#endif
    {"ref", Isa::portable, nullptr, nullptr, &conv_ref},
};

const char* why_not_depthwise_gpu(const ConvParams& p) {
  if (p.c != p.groups) return "needs one channel of the input per group";
  return p.transposed && p.k != p.groups ? "needs one channel of the output per group" : nullptr;
}

const char* why_not_igemm_gpu(const ConvParams& p) {
  constexpr int64_t kLimit = int64_t{1} << 28;  // positions are 32-bit numbers
  if (p.groups > 1 && (p.c < 8 * p.groups || p.k < 16 * p.groups)) return "small groups fill no tiles";
  if (p.c / p.groups >= kLimit / taps_of(p.kernel)) return "needs fewer than 2^28 products per output";
  for (int i = 0; i < 3; ++i)
    if (p.in[i] >= kLimit || p.out[i] >= kLimit || p.pad[i] >= kLimit || p.stride[i] >= kLimit ||
        p.dilation[i] * p.kernel[i] >= kLimit || (p.out[i] + 1) * p.stride[i] >= kLimit)
      return "needs sizes below 2^28";
  return nullptr;
}
const char* why_not_igemm_sm80(const ConvParams& p) {
  if (p.dtype == DType::f64 ||
      (p.dtype == DType::f32 && p.precision != Precision::high && p.precision != Precision::medium))
    return "needs bfloat16, float16 or float32 of precision high";
  return why_not_igemm_gpu(p);
}
const char* why_not_tma_sm90(const ConvParams& p) {
  if (p.groups != 1) return "needs a convolution without groups";
  if (p.transposed && (p.stride[1] != 1 || p.stride[2] != 1)) return "needs stride 1";
  if (p.kernel[0] != 1 || p.in[0] != 1 || p.out[0] != 1 || p.pad[0] != 0) return "needs one plane of depth";
  for (int i = 1; i < 3; ++i) {
    const int64_t lower = -sm90_pad(p, i), upper = sm90_upper_corner(p, i);
    if (lower < -128 || lower > 127 || upper < -128 || upper > 127 || p.stride[i] > 8)
      return "needs strides and padding that TMA takes";
    if ((p.kernel[i] - 1) * p.dilation[i] > 254) return "needs a kernel that reaches over at most 254 pixels";
  }
  return why_not_igemm_gpu(p);
}
const char* why_not_igemm_sm90(const ConvParams& p) {
  return p.dtype != DType::bf16 && p.dtype != DType::f16 ? "needs bfloat16 or float16" : why_not_tma_sm90(p);
}
const char* why_not_igemm_tf32_sm90(const ConvParams& p) {
  if (p.dtype != DType::f32 || (p.precision != Precision::high && p.precision != Precision::medium))
    return "needs float32 of precision high";
  return why_not_tma_sm90(p);
}
const char* why_not_igemm_tf32x3_sm90(const ConvParams& p) {
  if (p.precision == Precision::ieee) return "the precision 'ieee' asks for a direct sum";
  return p.dtype != DType::f32 ? "needs float32" : why_not_tma_sm90(p);
}
const char* why_not_halo_sm90(const ConvParams& p) {
  if (p.dtype != DType::bf16 && p.dtype != DType::f16) return "needs bfloat16 or float16";
  if (p.groups != 1) return "needs a convolution without groups";
  if (!p.channels_last) return "needs channels_last images";
  if (p.kernel[0] != 1 || p.in[0] != 1 || p.out[0] != 1 || p.pad[0] != 0) return "needs one plane of depth";
  if (p.kernel[1] != 3 || p.kernel[2] != 3) return "needs a 3x3 kernel";
  if (p.stride[1] != 1 || p.stride[2] != 1) return "needs stride 1";
  if (p.dilation[1] != 1 || p.dilation[2] != 1) return "needs a kernel without dilation";
  return why_not_igemm_gpu(p);
}
const char* why_not_igemm_tf32x3_sm80(const ConvParams& p) {
  if (p.precision == Precision::ieee) return "the precision 'ieee' asks for a direct sum";
  return p.dtype != DType::f32 ? "needs float32" : why_not_igemm_gpu(p);
}

const char* why_not_igemm_phases_sm90(const ConvParams& p) {
  if (p.dtype != DType::bf16 && p.dtype != DType::f16) return "needs bfloat16 or float16";
  if (p.groups != 1) return "needs a convolution without groups";
  if (!p.transposed) return "needs an input gradient or a transposed convolution";
  if (p.kernel[0] != 1 || p.in[0] != 1 || p.out[0] != 1 || p.pad[0] != 0) return "needs one plane of depth";
  if (p.stride[1] > kMostPhases || p.stride[2] > kMostPhases) return "needs strides of at most 8";
  if (const char* why_not = why_not_igemm_gpu(p); why_not != nullptr) return why_not;
  const PhasePlan phases(p);
  for (int i = 0; i < 2; ++i)
    for (int64_t phase = 0; phase < phases.dims[i].phases; ++phase) {
      const PhaseConv& of = phases.dims[i].of[phase];
      const int64_t upper = of.cells - p.in[i + 1] - of.pad;
      if (of.count == 0) continue;
      if (of.pad < -127 || of.pad > 128 || upper < -128 || upper > 127) return "needs padding that TMA takes";
      if ((of.count - 1) * of.dilation > 254) return "needs a kernel that reaches over at most 254 pixels";
    }
  return nullptr;
}
const char* why_not_igemm_pairs_sm80(const ConvParams& p) {
  if (p.dtype != DType::bf16 && p.dtype != DType::f16) return "needs bfloat16 or float16";
  if (p.transposed || p.groups != 1 || p.c < 1 || p.c > 4) return "needs a convolution of one to four channels";
  if (p.kernel[0] != 1 || p.in[0] != 1 || p.out[0] != 1 || p.pad[0] != 0) return "needs one plane of depth";
  if (p.stride[2] != 2 || p.dilation[2] != 1) return "needs a stride of 2 along rows";
  return why_not_igemm_gpu(p);
}
const char* why_not_igemm_splitk_sm80(const ConvParams& p) {
  if (const char* why_not = why_not_igemm_sm80(p); why_not != nullptr) return why_not;
  return SegmentedPlan(p).segments > 1 ? nullptr : "needs long sums and few pixels";
}

constexpr GpuVariant<ConvParams> kGpuRows[] = {
    {"depthwise_sm80", "sm80", &why_not_depthwise_gpu, &depthwise_gpu_workspace, FASTCV_LAUNCHERS(conv_depthwise)},
    {"igemm_sm80", "sm80", &why_not_igemm_sm80, &igemm_gpu_workspace, FASTCV_LAUNCHERS(conv_igemm)},
    {"tiled_sm80", "sm80", nullptr, nullptr, FASTCV_LAUNCHERS(conv_tiled)},
    // Behind a row that takes everything, so never taken unless asked for: how tensor cores round their sums and what
    // TMA does has not been seen on a GPU, and the formula as it reads is there to compare with.
    {"igemm_tf32x3_sm80", "sm80", &why_not_igemm_tf32x3_sm80, &igemm_gpu_workspace,
     FASTCV_LAUNCHERS(conv_igemm_tf32x3)},
    {"igemm_serial_sm90a", "sm90a", &why_not_igemm_sm90, &igemm_gpu_workspace,
     FASTCV_LAUNCHERS(conv_igemm_serial_sm90)},
    {"igemm_specialised_sm90a", "sm90a", &why_not_igemm_sm90, &igemm_gpu_workspace,
     FASTCV_LAUNCHERS(conv_igemm_specialised_sm90)},
    {"igemm_sm90a", "sm90a", &why_not_igemm_sm90, &igemm_gpu_workspace, FASTCV_LAUNCHERS(conv_igemm_sm90)},
    {"igemm_multicast_sm90a", "sm90a", &why_not_igemm_sm90, &igemm_gpu_workspace,
     FASTCV_LAUNCHERS(conv_igemm_multicast_sm90)},
    {"igemm_pingpong_sm90a", "sm90a", &why_not_igemm_sm90, &igemm_gpu_workspace,
     FASTCV_LAUNCHERS(conv_igemm_pingpong_sm90)},
    {"igemm_planned_sm90a", "sm90a", &why_not_igemm_sm90, &igemm_gpu_workspace,
     FASTCV_LAUNCHERS(conv_igemm_planned_sm90)},
    {"igemm_tf32_sm90a", "sm90a", &why_not_igemm_tf32_sm90, &igemm_gpu_workspace,
     FASTCV_LAUNCHERS(conv_igemm_tf32_sm90)},
    {"igemm_tf32x3_sm90a", "sm90a", &why_not_igemm_tf32x3_sm90, &split_gpu_workspace,
     FASTCV_LAUNCHERS(conv_igemm_tf32x3_sm90)},
    {"halo_3x3_sm90a", "sm90a", &why_not_halo_sm90, &halo_gpu_workspace, FASTCV_LAUNCHERS(conv_halo_sm90)},
    {"igemm_phases_sm90a", "sm90a", &why_not_igemm_phases_sm90, &igemm_gpu_workspace,
     FASTCV_LAUNCHERS(conv_igemm_phases_sm90)},
    {"igemm_pairs_sm80", "sm80", &why_not_igemm_pairs_sm80, &igemm_pairs_gpu_workspace,
     FASTCV_LAUNCHERS(conv_igemm_pairs)},
    {"igemm_splitk_sm80", "sm80", &why_not_igemm_splitk_sm80, &igemm_splitk_gpu_workspace,
     FASTCV_LAUNCHERS(conv_igemm_splitk)},
    {"direct_sm80", "sm80", nullptr, nullptr, FASTCV_LAUNCHERS(conv_direct)},
};

}  // namespace

SubpixelCut subpixel_cut(const ConvParams& p, int64_t lanes) {
  const auto floor_div = [](int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); };
  SubpixelCut best{{1, 1}, {1, 1}, 1e30};
  for (int64_t mh = 1; mh <= kMostSubpixelBlock; ++mh)
    for (int64_t mw = 1; mw <= kMostSubpixelBlock; ++mw) {
      if (!p.transposed && std::max(mh * p.stride[1], mw * p.stride[2]) > kMostSubpixelStride) continue;
      SubpixelCut cut{};
      for (int i = 0; i < 2; ++i) {
        const int64_t m = i == 0 ? mh : mw, stride = p.stride[1 + i], pad = p.pad[1 + i];
        const int64_t reach = (p.kernel[1 + i] - 1) * p.dilation[1 + i];
        cut.block[i] = p.transposed ? m * stride : m;
        cut.offsets[i] = p.transposed ? floor_div(pad + stride - 1, stride) + floor_div(reach - pad, stride) + m
                                      : (m - 1) * stride + reach + 1;
      }
      const int64_t outputs = cut.block[0] * cut.block[1], offsets = cut.offsets[0] * cut.offsets[1];
      cut.products =
          static_cast<double>(offsets * ((p.k * outputs + lanes - 1) / lanes)) / static_cast<double>(outputs);
      if (outputs > 1 && cut.products < best.products) best = cut;
    }
  return best;
}

const VariantTable<ConvParams> conv_table("conv", kRows, kGpuRows);
const VariantTable<ConvParams> conv_dgrad_table("conv_dgrad", kRows, kGpuRows);

}  // namespace fastcv
