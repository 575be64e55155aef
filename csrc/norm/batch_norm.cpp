#include "norm/batch_norm.h"

#include "norm/norm_sets.h"

namespace fastcv {
namespace {

// Partial sums (two doubles per channel and unit of work), and at most eight numbers per channel beside them.
template <class Params>
size_t workspace(const Params& p, int) {
  const int64_t units = p.channels_last ? norm_supers(p.n * p.s, p.c) : norm_segments(p.n, p.s);
  return static_cast<size_t>(p.c) * (2 * units + 8) * sizeof(double) + 16 * 64;
}

constexpr Variant<BatchNormParams> kRows[] = {
#if defined(__x86_64__)
    {"chan_avx512", Isa::avx512, nullptr, &workspace, &avx512::batch_norm},
    {"chan_avx2", Isa::avx2, nullptr, &workspace, &avx2::batch_norm},
#endif
    {"chan_portable", Isa::portable, nullptr, &workspace, &portable::batch_norm},
    {"ref", Isa::portable, nullptr, nullptr, &batch_norm_ref},
};

constexpr Variant<BatchNormBackwardParams> kBackwardRows[] = {
#if defined(__x86_64__)
    {"two_pass_avx512", Isa::avx512, nullptr, &workspace, &avx512::batch_norm_backward},
    {"two_pass_avx2", Isa::avx2, nullptr, &workspace, &avx2::batch_norm_backward},
#endif
    {"two_pass_portable", Isa::portable, nullptr, &workspace, &portable::batch_norm_backward},
    {"ref", Isa::portable, nullptr, nullptr, &batch_norm_backward_ref},
};

size_t gpu_backward_workspace(const BatchNormBackwardParams& p) {
  return channel_sets(p).bytes() + static_cast<size_t>(p.c) * 2 * sizeof(double);
}

constexpr GpuVariant<BatchNormParams> kGpuRows[] = {
    {"two_pass_sm80", "sm80", nullptr, &batch_norm_gpu_workspace, FASTCV_LAUNCHERS(batch_norm)},
};
constexpr GpuVariant<BatchNormBackwardParams> kBackwardGpuRows[] = {
    {"two_pass_sm80", "sm80", nullptr, &gpu_backward_workspace, FASTCV_LAUNCHERS(batch_norm_backward)},
};

constexpr Variant<BatchNormUpdateParams> kUpdateRows[] = {
    {"ref", Isa::portable, nullptr, nullptr, &batch_norm_update_ref},
};
constexpr GpuVariant<BatchNormUpdateParams> kUpdateGpuRows[] = {
    {"channel_sm80", "sm80", nullptr, nullptr, FASTCV_LAUNCHERS(batch_norm_update)},
};

}  // namespace

size_t batch_norm_workspace(const BatchNormParams& p) { return workspace(p, 1); }
size_t batch_norm_gpu_workspace(const BatchNormParams& p) { return p.training ? channel_sets(p).bytes() : 0; }

const VariantTable<BatchNormParams> batch_norm_table("batch_norm", kRows, kGpuRows);
const VariantTable<BatchNormBackwardParams> batch_norm_backward_table("batch_norm_backward", kBackwardRows,
                                                                      kBackwardGpuRows);
const VariantTable<BatchNormUpdateParams> batch_norm_update_table("batch_norm_update", kUpdateRows, kUpdateGpuRows);

}  // namespace fastcv
