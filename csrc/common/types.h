// Plain types that every kernel shares. PODs only: no inline functions, because this header is compiled into objects
// of several instruction sets and the linker keeps one copy of an inline function for all of them.
#pragma once
#include <cstddef>
#include <cstdint>

namespace fastcv {

enum class DType : int32_t { f32, f64, bf16, f16, u8, i64 };

// Storage types: 16 bits, no arithmetic of their own. Kernels widen them to float (common/simd.h).
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

// Instruction sets a variant may need, weakest first; a CPU that has one has all weaker ones.
enum class Isa : int32_t { portable, avx2, avx512, avx512vnni, avx512bf16, amx };

}  // namespace fastcv
