// multiply_group of ptx_sm90.cuh: wgmma in the shapes and number formats that kernels use. Both operands stand in
// shared memory, rows of 128 bytes along the sum (K-major), swizzled.
#pragma once

namespace fastcv::FASTCV_GPU {

template <class S, int n>
__device__ __forceinline__ void multiply_group(float (&d)[n / 2], uint64_t a, uint64_t b, bool accumulate);

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// The sums as operands: their numbers, and what they are.
#define FASTCV_NUMBERS_32                                                                                          \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, " \
  "%24, %25, %26, %27, %28, %29, %30, %31"
#define FASTCV_NUMBERS_64                                                                                       \
  FASTCV_NUMBERS_32                                                                                             \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, " \
  "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define FASTCV_NUMBERS_128                                                                                       \
  FASTCV_NUMBERS_64                                                                                              \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, "  \
  "%85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104, "    \
  "%105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, " \
  "%123, %124, %125, %126, %127"
#define FASTCV_SUMS_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define FASTCV_SUMS_16(i) FASTCV_SUMS_4(i), FASTCV_SUMS_4(i + 4), FASTCV_SUMS_4(i + 8), FASTCV_SUMS_4(i + 12)
#define FASTCV_SUMS_32 FASTCV_SUMS_16(0), FASTCV_SUMS_16(16)
#define FASTCV_SUMS_64 FASTCV_SUMS_32, FASTCV_SUMS_16(32), FASTCV_SUMS_16(48)
#define FASTCV_SUMS_128 FASTCV_SUMS_64, FASTCV_SUMS_16(64), FASTCV_SUMS_16(80), FASTCV_SUMS_16(96), FASTCV_SUMS_16(112)

// `format`: the instruction's depth and types; `majors`: 16-bit operands say that neither is transposed. The two
// descriptors and the choice whether to accumulate are the operands after the sums.
#define FASTCV_MULTIPLY_GROUP(S, n, sums, format, majors, first, second, third)                                     \
  template <>                                                                                                       \
  __device__ __forceinline__ void multiply_group<S, n>(float (&d)[sums], uint64_t a, uint64_t b, bool accumulate) { \
    asm volatile("{.reg .pred p; setp.ne.b32 p, %" #third ", 0; wgmma.mma_async.sync.aligned.m64n" #n format        \
                 " {" FASTCV_NUMBERS_##sums "}, %" #first ", %" #second ", p, 1, 1" majors ";}"                     \
                 : FASTCV_SUMS_##sums                                                                               \
                 : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)));                                              \
  }
#define FASTCV_MULTIPLY_GROUPS(S, format, majors)               \
  FASTCV_MULTIPLY_GROUP(S, 64, 32, format, majors, 32, 33, 34)  \
  FASTCV_MULTIPLY_GROUP(S, 128, 64, format, majors, 64, 65, 66) \
  FASTCV_MULTIPLY_GROUP(S, 256, 128, format, majors, 128, 129, 130)

FASTCV_MULTIPLY_GROUPS(bf16, "k16.f32.bf16.bf16", ", 0, 0")
FASTCV_MULTIPLY_GROUPS(f16, "k16.f32.f16.f16", ", 0, 0")
FASTCV_MULTIPLY_GROUPS(float, "k8.f32.tf32.tf32", "")

#undef FASTCV_MULTIPLY_GROUPS
#undef FASTCV_MULTIPLY_GROUP
#undef FASTCV_SUMS_128
#undef FASTCV_SUMS_64
#undef FASTCV_SUMS_32
#undef FASTCV_SUMS_16
#undef FASTCV_SUMS_4
#undef FASTCV_NUMBERS_128
#undef FASTCV_NUMBERS_64
#undef FASTCV_NUMBERS_32

#else
template <class S, int n>
__device__ __forceinline__ void multiply_group(float (&)[n / 2], uint64_t, uint64_t, bool) {}
#endif

}  // namespace fastcv::FASTCV_GPU
