// Statistics of NHWC tensors, for *_simd.cpp files only: per-channel sums over rows of channels.
//
// Rows are cut into blocks and blocks into at most kNormSupers runs (norm.h); a thread takes whole runs, and runs are
// merged in order, so the sums do not depend on the number of threads.
#pragma once
#include "norm/norm_simd.h"

namespace fastcv::FASTCV_ISA {
namespace {

constexpr int64_t kShortSum = 16;  // rows summed in one chain: half the digits that a chain over a block would lose

// Merges the block sums of `lanes` channels (deviations from `centre`, over `n` rows) into running moments over
// `before` rows.
template <class T>
FASTCV_INLINE void merge_block(const T* centre, const T* sum, const T* squares, int64_t n, int64_t before, int lanes,
                               double* __restrict mean, double* __restrict m2) {
  const double inv = 1.0 / static_cast<double>(n), share = static_cast<double>(n) / static_cast<double>(n + before);
  const double weight = share * static_cast<double>(before);
  for (int j = 0; j < lanes; ++j) {
    const double s = sum[j], c = centre[j];
    const double block_mean = c - c == 0 ? c + s * inv : c;
    double block_m2 = squares[j] - s * (s * inv);
    block_m2 = block_m2 < 0 ? 0 : block_m2;
    const double delta = block_mean - mean[j];
    const bool finite = delta - delta == 0;
    const double next = mean[j] + delta * share, both = mean[j] + block_mean;
    m2[j] = m2[j] + block_m2 + delta * delta * weight;
    mean[j] = before == 0 ? block_mean : finite ? next : both;
  }
}

// `rows` rows of NV vectors; `lanes` of the last vector are real (only with NV == 1 fewer than all).
template <int NV, class S>
[[gnu::noinline]] static void block_moments(const S* x, int64_t rows, int64_t stride, int lanes, int64_t before,
                                            double* mean, double* m2) {
  using T = acc_t<S>;
  using V = Vec<T>;
  constexpr int w = V::width;
  const bool full = lanes == w;
  V centre[NV], sum[NV], squares[NV], total_sum[NV], total_squares[NV];
  for (int k = 0; k < NV; ++k) total_sum[k] = V(T(0));
  for (int64_t first = 0; first < rows; first += kShortSum) {
    for (int k = 0; k < NV; ++k) sum[k] = V(T(0));
    for (int64_t r = first; r < min64(first + kShortSum, rows); ++r)
      for (int k = 0; k < NV; ++k) sum[k] += full ? load(x + r * stride + k * w) : load_n(x + r * stride, lanes);
    for (int k = 0; k < NV; ++k) total_sum[k] += sum[k];
  }
  for (int k = 0; k < NV; ++k) {
    centre[k] = total_sum[k] * V(T(1) / static_cast<T>(rows));
    total_sum[k] = total_squares[k] = V(T(0));
  }
  for (int64_t first = 0; first < rows; first += kShortSum) {
    for (int k = 0; k < NV; ++k) sum[k] = squares[k] = V(T(0));
    for (int64_t r = first; r < min64(first + kShortSum, rows); ++r)
      for (int k = 0; k < NV; ++k) {
        const V d = (full ? load(x + r * stride + k * w) : load_n(x + r * stride, lanes)) - centre[k];
        sum[k] += d;
        squares[k] = fma(d, d, squares[k]);
      }
    for (int k = 0; k < NV; ++k) {
      total_sum[k] += sum[k];
      total_squares[k] += squares[k];
    }
  }
  T c[NV * w], s[NV * w], q[NV * w];
  for (int k = 0; k < NV; ++k) {
    detail::store_raw(c + k * w, centre[k]);
    detail::store_raw(s + k * w, total_sum[k]);
    detail::store_raw(q + k * w, total_squares[k]);
  }
  merge_block(c, s, q, rows, before, NV > 1 ? NV * w : lanes, mean, m2);
}

// mean[c] and m2[c] of the R rows at x; partial has 2 * norm_supers(R, C) * C doubles.
template <class S>
static void rows_moments(const Exec& exec, const S* x, int64_t R, int64_t C, double* partial, double* mean,
                         double* m2) {
  constexpr int w = Vec<acc_t<S>>::width;
  const int64_t supers = norm_supers(R, C), super_rows = norm_super_rows(R, C), block = norm_block_rows(C);
  parallel_for(exec, supers, grain_of(super_rows * C), [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) {
      double* a = partial + 2 * u * C;
      double* b = a + C;
      for (int64_t c = 0; c < C; ++c) a[c] = b[c] = 0;
      const int64_t first = u * super_rows, last = min64(first + super_rows, R);
      for (int64_t r = first; r < last; r += block) {
        const S* at = x + r * C;
        const int64_t here = min64(block, last - r), before = r - first;
        int64_t c = 0;
        for (; c + 4 * w <= C; c += 4 * w) block_moments<4>(at + c, here, C, w, before, a + c, b + c);
        for (; c + w <= C; c += w) block_moments<1>(at + c, here, C, w, before, a + c, b + c);
        if (c < C) block_moments<1>(at + c, here, C, static_cast<int>(C - c), before, a + c, b + c);
      }
    }
  });
  parallel_for(exec, C, grain_of(supers * 4), [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      Moments total = {0, 0};
      for (int64_t u = 0; u < supers; ++u) {
        const int64_t before = u * super_rows;
        merge(static_cast<double>(before), total, static_cast<double>(min64(super_rows, R - before)),
              {partial[2 * u * C + c], partial[(2 * u + 1) * C + c]});
      }
      mean[c] = total.mean;
      m2[c] = total.m2;
    }
  });
}

// Adds the gradient sums of `rows` rows of NV vectors to sum_g and sum_gd.
template <int NV, class S>
[[gnu::noinline]] static void block_grad_sums(const Gradient<true, S>& from, int64_t at, int64_t channel, int64_t rows,
                                              int64_t stride, int lanes, double* __restrict sum_g,
                                              double* __restrict sum_gd) {
  using T = acc_t<S>;
  using V = Vec<T>;
  constexpr int w = V::width;
  const bool full = lanes == w;
  V a[NV], b[NV], hi[NV], scale[NV], shift[NV], total_a[NV], total_b[NV];
  for (int k = 0; k < NV; ++k) {
    total_a[k] = total_b[k] = V(T(0));
    hi[k] = full ? detail::load_raw(from.hi + channel + k * w) : detail::load_raw_n(from.hi + channel, lanes);
    scale[k] = full ? detail::load_raw(from.scale + channel + k * w) : detail::load_raw_n(from.scale + channel, lanes);
    shift[k] = full ? detail::load_raw(from.shift + channel + k * w) : detail::load_raw_n(from.shift + channel, lanes);
  }
  for (int64_t first = 0; first < rows; first += kShortSum) {
    for (int k = 0; k < NV; ++k) a[k] = b[k] = V(T(0));
    for (int64_t r = first; r < min64(first + kShortSum, rows); ++r)
      for (int k = 0; k < NV; ++k) {
        const int64_t i = at + r * stride + channel + k * w;
        const V d = (full ? load(from.x + i) : load_n(from.x + i, lanes)) - hi[k];
        V g = full ? load(from.g + i) : load_n(from.g + i, lanes);
        if (!from.act.identity) {
          const V v = from.y == nullptr ? fma(d, scale[k], shift[k])
                      : full            ? load(from.y + i)
                                        : load_n(from.y + i, lanes);
          g = gate(from.act, g, v);
        }
        a[k] += g;
        b[k] = fma(g, d, b[k]);
      }
    for (int k = 0; k < NV; ++k) {
      total_a[k] += a[k];
      total_b[k] += b[k];
    }
  }
  T s[NV * w], q[NV * w];
  for (int k = 0; k < NV; ++k) {
    detail::store_raw(s + k * w, total_a[k]);
    detail::store_raw(q + k * w, total_b[k]);
  }
  const int valid = NV > 1 ? NV * w : lanes;
  for (int j = 0; j < valid; ++j) {
    sum_g[channel + j] += s[j];
    sum_gd[channel + j] += q[j];
  }
}

// sum_g[c] and sum_gd[c] over the R rows that `from` describes; partial as in rows_moments.
// also(first, last) runs behind each block of rows while it is in cache.
template <class S, class Also>
static void rows_grad_sums(const Exec& exec, const Gradient<true, S>& from, int64_t R, int64_t C, double* partial,
                           double* sum_g, double* sum_gd, Also&& also) {
  constexpr int w = Vec<acc_t<S>>::width;
  const int64_t supers = norm_supers(R, C), super_rows = norm_super_rows(R, C), block = norm_block_rows(C);
  parallel_for(exec, supers, grain_of(super_rows * C), [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) {
      double* a = partial + 2 * u * C;
      double* b = a + C;
      for (int64_t c = 0; c < C; ++c) a[c] = b[c] = 0;
      const int64_t first = u * super_rows, last = min64(first + super_rows, R);
      for (int64_t r = first; r < last; r += block) {
        const int64_t here = min64(block, last - r);
        int64_t c = 0;
        for (; c + 4 * w <= C; c += 4 * w) block_grad_sums<4>(from, r * C, c, here, C, w, a, b);
        for (; c + w <= C; c += w) block_grad_sums<1>(from, r * C, c, here, C, w, a, b);
        if (c < C) block_grad_sums<1>(from, r * C, c, here, C, static_cast<int>(C - c), a, b);
        also(r, r + here);
      }
    }
  });
  parallel_for(exec, C, grain_of(supers * 2), [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      sum_g[c] = sum_gd[c] = 0;
      for (int64_t u = 0; u < supers; ++u) {
        sum_g[c] += partial[2 * u * C + c];
        sum_gd[c] += partial[(2 * u + 1) * C + c];
      }
    }
  });
}

// f(first row, last row) over R rows of C elements in parallel; each thread goes backwards, because what it read last
// is still in its cache.
template <class F>
static void rows_backwards(const Exec& exec, int64_t R, int64_t C, F&& f) {
  const int64_t step = max64(1, kGrain / max64(1, C)), steps = ceil_div(R, step);
  parallel_for(exec, steps, 1, [&](int64_t begin, int64_t end) {
    for (int64_t u = end - 1; u >= begin; --u) f(u * step, min64(R, (u + 1) * step));
  });
}

}  // namespace
}  // namespace fastcv::FASTCV_ISA
