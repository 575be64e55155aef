#include "_skeleton/skeleton.h"

namespace fastcv {
namespace {

template <class S>
void copy(const SkeletonParams& p) {
  const S* x = static_cast<const S*>(p.x);
  S* y = static_cast<S*>(p.y);
  for (int64_t i = 0; i < p.n; ++i) y[i] = x[i];
}

}  // namespace

void skeleton_ref(const SkeletonParams& p, const Exec&) {
  switch (p.dtype) {
    case DType::f32:
      return copy<float>(p);
    case DType::f64:
      return copy<double>(p);
    case DType::bf16:
      return copy<bf16>(p);
    case DType::f16:
      return copy<f16>(p);
    default:
      __builtin_trap();
  }
}

}  // namespace fastcv
