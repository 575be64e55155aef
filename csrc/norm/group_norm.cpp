#include "norm/group_norm.h"

#include "norm/norm_sets.h"

namespace fastcv {
namespace {

size_t workspace(const GroupNormParams& p, int threads) {
  if (p.channels_last) return threads * group_norm_image_bytes(p.c, p.s);
  return static_cast<size_t>(p.n) * p.groups * norm_parts(p.c / p.groups * p.s) * 2 * sizeof(double);  // moments
}

// Two sums per image and channel, and in NCHW two per part of a plane and three numbers per group.
size_t backward_workspace(const GroupNormBackwardParams& p, int threads) {
  const size_t sums = static_cast<size_t>(p.n) * p.c * 2 * sizeof(double) + 4 * 64;
  if (p.channels_last) return sums + threads * group_norm_image_bytes(p.c, p.s);
  return sums + static_cast<size_t>(p.n) * (p.c * norm_parts(p.s) * 2 + p.groups * 3) * sizeof(double) + 4 * 64;
}

constexpr Variant<GroupNormParams> kRows[] = {
#if defined(__x86_64__)
    {"chan_avx512", Isa::avx512, nullptr, &workspace, &avx512::group_norm},
    {"chan_avx2", Isa::avx2, nullptr, &workspace, &avx2::group_norm},
#endif
    {"chan_portable", Isa::portable, nullptr, &workspace, &portable::group_norm},
    {"ref", Isa::portable, nullptr, nullptr, &group_norm_ref},
};

constexpr Variant<GroupNormBackwardParams> kBackwardRows[] = {
#if defined(__x86_64__)
    {"two_pass_avx512", Isa::avx512, nullptr, &backward_workspace, &avx512::group_norm_backward},
    {"two_pass_avx2", Isa::avx2, nullptr, &backward_workspace, &avx2::group_norm_backward},
#endif
    {"two_pass_portable", Isa::portable, nullptr, &backward_workspace, &portable::group_norm_backward},
    {"ref", Isa::portable, nullptr, nullptr, &group_norm_backward_ref},
};

size_t gpu_workspace(const GroupNormParams& p) { return group_sets(p).bytes(); }
size_t gpu_backward_workspace(const GroupNormBackwardParams& p) {
  return static_cast<size_t>(p.n * (p.c + p.groups)) * 2 * sizeof(double) + image_channel_sets(p).bytes();
}

// A block's share of shared memory, of which two fit an SM; and what makes a block of one group worth its start.
const char* staged_why_not(const GroupNormParams& p) {
  constexpr int64_t kMostPacks = (96 << 10) / 16, kLeastPacks = kNormThreads;
  if (p.channels_last || p.groups == 0) return "needs row-major images";
  const int64_t channels = p.c / p.groups, packs = (channels * p.s + norm_pack(p.dtype) - 1) / norm_pack(p.dtype);
  if (channels > kNormThreads) return "needs at most 256 channels in a group";
  return p.n > 0 && packs >= kLeastPacks && packs <= kMostPacks ? nullptr : "takes groups of 4 to 96 KB";
}

constexpr GpuVariant<GroupNormParams> kGpuRows[] = {
    {"staged_sm80", "sm80", &staged_why_not, nullptr, FASTCV_LAUNCHERS(group_norm_staged)},
    {"two_pass_sm80", "sm80", nullptr, &gpu_workspace, FASTCV_LAUNCHERS(group_norm)},
};
constexpr GpuVariant<GroupNormBackwardParams> kBackwardGpuRows[] = {
    {"two_pass_sm80", "sm80", nullptr, &gpu_backward_workspace, FASTCV_LAUNCHERS(group_norm_backward)},
};

}  // namespace

const VariantTable<GroupNormParams> group_norm_table("group_norm", kRows, kGpuRows);
const VariantTable<GroupNormBackwardParams> group_norm_backward_table("group_norm_backward", kBackwardRows,
                                                                      kBackwardGpuRows);

}  // namespace fastcv
