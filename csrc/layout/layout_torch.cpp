// The door of row_major: the copy that every door makes of an input whose layout its kernel does not take, as an op.
#include "layout/transpose.h"

#include "common/door.h"

namespace fastcv {
namespace {

door::Tensor row_major(const door::Tensor& input) { return door::dense_copy(input, false); }

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastcv, m) { m.def("row_major(Tensor input) -> Tensor"); }
FASTCV_IMPL(m) { m.impl("row_major", TORCH_BOX(&row_major)); }

}  // namespace fastcv
