#include "loss/soft_iou.h"

#include "common/dispatch.h"
#include "loss/tile.h"

namespace fastcv::FASTCV_ISA {
namespace {

constexpr int64_t kBlock = 1 << 12;  // elements per partial sum

int64_t blocks_per_group(const SoftIouParams& p) { return (p.n + kBlock - 1) / kBlock; }

template <class S>
void forward(const SoftIouParams& p, const Exec& exec) {
  using T = acc_t<S>;
  using V = Vec<T>;
  constexpr int w = V::width;
  const S *x = static_cast<const S*>(p.x), *target = static_cast<const S*>(p.target);
  double* partial = static_cast<double*>(exec.workspace);
  const int64_t per = blocks_per_group(p);
  parallel_for(exec, p.groups * per, 2, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      const int64_t at = b / per * p.n, end = (b % per + 1) * kBlock < p.n ? (b % per + 1) * kBlock : p.n;
      V both(T(0)), either(T(0));
      for (int64_t i = b % per * kBlock; i < end; i += w) {  // lanes behind the end are 0 and add nothing
        const int n = static_cast<int>(end - i < w ? end - i : w);
        const V v = load_up_to(x + at + i, n), t = load_up_to(target + at + i, n), vt = v * t;
        both += vt;
        either += v + t - vt;
      }
      partial[2 * b] = reduce_add(both);
      partial[2 * b + 1] = reduce_add(either);
    }
  });
  for (int64_t k = 0; k < p.groups; ++k) {
    double both = 0, either = 0;
    for (int64_t b = k * per; b < (k + 1) * per; ++b) both += partial[2 * b], either += partial[2 * b + 1];
    p.sums[2 * k] = both;
    p.sums[2 * k + 1] = either;
    const double loss = either + p.eps == 0 ? 0 : 1 - (both + p.eps) / (either + p.eps);
    store_one(static_cast<S*>(p.loss) + k, static_cast<T>(loss));
  }
}

template <class S>
void backward(const SoftIouParams& p, const Exec& exec) {
  using T = acc_t<S>;
  using V = Vec<T>;
  constexpr int w = V::width;
  const S *x = static_cast<const S*>(p.x), *target = static_cast<const S*>(p.target);
  S *grad_x = static_cast<S*>(p.grad_x), *grad_target = static_cast<S*>(p.grad_target);
  const int64_t per = blocks_per_group(p);
  parallel_for(exec, p.groups * per, 2, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      const int64_t k = b / per, at = k * p.n;
      const int64_t end = (b % per + 1) * kBlock < p.n ? (b % per + 1) * kBlock : p.n;
      const double both = p.sums[2 * k] + p.eps, either = p.sums[2 * k + 1] + p.eps;
      const double g = load_one(static_cast<const S*>(p.grad_loss) + k);
      // g (both (1 - other) - either other) / either^2 = start - slope other
      const V start(static_cast<T>(either == 0 ? 0 : g * both / (either * either)));
      const V slope(static_cast<T>(either == 0 ? 0 : -g * (both + either) / (either * either)));
      for (int64_t i = b % per * kBlock; i < end; i += w) {
        const int n = static_cast<int>(end - i < w ? end - i : w);
        if (grad_x) store_up_to(grad_x + at + i, fma(slope, load_up_to(target + at + i, n), start), n);
        if (grad_target) store_up_to(grad_target + at + i, fma(slope, load_up_to(x + at + i, n), start), n);
      }
    }
  });
}

}  // namespace

size_t soft_iou_workspace(const SoftIouParams& p, int) { return p.groups * blocks_per_group(p) * 2 * sizeof(double); }

void soft_iou(const SoftIouParams& p, const Exec& exec) {
  dispatch_float(p.dtype, [&](auto zero) { forward<decltype(zero)>(p, exec); });
}

void soft_iou_backward(const SoftIouParams& p, const Exec& exec) {
  dispatch_float(p.dtype, [&](auto zero) { backward<decltype(zero)>(p, exec); });
}

}  // namespace fastcv::FASTCV_ISA
