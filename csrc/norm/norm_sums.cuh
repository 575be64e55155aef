// Sums over sets of elements: every statistic of this family is a pair of sums over the values of a channel, a group, a
// row or a column. reduce_sets adds each set up in segments, in double, and then the segments in order. Which elements
// a thread adds and in which order depends on the shape and the dtype alone, never on addresses: the same bits on every
// run and for any alignment, and an image's own sets do not depend on the batch around it.
//
// Terms says what is added:
//   in[kInputs]                       the tensors, dense and of one shape; null ones give zeros
//   Coefficients coefficients(set, base)   what a set needs, once per thread; base: the offset of its first element
//   Row row(row)                      what a row of sets side by side needs (kByRow)
//   weights                           a vector along the set that multiplies the last input (kWeighted)
//   add(coefficients, row, values, a, b)
// and finish(set, a, b) takes the sums.
//
// A thread holds kUnroll packs of each tensor in flight, 32 KB and more on an SM: docs/cuda.md, "Norms at memory
// speed".
#pragma once
#include "common/reduce.cuh"
#include "norm/norm.cuh"

namespace fastcv::FASTCV_GPU {

struct Nothing {};

struct SetsOnGpu {
  Sets s;
  Divider inner, run_packs;
  int64_t segment;
  int lanes, access;
  unsigned chunks;  // of lanes packs, in a row of sets side by side
  bool at_once;     // one segment is the whole set
  template <class Pointers>
  SetsOnGpu(const Sets& sets, const Pointers& in)
      : s(sets),
        inner(sets.inner),
        run_packs(sets.run_packs()),
        segment(sets.segment()),
        lanes(sets.lanes()),
        access(16),
        chunks(static_cast<unsigned>(sets.chunks())),
        at_once(sets.segments() == 1 && sets.merged == 1) {
    for (const void* p : in) {
      const int bytes = access_bytes({p}, {s.outer > 1 ? s.outer_step : 0, s.rows > 1 ? s.row_step : 0}, 16 / s.pack);
      access = bytes < access ? bytes : access;
    }
  }
};

// A team of threads takes packs of one set: 32 threads or a block.
template <int team, class S, class Terms, class Finish>
__global__ void __launch_bounds__(kThreads, 2)
    along_kernel(const Terms terms, const Finish finish, const SetsOnGpu g, double* partial) {
  constexpr int n = kPack<S>, kUnroll = Terms::kInputs == 1 ? 4 : 2;
  FASTCV_SHARED(double, scratch, kThreads / kWarp);
  const int64_t set = static_cast<int64_t>(blockIdx.x) * (kThreads / team) + threadIdx.x / team;
  if (set >= g.s.outer * g.s.inner) return;  // whole teams
  int64_t in = set;
  const int64_t out = g.inner.split(in), base = out * g.s.outer_step + in * g.s.inner_step;
  const int64_t begin = blockIdx.y * g.segment, packs = g.s.rows * ((g.s.run + n - 1) / n);
  const int64_t end = begin + g.segment < packs ? begin + g.segment : packs;
  const typename Terms::Coefficients coefficients = terms.coefficients(set, base);
  double a[kUnroll] = {}, b[kUnroll] = {};
  for (int64_t q = begin + threadIdx.x % team; q < end; q += kUnroll * team) {
    Pack<S, n> packs_in[kUnroll][Terms::kInputs];
    int64_t column[kUnroll];
    int count[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      count[u] = 0;
      if (q + u * team >= end) continue;
      int64_t f = q + u * team;
      const int64_t row = g.run_packs.split(f);
      column[u] = f * n;
      count[u] = static_cast<int>(g.s.run - column[u] < n ? g.s.run - column[u] : n);
      load_all(terms.in, base + row * g.s.row_step + column[u], count[u], g.access, packs_in[u]);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      acc_t<S> values[Terms::kInputs], weights[n];
      if constexpr (Terms::kWeighted)
        if (count[u] > 0) get_run(terms.weights, column[u], g.s.run - 1, acc_t<S>(1), weights);
#pragma unroll
      for (int i = 0; i < n; ++i) {
        if (i >= count[u]) continue;
        element<S>(packs_in[u], i, values);
        if constexpr (Terms::kWeighted) values[Terms::kInputs - 1] *= weights[i];
        terms.add(coefficients, typename Terms::Row{}, values, a[u], b[u]);
      }
    }
  }
#pragma unroll
  for (int u = 1; u < kUnroll; ++u) a[0] += a[u], b[0] += b[u];
  if constexpr (team == kWarp) {
    a[0] = reduce_warp(a[0], Sum());
    b[0] = reduce_warp(b[0], Sum());
  } else {
    a[0] = reduce_block(a[0], scratch, Sum());
    b[0] = reduce_block(b[0], scratch, Sum());
  }
  if (threadIdx.x % team != 0) return;
  if (g.at_once) {
    finish(set, a[0], b[0]);
    return;
  }
  double* to = partial + (set * gridDim.y + blockIdx.y) * 2;
  to[0] = a[0];
  to[1] = b[0];
}

// A thread takes a pack of sets that lie side by side and every (block's threads / lanes)-th row of a segment.
template <class S, class Terms, class Finish>
__global__ void __launch_bounds__(kThreads, Terms::kInputs* kPack<S> > 16 ? 1 : 2)
    across_kernel(const Terms terms, const Finish finish, const SetsOnGpu g, double* partial) {
  using T = acc_t<S>;
  constexpr int n = kPack<S>, kUnroll = Terms::kInputs == 2 ? 2 : 4;
  FASTCV_SHARED(double, sums, kThreads* n);
  FASTCV_SHARED(typename Terms::Coefficients, table, kNormLanes * n);
  FASTCV_SHARED(typename Terms::Row, row_table, kThreads);
  const int lane = threadIdx.x & (g.lanes - 1), tall = kThreads / g.lanes;
  const int64_t out = blockIdx.x / g.chunks, first = static_cast<int64_t>(blockIdx.x % g.chunks) * g.lanes * n;
  const int64_t base = out * g.s.outer_step, column = first + lane * n;
  const int64_t begin = blockIdx.y * g.segment;
  const int64_t end = begin + g.segment < g.s.rows ? begin + g.segment : g.s.rows;
  const auto clamped = [&](int64_t in) { return in < g.s.inner ? in : g.s.inner - 1; };

  typename Terms::Coefficients coefficients[n];
  if constexpr (!Terms::kByRow) {
    if (static_cast<int>(threadIdx.x) < g.lanes * n) {
      const int64_t in = clamped(first + threadIdx.x);
      table[threadIdx.x] = terms.coefficients(out * g.s.inner + in, base + in);
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < n; ++i) coefficients[i] = table[lane * n + i];
  }

  double a[n] = {}, b[n] = {};
  const auto add_rows = [&](int64_t from, int64_t to) {
    for (int64_t r = from + threadIdx.x / g.lanes; r < to; r += kUnroll * tall) {
      Pack<S, n> packs[kUnroll][Terms::kInputs];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u)
        if (r + u * tall < to && column < g.s.inner)
          load_all(terms.in, base + (r + u * tall) * g.s.row_step + column, g.s.inner - column, g.access, packs[u]);
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        if (r + u * tall >= to || column >= g.s.inner) continue;
        typename Terms::Row row{};
        if constexpr (Terms::kByRow) row = row_table[r + u * tall - from];
#pragma unroll
        for (int i = 0; i < n; ++i) {
          T values[Terms::kInputs];
          element<S>(packs[u], i, values);
          terms.add(coefficients[i], row, values, a[i], b[i]);
        }
      }
    }
  };
  if constexpr (Terms::kByRow) {
    for (int64_t from = begin; from < end; from += kThreads) {
      const int64_t to = from + kThreads < end ? from + kThreads : end;
      __syncthreads();  // the rows before are done with the table
      if (from + threadIdx.x < to) row_table[threadIdx.x] = terms.row(from + threadIdx.x);
      __syncthreads();
      add_rows(from, to);
    }
  } else {
    add_rows(begin, end);
  }

  // Rows of a warp by shuffles, then warps in order.
  for (int step = g.lanes; step < kWarp; step *= 2) {
#pragma unroll
    for (int i = 0; i < n; ++i) {
      a[i] += __shfl_xor_sync(kAllLanes, a[i], step);
      b[i] += __shfl_xor_sync(kAllLanes, b[i], step);
    }
  }
  const int warp = threadIdx.x / kWarp, sets = g.lanes * n;
  const auto total = [&](const double (&of)[n]) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x % kWarp) < g.lanes)
#pragma unroll
      for (int i = 0; i < n; ++i) sums[warp * sets + lane * n + i] = of[i];
    __syncthreads();
    double sum = 0;
    if (static_cast<int>(threadIdx.x) < sets)
      for (int w = 0; w < kThreads / kWarp; ++w) sum += sums[w * sets + threadIdx.x];
    return sum;
  };
  const double sum_a = total(a), sum_b = total(b);
  if (static_cast<int>(threadIdx.x) >= sets || first + threadIdx.x >= g.s.inner) return;
  const int64_t set = out * g.s.inner + first + threadIdx.x;
  if (g.at_once) {
    finish(set, sum_a, sum_b);
    return;
  }
  double* to = partial + (set * gridDim.y + blockIdx.y) * 2;
  to[0] = sum_a;
  to[1] = sum_b;
}

// finish(set, a, b) for every set of so many pairs of partial sums: a thread or a warp each.
template <int team, class Finish>
__global__ void __launch_bounds__(kThreads)
    finish_sets_kernel(const Finish finish, int64_t sets, int64_t parts, const double* partial) {
  for (int64_t set = global_thread() / team; set < sets; set += global_threads() / team) {
    double a = 0, b = 0;
    for (int64_t i = threadIdx.x % team; i < parts; i += team) {
      a += partial[(set * parts + i) * 2];
      b += partial[(set * parts + i) * 2 + 1];
    }
    if constexpr (team == kWarp) {
      a = reduce_warp(a, Sum());
      b = reduce_warp(b, Sum());
    }
    if (threadIdx.x % team == 0) finish(set, a, b);
  }
}
template <class Finish>
int finish_sets(const Finish& finish, int64_t sets, int64_t parts, const double* partial, CUstream_st* stream) {
  if (sets == 0) return cudaSuccess;
  return parts > 8 ? launch(finish_sets_kernel<kWarp, Finish>, grid_for(sets, kThreads / kWarp), kThreads, 0, stream,
                            finish, sets, parts, partial)
                   : launch(finish_sets_kernel<1, Finish>, grid_for(sets, kThreads), kThreads, 0, stream, finish, sets,
                            parts, partial);
}

template <class S, class Terms, class Finish>
int reduce_sets(const Sets& s, const Terms& terms, const Finish& finish, double* partial, CUstream_st* stream) {
  if (s.sets() == 0) return cudaSuccess;
  const auto segments = static_cast<unsigned>(s.segments());
  if (segments > 0) {
    const SetsOnGpu g(s, terms.in);
    int error = cudaErrorInvalidValue;
    if constexpr (!Terms::kWeighted)
      if (s.side_by_side())
        error = launch(across_kernel<S, Terms, Finish>, dim3(static_cast<unsigned>(s.outer * s.chunks()), segments),
                       kThreads, 0, stream, terms, finish, g, partial);
    if constexpr (!Terms::kByRow) {
      constexpr int teams = kThreads / kWarp;
      if (!s.side_by_side())
        error = s.length() <= 8 * kWarp
                    ? launch(along_kernel<kWarp, S, Terms, Finish>,
                             dim3(static_cast<unsigned>((s.sets() + teams - 1) / teams), segments), kThreads, 0, stream,
                             terms, finish, g, partial)
                    : launch(along_kernel<kThreads, S, Terms, Finish>, dim3(static_cast<unsigned>(s.sets()), segments),
                             kThreads, 0, stream, terms, finish, g, partial);
    }
    if (error != 0 || g.at_once) return error;
  }
  return finish_sets(finish, s.merged_sets(), segments * s.merged, partial, stream);
}

// Mean and biased variance. The sums are of x - x[first element of the merged set], so a large mean costs nothing.
template <class S>
struct MomentTerms {
  static constexpr int kInputs = 1;
  static constexpr bool kByRow = false, kWeighted = false;
  using Coefficients = double;
  using Row = Nothing;
  const S* in[1];
  Divider merged;
  __device__ __forceinline__ double coefficients(int64_t set, int64_t base) const {
    merged.split(set);
    return widen(in[0][base - set]);
  }
  __device__ __forceinline__ void add(double shift, Nothing, const acc_t<S> (&x)[1], double& a, double& b) const {
    const double d = static_cast<double>(x[0]) - shift;
    a += d;
    b += d * d;
  }
};
template <class S>
struct MomentFinish {
  const S* x;
  int64_t outer_step, inner_step, merged;
  double count;
  Divider inner;
  double* mean;
  double* var;
  __device__ __forceinline__ void operator()(int64_t set, double a, double b) const {
    if (count == 0) {
      mean[set] = var[set] = 0;
      return;
    }
    int64_t in = set * merged;
    const int64_t out = inner.split(in);
    const double shift = a / count, v = b / count - shift * shift;
    mean[set] = widen(x[out * outer_step + in * inner_step]) + shift;
    var[set] = v < 0 ? 0 : v;
  }
};
template <class S>
int moments(const Sets& s, const S* x, double* mean, double* var, double* partial, CUstream_st* stream) {
  const MomentFinish<S> finish{
      x, s.outer_step, s.inner_step, s.merged, static_cast<double>(s.count()), Divider(s.inner), mean, var};
  return reduce_sets<S>(s, MomentTerms<S>{{x}, Divider(s.merged)}, finish, partial, stream);
}

}  // namespace fastcv::FASTCV_GPU
