#include "loss/multi_margin.h"

#include "common/dispatch.h"
#include "loss/tile.h"

// One row at a time, vectors over its classes: the target's own term is computed with the rest and taken out at the
// end.
namespace fastcv::FASTCV_ISA {
namespace {

constexpr int64_t kGrain = 1 << 13;  // scores a thread takes at least
constexpr int64_t kRowsPerSum = 64;  // rows per partial sum

template <class S>
struct Row {
  using T = acc_t<S>;
  using V = Vec<T>;
  const S* x;
  int64_t classes, target;
  V shift;  // margin - x_t

  // max(0, margin - x_t + x_c), 0 for the target itself and for NaN.
  V slack(int64_t c, int n) const {
    const V z = shift + load_up_to(x + c, n);
    const Mask<T> others =
        iota<int_of<T>>() !=
        Vec<int_of<T>>(static_cast<int_of<T>>(target >= c && target < c + V::width ? target - c : -1));
    return select<T>((z > V(T(0))) & others & first_lanes<T>(n < V::width ? n : V::width), z, V(T(0)));
  }
  int lanes(int64_t c) const { return static_cast<int>(classes - c < V::width ? classes - c : V::width); }
};

template <class S>
void run(const MultiMarginParams& p, const Exec& exec) {
  using T = acc_t<S>;
  using V = Vec<T>;
  constexpr int w = V::width;
  *p.bad = -1;
  for (int64_t r = 0; r < p.rows; ++r) {
    if (static_cast<uint64_t>(p.target[r]) >= static_cast<uint64_t>(p.classes)) {
      *p.bad = r;
      return;
    }
  }
  double* sums = static_cast<double*>(exec.workspace);
  const S *x = static_cast<const S*>(p.x), *weight = static_cast<const S*>(p.weight);
  const S* grad_loss = static_cast<const S*>(p.grad_loss);
  S *loss = static_cast<S*>(p.loss), *grad = static_cast<S*>(p.grad);
  const bool each = p.reduction == Reduction::none;
  const double divisor = p.reduction == Reduction::mean ? static_cast<double>(p.rows) : 1;
  const int64_t blocks = (p.rows + kRowsPerSum - 1) / kRowsPerSum;
  parallel_for(exec, blocks, kGrain / (p.classes * kRowsPerSum) + 1, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      double sum = 0;
      const int64_t end = (b + 1) * kRowsPerSum < p.rows ? (b + 1) * kRowsPerSum : p.rows;
      for (int64_t r = b * kRowsPerSum; r < end; ++r) {
        const int64_t t = p.target[r], at = r * p.classes;
        const Row<S> row{x + at, p.classes, t, V(static_cast<T>(p.margin) - load_one(x + at + t))};
        const double scale = (weight ? load_one(weight + t) : T(1)) / static_cast<double>(p.classes);
        if (loss) {
          V total(T(0));
          for (int64_t c = 0; c < p.classes; c += w) {
            const V z = row.slack(c, row.lanes(c));
            total += p.p == 1 ? z : z * z;
          }
          const double mine = reduce_add(total) * scale;
          if (each) store_one(loss + r, static_cast<T>(mine));
          sum += mine;
        }
        if (grad) {
          const V g(static_cast<T>(load_one(grad_loss + (each ? r : 0)) * scale / divisor));
          V pull(T(0));
          for (int64_t c = 0; c < p.classes; c += w) {
            const V z = row.slack(c, row.lanes(c));
            const V slope = select<T>(z > V(T(0)), p.p == 1 ? g : V(T(2)) * g * z, V(T(0)));
            pull += slope;
            store_up_to(grad + at + c, slope, row.lanes(c));
          }
          store_one(grad + at + t, -reduce_add(pull));
        }
      }
      sums[b] = sum;
    }
  });
  if (!loss || each) return;
  double total = 0;
  for (int64_t b = 0; b < blocks; ++b) total += sums[b];
  store_one(loss, static_cast<T>(total / divisor));
}

}  // namespace

size_t multi_margin_workspace(const MultiMarginParams& p, int) {
  return (p.rows + kRowsPerSum - 1) / kRowsPerSum * sizeof(double);
}

void multi_margin(const MultiMarginParams& p, const Exec& exec) {
  dispatch_float(p.dtype, [&](auto zero) { run<decltype(zero)>(p, exec); });
}

}  // namespace fastcv::FASTCV_ISA
