// softmax and log_softmax, forward and backward, arithmetic in float (double for double); every slice is read two or
// three times, and the repeats come from the L2 cache. Two kernels each: a block per row where the classes are
// innermost, and a thread per slice where they are not (neighbouring threads then read neighbouring addresses). Sums
// run in an order that depends on the number of classes only.
#include "loss/softmax.h"

#include "common/numbers.cuh"
#include "common/reduce.cuh"

namespace fastcv::FASTCV_GPU {
namespace {

constexpr int kThreads = 256;

template <class S, bool log_>
__global__ void __launch_bounds__(kThreads)
    softmax_kernel(const S* __restrict__ x, S* __restrict__ y, int64_t rows, int64_t classes) {
  using T = acc_t<S>;
  FASTCV_SHARED(T, scratch, kThreads / kWarp);
  for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
    const S* in = x + r * classes;
    S* out = y + r * classes;
    T top = -INFINITY, sum = 0;
    for (int64_t c = threadIdx.x; c < classes; c += kThreads) {
      const T v = widen(in[c]);
      top = v > top ? v : top;  // a NaN hides here, and shows in the sum
    }
    top = reduce_block(top, scratch, Max());
    for (int64_t c = threadIdx.x; c < classes; c += kThreads) sum += exp(widen(in[c]) - top);
    sum = reduce_block(sum, scratch, Sum());
    const T last = log_ ? log(sum) : 1 / sum;
    for (int64_t c = threadIdx.x; c < classes; c += kThreads) {
      const T z = widen(in[c]) - top;
      out[c] = narrow<S>(log_ ? z - last : exp(z) * last);
    }
  }
}

template <class S, bool log_>
__global__ void __launch_bounds__(kThreads) softmax_backward_kernel(const S* __restrict__ y, const S* __restrict__ dy,
                                                                    S* __restrict__ dx, int64_t rows, int64_t classes) {
  using T = acc_t<S>;
  FASTCV_SHARED(T, scratch, kThreads / kWarp);
  for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
    const int64_t at = r * classes;
    T sum = 0;
    for (int64_t c = threadIdx.x; c < classes; c += kThreads)
      sum += log_ ? widen(dy[at + c]) : widen(dy[at + c]) * widen(y[at + c]);
    sum = reduce_block(sum, scratch, Sum());
    for (int64_t c = threadIdx.x; c < classes; c += kThreads) {
      const T g = widen(dy[at + c]), v = widen(y[at + c]);
      dx[at + c] = narrow<S>(log_ ? g - exp(v) * sum : v * (g - sum));
    }
  }
}

// Element c of slice (o, i): forward inputs may be channels_last (SoftmaxParams::input_rows, input_channels).
template <class S, bool log_>
__global__ void __launch_bounds__(kThreads)
    softmax_column_kernel(const S* __restrict__ x, S* __restrict__ y, int64_t slices, int64_t classes, int64_t inner,
                          bool input_rows, int64_t channels, int64_t positions) {
  using T = acc_t<S>;
  for (int64_t s = global_thread(); s < slices; s += global_threads()) {
    const int64_t at = s / inner * classes * inner + s % inner;
    const S* in = x + (input_rows ? s * classes : at);
    int64_t step = input_rows ? 1 : inner;
    if (channels > 0) {
      const int64_t position = s % positions, plane = s / positions;
      in = x + (plane / channels * positions + position) * classes * channels + plane % channels;
      step = channels;
    }
    T top = -INFINITY, sum = 0;
    for (int64_t c = 0; c < classes; ++c) top = Max()(static_cast<T>(widen(in[c * step])), top);
    for (int64_t c = 0; c < classes; ++c) sum += exp(widen(in[c * step]) - top);
    const T last = log_ ? log(sum) : 1 / sum;
    for (int64_t c = 0; c < classes; ++c) {
      const T z = widen(in[c * step]) - top;
      y[at + c * inner] = narrow<S>(log_ ? z - last : exp(z) * last);
    }
  }
}

template <class S, bool log_>
__global__ void __launch_bounds__(kThreads)
    softmax_column_backward_kernel(const S* __restrict__ y, const S* __restrict__ dy, S* __restrict__ dx,
                                   int64_t slices, int64_t classes, int64_t inner) {
  using T = acc_t<S>;
  for (int64_t s = global_thread(); s < slices; s += global_threads()) {
    const int64_t first = s / inner * classes * inner + s % inner;
    T sum = 0;
    for (int64_t c = 0; c < classes; ++c) {
      const int64_t at = first + c * inner;
      sum += log_ ? widen(dy[at]) : widen(dy[at]) * widen(y[at]);
    }
    for (int64_t c = 0; c < classes; ++c) {
      const int64_t at = first + c * inner;
      const T g = widen(dy[at]), v = widen(y[at]);
      dx[at] = narrow<S>(log_ ? g - exp(v) * sum : v * (g - sum));
    }
  }
}

// f<S, log>() for the params' dtype and function; nothing to do without elements.
template <class F>
int by_kind(const SoftmaxParams& p, F&& f) {
  if (p.outer == 0 || p.classes == 0 || p.inner == 0) return cudaSuccess;
  return by_dtype(
      p.dtype, [&]<class S>() { return p.log ? f.template operator()<S, true>() : f.template operator()<S, false>(); });
}

template <class S>
const S* in(const void* p) {
  return static_cast<const S*>(p);
}
template <class S>
S* out(void* p) {
  return static_cast<S*>(p);
}

}  // namespace

int softmax(const SoftmaxParams& p, void*, CUstream_st* stream) {
  return by_kind(p, [&]<class S, bool log_>() {
    return launch(softmax_kernel<S, log_>, grid_for(p.outer, 1), kThreads, 0, stream, in<S>(p.x), out<S>(p.y), p.outer,
                  p.classes);
  });
}

int softmax_backward(const SoftmaxParams& p, void*, CUstream_st* stream) {
  return by_kind(p, [&]<class S, bool log_>() {
    return launch(softmax_backward_kernel<S, log_>, grid_for(p.outer, 1), kThreads, 0, stream, in<S>(p.x), in<S>(p.dy),
                  out<S>(p.y), p.outer, p.classes);
  });
}

int softmax_column(const SoftmaxParams& p, void*, CUstream_st* stream) {
  const int64_t slices = p.outer * p.inner;
  return by_kind(p, [&]<class S, bool log_>() {
    return launch(softmax_column_kernel<S, log_>, grid_for(slices, kThreads), kThreads, 0, stream, in<S>(p.x),
                  out<S>(p.y), slices, p.classes, p.inner, p.input_rows, p.input_channels, p.input_positions);
  });
}

int softmax_column_backward(const SoftmaxParams& p, void*, CUstream_st* stream) {
  const int64_t slices = p.outer * p.inner;
  return by_kind(p, [&]<class S, bool log_>() {
    return launch(softmax_column_backward_kernel<S, log_>, grid_for(slices, kThreads), kThreads, 0, stream, in<S>(p.x),
                  in<S>(p.dy), out<S>(p.y), slices, p.classes, p.inner);
  });
}

}  // namespace fastcv::FASTCV_GPU
