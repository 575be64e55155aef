// From a sum under the root to a distance. For *_simd.cpp files only.
#pragma once
#include "common/simd.h"

namespace fastcv::FASTCV_ISA {

enum class RootKind : int32_t { none, square, general };

// Of a sum in T; uint8 sums are integers and their distances rounded once, to float32.
template <class T>
struct Root {
  using Value = std::conditional_t<std::is_integral_v<T>, double, T>;
  RootKind kind;
  double inverse;

  // squared: p = 2 without its root.
  explicit Root(double p, bool squared = false)
      : kind(p == 0 || p == 1 || p == __builtin_inf() || squared ? RootKind::none
             : p == 2                                            ? RootKind::square
                                                                 : RootKind::general),
        inverse(1 / p) {}

  [[gnu::always_inline]] Value operator()(T sum) const {
    const Value s = static_cast<Value>(sum);
    if (kind == RootKind::none) return s;
    if (kind == RootKind::general) return static_cast<Value>(__builtin_pow(s, inverse));  // rounded once, to T
    if constexpr (std::is_same_v<Value, float>) return __builtin_sqrtf(s);
    else return __builtin_sqrt(s);
  }
};

template <class S, class V>
FASTCV_INLINE void store_result(S* to, V value) {
  store_one(to, static_cast<acc_t<S>>(value));
}

}  // namespace fastcv::FASTCV_ISA
