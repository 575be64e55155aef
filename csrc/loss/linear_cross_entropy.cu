// linear_cross_entropy on CUDA: of a chunk of rows at a time the scores are multiplied out into scratch memory, turned
// into losses and, in place, into their gradients, and multiplied back. Arithmetic is in float (double for double).
#include "loss/linear_cross_entropy.h"

#include "loss/cross_entropy.cuh"
#include "loss/linear_cross_entropy_plan.h"
#include "loss/product.cuh"

namespace fastcv::FASTCV_GPU {
namespace {

// Where products go: scores get their bias; sums over rows go on from chunk to chunk.
template <class T, class S>
struct StoreScores {
  T* scores;
  int64_t classes;
  const S* bias;
  __device__ __forceinline__ void operator()(int64_t i, int64_t j, T sum) const {
    scores[i * classes + j] = bias == nullptr ? sum : static_cast<T>(widen(bias[j])) + sum;
  }
};
template <class T, class S>
struct StoreNarrow {
  S* to;
  int64_t row;
  __device__ __forceinline__ void operator()(int64_t i, int64_t j, T sum) const { to[i * row + j] = narrow<S>(sum); }
};
template <class T>
struct StoreSum {
  T* to;
  int64_t row;
  bool first;
  __device__ __forceinline__ void operator()(int64_t i, int64_t j, T sum) const {
    T& at = to[i * row + j];
    at = first ? sum : at + sum;
  }
};

// sums[c] (+)= the sum of column c.
template <class T>
__global__ void __launch_bounds__(kThreads)
    column_sums_kernel(const T* scores, int64_t rows, int64_t classes, T* sums, bool first) {
  for (int64_t c = global_thread(); c < classes; c += global_threads()) {
    T total = first ? T(0) : sums[c];
    for (int64_t begin = 0; begin < rows; begin += kSumDeep) {
      T sum = 0;
      for (int64_t r = begin; r < rows && r < begin + kSumDeep; ++r) sum += scores[r * classes + c];
      total += sum;
    }
    sums[c] = total;
  }
}

template <class S>
__global__ void __launch_bounds__(kThreads) narrow_kernel(const acc_t<S>* from, S* to, int64_t n) {
  for (int64_t i = global_thread(); i < n; i += global_threads()) to[i] = narrow<S>(from[i]);
}

template <class S>
int run(const LinearCrossEntropyParams& p, void* workspace, CUstream_st* stream) {
  using T = acc_t<S>;
  const LinearChunks plan(p);
  unsigned char* memory = static_cast<unsigned char*>(workspace);
  const auto take = [&](size_t bytes) {
    unsigned char* part = memory;
    memory += bytes;
    return part;
  };
  // The counts, and one number for the bad rows of a chunk, which nobody reads: all rows are looked at beforehand.
  double* counts = reinterpret_cast<double*>(take(plan.counts_bytes(p)));
  const SampleCount sample_count(counts, p.rows);
  int64_t* unread = reinterpret_cast<int64_t*>(counts + 2 * sample_count.chunks);
  double* losses = reinterpret_cast<double*>(take(plan.losses_bytes(p)));
  T* scores = reinterpret_cast<T*>(take(plan.scores_bytes(p)));
  const auto sums_of = [&](void* grad, size_t bytes) {
    return bytes == 0 ? static_cast<T*>(grad) : reinterpret_cast<T*>(take(bytes));
  };
  T* grad_w = sums_of(p.grad_w, plan.grad_w_bytes(p));
  T* grad_b = sums_of(p.grad_b, plan.grad_b_bytes(p));
  const bool wants_grad = p.grad_x != nullptr || p.grad_w != nullptr || p.grad_b != nullptr;
  const bool each = p.reduction == Reduction::none;
  const S *x = static_cast<const S*>(p.x), *w = static_cast<const S*>(p.w);

  CrossEntropyParams all{};
  all.target = p.target;
  all.weight = p.class_weight;
  all.grad_loss = p.grad_loss;
  all.loss = p.loss;
  all.bad = p.bad;
  all.outer = p.rows;
  all.classes = p.classes;
  all.inner = 1;
  all.ignore_index = p.ignore_index;
  all.smoothing = p.smoothing;
  all.dtype = p.dtype;
  all.target_kind = p.target_kind;
  all.reduction = p.reduction;
  int error = cudaSuccess;
  if (p.target_kind != Target::probability) error = sum_chunks(p.rows, CountTerms<S>{all}, counts, stream);
  // Without rows the gradients of the parameters are zeros all the same.
  if (p.rows == 0) {
    if (error == 0 && p.grad_w != nullptr) error = clear(static_cast<S*>(p.grad_w), p.classes * p.features, stream);
    if (error == 0 && p.grad_b != nullptr) error = clear(static_cast<S*>(p.grad_b), p.classes, stream);
  }
  for (int64_t r0 = 0; r0 < p.rows && error == 0; r0 += plan.rows) {
    const int64_t rows = p.rows - r0 < plan.rows ? p.rows - r0 : plan.rows;
    const int64_t target_bytes = p.target_kind == Target::i64  ? sizeof(int64_t)
                                 : p.target_kind == Target::u8 ? 1
                                                               : p.classes * sizeof(S);
    CrossEntropyParams part = all;
    part.x = scores;
    part.grad = wants_grad ? scores : nullptr;
    part.target = static_cast<const unsigned char*>(p.target) + r0 * target_bytes;
    part.bad = p.bad == nullptr ? nullptr : unread;
    part.outer = rows;
    if (each && p.loss != nullptr) part.loss = static_cast<S*>(p.loss) + r0;
    if (each && p.grad_loss != nullptr) part.grad_loss = static_cast<const S*>(p.grad_loss) + r0;
    error = product<T>(Operand<S>{x + r0 * p.features, rows, p.features, 1}, Operand<S>{w, p.classes, p.features, 1},
                       p.features, StoreScores<T, S>{scores, p.classes, static_cast<const S*>(p.bias)}, stream);
    if (error == 0)
      error = cross_entropy_blocks<T, S, false>(part, p.loss == nullptr || each ? nullptr : losses + r0, sample_count,
                                                stream);
    const Operand<T> by_row{scores, rows, p.classes, 1}, by_class{scores, p.classes, 1, p.classes};
    if (error == 0 && p.grad_x != nullptr)
      error = product<T>(by_row, Operand<S>{w, p.features, 1, p.features}, p.classes,
                         StoreNarrow<T, S>{static_cast<S*>(p.grad_x) + r0 * p.features, p.features}, stream);
    if (error == 0 && p.grad_w != nullptr)
      error = product<T>(by_class, Operand<S>{x + r0 * p.features, p.features, 1, p.features}, rows,
                         StoreSum<T>{grad_w, p.features, r0 == 0}, stream);
    if (error == 0 && p.grad_b != nullptr && p.classes > 0)
      error = launch(column_sums_kernel<T>, grid_for(p.classes, kThreads), kThreads, 0, stream, scores, rows, p.classes,
                     grad_b, r0 == 0);
  }
  const auto narrow_sums = [&](const T* sums, void* grad, int64_t n) {
    if (error != 0 || grad == nullptr || static_cast<const void*>(sums) == grad || n == 0 || p.rows == 0) return;
    error = launch(narrow_kernel<S>, grid_for(n, kThreads), kThreads, 0, stream, sums, static_cast<S*>(grad), n);
  };
  narrow_sums(grad_w, p.grad_w, p.classes * p.features);
  narrow_sums(grad_b, p.grad_b, p.classes);
  return error != 0 ? error : sum_losses<S>(all, losses, counts, stream);
}

}  // namespace

int linear_cross_entropy(const LinearCrossEntropyParams& p, void* workspace, CUstream_st* stream) {
  return by_dtype(p.dtype, [&]<class S>() { return run<S>(p, workspace, stream); });
}

}  // namespace fastcv::FASTCV_GPU
