#include "pool/pool.h"
#include "pool/pool_geometry.h"

namespace fastcv {
namespace {

// Where the rows of a plane are too short, or their windows too many, for a kernel that goes along them.
const char* slower_planes(const PoolParams& p) {
  if (p.c < 16) return "is for 16 channels and more";
  return p.w.in > (p.adaptive ? 64 : 16) ? "is for small maps" : nullptr;
}
const char* slower_planes_backward(const PoolParams& p) {
  if (p.c < 16) return "is for 16 channels and more";
  return p.w.in > 28 ? "is for small maps" : nullptr;
}

// float rows carry codes in 32 bits.
bool codes_fit(const PoolParams& p) {
  const int64_t rows = p.adaptive ? p.h.in : input_ring(p);
  return p.where == nullptr || p.where_is_offset || (rows + 1) * p.w.in + p.w.kernel * p.w.dilation <= INT32_MAX;
}
const char* nchw(const PoolParams& p) {
  if (p.channels_last) return "needs row-major maps";
  return codes_fit(p) ? nullptr : "needs windows that span fewer than 2^31 elements";
}
const char* nhwc(const PoolParams& p) {
  if (!p.channels_last) return "needs channels_last maps";
  return codes_fit(p) ? nullptr : "needs windows that span fewer than 2^31 elements";
}

constexpr Variant<PoolParams> kForward[] = {
#if defined(__x86_64__)
    {"planes_nchw_avx512", Isa::avx512, &pool_planes_why_not, &pool_planes_workspace, &avx512::max_pool2d_planes,
     &slower_planes},
    {"rows_nchw_avx512", Isa::avx512, &nchw, &pool_workspace, &avx512::max_pool2d_nchw},
    {"channels_nhwc_avx512", Isa::avx512, &nhwc, nullptr, &avx512::max_pool2d_nhwc},
    {"planes_nchw_avx2", Isa::avx2, &pool_planes_why_not, &pool_planes_workspace, &avx2::max_pool2d_planes,
     &slower_planes},
    {"rows_nchw_avx2", Isa::avx2, &nchw, &pool_workspace, &avx2::max_pool2d_nchw},
    {"channels_nhwc_avx2", Isa::avx2, &nhwc, nullptr, &avx2::max_pool2d_nhwc},
#endif
    {"planes_nchw_portable", Isa::portable, &pool_planes_why_not, &pool_planes_workspace, &portable::max_pool2d_planes,
     &slower_planes},
    {"rows_nchw_portable", Isa::portable, &nchw, &pool_workspace, &portable::max_pool2d_nchw},
    {"channels_nhwc_portable", Isa::portable, &nhwc, nullptr, &portable::max_pool2d_nhwc},
    {"ref", Isa::portable, nullptr, nullptr, &max_pool2d_ref},
};

constexpr Variant<PoolParams> kBackward[] = {
#if defined(__x86_64__)
    {"planes_nchw_avx512", Isa::avx512, &pool_planes_why_not, &pool_planes_backward_workspace,
     &avx512::max_pool2d_backward_planes, &slower_planes_backward},
    {"gather_nchw_avx512", Isa::avx512, &nchw, &pool_workspace, &avx512::max_pool2d_backward_nchw},
    {"gather_nhwc_avx512", Isa::avx512, &nhwc, nullptr, &avx512::max_pool2d_backward_nhwc},
    {"planes_nchw_avx2", Isa::avx2, &pool_planes_why_not, &pool_planes_backward_workspace,
     &avx2::max_pool2d_backward_planes, &slower_planes_backward},
    {"gather_nchw_avx2", Isa::avx2, &nchw, &pool_workspace, &avx2::max_pool2d_backward_nchw},
    {"gather_nhwc_avx2", Isa::avx2, &nhwc, nullptr, &avx2::max_pool2d_backward_nhwc},
#endif
    {"planes_nchw_portable", Isa::portable, &pool_planes_why_not, &pool_planes_backward_workspace,
     &portable::max_pool2d_backward_planes, &slower_planes_backward},
    {"gather_nchw_portable", Isa::portable, &nchw, &pool_workspace, &portable::max_pool2d_backward_nchw},
    {"gather_nhwc_portable", Isa::portable, &nhwc, nullptr, &portable::max_pool2d_backward_nhwc},
    {"ref", Isa::portable, nullptr, nullptr, &max_pool2d_backward_ref},
};

constexpr GpuVariant<PoolParams> kForwardGpu[] = {
    {"window_sm80", "sm80", nullptr, nullptr, FASTCV_LAUNCHERS(max_pool2d)},
};
constexpr GpuVariant<PoolParams> kBackwardGpu[] = {
    {"gather_sm80", "sm80", nullptr, nullptr, FASTCV_LAUNCHERS(max_pool2d_backward)},
};

}  // namespace

size_t pool_workspace(const PoolParams& p, int threads) { return slot_bytes(p) * threads; }
size_t pool_planes_workspace(const PoolParams& p, int threads) {
  return static_cast<size_t>(plane_block(p, false).size * threads);
}
size_t pool_planes_backward_workspace(const PoolParams& p, int threads) {
  return static_cast<size_t>(plane_block(p, true).size * threads);
}
const char* pool_planes_why_not(const PoolParams& p) {
  if (p.channels_last) return "needs row-major maps";
  return codes_fit(p) ? nullptr : "needs windows that span fewer than 2^31 elements";
}

const VariantTable<PoolParams> max_pool2d_table("max_pool2d", kForward, kForwardGpu);
const VariantTable<PoolParams> adaptive_max_pool2d_table("adaptive_max_pool2d", kForward, kForwardGpu);
const VariantTable<PoolParams> max_pool2d_backward_table("max_pool2d_backward", kBackward, kBackwardGpu);

}  // namespace fastcv
