// step_chain, one instruction to a kernel: 64 sums to a thread, enough of them independent to hide any latency.
#include "roof/probes.h"

#include "common/ptx.cuh"

namespace fastcv::FASTCV_GPU {
namespace {

constexpr int kThreads = 256, kSums = kChainTile / kThreads;

// One step of each: adds one to every sum of the thread, or, with its whole warp, to every sum of the warp's.
struct Add {
  static __device__ __forceinline__ void step(float (&v)[kSums], float one) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) v[i] += one;
  }
};
struct MultiplyAdd {
  static __device__ __forceinline__ void step(float (&v)[kSums], float one) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) v[i] = fma(v[i], one, one);
  }
};
struct MmaBf16 {  // 16 products of a quarter and a quarter
  static __device__ __forceinline__ void step(float (&v)[kSums], float) {
    constexpr uint32_t kQuarters = 0x3e803e80;
    const uint32_t a[4] = {kQuarters, kQuarters, kQuarters, kQuarters}, b[2] = {kQuarters, kQuarters};
#pragma unroll
    for (int i = 0; i < kSums; i += 4) multiply_add<bf16>(reinterpret_cast<float (&)[4]>(v[i]), a, b);
  }
};
struct MmaTf32 {  // 8 products of a quarter and a half
  static __device__ __forceinline__ void step(float (&v)[kSums], float) {
    constexpr uint32_t kQuarter = 0x3e800000, kHalf = 0x3f000000;
    const uint32_t a[4] = {kQuarter, kQuarter, kQuarter, kQuarter}, b[2] = {kHalf, kHalf};
#pragma unroll
    for (int i = 0; i < kSums; i += 4) multiply_add_tf32(reinterpret_cast<float (&)[4]>(v[i]), a, b);
  }
};

// one: 1, which the compiler does not know.
template <class Instruction>
__global__ void __launch_bounds__(kThreads) chain_kernel(const float* x, float* y, int64_t steps, float one) {
  const int64_t first = blockIdx.x * kChainTile + threadIdx.x;
  float v[kSums];
#pragma unroll
  for (int i = 0; i < kSums; ++i) v[i] = x[first + i * kThreads];
  for (int64_t s = 0; s < steps; ++s) Instruction::step(v, one);
#pragma unroll
  for (int i = 0; i < kSums; ++i) y[first + i * kThreads] = v[i];
}

template <class Instruction>
int run(const StepChainParams& p, CUstream_st* stream) {
  return launch(chain_kernel<Instruction>, static_cast<unsigned>(p.n / kChainTile), kThreads, 0, stream, p.x, p.y,
                p.steps, 1.0f);
}

}  // namespace

int chain_add(const StepChainParams& p, void*, CUstream_st* stream) { return run<Add>(p, stream); }
int chain_multiply_add(const StepChainParams& p, void*, CUstream_st* stream) { return run<MultiplyAdd>(p, stream); }
int chain_mma_bf16(const StepChainParams& p, void*, CUstream_st* stream) { return run<MmaBf16>(p, stream); }
int chain_mma_tf32(const StepChainParams& p, void*, CUstream_st* stream) { return run<MmaTf32>(p, stream); }

}  // namespace fastcv::FASTCV_GPU
