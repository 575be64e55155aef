// softmax and log_softmax over a contiguous last dimension, forward and backward: one block per row, arithmetic in
// float (double for double), every row read two or three times (the repeats come from the L2 cache), no shared memory
// beyond one word per warp. Sums run in an order that depends on the row length only.
#include "loss/softmax.h"

#include "common/launch.cuh"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace fastcv {
namespace {

constexpr int kThreads = 256;
constexpr unsigned kAllLanes = 0xffffffffu;

template <class S>
struct Arithmetic {
  using type = float;
};
template <>
struct Arithmetic<double> {
  using type = double;
};

__device__ inline float widen(float x) { return x; }
__device__ inline double widen(double x) { return x; }
__device__ inline float widen(bf16 x) { return __bfloat162float(__ushort_as_bfloat16(x.bits)); }
__device__ inline float widen(f16 x) { return __half2float(__ushort_as_half(x.bits)); }
__device__ inline void narrow(float x, float* y) { *y = x; }
__device__ inline void narrow(double x, double* y) { *y = x; }
__device__ inline void narrow(float x, bf16* y) { y->bits = __bfloat16_as_ushort(__float2bfloat16_rn(x)); }
__device__ inline void narrow(float x, f16* y) { y->bits = __half_as_ushort(__float2half_rn(x)); }

// The combination of every thread's value, in every thread. `scratch`: one T per warp.
template <class T, class Combine>
__device__ T reduce_block(T value, T* scratch, Combine combine) {
  for (int step = 16; step > 0; step /= 2) value = combine(value, __shfl_xor_sync(kAllLanes, value, step));
  __syncthreads();  // scratch may still be read from the previous reduction
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  value = scratch[0];
  for (int i = 1; i < kThreads / 32; ++i) value = combine(value, scratch[i]);
  return value;
}

template <class S, bool log_>
__global__ void __launch_bounds__(kThreads)
    softmax_kernel(const S* __restrict__ x, S* __restrict__ y, int64_t rows, int64_t classes) {
  using T = typename Arithmetic<S>::type;
  __shared__ T scratch[kThreads / 32];
  for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
    const S* in = x + r * classes;
    S* out = y + r * classes;
    T top = -INFINITY, sum = 0;
    for (int64_t c = threadIdx.x; c < classes; c += kThreads) {
      const T v = widen(in[c]);
      top = v > top ? v : top;  // a NaN hides here, and shows in the sum
    }
    top = reduce_block(top, scratch, [](T a, T b) { return a > b ? a : b; });
    for (int64_t c = threadIdx.x; c < classes; c += kThreads) sum += exp(widen(in[c]) - top);
    sum = reduce_block(sum, scratch, [](T a, T b) { return a + b; });
    const T last = log_ ? log(sum) : 1 / sum;
    for (int64_t c = threadIdx.x; c < classes; c += kThreads) {
      const T z = widen(in[c]) - top;
      narrow(log_ ? z - last : exp(z) * last, out + c);
    }
  }
}

template <class S, bool log_>
__global__ void __launch_bounds__(kThreads) softmax_backward_kernel(const S* __restrict__ y, const S* __restrict__ dy,
                                                                    S* __restrict__ dx, int64_t rows, int64_t classes) {
  using T = typename Arithmetic<S>::type;
  __shared__ T scratch[kThreads / 32];
  for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
    const int64_t at = r * classes;
    T sum = 0;
    for (int64_t c = threadIdx.x; c < classes; c += kThreads)
      sum += log_ ? widen(dy[at + c]) : widen(dy[at + c]) * widen(y[at + c]);
    sum = reduce_block(sum, scratch, [](T a, T b) { return a + b; });
    for (int64_t c = threadIdx.x; c < classes; c += kThreads) {
      const T g = widen(dy[at + c]), v = widen(y[at + c]);
      narrow(log_ ? g - exp(v) * sum : v * (g - sum), dx + at + c);
    }
  }
}

template <class S, bool log_>
int launch(const SoftmaxParams& p, bool backward, cudaStream_t stream) {
  if (p.outer == 0 || p.classes == 0) return cudaSuccess;
  const unsigned blocks = grid_for(p.outer, 1);
  const S* x = static_cast<const S*>(p.x);
  S* y = static_cast<S*>(p.y);
  if (backward) {
    softmax_backward_kernel<S, log_>
        <<<blocks, kThreads, 0, stream>>>(x, static_cast<const S*>(p.dy), y, p.outer, p.classes);
  } else {
    softmax_kernel<S, log_><<<blocks, kThreads, 0, stream>>>(x, y, p.outer, p.classes);
  }
  return cudaGetLastError();
}

template <class S>
int launch(const SoftmaxParams& p, bool backward, cudaStream_t stream) {
  return p.log ? launch<S, true>(p, backward, stream) : launch<S, false>(p, backward, stream);
}

int launch(const SoftmaxParams& p, bool backward, cudaStream_t stream) {
  if (p.inner != 1) return cudaErrorInvalidValue;
  switch (p.dtype) {
    case DType::f32:
      return launch<float>(p, backward, stream);
    case DType::f64:
      return launch<double>(p, backward, stream);
    case DType::bf16:
      return launch<bf16>(p, backward, stream);
    case DType::f16:
      return launch<f16>(p, backward, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace

int softmax_cuda(const SoftmaxParams& p, CUstream_st* stream) { return launch(p, false, stream); }
int softmax_backward_cuda(const SoftmaxParams& p, CUstream_st* stream) { return launch(p, true, stream); }

}  // namespace fastcv
