// What the CUDA kernels of the norm family share: vectors of any dtype, activations, and sums over sets of elements.
//
// Every statistic here is a pair of sums over a set: the values of a channel, of a group, of a row. reduce_sets adds
// each set up in segments whose length depends on the shape alone, in double, and finish_sets adds the segments in
// order: the same bits on every run, and an image's own sets do not depend on the batch around it.
#pragma once
#include "common/divide.cuh"
#include "common/numbers.cuh"
#include "norm/norm.h"
#include "norm/norm_sets.h"

namespace fastcv::FASTCV_GPU {

constexpr int kThreads = 256;

__device__ __forceinline__ double get(const NormVector& v, int64_t i, double absent) {
  if (v.data == nullptr) return absent;
  switch (v.dtype) {
    case DType::f32:
      return static_cast<const float*>(v.data)[i];
    case DType::f64:
      return static_cast<const double*>(v.data)[i];
    case DType::bf16:
      return widen(static_cast<const bf16*>(v.data)[i]);
    default:
      return widen(static_cast<const f16*>(v.data)[i]);
  }
}
__device__ __forceinline__ void put(const NormVector& v, int64_t i, double x) {
  void* data = const_cast<void*>(v.data);
  if (data == nullptr) return;
  switch (v.dtype) {
    case DType::f32:
      static_cast<float*>(data)[i] = static_cast<float>(x);
      return;
    case DType::f64:
      static_cast<double*>(data)[i] = x;
      return;
    case DType::bf16:
      static_cast<bf16*>(data)[i] = narrow<bf16>(static_cast<float>(x));
      return;
    default:
      static_cast<f16*>(data)[i] = narrow<f16>(static_cast<float>(x));
  }
}

template <class T>
__device__ __forceinline__ T activate(const Activation& a, T v) {
  const T bent = v <= 0 ? (a.slope == 0 ? T(0) : static_cast<T>(a.slope) * v) : v;
  return a.cap > 0 && bent > static_cast<T>(a.cap) ? static_cast<T>(a.cap) : bent;
}
template <class T>
__device__ __forceinline__ T gate(const Activation& a, T g, T v) {
  if (a.slope == 1 && !(a.cap > 0)) return g;
  if (a.cap > 0 && v >= static_cast<T>(a.cap)) return 0;
  return v <= 0 ? (a.slope == 0 ? T(0) : static_cast<T>(a.slope) * g) : g;
}

// A double in two numbers of T, so that x - mean is exact to T's precision where the mean is large.
template <class T>
struct Split {
  T high, low;
  __device__ explicit Split(double x) : high(static_cast<T>(x)), low(static_cast<T>(x - static_cast<double>(high))) {}
  __device__ __forceinline__ T below(T x) const { return (x - high) - low; }
};

// partial[set][segment] = sums of terms(set, offset) over the segment's elements. A block takes `wide` sets and one
// segment.
template <int wide, class Terms>
__global__ void __launch_bounds__(kThreads) reduce_sets_kernel(const Terms terms, const Sets s, const Divider inner,
                                                               const Divider run, int64_t segment, double* partial) {
  FASTCV_SHARED(double, first, kThreads);
  FASTCV_SHARED(double, second, kThreads);
  constexpr int tall = kThreads / wide;
  const int64_t set = static_cast<int64_t>(blockIdx.x) * wide + threadIdx.x % wide;
  const int64_t begin = blockIdx.y * segment, count = s.rows * s.run;
  const int64_t end = begin + segment < count ? begin + segment : count;
  double a = 0, b = 0;
  if (set < s.outer * s.inner) {
    int64_t in = set;
    const int64_t out = inner.split(in), base = out * s.outer_step + in * s.inner_step;
    for (int64_t e = begin + threadIdx.x / wide; e < end; e += tall) {
      int64_t f = e;
      const int64_t row = run.split(f);
      terms(set, base + row * s.row_step + f, base, a, b);
    }
  }
  first[threadIdx.x] = a;
  second[threadIdx.x] = b;
  for (int half = tall / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x >= static_cast<unsigned>(half * wide)) continue;
    first[threadIdx.x] += first[threadIdx.x + half * wide];
    second[threadIdx.x] += second[threadIdx.x + half * wide];
  }
  if (threadIdx.x >= wide || set >= s.outer * s.inner) return;
  double* to = partial + (set * gridDim.y + blockIdx.y) * 2;
  to[0] = first[threadIdx.x];
  to[1] = second[threadIdx.x];
}

// finish(set, sum, sum) for every set.
template <class Finish>
__global__ void __launch_bounds__(kThreads)
    finish_sets_kernel(const Finish finish, int64_t sets, int64_t segments, const double* partial) {
  for (int64_t set = global_thread(); set < sets; set += global_threads()) {
    double a = 0, b = 0;
    for (int64_t i = 0; i < segments; ++i) {
      a += partial[(set * segments + i) * 2];
      b += partial[(set * segments + i) * 2 + 1];
    }
    finish(set, a, b);
  }
}

// Adds terms(set, offset, offset of the set's first element, sum&, sum&) over each set and hands the sums to finish.
template <class Terms, class Finish>
int reduce_sets(const Sets& s, const Terms& terms, const Finish& finish, double* partial, CUstream_st* stream) {
  if (s.sets() == 0) return cudaSuccess;
  const auto blocks = [&](int wide) { return static_cast<unsigned>((s.sets() + wide - 1) / wide); };
  const auto segments = static_cast<unsigned>(s.segments());
  if (segments > 0) {
    const int error = s.side_by_side()
                          ? launch(reduce_sets_kernel<32, Terms>, dim3(blocks(32), segments), kThreads, 0, stream,
                                   terms, s, Divider(s.inner), Divider(s.run), s.segment(), partial)
                          : launch(reduce_sets_kernel<1, Terms>, dim3(blocks(1), segments), kThreads, 0, stream, terms,
                                   s, Divider(s.inner), Divider(s.run), s.segment(), partial);
    if (error != 0) return error;
  }
  return launch(finish_sets_kernel<Finish>, grid_for(s.sets(), kThreads), kThreads, 0, stream, finish, s.sets(),
                static_cast<int64_t>(segments), static_cast<const double*>(partial));
}

// Terms and finish of mean and biased variance. The sums are of x - x[first element of the set], so a large mean costs
// nothing.
template <class S>
struct MomentTerms {
  const S* x;
  __device__ __forceinline__ void operator()(int64_t, int64_t at, int64_t base, double& a, double& b) const {
    const double d = static_cast<double>(widen(x[at])) - static_cast<double>(widen(x[base]));
    a += d;
    b += d * d;
  }
};
template <class S>
struct MomentFinish {
  const S* x;
  Sets s;
  Divider inner;
  double* mean;
  double* var;
  __device__ __forceinline__ void operator()(int64_t set, double a, double b) const {
    const double count = static_cast<double>(s.rows * s.run);
    if (count == 0) {
      mean[set] = var[set] = 0;
      return;
    }
    int64_t in = set;
    const int64_t out = inner.split(in);
    const double shift = a / count, v = b / count - shift * shift;
    mean[set] = widen(x[out * s.outer_step + in * s.inner_step]) + shift;
    var[set] = v < 0 ? 0 : v;
  }
};
template <class S>
int moments(const Sets& s, const S* x, double* mean, double* var, double* partial, CUstream_st* stream) {
  return reduce_sets(s, MomentTerms<S>{x}, MomentFinish<S>{x, s, Divider(s.inner), mean, var}, partial, stream);
}

}  // namespace fastcv::FASTCV_GPU
