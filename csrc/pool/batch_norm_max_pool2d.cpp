#include "pool/batch_norm_max_pool2d.h"

namespace fastcv {
namespace {

constexpr Variant<BatchNormMaxPool2dParams> kRows[] = {
#if defined(__x86_64__)
    {"bands_avx512", Isa::avx512, nullptr, &batch_norm_max_pool2d_workspace, &avx512::batch_norm_max_pool2d},
    {"bands_avx2", Isa::avx2, nullptr, &batch_norm_max_pool2d_workspace, &avx2::batch_norm_max_pool2d},
#endif
    {"bands_portable", Isa::portable, nullptr, &batch_norm_max_pool2d_workspace, &portable::batch_norm_max_pool2d},
    {"ref", Isa::portable, nullptr, nullptr, &batch_norm_max_pool2d_ref},
};

size_t gpu_workspace(const BatchNormMaxPool2dParams& p) { return batch_norm_gpu_workspace(p.norm); }

constexpr GpuVariant<BatchNormMaxPool2dParams> kGpuRows[] = {
    {"strips_sm80", "sm80", nullptr, &gpu_workspace, FASTCV_LAUNCHERS(batch_norm_max_pool2d)},
};

}  // namespace

const VariantTable<BatchNormMaxPool2dParams> batch_norm_max_pool2d_table("batch_norm_max_pool2d", kRows, kGpuRows);

}  // namespace fastcv
