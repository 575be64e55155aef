// Numbers below the normal range: whether a thread's vector arithmetic takes them for zeros.
//
// Where it does not, some processors need a hundred cycles and more for each (Intel's multiply-add), and networks meet
// them in activations and weights that fade. Matrix tiles (AMX) and bfloat16 dot products know no other way.
#pragma once
#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace fastcv {

enum class Denormals { keep, flush };

// The processor's setting for this thread, and the bits of it that flush operands and results.
#if defined(__x86_64__)
using FloatControl = uint32_t;
inline constexpr FloatControl kFlushDenormals = 0x8040;  // DAZ, FTZ
inline FloatControl float_control() { return _mm_getcsr(); }
inline void set_float_control(FloatControl value) { _mm_setcsr(value); }
#elif defined(__aarch64__)
using FloatControl = uint64_t;
inline constexpr FloatControl kFlushDenormals = FloatControl{1} << 24;  // FZ
inline FloatControl float_control() {
  FloatControl value;
  asm volatile("mrs %0, fpcr" : "=r"(value));
  return value;
}
inline void set_float_control(FloatControl value) { asm volatile("msr fpcr, %0" ::"r"(value)); }
#else
using FloatControl = uint32_t;
inline constexpr FloatControl kFlushDenormals = 0;
inline FloatControl float_control() { return 0; }
inline void set_float_control(FloatControl) {}
#endif

// While it lives, this thread's setting is `value`; then it is again what it was.
class FloatControlScope {
 public:
  explicit FloatControlScope(FloatControl value) : before_(float_control()) { set_float_control(value); }
  ~FloatControlScope() { set_float_control(before_); }
  FloatControlScope(const FloatControlScope&) = delete;
  FloatControlScope& operator=(const FloatControlScope&) = delete;

 private:
  FloatControl before_;
};

}  // namespace fastcv
