// The door of skeleton: schema, checks, output, device. No arithmetic on elements.
#include "_skeleton/skeleton.h"
#include "common/door.h"

namespace fastcv {
namespace {

using namespace door;

Tensor prepare(const Tensor& input, SkeletonParams& p, Tensor& dense) {
  const bool channels_last = is_channels_last(input);
  dense = as_dense(input, channels_last);
  Tensor output = empty(sizes(input), input.scalar_type(), input, channels_last);
  p = {dense.data_ptr(), output.data_ptr(), input.numel(), dtype_of(input, "skeleton")};
  check(p.dtype <= DType::f16, "skeleton: expected a floating dtype, got ", dtype_name(input.scalar_type()));
  return output;
}

Tensor skeleton_cpu(const Tensor& input) {
  SkeletonParams p;
  Tensor dense;
  Tensor output = prepare(input, p, dense);
  run_variant(skeleton_table, p, input);
  return output;
}

#if FASTCV_WITH_CUDA
Tensor skeleton_on_cuda(const Tensor& input) {
  torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  SkeletonParams p;
  Tensor dense;
  Tensor output = prepare(input, p, dense);
  check_launch(skeleton_cuda(p, static_cast<CUstream_st*>(current_stream(input))), "skeleton", "copy_cuda");
  return output;
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastcv, m) { m.def("skeleton(Tensor input) -> Tensor"); }
STABLE_TORCH_LIBRARY_IMPL(fastcv, CPU, m) { m.impl("skeleton", TORCH_BOX(&skeleton_cpu)); }
#if FASTCV_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(fastcv, CUDA, m) { m.impl("skeleton", TORCH_BOX(&skeleton_on_cuda)); }
#endif

}  // namespace fastcv
