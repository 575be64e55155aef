// What the CUDA kernels of the loss family share: sums over all samples or elements in a fixed order, and class
// indices.
#pragma once
#include "common/packs.cuh"
#include "common/reduce.cuh"
#include "loss/cross_entropy.h"
#include "loss/loss_sums.h"

namespace fastcv::FASTCV_GPU {

constexpr int kThreads = 256;

template <class S>
__global__ void __launch_bounds__(kThreads) clear_kernel(S* y, int64_t n, int access) {
  const acc_t<S> zeros[kPack<S>] = {};
  for (int64_t at = global_thread() * kPack<S>; at < n; at += global_threads() * kPack<S>)
    store_narrowed(y + at, n - at, access, zeros);
}
template <class S>
int clear(S* y, int64_t n, CUstream_st* stream) {
  if (n == 0) return cudaSuccess;
  return launch(clear_kernel<S>, grid_for(packs<S>(n), kThreads), kThreads, 0, stream, y, n, access_bytes({y}));
}

// Sums --------------------------------------------------------------------------------------------------------------

// partial[chunk] = two sums of terms(i, a, b) over the chunk's i, in an order that depends on n alone.
template <class Terms>
__global__ void __launch_bounds__(kThreads) sum_kernel(const Terms terms, int64_t n, int64_t length, double* partial) {
  FASTCV_SHARED(double, scratch, kThreads / kWarp);
  const int64_t begin = blockIdx.x * length, end = begin + length < n ? begin + length : n;
  double a = 0, b = 0;
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) terms(i, a, b);
  a = reduce_block(a, scratch, Sum());
  b = reduce_block(b, scratch, Sum());
  if (threadIdx.x != 0) return;
  partial[2 * blockIdx.x] = a;
  partial[2 * blockIdx.x + 1] = b;
}

// Sum `which` of all chunks, in every thread of a block. scratch: a double per warp.
__device__ __forceinline__ double total(const double* partial, int64_t chunks, int which, Shared<double> scratch) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < chunks; i += blockDim.x) sum += partial[2 * i + which];
  return reduce_block(sum, scratch, Sum());
}

template <class Finish>
__global__ void __launch_bounds__(kThreads) finish_kernel(const Finish finish, int64_t chunks, const double* partial) {
  FASTCV_SHARED(double, scratch, kThreads / kWarp);
  const double a = total(partial, chunks, 0, scratch), b = total(partial, chunks, 1, scratch);
  if (threadIdx.x == 0) finish(a, b);
}

template <class Terms>
int sum_chunks(int64_t n, const Terms& terms, double* partial, CUstream_st* stream) {
  const SumChunks chunks(n);
  if (n == 0) return cudaSuccess;
  return launch(sum_kernel<Terms>, static_cast<unsigned>(chunks.count()), kThreads, 0, stream, terms, n,
                chunks.length(), partial);
}
// finish(a, b) gets both sums of terms(i, a, b) over all i < n, in one thread. partial: SumChunks(n).bytes().
template <class Terms, class Finish>
int sum_all(int64_t n, const Terms& terms, const Finish& finish, double* partial, CUstream_st* stream) {
  if (const int error = sum_chunks(n, terms, partial, stream)) return error;
  return launch(finish_kernel<Finish>, 1, kThreads, 0, stream, finish, SumChunks(n).count(),
                static_cast<const double*>(partial));
}

// Class indices -----------------------------------------------------------------------------------------------------

// Notes the first sample with a bad target; where nobody can be told, ends the kernel.
__device__ __forceinline__ void report(int64_t* bad, int64_t sample) {
  if (bad == nullptr) trap("a class index is out of range");
  atomicMin(reinterpret_cast<unsigned long long*>(bad), static_cast<unsigned long long>(sample));
}

// The class index of sample r, or -1 if it does not count: ignored, or out of range, which is reported.
__device__ __forceinline__ int64_t counted_target(const CrossEntropyParams& p, int64_t r) {
  const int64_t t = p.target_kind == Target::i64 ? static_cast<const int64_t*>(p.target)[r]
                                                 : int64_t{static_cast<const uint8_t*>(p.target)[r]};
  if (t == p.ignore_index) return -1;
  if (t >= 0 && t < p.classes) return t;
  report(p.bad, r);
  return -1;
}

// What the mean divides by: the weights of the samples that count. Q: storage type of the weights.
template <class Q>
struct CountTerms {
  CrossEntropyParams p;
  __device__ __forceinline__ void operator()(int64_t r, double& a, double&) const {
    const int64_t t = counted_target(p, r);
    if (t >= 0) a += p.weight == nullptr ? 1.0 : static_cast<double>(widen(static_cast<const Q*>(p.weight)[t]));
  }
};
template <class Q>
int count_targets(const CrossEntropyParams& p, double* counts, CUstream_st* stream) {
  if (p.target_kind == Target::probability || p.reduction != Reduction::mean) return cudaSuccess;
  return sum_chunks(p.outer * p.inner, CountTerms<Q>{p}, counts, stream);
}
// Where what the mean divides by is found: partial sums of count_targets over class indices, or a number of samples.
struct SampleCount {
  const double* counts;
  int64_t chunks;
  double samples;

  SampleCount(const double* counts, int64_t samples)
      : counts(counts), chunks(SumChunks(samples).count()), samples(static_cast<double>(samples)) {}
};
// 1 over it for gradients, in every thread of a block; 1 for other reductions.
template <class T>
__device__ __forceinline__ T mean_scale(const CrossEntropyParams& p, const SampleCount& sample_count,
                                        Shared<double> scratch) {
  if (p.reduction != Reduction::mean) return 1;
  if (p.target_kind == Target::probability) return static_cast<T>(1 / sample_count.samples);
  return static_cast<T>(1 / total(sample_count.counts, sample_count.chunks, 0, scratch));
}

}  // namespace fastcv::FASTCV_GPU
