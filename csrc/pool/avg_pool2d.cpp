#include "pool/pool.h"
#include "pool/pool_geometry.h"

namespace fastcv {
namespace {

const char* nchw(const PoolParams& p) { return p.channels_last ? "needs row-major maps" : nullptr; }
const char* nhwc(const PoolParams& p) { return p.channels_last ? nullptr : "needs channels_last maps"; }

// Along rows go: windows of two by two that touch, the one window over the whole map, and neighbours of short rows.
bool goes_along_rows(const PoolParams& p) {
  if (p.adaptive) return (p.h.out == 1 && p.w.out == 1) || (p.h.in == 2 * p.h.out && p.w.in == 2 * p.w.out);
  return quarters(p) || (p.h.out == 1 && p.w.out == 1);
}
const char* slower_planes(const PoolParams& p) {
  if (p.c < 16) return "is for 16 channels and more";
  if (goes_along_rows(p)) return "needs no turning for these windows";
  const bool short_sums = !p.adaptive && p.w.kernel <= 3 && (p.w.stride == 1 || p.w.kernel == 2);
  return p.w.in > (p.adaptive ? 64 : short_sums ? 8 : 28) ? "is for small maps" : nullptr;
}
const char* slower_planes_backward(const PoolParams& p) {
  if (p.c < 16) return "is for 16 channels and more";
  if (goes_along_rows(p)) return "needs no turning for these windows";
  return p.w.in > (p.adaptive || p.w.stride > 1 ? 16 : 8) ? "is for small maps" : nullptr;
}

constexpr Variant<PoolParams> kForward[] = {
#if defined(__x86_64__)
    {"planes_nchw_avx512", Isa::avx512, &pool_planes_why_not, &pool_planes_workspace, &avx512::avg_pool2d_planes,
     &slower_planes},
    {"rows_nchw_avx512", Isa::avx512, &nchw, &pool_workspace, &avx512::avg_pool2d_nchw},
    {"channels_nhwc_avx512", Isa::avx512, &nhwc, nullptr, &avx512::avg_pool2d_nhwc},
    {"planes_nchw_avx2", Isa::avx2, &pool_planes_why_not, &pool_planes_workspace, &avx2::avg_pool2d_planes,
     &slower_planes},
    {"rows_nchw_avx2", Isa::avx2, &nchw, &pool_workspace, &avx2::avg_pool2d_nchw},
    {"channels_nhwc_avx2", Isa::avx2, &nhwc, nullptr, &avx2::avg_pool2d_nhwc},
#endif
    {"planes_nchw_portable", Isa::portable, &pool_planes_why_not, &pool_planes_workspace, &portable::avg_pool2d_planes,
     &slower_planes},
    {"rows_nchw_portable", Isa::portable, &nchw, &pool_workspace, &portable::avg_pool2d_nchw},
    {"channels_nhwc_portable", Isa::portable, &nhwc, nullptr, &portable::avg_pool2d_nhwc},
    {"ref", Isa::portable, nullptr, nullptr, &avg_pool2d_ref},
};

constexpr Variant<PoolParams> kBackward[] = {
#if defined(__x86_64__)
    {"planes_nchw_avx512", Isa::avx512, &pool_planes_why_not, &pool_planes_backward_workspace,
     &avx512::avg_pool2d_backward_planes, &slower_planes_backward},
    {"gather_nchw_avx512", Isa::avx512, &nchw, &pool_workspace, &avx512::avg_pool2d_backward_nchw},
    {"gather_nhwc_avx512", Isa::avx512, &nhwc, nullptr, &avx512::avg_pool2d_backward_nhwc},
    {"planes_nchw_avx2", Isa::avx2, &pool_planes_why_not, &pool_planes_backward_workspace,
     &avx2::avg_pool2d_backward_planes, &slower_planes_backward},
    {"gather_nchw_avx2", Isa::avx2, &nchw, &pool_workspace, &avx2::avg_pool2d_backward_nchw},
    {"gather_nhwc_avx2", Isa::avx2, &nhwc, nullptr, &avx2::avg_pool2d_backward_nhwc},
#endif
    {"planes_nchw_portable", Isa::portable, &pool_planes_why_not, &pool_planes_backward_workspace,
     &portable::avg_pool2d_backward_planes, &slower_planes_backward},
    {"gather_nchw_portable", Isa::portable, &nchw, &pool_workspace, &portable::avg_pool2d_backward_nchw},
    {"gather_nhwc_portable", Isa::portable, &nhwc, nullptr, &portable::avg_pool2d_backward_nhwc},
    {"ref", Isa::portable, nullptr, nullptr, &avg_pool2d_backward_ref},
};

constexpr GpuVariant<PoolParams> kForwardGpu[] = {
    {"window_sm80", "sm80", nullptr, nullptr, FASTCV_LAUNCHERS(avg_pool2d)},
};
constexpr GpuVariant<PoolParams> kBackwardGpu[] = {
    {"gather_sm80", "sm80", nullptr, nullptr, FASTCV_LAUNCHERS(avg_pool2d_backward)},
};

}  // namespace

const VariantTable<PoolParams> avg_pool2d_table("avg_pool2d", kForward, kForwardGpu);
const VariantTable<PoolParams> adaptive_avg_pool2d_table("adaptive_avg_pool2d", kForward, kForwardGpu);
const VariantTable<PoolParams> avg_pool2d_backward_table("avg_pool2d_backward", kBackward, kBackwardGpu);
const VariantTable<PoolParams> adaptive_avg_pool2d_backward_table("adaptive_avg_pool2d_backward", kBackward,
                                                                  kBackwardGpu);

}  // namespace fastcv
