#include "conv/conv_bias_grad.h"

#include "common/dispatch.h"
#include "common/simd.h"

namespace fastcv::FASTCV_ISA {
namespace {

constexpr int64_t kRun = 512;  // pixels added in the narrow type before a double takes over
constexpr int64_t kChain =
    16;                     // rows added one after another before their sum joins the run's: keeps its rounding small
constexpr int kUnroll = 4;  // independent vectors of sums, to hide the latency of an addition

FASTCV_INLINE int64_t runs(const ConvBiasGradParams& p) { return (p.batch * p.inner + kRun - 1) / kRun; }

// The sum of n contiguous elements.
template <class S>
double sum_contiguous(const S* x, int64_t n) {
  using T = acc_t<S>;
  constexpr int w = Vec<T>::width;
  double total = 0;
  for (int64_t i = 0; i < n;) {
    const int64_t end = n - i < kRun ? n : i + kRun;
    Vec<T> sum[kUnroll];
#pragma GCC unroll 4
    for (int u = 0; u < kUnroll; ++u) sum[u] = Vec<T>(T(0));
    for (; i + kUnroll * w <= end; i += kUnroll * w)
#pragma GCC unroll 4
      for (int u = 0; u < kUnroll; ++u) sum[u] += load(x + i + u * w);
    for (; i + w <= end; i += w) sum[0] += load(x + i);
    if (i < end) sum[1] += load_n(x + i, static_cast<int>(end - i));
    i = end;
    total += static_cast<double>(reduce_add((sum[0] + sum[1]) + (sum[2] + sum[3])));
  }
  return total;
}

// The sums of one run of pixels over V vectors of neighbouring channels, the last of them `lanes` wide.
template <class S, int V, bool whole, class T>
FASTCV_INLINE void sum_rows(const S* x, int64_t rows, int64_t stride, int lanes, T* out) {
  constexpr int w = Vec<T>::width;
  Vec<T> sum[V];
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) sum[v] = Vec<T>(T(0));
  for (int64_t i = 0; i < rows;) {
    const int64_t end = rows - i < kChain ? rows : i + kChain;
    Vec<T> chain[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) chain[v] = Vec<T>(T(0));
    for (; i < end; ++i, x += stride)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) chain[v] += whole ? load(x + v * w) : load_n(x + v * w, lanes);
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[v] += chain[v];
  }
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    if (whole) store(out + v * w, sum[v]);
    else store_n(out + v * w, sum[v], lanes);
  }
}

template <class S>
void run(const ConvBiasGradParams& p, const Exec& exec) {
  using T = acc_t<S>;
  constexpr int w = Vec<T>::width;
  const S* x = static_cast<const S*>(p.grad_output);
  S* out = static_cast<S*>(p.grad_bias);
  const int64_t pixels = p.batch * p.inner;
  if (!p.channels_last) {
    parallel_for(exec, p.channels, 1 + (1 << 15) / (pixels + 1), [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        double total = 0;
        for (int64_t n = 0; n < p.batch; ++n) total += sum_contiguous(x + (n * p.channels + k) * p.inner, p.inner);
        store_one(out + k, static_cast<T>(total));
      }
    });
    return;
  }
  T* partial = static_cast<T*>(exec.workspace);
  const int64_t count = runs(p), grain = 1 + (1 << 15) / (kRun * p.channels + 1);
  parallel_for(exec, count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t run = begin; run < end; ++run) {
      const S* from = x + run * kRun * p.channels;
      const int64_t rows = pixels - run * kRun < kRun ? pixels - run * kRun : kRun;
      T* to = partial + run * p.channels;
      int64_t k = 0;
      for (; k + kUnroll * w <= p.channels; k += kUnroll * w)
        sum_rows<S, kUnroll, true>(from + k, rows, p.channels, w, to + k);
      for (; k + w <= p.channels; k += w) sum_rows<S, 1, true>(from + k, rows, p.channels, w, to + k);
      if (k < p.channels) sum_rows<S, 1, false>(from + k, rows, p.channels, static_cast<int>(p.channels - k), to + k);
    }
  });
  parallel_for(exec, p.channels, 1 + (1 << 15) / (count + 1), [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      double total = 0;
      for (int64_t run = 0; run < count; ++run) total += static_cast<double>(partial[run * p.channels + k]);
      store_one(out + k, static_cast<T>(total));
    }
  });
}

}  // namespace

size_t conv_bias_grad_workspace(const ConvBiasGradParams& p, int) {
  if (!p.channels_last) return 0;
  return static_cast<size_t>(runs(p) * p.channels) * (p.dtype == DType::f64 ? sizeof(double) : sizeof(float));
}

void conv_bias_grad(const ConvBiasGradParams& p, const Exec& exec) {
  dispatch_float(p.dtype, [&](auto zero) { run<decltype(zero)>(p, exec); });
}

}  // namespace fastcv::FASTCV_ISA
