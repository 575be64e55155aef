// From a DType to a storage type: dispatch_float(dtype, [&](auto zero) { using S = decltype(zero); ... }).
// Include it only from files compiled per instruction set or from _ref files: the instances are keyed by the lambda.
#pragma once
#include "common/types.h"

namespace fastcv {

// Which storage types a file compiled for this instruction set holds kernels for; VariantTable refuses the others.
// Every type on every set would make half of the build: float64 is not raced on AVX-512 (AVX2's kernels serve it
// there), and of the x86-64 CPUs without AVX2 only float32 gets more than the reference.
#if defined(__AVX512F__)
inline constexpr bool kKernelsF64 = false, kKernels16 = true;
#elif defined(__x86_64__) && defined(FASTCV_ISA) && !defined(__AVX2__)
inline constexpr bool kKernelsF64 = false, kKernels16 = false;
#else
inline constexpr bool kKernelsF64 = true, kKernels16 = true;
#endif

template <class F>
[[gnu::always_inline]] static inline void dispatch_float(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32:
      return f(float{});
    case DType::f64:
      if constexpr (kKernelsF64) return f(double{});
      break;
    case DType::bf16:
      if constexpr (kKernels16) return f(bf16{});
      break;
    case DType::f16:
      if constexpr (kKernels16) return f(f16{});
      break;
    default:
      break;
  }
  __builtin_trap();  // the door and the table admit no other
}

// The same for kernels that work on widened copies: double for float64, float for everything else.
template <class F>
[[gnu::always_inline]] static inline void dispatch_wide(DType dtype, F&& f) {
  if (dtype != DType::f64) return f(float{});
  if constexpr (kKernelsF64) return f(double{});
  __builtin_trap();
}

}  // namespace fastcv
