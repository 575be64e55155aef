// The cross-entropy of one sample on CUDA, and where its scores are kept while they are looked at again: in registers
// of one thread (Column) or of a few lanes (Lanes), in the shared memory of a block (Staged) or of a cluster of blocks
// (Spread), or in the caches (Online).
//
// A keeper has load(), measure(top, sum) with top = max x and sum = sum exp(x - top), each(f) with f(class, score) for
// the scores of this thread, write(f) with the gradients f(class, score), zero(), which writes zeros and needs no
// load(), and sum(v) over the sample's threads; Part is what one thread's terms are added up in.
#pragma once
#include <type_traits>

#include "loss/loss.cuh"

namespace fastcv::FASTCV_GPU {

// The classes that thread `rank` of `ranks` takes: n consecutive ones at a time. n > 1 divides the classes.
template <int n, int unroll, class F>
__device__ __forceinline__ void my_packs(int64_t classes, int rank, int ranks, F&& f) {
#pragma unroll unroll
  for (int64_t c = static_cast<int64_t>(rank) * n; c < classes; c += static_cast<int64_t>(ranks) * n) f(c);
}
// n elements: a pack, or one.
template <class S, int n>
__device__ __forceinline__ Pack<S, n> load_scores(const S* from, int access) {
  if constexpr (n == 1) return {{*from}};
  else return load_elements(from, n, access);
}
template <class S, int n>
__device__ __forceinline__ void store_scores(S* to, const Pack<S, n>& pack, int access) {
  if constexpr (n == 1) *to = pack.at[0];
  else store_elements(to, n, access, pack);
}

template <class S, int n>
__device__ __forceinline__ void store_zeros(S* to, int access) {
  Pack<S, n> pack;
#pragma unroll
  for (int i = 0; i < n; ++i) pack.at[i] = narrow<S>(acc_t<S>(0));
  store_scores(to, pack, access);
}

// Scores in the registers of `lanes` lanes, up to `held` each.
template <class S, int lanes, int held, int n>
struct Lanes {
  using T = acc_t<S>;
  using Part = T;
  const S* x;
  S* grad;
  int classes;
  int access;
  T scores[held] = {};

  __device__ int lane() const { return static_cast<int>(threadIdx.x) % lanes; }
  __device__ int class_of(int slot) const { return (slot / n * lanes + lane()) * n + slot % n; }
  __device__ __forceinline__ void load() {
#pragma unroll
    for (int slot = 0; slot < held; slot += n) {
      if (class_of(slot) >= classes) continue;
      const auto pack = load_scores<S, n>(x + class_of(slot), access);
#pragma unroll
      for (int i = 0; i < n; ++i) scores[slot + i] = widen(pack.at[i]);
    }
  }
  template <class Combine>
  __device__ __forceinline__ T reduce(T v, Combine combine) const {
    const unsigned all =
        lanes == kWarp ? kAllLanes : ((1u << lanes % kWarp) - 1) << threadIdx.x % kWarp / lanes * lanes;
#pragma unroll
    for (int step = lanes / 2; step > 0; step /= 2) v = combine(v, __shfl_xor_sync(all, v, step));
    return v;
  }
  __device__ __forceinline__ T sum(T v) const { return reduce(v, Sum()); }
  template <class F>
  __device__ __forceinline__ void each(F&& f) const {
#pragma unroll
    for (int slot = 0; slot < held; ++slot)
      if (class_of(slot) < classes) f(class_of(slot), scores[slot]);
  }
  __device__ __forceinline__ void measure(T& top, T& total) const {
    T most = -INFINITY, part = 0;
    each([&](int64_t, T v) { most = v > most ? v : most; });
    top = reduce(most, Max());
    each([&](int64_t, T v) { part += exp(v - top); });
    total = sum(part);
  }
  template <class F>
  __device__ __forceinline__ void write(F&& f) const {
#pragma unroll
    for (int slot = 0; slot < held; slot += n) {
      if (class_of(slot) >= classes) continue;
      Pack<S, n> pack;
#pragma unroll
      for (int i = 0; i < n; ++i) pack.at[i] = narrow<S>(f(class_of(slot) + i, scores[slot + i]));
      store_scores(grad + class_of(slot), pack, access);
    }
  }
  __device__ __forceinline__ void zero() const {
#pragma unroll
    for (int slot = 0; slot < held; slot += n)
      if (class_of(slot) < classes) store_zeros<S, n>(grad + class_of(slot), access);
  }
  __device__ bool first() const { return lane() == 0; }
};

// Scores in the shared memory of a block: each thread keeps its own there, so that nobody need wait.
template <class S, int n, int threads>
struct Staged {
  using T = acc_t<S>;
  using Part = T;
  const S* x;
  S* grad;
  int64_t classes;
  int access;
  Shared<S> stage;
  Shared<T> scratch;
  T most = -INFINITY;

  __device__ __forceinline__ void load() {
    my_packs<n, 4>(classes, threadIdx.x, threads, [&](int64_t c) {
      const auto pack = load_scores<S, n>(x + c, access);
      store_shared(stage + c, pack);
#pragma unroll
      for (int i = 0; i < n; ++i) {
        const T v = widen(pack.at[i]);
        most = v > most ? v : most;
      }
    });
  }
  __device__ __forceinline__ T sum(T v) const { return reduce_block(v, scratch, Sum()); }
  template <class F>
  __device__ __forceinline__ void each(F&& f) const {
    my_packs<n, 1>(classes, threadIdx.x, threads, [&](int64_t c) {
      const auto pack = load_shared<Pack<S, n>>(stage + c);
#pragma unroll
      for (int i = 0; i < n; ++i) f(c + i, widen(pack.at[i]));
    });
  }
  __device__ __forceinline__ void measure(T& top, T& total) const {
    top = reduce_block(most, scratch, Max());
    T part = 0;
    each([&](int64_t, T v) { part += exp(v - top); });
    total = sum(part);
  }
  template <class F>
  __device__ __forceinline__ void write(F&& f) const {
    my_packs<n, 1>(classes, threadIdx.x, threads, [&](int64_t c) {
      auto pack = load_shared<Pack<S, n>>(stage + c);
#pragma unroll
      for (int i = 0; i < n; ++i) pack.at[i] = narrow<S>(f(c + i, widen(pack.at[i])));
      store_scores(grad + c, pack, access);
    });
  }
  __device__ __forceinline__ void zero() const {
    my_packs<n, 1>(classes, threadIdx.x, threads, [&](int64_t c) { store_zeros<S, n>(grad + c, access); });
  }
  __device__ bool first() const { return threadIdx.x == 0; }
};

// Of scores seen one after the other: their maximum, and the sum of exp(x - maximum).
// A: what the sum is kept in, double where one thread adds up a whole sample.
template <class T, class A = T>
struct Running {
  T top = -INFINITY;
  A sum = 0;
  __device__ __forceinline__ void add(T v) {
    if (v > top) {
      sum = sum * exp(top - v) + 1;
      top = v;
    } else if (v != -INFINITY) {
      sum += exp(v - top);
    }
  }
  // Others that were seen elsewhere.
  __device__ __forceinline__ void join(T its_top, T its_sum) {
    if (its_top > top) {
      sum = (sum == 0 ? T(0) : sum * exp(top - its_top)) + its_sum;
      top = its_top;
    } else {
      sum += its_sum == 0 ? T(0) : its_sum * exp(its_top - top);
    }
  }
};

// Scores in the shared memory of a cluster of blocks, each of which takes the classes [begin, end). The blocks tell
// each other their sums through it: `told` holds two pairs, which take turns, so that one barrier per sum is enough.
template <class S, int n, int threads>
struct Spread {
  using T = acc_t<S>;
  using Part = T;
  const S* x;
  S* grad;
  int64_t begin, end;
  unsigned blocks;
  int access;
  Shared<S> stage;
  Shared<T> scratch, told;
  int turn = 0;
  T most = -INFINITY;

  // f(class, place in stage) for this thread's packs.
  template <int unroll, class F>
  __device__ __forceinline__ void mine(F&& f) const {
    my_packs<n, unroll>(end - begin, threadIdx.x, threads, [&](int64_t i) { f(begin + i, i); });
  }
  __device__ __forceinline__ void load() {
    most = -INFINITY;
    mine<4>([&](int64_t c, int64_t i) {
      const auto pack = load_scores<S, n>(x + c, access);
      store_shared(stage + i, pack);
#pragma unroll
      for (int k = 0; k < n; ++k) {
        const T v = widen(pack.at[k]);
        most = v > most ? v : most;
      }
    });
  }
  // join(first, second) of every block's pair, in the order of the blocks.
  template <class Join>
  __device__ __forceinline__ void tell(T first, T second, Join&& join) {
    if (threadIdx.x == 0) {
      told[2 * turn] = first;
      told[2 * turn + 1] = second;
    }
    cluster_sync();
    for (unsigned block = 0; block < blocks; ++block) {
      const auto there = cluster_shared(told, block);
      join(static_cast<T>(there[2 * turn]), static_cast<T>(there[2 * turn + 1]));
    }
    turn ^= 1;
  }
  __device__ __forceinline__ T sum(T v) {
    T total = 0;
    tell(reduce_block(v, scratch, Sum()), 0, [&](T part, T) { total += part; });
    return total;
  }
  template <class F>
  __device__ __forceinline__ void each(F&& f) const {
    mine<1>([&](int64_t c, int64_t i) {
      const auto pack = load_shared<Pack<S, n>>(stage + i);
#pragma unroll
      for (int k = 0; k < n; ++k) f(c + k, widen(pack.at[k]));
    });
  }
  __device__ __forceinline__ void measure(T& top, T& total) {
    const T own = reduce_block(most, scratch, Max());
    T part = 0;
    each([&](int64_t, T v) { part += v == -INFINITY ? T(0) : exp(v - own); });
    part = reduce_block(part, scratch, Sum());
    Running<T> all;
    tell(own, part, [&](T its_top, T its_sum) { all.join(its_top, its_sum); });
    top = all.top;
    total = all.sum;
  }
  template <class F>
  __device__ __forceinline__ void write(F&& f) const {
    mine<1>([&](int64_t c, int64_t i) {
      auto pack = load_shared<Pack<S, n>>(stage + i);
#pragma unroll
      for (int k = 0; k < n; ++k) pack.at[k] = narrow<S>(f(c + k, widen(pack.at[k])));
      store_scores(grad + c, pack, access);
    });
  }
  __device__ __forceinline__ void zero() const {
    mine<1>([&](int64_t c, int64_t) { store_zeros<S, n>(grad + c, access); });
  }
  __device__ bool first() const { return begin == 0 && threadIdx.x == 0; }
};

// Scores of a block that are read again from the caches; grad may be x.
template <class S, int n, int threads>
struct Online {
  using T = acc_t<S>;
  using Part = T;
  const S* x;
  S* grad;
  int64_t classes;
  int access;
  Shared<T> scratch;

  __device__ __forceinline__ void load() {}
  __device__ __forceinline__ T sum(T v) const { return reduce_block(v, scratch, Sum()); }
  template <class F>
  __device__ __forceinline__ void each(F&& f) const {
    my_packs<n, sizeof(T) == 8 ? 1 : 2>(classes, threadIdx.x, threads, [&](int64_t c) {
      const auto pack = load_scores<S, n>(x + c, access);
#pragma unroll
      for (int i = 0; i < n; ++i) f(c + i, widen(pack.at[i]));
    });
  }
  __device__ __forceinline__ void measure(T& top, T& total) const {
    Running<T> mine;
    each([&](int64_t, T v) { mine.add(v); });
    top = reduce_block(mine.top, scratch, Max());
    total = sum(mine.sum == 0 ? T(0) : mine.sum * exp(mine.top - top));
  }
  template <class F>
  __device__ __forceinline__ void write(F&& f) const {
    my_packs<n, sizeof(T) == 8 ? 1 : 2>(classes, threadIdx.x, threads, [&](int64_t c) {
      auto pack = load_scores<S, n>(x + c, access);
#pragma unroll
      for (int i = 0; i < n; ++i) pack.at[i] = narrow<S>(f(c + i, widen(pack.at[i])));
      store_scores(grad + c, pack, access);
    });
  }
  __device__ __forceinline__ void zero() const {
    my_packs<n, 1>(classes, threadIdx.x, threads, [&](int64_t c) { store_zeros<S, n>(grad + c, access); });
  }
  __device__ bool first() const { return threadIdx.x == 0; }
};

// Scores of one thread, `inner` elements apart: in registers if there are at most `held`, else (held == 0) read again.
template <class S, int held>
struct Column {
  using T = acc_t<S>;
  using Part = std::conditional_t<held == 0, double, T>;
  const S* x;
  S* grad;
  int64_t classes, inner;
  T scores[held == 0 ? 1 : held] = {};

  __device__ __forceinline__ void load() {
#pragma unroll
    for (int c = 0; c < held; ++c)
      if (c < classes) scores[c] = widen(x[c * inner]);
  }
  __device__ __forceinline__ T sum(T v) const { return v; }
  template <class F>
  __device__ __forceinline__ void each(F&& f) const {
    if constexpr (held == 0) {
      for (int64_t c = 0; c < classes; ++c) f(c, widen(x[c * inner]));
    } else {
#pragma unroll
      for (int c = 0; c < held; ++c)
        if (c < classes) f(c, scores[c]);
    }
  }
  __device__ __forceinline__ void measure(T& top, T& total) const {
    if constexpr (held == 0) {
      Running<T, double> mine;
      each([&](int64_t, T v) { mine.add(v); });
      top = mine.top;
      total = static_cast<T>(mine.sum);
      return;
    }
    T most = -INFINITY, part = 0;
    each([&](int64_t, T v) { most = v > most ? v : most; });
    each([&](int64_t, T v) { part += exp(v - most); });
    top = most;
    total = part;
  }
  template <class F>
  __device__ __forceinline__ void write(F&& f) const {
    each([&](int64_t c, T v) { grad[c * inner] = narrow<S>(f(c, v)); });
  }
  __device__ __forceinline__ void zero() const {
    for (int64_t c = 0; c < classes; ++c) grad[c * inner] = narrow<S>(T(0));
  }
  __device__ bool first() const { return true; }
};

// Loss and gradient of sample r. Q: storage type of weight, probabilities, grad_loss and of losses that are stored per
// sample. first_score: where the sample's classes begin in x and in the probabilities. `losses` is null or gets the
// loss for the sum over samples.
template <class Q, class Keeper>
__device__ __forceinline__ void one_sample(const CrossEntropyParams& p, Keeper& keep, int64_t r, int64_t first_score,
                                           typename Keeper::T mean_scale, double* losses) {
  using T = typename Keeper::T;
  const Q *weight = static_cast<const Q*>(p.weight), *grad_loss = static_cast<const Q*>(p.grad_loss);
  const Q* q = static_cast<const Q*>(p.target) + first_score;
  const bool soft = p.target_kind == Target::probability;
  const int64_t t = soft ? -1 : counted_target(p, r);
  const auto store = [&](T loss) {
    if (!keep.first()) return;
    if (losses != nullptr) losses[r] = loss;
    if (p.loss != nullptr && p.reduction == Reduction::none)
      static_cast<Q*>(p.loss)[r] = narrow<Q>(static_cast<acc_t<Q>>(loss));
  };
  if (!soft && t < 0) {
    store(0);
    if (p.grad != nullptr) keep.zero();
    return;
  }
  const T share = static_cast<T>(1 - p.smoothing),
          spread = static_cast<T>(p.smoothing / static_cast<double>(p.classes));
  const auto weight_of = [&](int64_t c) { return weight == nullptr ? T(1) : static_cast<T>(widen(weight[c])); };
  const T at_target = soft ? T(0) : share * weight_of(t);
  // What log p_c is weighed with.
  const auto coefficient = [&](int64_t c) {
    if (soft) return weight_of(c) * (share * static_cast<T>(widen(q[c * p.inner])) + spread);
    const T picked = c == t ? at_target : T(0);
    return p.smoothing > 0 ? picked + spread * weight_of(c) : picked;
  };
  const T score = soft ? T(0) : widen(keep.x[t * p.inner]);  // before grad, which may be x, is written
  keep.load();
  T top, sum;
  keep.measure(top, sum);
  const T log_sum = log(sum);
  T mass = at_target, loss = -at_target * (score - top - log_sum);
  if (soft || p.smoothing > 0) {
    typename Keeper::Part masses = 0, terms = 0;
    keep.each([&](int64_t c, T v) {
      const T k = coefficient(c);
      masses += k;
      terms -= k * (v - top - log_sum);
    });
    mass = keep.sum(static_cast<T>(masses));
    loss = keep.sum(static_cast<T>(terms));
  }
  store(loss);
  if (p.grad == nullptr) return;
  T scale = mean_scale;
  if (grad_loss != nullptr) scale *= static_cast<T>(widen(grad_loss[p.reduction == Reduction::none ? r : 0]));
  const T of_probability = scale * mass / sum;
  keep.write([&](int64_t c, T v) { return of_probability * exp(v - top) - scale * coefficient(c); });
}

// Block per row, row after row: scores of type S in p.x, whose classes lie innermost; see one_sample.
constexpr int kRowThreads = 512;
template <class S, class Q, int n, bool staged>
__global__ void __launch_bounds__(kRowThreads)
    cross_entropy_block_kernel(const CrossEntropyParams p, double* losses, const SampleCount sample_count, int access) {
  using T = acc_t<S>;
  FASTCV_DYNAMIC_SHARED(S, stage);
  FASTCV_SHARED(T, scratch, kRowThreads / kWarp);
  FASTCV_SHARED(double, sums, kRowThreads / kWarp);
  const T scale = p.grad == nullptr ? T(1) : mean_scale<T>(p, sample_count, sums);
  for (int64_t r = blockIdx.x; r < p.outer; r += gridDim.x) {
    const int64_t at = r * p.classes;
    const S* x = static_cast<const S*>(p.x) + at;
    S* grad = static_cast<S*>(p.grad) + at;
    if constexpr (staged) {
      Staged<S, n, kRowThreads> keeper{x, grad, p.classes, access, stage, scratch};
      one_sample<Q>(p, keeper, r, at, scale, losses);
    } else {
      Online<S, n, kRowThreads> keeper{x, grad, p.classes, access, scratch};
      one_sample<Q>(p, keeper, r, at, scale, losses);
    }
  }
}

// Cluster per row.
template <class S, int n>
__global__ void __launch_bounds__(kRowThreads)
    cross_entropy_cluster_kernel(const CrossEntropyParams p, unsigned blocks, int64_t length, double* losses,
                                 const SampleCount sample_count, int access) {
  using T = acc_t<S>;
  FASTCV_DYNAMIC_SHARED(S, stage);
  FASTCV_SHARED(T, scratch, kRowThreads / kWarp);
  FASTCV_SHARED(double, sums, kRowThreads / kWarp);
  FASTCV_SHARED(T, told, 4);
  const T scale = p.grad == nullptr ? T(1) : mean_scale<T>(p, sample_count, sums);
  const int64_t begin = cluster_rank() * length < p.classes ? cluster_rank() * length : p.classes;
  const int64_t end = begin + length < p.classes ? begin + length : p.classes;
  Spread<S, n, kRowThreads> keeper{nullptr, nullptr, begin, end, blocks, access, stage, scratch, told};
  for (int64_t r = blockIdx.x / blocks; r < p.outer; r += gridDim.x / blocks) {
    keeper.x = static_cast<const S*>(p.x) + r * p.classes;
    keeper.grad = static_cast<S*>(p.grad) + r * p.classes;
    one_sample<S>(p, keeper, r, r * p.classes, scale, losses);
  }
  cluster_sync();  // nobody ends while others may read what it told
}

template <class S, class Q, bool staged>
int cross_entropy_blocks(const CrossEntropyParams& p, double* losses, const SampleCount& sample_count,
                         CUstream_st* stream) {
  const int access = access_bytes({p.x, p.grad});
  const size_t bytes = staged ? static_cast<size_t>(p.classes) * sizeof(S) : 0;
  if (p.classes % kPack<S> == 0)
    return launch(cross_entropy_block_kernel<S, Q, kPack<S>, staged>, grid_for(p.outer, 1), kRowThreads, bytes, stream,
                  p, losses, sample_count, access);
  return launch(cross_entropy_block_kernel<S, Q, 1, staged>, grid_for(p.outer, 1), kRowThreads, bytes, stream, p,
                losses, sample_count, 0);
}

// The loss of all samples from those of each.
template <class Q>
struct LossTerms {
  CrossEntropyParams p;
  const double* losses;
  __device__ __forceinline__ void operator()(int64_t r, double& a, double& b) const {
    a += losses[r];
    if (p.target_kind == Target::probability) b += 1;
    else CountTerms<Q>{p}(r, b, b);
  }
};
template <class Q>
struct LossFinish {
  void* loss;
  bool mean;
  __device__ __forceinline__ void operator()(double a, double b) const {
    *static_cast<Q*>(loss) = narrow<Q>(static_cast<acc_t<Q>>(mean ? a / b : a));
  }
};
template <class Q>
int sum_losses(const CrossEntropyParams& p, const double* losses, double* partial, CUstream_st* stream) {
  if (p.loss == nullptr || p.reduction == Reduction::none) return cudaSuccess;
  return sum_all(p.outer * p.inner, LossTerms<Q>{p, losses}, LossFinish<Q>{p.loss, p.reduction == Reduction::mean},
                 partial, stream);
}

}  // namespace fastcv::FASTCV_GPU
