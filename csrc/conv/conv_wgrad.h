// Weight gradient of convolution: dW[k, c, r] = sum over n, p of dY[n, k, p] * X[n, g*Cg + c, p*stride - pad +
// r*dilation], where p and r run over up to three spatial dimensions (depth, height, width; missing ones have size 1)
// and g is the group of output channel k. Positions outside the input count as zeros. The same kernel is the weight
// gradient of the transposed convolution, with the roles of input and output gradient exchanged.
//
// Contract: input [batch, in_channels, in...], grad_output [batch, out_channels, out...] and grad_weight
// [out_channels, in_channels/groups, kernel...] are dense, each row-major or channels_last on its own; grad_weight is
// overwritten. Any geometry is allowed, sizes of zero too (no pixels: zeros). f32 f64 bf16 f16; 16-bit types are
// widened, accumulated in float and rounded once. Sums are cut into parts that depend on the geometry alone, so the
// bits do not depend on the number of threads.
#pragma once
#include "common/parallel.h"
#include "common/types.h"
#include "common/variant.h"
#include "conv/conv.h"

namespace fastcv {

struct ConvWgradParams {
  const void* input;
  const void* grad_output;
  void* grad_weight;
  int64_t batch, in_channels, out_channels, groups;
  int64_t in[3], out[3], kernel[3];        // depth, height, width
  int64_t stride[3], pad[3], dilation[3];  // pad: zeros before the first element
  int64_t parts;  // of the sums, for callers whose bits must not depend on all sizes; 0: what suits these (gemm only)
  bool input_channels_last, grad_channels_last, weight_channels_last;
  DType dtype;
  Precision precision;

  // What the choice of a variant may depend on (common/layer.h).
  static void layer(auto& p, auto& visit) {
    visit("input_channels", p.in_channels);
    visit("output_channels", p.out_channels);
    visit("groups", p.groups);
    visit("input_size", p.in, 0);
    visit("output_size", p.out, 0);
    visit("kernel_size", p.kernel);
    visit("stride", p.stride);
    visit("dilation", p.dilation);
    visit("padding", p.pad, 0);
    visit("dtype", p.dtype, kDTypeWords);
    visit("precision", p.precision, kPrecisionWords);
    visit("layout", p.input_channels_last, kLayoutWords);
    visit("gradient_layout", p.grad_channels_last, kLayoutWords);
    visit("weight_layout", p.weight_channels_last, kLayoutWords);
  }
  static ConvWgradParams of_one_image() {
    ConvWgradParams p{};
    p.batch = 1;
    return p;
  }
};

extern const VariantTable<ConvWgradParams> conv_wgrad_table;

// Of small_groups: the most vectors of the input that it copies at a time.
constexpr int64_t kMostWindow = 1 << 14;

void conv_wgrad_ref(const ConvWgradParams&, const Exec&);
#define FASTCV_CONV_WGRAD_WINOGRAD(name)                             \
  size_t conv_wgrad_##name##_workspace(const ConvWgradParams&, int); \
  void conv_wgrad_##name(const ConvWgradParams&, const Exec&);
#define FASTCV_CONV_WGRAD(isa)                                           \
  namespace isa {                                                        \
  size_t conv_wgrad_workspace(const ConvWgradParams&, int);              \
  void conv_wgrad(const ConvWgradParams&, const Exec&);                  \
  FASTCV_CONV_WGRAD_WINOGRAD(winograd4)                                  \
  FASTCV_CONV_WGRAD_WINOGRAD(winograd4x2)                                \
  FASTCV_CONV_WGRAD_WINOGRAD(winograd2)                                  \
  const char* conv_wgrad_depthwise_why_not(const ConvWgradParams&);      \
  size_t conv_wgrad_depthwise_workspace(const ConvWgradParams&, int);    \
  void conv_wgrad_depthwise(const ConvWgradParams&, const Exec&);        \
  size_t conv_wgrad_small_groups_workspace(const ConvWgradParams&, int); \
  void conv_wgrad_small_groups(const ConvWgradParams&, const Exec&);     \
  size_t conv_wgrad_exchanged_workspace(const ConvWgradParams&, int);    \
  void conv_wgrad_exchanged(const ConvWgradParams&, const Exec&);        \
  }
FASTCV_CONV_WGRAD(portable)
FASTCV_CONV_WGRAD(avx2)
FASTCV_CONV_WGRAD(avx512)
#undef FASTCV_CONV_WGRAD
#undef FASTCV_CONV_WGRAD_WINOGRAD
#define FASTCV_CONV_WGRAD_BF16(isa, linked)                             \
  namespace isa {                                                       \
  linked size_t conv_wgrad_bf16_workspace(const ConvWgradParams&, int); \
  linked void conv_wgrad_bf16(const ConvWgradParams&, const Exec&);     \
  }
FASTCV_CONV_WGRAD_BF16(avx512bf16, )
FASTCV_CONV_WGRAD_BF16(amx, )
FASTCV_CONV_WGRAD_BF16(amxmodel, FASTCV_IF_LINKED)
#undef FASTCV_CONV_WGRAD_BF16
#define FASTCV_CONV_WGRAD_BF16X6(isa, linked)                             \
  namespace isa {                                                         \
  linked size_t conv_wgrad_bf16x6_workspace(const ConvWgradParams&, int); \
  linked void conv_wgrad_bf16x6(const ConvWgradParams&, const Exec&);     \
  }
FASTCV_CONV_WGRAD_BF16X6(amx, )
FASTCV_CONV_WGRAD_BF16X6(amxmodel, FASTCV_IF_LINKED)
#undef FASTCV_CONV_WGRAD_BF16X6

#define FASTCV_CONV_WGRAD(gpu)                                                                                        \
  namespace gpu {                                                                                                     \
  FASTCV_IF_LINKED int conv_wgrad_igemm(const ConvWgradParams&, void* workspace, CUstream_st* stream);                \
  FASTCV_IF_LINKED int conv_wgrad_igemm_multicast_sm90(const ConvWgradParams&, void* workspace, CUstream_st* stream); \
  FASTCV_IF_LINKED int conv_wgrad_igemm_tf32x3(const ConvWgradParams&, void* workspace, CUstream_st* stream);         \
  FASTCV_IF_LINKED int conv_wgrad_igemm_sm90(const ConvWgradParams&, void* workspace, CUstream_st* stream);           \
  FASTCV_IF_LINKED int conv_wgrad_tiled(const ConvWgradParams&, void* workspace, CUstream_st* stream);                \
  FASTCV_IF_LINKED int conv_wgrad_depthwise(const ConvWgradParams&, void* workspace, CUstream_st* stream);            \
  }
FASTCV_CONV_WGRAD(cuda)
FASTCV_CONV_WGRAD(emulated)
#undef FASTCV_CONV_WGRAD

}  // namespace fastcv
