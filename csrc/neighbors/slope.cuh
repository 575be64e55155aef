// The derivative of a distance by one coordinate, on CUDA. torch's subgradients: 0 at distance 0; for p = inf every
// coordinate that reaches the maximum gets the whole gradient.
//
// Each has weight(g, distance), the part of the formula that is the same for all coordinates, and
// term(difference, weight, distance), the derivative.
#pragma once
#include "neighbors/pairs.cuh"

namespace fastcv::FASTCV_GPU {

template <class T>
__device__ __forceinline__ T sign_of(T x) {
  return x > 0 ? T(1) : x < 0 ? T(-1) : x;  // NaN stays
}

template <class T_>
struct SlopeL1 {
  using T = T_;
  explicit SlopeL1(double) {}
  __device__ __forceinline__ T weight(T g, T) const { return g; }
  __device__ __forceinline__ T term(T x, T w, T) const { return w * sign_of(x); }
};
template <class T_>
struct SlopeL2 {
  using T = T_;
  explicit SlopeL2(double) {}
  __device__ __forceinline__ T weight(T g, T distance) const { return distance == 0 ? T(0) : g / distance; }
  __device__ __forceinline__ T term(T x, T w, T) const { return w * x; }
};
// Of the squared distance.
template <class T_>
struct SlopeSquare {
  using T = T_;
  explicit SlopeSquare(double) {}
  __device__ __forceinline__ T weight(T g, T) const { return 2 * g; }
  __device__ __forceinline__ T term(T x, T w, T) const { return w * x; }
};
template <class T_>
struct SlopeLinf {
  using T = T_;
  explicit SlopeLinf(double) {}
  __device__ __forceinline__ T weight(T g, T) const { return g; }
  __device__ __forceinline__ T term(T x, T w, T distance) const {
    return fabs(x) == distance || x != x ? w * sign_of(x) : T(0);
  }
};
template <class T_>
struct SlopeLp {
  using T = T_;
  PowAbs<T> power;
  double exponent;
  explicit SlopeLp(double p) : power(p - 1), exponent(p - 1) {}
  // In double: the power would multiply the rounding error of the quotient's other half.
  __device__ __forceinline__ T weight(T g, T distance) const {
    return distance == 0 ? T(0) : static_cast<T>(g / pow(static_cast<double>(distance), exponent));
  }
  __device__ __forceinline__ T term(T x, T w, T) const {
    if (x == 0) return 0;
    return x < 0 ? -w * power(x) : w * power(x);
  }
};

// f(slope) for this dtype and p; p = 0 has no slope and is its caller's business.
template <class F>
int with_slope(DType dtype, double p, bool squared, F&& f) {
  const auto by_p = [&]<class T>(T) {
    if (squared) return f(SlopeSquare<T>(p));
    if (p == 1) return f(SlopeL1<T>(p));
    if (p == 2) return f(SlopeL2<T>(p));
    return p == std::numeric_limits<double>::infinity() ? f(SlopeLinf<T>(p)) : f(SlopeLp<T>(p));
  };
  return dtype == DType::f64 ? by_p(double{}) : by_p(float{});
}

template <class T>
__global__ void __launch_bounds__(kThreads) clear_kernel(T* y, int64_t n) {
  for (int64_t i = global_thread(); i < n; i += global_threads()) y[i] = 0;
}
inline int clear(void* y, DType dtype, int64_t n, CUstream_st* stream) {
  if (y == nullptr || n == 0) return cudaSuccess;
  const unsigned blocks = grid_for(n, kThreads);
  return dtype == DType::f64 ? launch(clear_kernel<double>, blocks, kThreads, 0, stream, static_cast<double*>(y), n)
                             : launch(clear_kernel<float>, blocks, kThreads, 0, stream, static_cast<float*>(y), n);
}

}  // namespace fastcv::FASTCV_GPU
