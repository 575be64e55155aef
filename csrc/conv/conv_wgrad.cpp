#include "conv/conv_wgrad.h"

#include "conv/conv_algorithm.h"
#include "conv/conv_gpu.h"

namespace fastcv {
namespace {

#if defined(__x86_64__)
const char* why_not_bf16(const ConvWgradParams& p) {
  if (p.dtype != DType::bf16) return "needs bfloat16";
  return p.in_channels == p.groups ? "one channel per group is no matrix product" : nullptr;
}
#endif

#if defined(__x86_64__)
const char* why_not_bf16x6(const ConvWgradParams& p) {
  if (p.dtype != DType::f32) return "needs float32";
  if (p.precision == Precision::ieee) return "the precision 'ieee' asks for a direct sum";
  return p.in_channels == p.groups ? "one channel per group is no matrix product" : nullptr;
}
#endif

// Direct or Winograd: a model of the cost and of the error.

// Vector multiply-adds per pair of an input and an output channel.
double cost(const ConvWgradParams& p, Algorithm algorithm) {
  const double c = static_cast<double>(p.in_channels / p.groups), k = static_cast<double>(p.out_channels / p.groups);
  if (algorithm == Algorithm::direct) {
    const double all = 9 * static_cast<double>(p.out[1] * p.out[2]), inside = products(p, false);
    return 1.15 * static_cast<double>(p.batch) * (c >= 32 && inside < 0.9 * all ? inside : all);
  }
  const auto [cut, points] = winograd_cut(algorithm, p.out, p.dilation);
  const double tiles = cut * static_cast<double>(p.batch);
  // A point of a tile costs its product and its shares of both transforms, a point alone its sums' transform.
  return points * (tiles * (1.15 + 8 / k + 8 / c) + 8);
}

// Whether the error stays within twice torch's on normal data. Measured against torch 2.13 with two threads: its sums
// over the pixels lose more with every pixel, those of row-major images ten times as much unless channels are few; ours
// hardly do.
bool accurate(const ConvWgradParams& p, Algorithm algorithm) {
  const int64_t pixels = p.batch * p.out[1] * p.out[2];
  const bool few = p.in_channels < 32 * p.groups || p.out_channels < 32 * p.groups;
  const bool coarse = !p.input_channels_last && !p.grad_channels_last && !few;
  if (algorithm == Algorithm::winograd4) return pixels >= (coarse ? 768 : 49152);
  if (algorithm == Algorithm::winograd4x2) return pixels >= (coarse ? 384 : 8192);
  return pixels >= (coarse ? 64 : 384);
}

Algorithm best(const ConvWgradParams& p) {
  return cheapest(p, p.in_channels / p.groups, p.out_channels / p.groups, &cost, &accurate);
}

template <Algorithm algorithm>
const char* inexact(const ConvWgradParams& p) {
  return accurate(p, algorithm) ? nullptr : "needs more pixels, or row-major images, to be as exact as torch";
}
template <Algorithm algorithm>
const char* slower(const ConvWgradParams& p) {
  return best(p) == algorithm ? nullptr : "another algorithm costs less";
}
constexpr auto inexact_winograd4 = &inexact<Algorithm::winograd4>;
constexpr auto inexact_winograd4x2 = &inexact<Algorithm::winograd4x2>;
constexpr auto inexact_winograd2 = &inexact<Algorithm::winograd2>;
constexpr auto slower_winograd4 = &slower<Algorithm::winograd4>;
constexpr auto slower_winograd4x2 = &slower<Algorithm::winograd4x2>;
constexpr auto slower_winograd2 = &slower<Algorithm::winograd2>;

const char* why_not_winograd(const ConvWgradParams& p) {
  if (p.dtype != DType::f32) return "needs float32";
  if (p.precision == Precision::ieee) return "the precision 'ieee' asks for a direct sum";
  if (p.kernel[0] != 1 || p.kernel[1] != 3 || p.kernel[2] != 3) return "needs a 3x3 kernel";
  if (p.stride[1] != 1 || p.stride[2] != 1) return "needs stride 1";
  if (p.in[0] != 1 || p.out[0] != 1 || p.pad[0] != 0) return "needs one plane of depth";
  if (p.batch == 0 || p.dilation[1] > p.out[1] || p.dilation[2] > p.out[2]) return "needs a dilation within the image";
  return nullptr;
}

template <int vector_bytes>
const char* why_not_small_groups(const ConvWgradParams& p) {
  const int64_t group = p.in_channels / p.groups, vector = vector_bytes / (p.dtype == DType::f64 ? 8 : 4);
  if (p.in_channels != p.out_channels) return "needs as many output channels as input channels";
  if (group < 2 || group > vector || vector % group != 0)
    return "needs groups of 2, 4 or more channels, of which a vector holds one or several";
  if (p.kernel[0] != 1 || p.in[0] != 1 || p.out[0] != 1 || p.pad[0] != 0) return "needs one plane of depth";
  if (p.batch * p.out[1] * p.out[2] == 0) return "needs at least one pixel";
  for (int i = 1; i < 3; ++i)  // so that the products below stay small
    if (p.out[i] > kMostWindow || p.stride[i] > kMostWindow || p.dilation[i] > kMostWindow || p.kernel[i] > 128)
      return "needs input rows under the kernel that fit into cache";
  const int64_t columns = (p.out[2] - 1) * p.stride[2] + (p.kernel[2] - 1) * p.dilation[2] + 1;
  const int64_t lines = (p.kernel[1] - 1) * p.dilation[1] + 1;
  return columns * lines > kMostWindow ? "needs input rows under the kernel that fit into cache" : nullptr;
}

const char* slower_small_groups(const ConvWgradParams& p) {
  return p.groups == 1 && p.in_channels < 16 ? "is for more groups than one, or 16 channels" : nullptr;
}

const char* slower_depthwise(const ConvWgradParams& p) {
  return p.groups == 1 && p.out_channels >= 8 ? "is for more groups than one" : nullptr;
}

const char* why_not_exchanged(const ConvWgradParams& p) {
  if (p.dtype != DType::f32) return "needs float32";
  if (p.precision == Precision::ieee) return "the precision 'ieee' asks for a direct sum";
  if (p.groups != 1) return "needs a convolution without groups";
  return p.stride[0] != 1 || p.stride[1] != 1 || p.stride[2] != 1 ? "needs stride 1" : nullptr;
}
const char* slower_exchanged(const ConvWgradParams& p) {
  // Nanoseconds of a pixel: products of whole registers of 8 rows and 32 columns, and the packing of both factors.
  const auto cost = [&](int64_t rows, int64_t channels) {
    const int64_t columns = channels * p.kernel[0] * p.kernel[1] * p.kernel[2];
    const int64_t products = (rows + 7) / 8 * 8 * ((columns + 31) / 32 * 32);
    return 0.01 * static_cast<double>(products) + 0.3 * static_cast<double>(rows + columns);
  };
  return cost(p.in_channels, p.out_channels) < 0.75 * cost(p.out_channels, p.in_channels)
             ? nullptr
             : "is for few output channels";
}

#if defined(__x86_64__)
const char* slower_bf16x6(const ConvWgradParams& p) {
  const int64_t columns = p.in_channels / p.groups * p.kernel[0] * p.kernel[1] * p.kernel[2];
  const int64_t rows = p.out_channels / p.groups;
  if (rows * columns < 96 * (rows + columns)) return "cuts many numbers into parts for few products";
  return why_not_winograd(p) == nullptr && best(p) != Algorithm::direct ? "another algorithm costs less" : nullptr;
}
#endif

#define FASTCV_WINOGRAD(name, isa)                                                                 \
  {#name "_f32_" #isa,      Isa::isa,      &why_not_winograd, &isa::conv_wgrad_##name##_workspace, \
   &isa::conv_wgrad_##name, slower_##name, nullptr,           inexact_##name}
#define FASTCV_ROWS(isa, vector_bytes)                                                                         \
  {"depthwise_" #isa,                                                                                          \
   Isa::isa,                                                                                                   \
   &isa::conv_wgrad_depthwise_why_not,                                                                         \
   &isa::conv_wgrad_depthwise_workspace,                                                                       \
   &isa::conv_wgrad_depthwise,                                                                                 \
   &slower_depthwise},                                                                                         \
      {"small_groups_" #isa,                                                                                   \
       Isa::isa,                                                                                               \
       &why_not_small_groups<vector_bytes>,                                                                    \
       &isa::conv_wgrad_small_groups_workspace,                                                                \
       &isa::conv_wgrad_small_groups,                                                                          \
       &slower_small_groups},                                                                                  \
      FASTCV_WINOGRAD(winograd4, isa), FASTCV_WINOGRAD(winograd4x2, isa), FASTCV_WINOGRAD(winograd2, isa),     \
      {"exchanged_f32_" #isa,      Isa::isa,         &why_not_exchanged, &isa::conv_wgrad_exchanged_workspace, \
       &isa::conv_wgrad_exchanged, &slower_exchanged},                                                         \
  {                                                                                                            \
    "gemm_" #isa, Isa::isa, nullptr, &isa::conv_wgrad_workspace, &isa::conv_wgrad                              \
  }

constexpr Variant<ConvWgradParams> kRows[] = {
#if defined(__x86_64__)
    {"gemm_bf16_amx", Isa::amx, &why_not_bf16, &amx::conv_wgrad_bf16_workspace, &amx::conv_wgrad_bf16},
    {"gemm_bf16_avx512bf16", Isa::avx512bf16, &why_not_bf16, &avx512bf16::conv_wgrad_bf16_workspace,
     &avx512bf16::conv_wgrad_bf16},
    {"gemm_bf16x6_amx", Isa::amx, &why_not_bf16x6, &amx::conv_wgrad_bf16x6_workspace, &amx::conv_wgrad_bf16x6,
     &slower_bf16x6},
    FASTCV_ROWS(avx512, 64),
    FASTCV_ROWS(avx2, 32),
#endif
    FASTCV_ROWS(portable, 16),
#if defined(__x86_64__)
    // Behind a row that takes everything: never taken unless asked for.
    {"gemm_bf16_amxmodel_avx512", Isa::avx512, &why_not_bf16, &amxmodel::conv_wgrad_bf16_workspace,
     &amxmodel::conv_wgrad_bf16},
    {"gemm_bf16x6_amxmodel_avx512", Isa::avx512, &why_not_bf16x6, &amxmodel::conv_wgrad_bf16x6_workspace,
     &amxmodel::conv_wgrad_bf16x6, &slower_bf16x6},
#endif
    {"ref", Isa::portable, nullptr, nullptr, &conv_wgrad_ref},
};
#undef FASTCV_ROWS
#undef FASTCV_WINOGRAD

const char* why_not_depthwise_gpu(const ConvWgradParams& p) {
  if (p.in_channels != p.groups) return "needs one input channel per group";
  return p.input_channels_last != p.grad_channels_last ? "needs two tensors of one layout" : nullptr;
}

const char* why_not_igemm_gpu(const ConvWgradParams& p) {
  constexpr int64_t kLimit = int64_t{1} << 28;  // positions are 32-bit numbers
  if (p.groups > 1 && (p.in_channels < 8 * p.groups || p.out_channels < 16 * p.groups))
    return "small groups fill no tiles";
  for (int i = 0; i < 3; ++i)
    if (p.in[i] >= kLimit || p.pad[i] >= kLimit || p.stride[i] >= kLimit || p.dilation[i] * p.kernel[i] >= kLimit ||
        (p.out[i] + 1) * p.stride[i] >= kLimit)
      return "needs sizes below 2^28";
  return nullptr;
}
const char* why_not_igemm_sm80(const ConvWgradParams& p) {
  if (p.dtype == DType::f64 ||
      (p.dtype == DType::f32 && p.precision != Precision::high && p.precision != Precision::medium))
    return "needs bfloat16, float16 or float32 of precision high";
  return why_not_igemm_gpu(p);
}
const char* why_not_igemm_sm90(const ConvWgradParams& p) {
  if (p.dtype != DType::bf16 && p.dtype != DType::f16) return "needs bfloat16 or float16";
  if (p.groups != 1) return "needs a convolution without groups";
  if (p.kernel[0] != 1 || p.in[0] != 1 || p.out[0] != 1 || p.pad[0] != 0) return "needs one plane of depth";
  for (int i = 1; i < 3; ++i) {
    const int64_t upper = wgrad_sm90_upper_corner(p, i);
    if (p.pad[i] > 128 || upper < -128 || upper > 127 || p.stride[i] > 8)
      return "needs strides and padding that TMA takes";
    if ((p.kernel[i] - 1) * p.dilation[i] > 254) return "needs a kernel that reaches over at most 254 pixels";
  }
  if (pixels_of(p) >= int64_t{1} << 31) return "needs fewer than 2^31 pixels in the batch";
  return why_not_igemm_gpu(p);
}
const char* why_not_igemm_tf32x3_sm80(const ConvWgradParams& p) {
  if (p.precision == Precision::ieee) return "the precision 'ieee' asks for a direct sum";
  return p.dtype != DType::f32 ? "needs float32" : why_not_igemm_gpu(p);
}

constexpr GpuVariant<ConvWgradParams> kGpuRows[] = {
    {"depthwise_sm80", "sm80", &why_not_depthwise_gpu, &wgrad_depthwise_gpu_workspace,
     FASTCV_LAUNCHERS(conv_wgrad_depthwise)},
    {"igemm_sm80", "sm80", &why_not_igemm_sm80, &wgrad_igemm_gpu_workspace, FASTCV_LAUNCHERS(conv_wgrad_igemm)},
    {"tiled_sm80", "sm80", nullptr, &wgrad_gpu_workspace, FASTCV_LAUNCHERS(conv_wgrad_tiled)},
    // Behind a row that takes everything, so never taken unless asked for: how tensor cores round their sums and what
    // TMA does has not been seen on a GPU.
    {"igemm_tf32x3_sm80", "sm80", &why_not_igemm_tf32x3_sm80, &wgrad_igemm_gpu_workspace,
     FASTCV_LAUNCHERS(conv_wgrad_igemm_tf32x3)},
    {"igemm_sm90a", "sm90a", &why_not_igemm_sm90, &wgrad_sm90_gpu_workspace<1>,
     FASTCV_LAUNCHERS(conv_wgrad_igemm_sm90)},
    {"igemm_multicast_sm90a", "sm90a", &why_not_igemm_sm90, &wgrad_sm90_gpu_workspace<2>,
     FASTCV_LAUNCHERS(conv_wgrad_igemm_multicast_sm90)},
};

}  // namespace

const VariantTable<ConvWgradParams> conv_wgrad_table("conv_wgrad", kRows, kGpuRows);

}  // namespace fastcv
