#include "loss/kl_div.h"

#include "common/dispatch.h"
#include "loss/tile.h"

namespace fastcv::FASTCV_ISA {
namespace {

constexpr int64_t kBlock = 1 << 12;  // elements per partial sum

int64_t blocks_of(const KlDivParams& p) { return (p.n + kBlock - 1) / kBlock; }

template <class T>
FASTCV_INLINE Vec<T> term(Vec<T> x, Vec<T> t, bool log_target) {
  if (log_target) return exp(t) * (t - x);
  return select<T>(t == Vec<T>(T(0)), t, t * log(t)) - t * x;
}

template <class S>
void forward(const KlDivParams& p, const Exec& exec) {
  using T = acc_t<S>;
  using V = Vec<T>;
  constexpr int w = V::width;
  const S *x = static_cast<const S*>(p.x), *target = static_cast<const S*>(p.target);
  S* loss = static_cast<S*>(p.loss);
  double* sums = static_cast<double*>(exec.workspace);
  parallel_for(exec, blocks_of(p), 2, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      const int64_t end = (b + 1) * kBlock < p.n ? (b + 1) * kBlock : p.n;
      V sum(T(0));
      for (int64_t i = b * kBlock; i < end; i += w) {
        const int n = static_cast<int>(end - i < w ? end - i : w);
        const V y = term<T>(load_up_to(x + i, n), load_up_to(target + i, n), p.log_target);
        if (p.reduce) sum += n < w ? select<T>(first_lanes<T>(n), y, V(T(0))) : y;
        else store_up_to(loss + i, y, n);
      }
      if (p.reduce) sums[b] = reduce_add(sum);
    }
  });
  if (!p.reduce) return;
  double total = 0;
  for (int64_t b = 0; b < blocks_of(p); ++b) total += sums[b];
  store_one(loss, static_cast<T>(total / p.divisor));
}

template <class S>
void backward(const KlDivParams& p, const Exec& exec) {
  using T = acc_t<S>;
  using V = Vec<T>;
  constexpr int w = V::width;
  const S *x = static_cast<const S*>(p.x), *target = static_cast<const S*>(p.target);
  const S* grad_loss = static_cast<const S*>(p.grad_loss);
  S *grad_x = static_cast<S*>(p.grad_x), *grad_target = static_cast<S*>(p.grad_target);
  const V zero(T(0)), one(T(1));
  const V scale(p.reduce ? static_cast<T>(load_one(grad_loss) / p.divisor) : T(0));
  parallel_for(exec, blocks_of(p), 2, [&](int64_t first, int64_t last) {
    const int64_t stop = last * kBlock < p.n ? last * kBlock : p.n;
    for (int64_t i = first * kBlock; i < stop; i += w) {
      const int n = static_cast<int>(stop - i < w ? stop - i : w);
      const V t = load_up_to(target + i, n), g = p.reduce ? scale : load_up_to(grad_loss + i, n);
      const V e = p.log_target ? exp(t) : t;
      if (grad_x) store_up_to(grad_x + i, -(e * g), n);
      if (!grad_target) continue;
      const V v = load_up_to(x + i, n);
      V d;
      if (p.log_target) d = e * (t - v + one);
      else d = select<T>(t == zero, V(static_cast<T>(__builtin_nan(""))), log(t)) + one - v;
      store_up_to(grad_target + i, g * d, n);
    }
  });
}

}  // namespace

size_t kl_div_workspace(const KlDivParams& p, int) { return p.reduce ? blocks_of(p) * sizeof(double) : 0; }

void kl_div(const KlDivParams& p, const Exec& exec) {
  dispatch_float(p.dtype, [&](auto zero) { forward<decltype(zero)>(p, exec); });
}

void kl_div_backward(const KlDivParams& p, const Exec& exec) {
  dispatch_float(p.dtype, [&](auto zero) { backward<decltype(zero)>(p, exec); });
}

}  // namespace fastcv::FASTCV_ISA
