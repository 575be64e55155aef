// Convolution and its input gradient (= transposed convolution), 1-D to 3-D, as one gather:
//
//   conv:  y[n,k,o] = act(bias[k] + residual[n,k,o] + sum_{c,r} x[n,c, o * stride - pad + r * dilation] * w[k,c,r])
//   dgrad: y[n,k,o] = act(bias[k] + residual[n,k,o] + sum_{c,r} x[n,c, (o + pad - r * dilation) / stride] * w[c,k,r])
//
// where terms outside x (and, in dgrad, indices that are not whole) are left out. Here x and y are always what is read
// and what is written: in dgrad x is the gradient of a convolution's output and y the gradient of its input.
// Only the padding before the first element matters; what follows the last is implied by the size of y, so padding may
// differ between the two ends. Any sizes and pads are safe; c or n or a spatial size may be zero.
//
// Dims are always three, depth, height, width; missing ones come first and have size, kernel and stride 1.
// x, y and residual are dense, [n][c][d][h][w] or (channels_last) [n][d][h][w][c]; y overlaps no input.
// w is dense [rows][columns / groups][taps] or (weight_channels_last) [rows][taps][columns / groups], rows being k in
// conv and c in dgrad. f32, bf16 and f16 accumulate in float, f64 in double. NaN and infinities of x reach only the
// outputs whose formula reads them, where the algorithm is no direct sum also outputs beside them; those of w may also
// reach outputs whose taps lie outside x. Results depend neither on n nor on the number of threads, bit for bit.
#pragma once
#include "common/parallel.h"
#include "common/types.h"
#include "common/variant.h"

namespace fastcv {

enum class Activation : int32_t { none, relu, relu6, silu, hardswish, gelu, leaky_relu };
inline constexpr int kActivations = 7;

// What float32 may be computed with; other dtypes ignore it. highest: float32 arithmetic, in any algorithm that meets
// the accuracy rule, denormals taken for zeros; ieee: the products and sums of the formula above themselves, denormals
// too.
enum class Precision : int32_t { highest, high, medium, ieee };
inline constexpr int kPrecisions = 4;
inline constexpr const char* kPrecisionWords[] = {"highest", "high", "medium", "ieee"};

// Where the weights stand in a kernel's own arrangement: in scratch, for one call; or in ConvParams::packed, between
// calls, of any number of images of any size. `fill` writes them there and computes nothing.
enum class Packing : int32_t { none, fill, ready };
inline constexpr const char* kWeightsWords[] = {"arranged in every call", "kept"};

// Mean and biased variance of every output channel, [k], of y as it is stored: wanted beside y, without a residual or
// an activation. Only some CUDA kernels make them, and then say so.
struct ConvStatistics {
  double* mean;
  double* var;
  bool made = false;
};

struct ConvParams {
  const void* x;
  const void* w;
  const void* bias;      // [k] or nullptr
  const void* residual;  // like y, or nullptr
  void* y;
  void* packed;                // with Packing::none nullptr, else what the variant's `kept` asks for
  ConvStatistics* statistics;  // or nullptr
  int64_t n, c, k;             // images, channels of x, channels of y (of all groups)
  int64_t groups;
  int64_t in[3], out[3], kernel[3];  // spatial sizes of x, of y, of w
  int64_t stride[3], dilation[3], pad[3];
  double slope;  // of leaky_relu where it is not above zero
  DType dtype;
  Activation activation;
  Precision precision;
  Packing packing;
  bool transposed;    // dgrad
  bool weights_kept;  // arranged once for many calls: what that takes is no cost of one
  bool channels_last, weight_channels_last;

  bool operator==(const ConvParams&) const = default;

  // What the choice of a variant may depend on (common/layer.h).
  static void layer(auto& p, auto& visit) {
    visit("input_channels", p.c);
    visit("output_channels", p.k);
    visit("groups", p.groups);
    visit("input_size", p.in, 0);
    visit("output_size", p.out);
    visit("kernel_size", p.kernel);
    visit("stride", p.stride);
    visit("dilation", p.dilation);
    visit("padding", p.pad, 0);
    visit("transposed", p.transposed, kTruthWords);
    visit("dtype", p.dtype, kDTypeWords);
    visit("precision", p.precision, kPrecisionWords);
    visit("layout", p.channels_last, kLayoutWords);
    visit("weight_layout", p.weight_channels_last, kLayoutWords);
    visit("weights", p.weights_kept, kWeightsWords);
  }
  static ConvParams of_one_image() {
    ConvParams p{};
    p.n = 1;
    return p;
  }
};

extern const VariantTable<ConvParams> conv_table;        // conv
extern const VariantTable<ConvParams> conv_dgrad_table;  // dgrad

void conv_ref(const ConvParams&, const Exec&);

#define FASTCV_CONV_KERNELS(isa)                                     \
  namespace isa {                                                    \
  void conv_im2col(const ConvParams&, const Exec&);                  \
  size_t conv_im2col_workspace(const ConvParams&, int threads);      \
  void conv_igemm(const ConvParams&, const Exec&);                   \
  size_t conv_igemm_workspace(const ConvParams&, int threads);       \
  size_t conv_igemm_kept(const ConvParams&);                         \
  void conv_depthwise(const ConvParams&, const Exec&);               \
  size_t conv_depthwise_workspace(const ConvParams&, int threads);   \
  void conv_small_groups(const ConvParams&, const Exec&);            \
  size_t conv_small_groups_workspace(const ConvParams&, int);        \
  void conv_subpixel(const ConvParams&, const Exec&);                \
  size_t conv_subpixel_workspace(const ConvParams&, int threads);    \
  size_t conv_subpixel_kept(const ConvParams&);                      \
  void conv_wide_stride(const ConvParams&, const Exec&);             \
  size_t conv_wide_stride_workspace(const ConvParams&, int threads); \
  void conv_winograd4(const ConvParams&, const Exec&);               \
  size_t conv_winograd4_workspace(const ConvParams&, int threads);   \
  size_t conv_winograd4_kept(const ConvParams&);                     \
  void conv_winograd4x2(const ConvParams&, const Exec&);             \
  size_t conv_winograd4x2_workspace(const ConvParams&, int threads); \
  size_t conv_winograd4x2_kept(const ConvParams&);                   \
  void conv_winograd2(const ConvParams&, const Exec&);               \
  size_t conv_winograd2_workspace(const ConvParams&, int threads);   \
  size_t conv_winograd2_kept(const ConvParams&);                     \
  }
FASTCV_CONV_KERNELS(portable)
FASTCV_CONV_KERNELS(avx2)
FASTCV_CONV_KERNELS(avx512)
#undef FASTCV_CONV_KERNELS
namespace avx512bf16 {
void conv_igemm_bf16(const ConvParams&, const Exec&);
size_t conv_igemm_bf16_workspace(const ConvParams&, int threads);
size_t conv_igemm_bf16_kept(const ConvParams&);
}  // namespace avx512bf16
// How a sub-pixel convolution (conv_subpixel.h) is cut, for vectors of so many lanes: neighbouring outputs of a cell
// along the height and the width, the offsets of what they read, and products of vectors per output and input channel.
struct SubpixelCut {
  int64_t block[2], offsets[2];
  double products;
};
inline constexpr int64_t kMostSubpixelStride = 8, kMostSubpixelBlock = 4;  // of a transposed convolution; of cells
inline constexpr int64_t kMostSubpixels = kMostSubpixelStride * kMostSubpixelBlock;  // of a cell, along a dim
SubpixelCut subpixel_cut(const ConvParams& p, int64_t lanes);

inline constexpr int64_t kMostTileStride = 8, kMostWinogradTileChannels = 2048;  // of a group
#define FASTCV_CONV_TILE_KERNELS(isa, linked)                                \
  namespace isa {                                                            \
  linked void conv_igemm_bf16(const ConvParams&, const Exec&);               \
  linked void conv_igemm_bf16x3(const ConvParams&, const Exec&);             \
  linked void conv_igemm_bf16x6(const ConvParams&, const Exec&);             \
  linked void conv_subpixel_bf16x6(const ConvParams&, const Exec&);          \
  linked size_t conv_subpixel_bf16x6_workspace(const ConvParams&, int);      \
  linked size_t conv_subpixel_bf16x6_kept(const ConvParams&);                \
  linked void conv_winograd4_bf16x3(const ConvParams&, const Exec&);         \
  linked size_t conv_winograd4_bf16x3_workspace(const ConvParams&, int);     \
  linked size_t conv_winograd4_bf16x3_kept(const ConvParams&);               \
  linked size_t conv_igemm_bf16_workspace(const ConvParams&, int threads);   \
  linked size_t conv_igemm_bf16x3_workspace(const ConvParams&, int threads); \
  linked size_t conv_igemm_bf16x6_workspace(const ConvParams&, int threads); \
  linked size_t conv_igemm_bf16_kept(const ConvParams&);                     \
  linked size_t conv_igemm_bf16x3_kept(const ConvParams&);                   \
  linked size_t conv_igemm_bf16x6_kept(const ConvParams&);                   \
  }
FASTCV_CONV_TILE_KERNELS(amx, )
FASTCV_CONV_TILE_KERNELS(amxmodel, FASTCV_IF_LINKED)  // on a software model of the tiles, in builds for tests
#undef FASTCV_CONV_TILE_KERNELS

#define FASTCV_CONV_KERNELS(gpu)                                                                        \
  namespace gpu {                                                                                       \
  FASTCV_IF_LINKED int conv_igemm(const ConvParams&, void* workspace, CUstream_st* stream);             \
  FASTCV_IF_LINKED int conv_igemm_pairs(const ConvParams&, void* workspace, CUstream_st* stream);       \
  FASTCV_IF_LINKED int conv_igemm_phases_sm90(const ConvParams&, void* workspace, CUstream_st* stream); \
  FASTCV_IF_LINKED int conv_igemm_splitk(const ConvParams&, void* workspace, CUstream_st* stream);      \
  FASTCV_IF_LINKED int conv_igemm_tf32x3(const ConvParams&, void* workspace, CUstream_st* stream);      \
  FASTCV_IF_LINKED int conv_igemm_sm90(const ConvParams&, void* workspace, CUstream_st* stream);        \
  FASTCV_IF_LINKED int conv_halo_sm90(const ConvParams&, void* workspace, CUstream_st* stream);         \
  FASTCV_IF_LINKED int conv_direct(const ConvParams&, void* workspace, CUstream_st* stream);            \
  FASTCV_IF_LINKED int conv_tiled(const ConvParams&, void* workspace, CUstream_st* stream);             \
  FASTCV_IF_LINKED int conv_depthwise(const ConvParams&, void* workspace, CUstream_st* stream);         \
  }
FASTCV_CONV_KERNELS(cuda)
FASTCV_CONV_KERNELS(emulated)
#undef FASTCV_CONV_KERNELS

}  // namespace fastcv
