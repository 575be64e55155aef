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

Tensor skeleton(const Tensor& input) {
  SkeletonParams p;
  Tensor dense;
  Tensor output = prepare(input, p, dense);
  run_variant(skeleton_table, p, input);
  return output;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastcv, m) { m.def("skeleton(Tensor input) -> Tensor"); }
FASTCV_IMPL(m) { m.impl("skeleton", TORCH_BOX(&skeleton)); }

}  // namespace fastcv
