// From a DType to a storage type: dispatch_float(dtype, [&](auto zero) { using S = decltype(zero); ... }).
// Include it only from files compiled per instruction set or from _ref files: the instances are keyed by the lambda.
#pragma once
#include "common/types.h"

namespace fastcv {

template <class F>
[[gnu::always_inline]] static inline void dispatch_float(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32:
      return f(float{});
    case DType::f64:
      return f(double{});
    case DType::bf16:
      return f(bf16{});
    case DType::f16:
      return f(f16{});
    default:
      __builtin_trap();  // the door admits no other
  }
}

}  // namespace fastcv
