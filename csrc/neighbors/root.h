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
  Value inverse;

  // squared: p = 2 without its root.
  explicit Root(double p, bool squared = false)
      : kind(p == 0 || p == 1 || p == __builtin_inf() || squared ? RootKind::none
             : p == 2                                            ? RootKind::square
                                                                 : RootKind::general),
        inverse(static_cast<Value>(1 / p)) {}

  [[gnu::always_inline]] Value operator()(T sum) const {
    const Value s = static_cast<Value>(sum);
    if (kind == RootKind::none) return s;
    if constexpr (std::is_same_v<Value, float>)
      return kind == RootKind::square ? __builtin_sqrtf(s) : __builtin_powf(s, inverse);
    else return kind == RootKind::square ? __builtin_sqrt(s) : __builtin_pow(s, inverse);
  }
};

template <class S, class V>
FASTCV_INLINE void store_result(S* to, V value) {
  store_one(to, static_cast<acc_t<S>>(value));
}

}  // namespace fastcv::FASTCV_ISA
