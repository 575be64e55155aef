#include "pool/pool.h"

namespace fastcv {
namespace {

const char* nchw(const PoolParams& p) { return p.channels_last ? "needs row-major maps" : nullptr; }
const char* nhwc(const PoolParams& p) { return p.channels_last ? nullptr : "needs channels_last maps"; }

constexpr Variant<PoolParams> kForward[] = {
#if defined(__x86_64__)
    {"rows_nchw_avx512", Isa::avx512, &nchw, &pool_workspace, &avx512::avg_pool2d_nchw},
    {"channels_nhwc_avx512", Isa::avx512, &nhwc, nullptr, &avx512::avg_pool2d_nhwc},
    {"rows_nchw_avx2", Isa::avx2, &nchw, &pool_workspace, &avx2::avg_pool2d_nchw},
    {"channels_nhwc_avx2", Isa::avx2, &nhwc, nullptr, &avx2::avg_pool2d_nhwc},
#endif
    {"rows_nchw_portable", Isa::portable, &nchw, &pool_workspace, &portable::avg_pool2d_nchw},
    {"channels_nhwc_portable", Isa::portable, &nhwc, nullptr, &portable::avg_pool2d_nhwc},
    {"ref", Isa::portable, nullptr, nullptr, &avg_pool2d_ref},
};

constexpr Variant<PoolParams> kBackward[] = {
#if defined(__x86_64__)
    {"gather_nchw_avx512", Isa::avx512, &nchw, &pool_workspace, &avx512::avg_pool2d_backward_nchw},
    {"gather_nhwc_avx512", Isa::avx512, &nhwc, nullptr, &avx512::avg_pool2d_backward_nhwc},
    {"gather_nchw_avx2", Isa::avx2, &nchw, &pool_workspace, &avx2::avg_pool2d_backward_nchw},
    {"gather_nhwc_avx2", Isa::avx2, &nhwc, nullptr, &avx2::avg_pool2d_backward_nhwc},
#endif
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
