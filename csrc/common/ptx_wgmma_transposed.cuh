// Products of a warpgroup (wgmma) whose operands lie with a row of 128 bytes per k, as pixels of channels do: what the
// PTX manual calls MN-major. Both bodies, as in ptx_sm90.cuh.
//
//   operand_transposed(p, apart)   descriptor of 64 of the product's rows or columns, 1024 bytes aligned, the next 64
//   of
//                                  which are `apart` bytes further; + 128 is 16 elements along k
//   multiply_group_transposed<S, n>(d, a, b, accumulate)   D (64 x n, float) (+)= A (16 x 64)' B (16 x n), S bf16, f16
#pragma once
#include "common/ptx_sm90.cuh"

namespace fastcv::FASTCV_GPU {

#if FASTCV_EMULATOR

template <class T>
uint64_t operand_transposed(Shared<T> tile, uint32_t apart, Where where = Where::current()) {
  return (operand(tile, where) & ~(uint64_t{0x3fff} << 16)) | uint64_t{apart >> 4} << 16;
}
template <class S, int n>
void multiply_group_transposed(float (&d)[n / 2], uint64_t a, uint64_t b, bool accumulate,
                               Where where = Where::current()) {
  const int thread = static_cast<int>(threadIdx.x);
  emulator::queue_work([=, d = &d[0]] {
    const auto place = [](uint64_t operand, int mn, int k) {
      const size_t start = (operand & 0x3fff) << 4, of_64 = (operand >> 16 & 0x3fff) << 4,
                   of_8 = (operand >> 32 & 0x3fff) << 4;
      return swizzled(start + mn / 64 * of_64 + k / 8 * of_8 + k % 8 * 128 + mn % 64 * 2);
    };
    const auto at = [&](uint64_t operand, int mn, int k) {
      S value;
      std::memcpy(&value, place(operand, mn, k), 2);
      return static_cast<double>(widen(value));
    };
    const int lane = thread % 32, first = thread / 32 % 4 * 16;
    if (lane == 0)
      for (int k = 0; k < 16; ++k) {
        for (int r = 0; r < 16; r += 8) emulator::touch(place(a, first + r, k), 16, emulator::Access::read, where);
        for (int c = 0; c < n; c += 8) emulator::touch(place(b, c, k), 16, emulator::Access::read, where);
      }
    for (int c = 0; c < n / 4; ++c)
      for (int half = 0; half < 2; ++half) {
        float& to = d[c / 2 * 4 + half * 2 + c % 2];
        double sum = accumulate ? to : 0;
        for (int k = 0; k < 16; ++k)
          sum += at(a, first + lane / 4 + 8 * half, k) * at(b, c / 2 * 8 + lane % 4 * 2 + c % 2, k);
        to = static_cast<float>(sum);
      }
  });
}

#elif defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <class T>
__device__ __forceinline__ uint64_t operand_transposed(const T* tile, uint32_t apart) {
  return (operand(tile) & ~(uint64_t{0x3fff} << 16)) | uint64_t{apart >> 4} << 16;
}
template <class S, int n>
__device__ __forceinline__ void multiply_group_transposed(float (&d)[n / 2], uint64_t a, uint64_t b, bool accumulate);
#define FASTCV_MULTIPLY_TRANSPOSED(S, type)                                                                           \
  template <>                                                                                                         \
  __device__ __forceinline__ void multiply_group_transposed<S, 128>(float (&d)[64], uint64_t a, uint64_t b,           \
                                                                    bool accumulate) {                                \
    asm volatile(                                                                                                     \
        "{.reg .pred p; setp.ne.b32 p, %66, 0;"                                                                       \
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type                                                  \
        " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, " \
        "%23, %24, %25, %26, %27, %28, %29, %30, %31, "                                                               \
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, "   \
        "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "                                                    \
        "%64, %65, p, 1, 1, 1, 1;}"                                                                                   \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), \
          "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),      \
          "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),     \
          "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]),     \
          "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]),     \
          "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),     \
          "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]),     \
          "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])                   \
        : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)));                                                         \
  }
FASTCV_MULTIPLY_TRANSPOSED(bf16, "bf16")
FASTCV_MULTIPLY_TRANSPOSED(f16, "f16")
#undef FASTCV_MULTIPLY_TRANSPOSED

#else  // what an older target gets to compile; kernels return before they come here

template <class T>
__device__ __forceinline__ uint64_t operand_transposed(const T*, uint32_t) {
  return 0;
}
template <class S, int n>
__device__ __forceinline__ void multiply_group_transposed(float (&)[n / 2], uint64_t, uint64_t, bool) {}

#endif

}  // namespace fastcv::FASTCV_GPU
