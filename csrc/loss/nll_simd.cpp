#include "loss/nll.h"

#include "common/clear.h"
#include "common/dispatch.h"
#include "loss/targets.h"

// One load per sample: nothing to vectorise but the clearing of the gradient; threads hide the cache misses.
namespace fastcv::FASTCV_ISA {
namespace {

constexpr int64_t kSamples = 1 << 12;  // samples checked, counted and summed per block
constexpr int64_t kGrain = 1 << 15;    // gradient elements a thread clears at least

int64_t partial_sums(const CrossEntropyParams& p) { return (p.outer * p.inner + kSamples - 1) / kSamples; }
size_t sums_offset(const CrossEntropyParams& p) { return (partial_sums(p) * sizeof(TargetBlock) + 63) / 64 * 64; }

// The losses of samples [begin, end): their sum, and each of them where loss is not null.
template <class S, class Index>
double pick(const CrossEntropyParams& p, const Index* target, int64_t begin, int64_t end, S* loss) {
  using T = acc_t<S>;
  const S *x = static_cast<const S*>(p.x), *weight = static_cast<const S*>(p.weight);
  const int64_t step = p.inner == 1 ? p.classes : 1;
  if (!weight && !loss && p.inner == 1) {  // nothing but loads: four sums, so that they do not wait for one another
    double sums[4] = {0, 0, 0, 0};
    for (int64_t r = begin; r < end; r += 4)
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i)
        if (r + i < end && target[r + i] != p.ignore_index) sums[i] -= load_one(x + (r + i) * step + target[r + i]);
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }
  double sum = 0;
  while (begin < end) {
    // A run of samples whose scores are `step` apart: all of them for rows, the rest of this map for columns.
    const int64_t o = begin / p.inner, last = (o + 1) * p.inner, stop = p.inner == 1 || last > end ? end : last;
    const S* at = x + o * p.classes * p.inner + begin % p.inner;
    for (int64_t r = begin; r < stop; ++r, at += step) {
      const int64_t t = target[r];
      T mine(0);
      if (t != p.ignore_index) {
        mine = -load_one(at + t * p.inner);
        if (weight) mine *= load_one(weight + t);
      }
      sum += mine;
      if (loss) store_one(loss + r, mine);
    }
    begin = stop;
  }
  return sum;
}

template <class S>
void losses(const CrossEntropyParams& p, const Exec& exec, TargetBlock* blocks, double* sums) {
  S* each = p.reduction == Reduction::none ? static_cast<S*>(p.loss) : nullptr;
  const int64_t rows = p.outer * p.inner, n = partial_sums(p);
  const auto part = [&](const auto* target, int64_t b) {
    const int64_t begin = b * kSamples, end = begin + kSamples < rows ? begin + kSamples : rows;
    blocks[b] = check_block<S>(p, begin, end, target);
    sums[b] = blocks[b].bad < 0 ? pick(p, target, begin, end, each) : 0;
  };
  parallel_for(exec, n, 4, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      if (p.target_kind == Target::i64) part(static_cast<const int64_t*>(p.target), b);
      else part(static_cast<const uint8_t*>(p.target), b);
    }
  });
  double count = 0, total = 0;
  *p.bad = -1;
  for (int64_t b = 0; b < n && *p.bad < 0; ++b) {
    count += blocks[b].count;
    total += sums[b];
    *p.bad = blocks[b].bad;
  }
  if (*p.bad >= 0 || each) return;
  store_one(static_cast<S*>(p.loss), static_cast<acc_t<S>>(p.reduction == Reduction::mean ? total / count : total));
}

template <class S>
void gradient(const CrossEntropyParams& p, const Exec& exec, TargetBlock* blocks) {
  const double count = check_targets<S>(p, exec, blocks);
  if (*p.bad >= 0) return;
  const S *weight = static_cast<const S*>(p.weight), *grad_loss = static_cast<const S*>(p.grad_loss);
  S* grad = static_cast<S*>(p.grad);
  const int64_t rows = p.outer * p.inner;
  const bool each = p.reduction == Reduction::none;
  const double divisor = p.reduction == Reduction::mean ? count : 1;
  parallel_for(exec, rows * p.classes, kGrain, [&](int64_t begin, int64_t end) {
    constexpr int64_t size = sizeof(S);
    clear(grad + begin, (end - begin) * size, rows * p.classes * size);
  });
  parallel_for(exec, rows, 2 * kSamples, [&](int64_t begin, int64_t end) {
    int64_t o = begin / p.inner, i = begin % p.inner;
    for (int64_t r = begin; r < end; ++r) {
      const int64_t t = target_at(p, r), at = (o * p.classes + t) * p.inner + i;
      if (++i == p.inner) i = 0, ++o;
      if (t == p.ignore_index) continue;
      const double w = weight ? load_one(weight + t) : acc_t<S>(1), g = load_one(grad_loss + (each ? r : 0));
      store_one(grad + at, static_cast<acc_t<S>>(-w * g / divisor));
    }
  });
}

}  // namespace

size_t nll_workspace(const CrossEntropyParams& p, int) { return sums_offset(p) + partial_sums(p) * sizeof(double); }

void nll(const CrossEntropyParams& p, const Exec& exec) {
  TargetBlock* blocks = static_cast<TargetBlock*>(exec.workspace);
  double* sums = reinterpret_cast<double*>(static_cast<char*>(exec.workspace) + sums_offset(p));
  dispatch_float(p.dtype, [&](auto zero) {
    using S = decltype(zero);
    if (p.loss) losses<S>(p, exec, blocks, sums);
    if (p.grad) gradient<S>(p, exec, blocks);
  });
}

}  // namespace fastcv::FASTCV_ISA
