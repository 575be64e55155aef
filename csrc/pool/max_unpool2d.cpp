#include "pool/max_unpool2d.h"

namespace fastcv {
namespace {

constexpr Variant<MaxUnpool2dParams> kForward[] = {
#if defined(__x86_64__)
    {"scatter_avx512", Isa::avx512, nullptr, &max_unpool2d_workspace, &avx512::max_unpool2d},
    {"scatter_avx2", Isa::avx2, nullptr, &max_unpool2d_workspace, &avx2::max_unpool2d},
#endif
    {"scatter_portable", Isa::portable, nullptr, &max_unpool2d_workspace, &portable::max_unpool2d},
    {"ref", Isa::portable, nullptr, nullptr, &max_unpool2d_ref},
};

constexpr Variant<MaxUnpool2dParams> kBackward[] = {
#if defined(__x86_64__)
    {"gather_avx512", Isa::avx512, nullptr, nullptr, &avx512::max_unpool2d_backward},
    {"gather_avx2", Isa::avx2, nullptr, nullptr, &avx2::max_unpool2d_backward},
#endif
    {"gather_portable", Isa::portable, nullptr, nullptr, &portable::max_unpool2d_backward},
    {"ref", Isa::portable, nullptr, nullptr, &max_unpool2d_backward_ref},
};

// A place's last owner, or its sum.
size_t owners_workspace(const MaxUnpool2dParams& p) { return static_cast<size_t>(p.n * p.c * p.big) * 8; }

constexpr GpuVariant<MaxUnpool2dParams> kForwardGpu[] = {
    {"scatter_sm80", "sm80", nullptr, &owners_workspace, FASTCV_LAUNCHERS(max_unpool2d)},
};
constexpr GpuVariant<MaxUnpool2dParams> kBackwardGpu[] = {
    {"gather_sm80", "sm80", nullptr, nullptr, FASTCV_LAUNCHERS(max_unpool2d_backward)},
};

}  // namespace

size_t max_unpool2d_workspace(const MaxUnpool2dParams& p, int threads) {
  const bool narrow = p.dtype == DType::bf16 || p.dtype == DType::f16;
  if (!p.accumulate || !narrow) return 0;
  const int64_t channels = p.channels_last ? 16 : 1;  // the kernel's block
  return static_cast<size_t>((p.big * channels * 4 + 63) / 64 * 64) * threads;
}

const VariantTable<MaxUnpool2dParams> max_unpool2d_table("max_unpool2d", kForward, kForwardGpu);
const VariantTable<MaxUnpool2dParams> max_unpool2d_backward_table("max_unpool2d_backward", kBackward, kBackwardGpu);

}  // namespace fastcv
