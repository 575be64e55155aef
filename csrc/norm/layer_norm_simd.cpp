#include "norm/layer_norm.h"

#include "common/dispatch.h"
#include "norm/norm_driver.h"
#include "norm/norm_simd.h"

namespace fastcv::FASTCV_ISA {
namespace {

// Rows whose statistics are taken before any of them is written: reductions and square roots of one row wait long for
// each other, those of several do not. As long as their elements stay in the first-level cache.
constexpr int64_t kRowsTogether = 8, kElementsTogether = 4096;
constexpr int64_t kFlushRows = 32;  // rows whose parameter gradients are summed before they go to double

template <class T>
T* widened(const NormVector& v, int64_t l, double absent, Carver& carve) {
  T* values = carve.take<T>(l);
  for (int64_t i = 0; i < l; ++i) values[i] = static_cast<T>(read(v, i, absent));
  return values;
}

template <class S>
void forward(const LayerNormParams& p, const Exec& exec) {
  using T = acc_t<S>;
  using V = Vec<T>;
  Carver carve{static_cast<char*>(exec.workspace)};
  const T* weight = widened<T>(p.weight, p.l, 1, carve);
  const T* bias = widened<T>(p.bias, p.l, 0, carve);
  NormKernels kernels{};
  set_run_kernels(p.dtype, kernels);
  const int64_t together = max64(1, min64(kRowsTogether, kElementsTogether / p.l));
  parallel_for(exec, p.m, grain_of(p.l), [&](int64_t begin, int64_t end) {
    Affine affine[kRowsTogether];
    for (int64_t first = begin; first < end; first += together) {
      const int64_t rows = min64(together, end - first);
      for (int64_t row = first; row < first + rows; ++row) {
        const Moments m = kernels.run_moments(static_cast<const S*>(p.x) + row * p.l, {1, 0, p.l});
        p.mean[row] = m.mean;
        p.var[row] = m.m2 / static_cast<double>(p.l);
      }
      for (int64_t k = 0; k < rows; ++k)
        affine[k] = affine_of(p.dtype, p.mean[first + k], inverse_std(p.var[first + k], p.eps), 1, 0);
      for (int64_t k = 0; k < rows; ++k) {
        const S* x = static_cast<const S*>(p.x) + (first + k) * p.l;
        S* y = static_cast<S*>(p.y) + (first + k) * p.l;
        const V hi(T(affine[k].hi)), scale(T(affine[k].scale)), shift(T(affine[k].shift));
        sweep<V::width>(
            p.l,
            [&](int64_t i, int) {
              const V normal = fma(load(x + i) - hi, scale, shift);
              store(y + i, fma(normal, detail::load_raw(weight + i), detail::load_raw(bias + i)));
            },
            [&](int64_t i, int n) {
              const V normal = fma(load_n(x + i, n) - hi, scale, shift);
              store_n(y + i, fma(normal, detail::load_raw_n(weight + i, n), detail::load_raw_n(bias + i, n)), n);
            });
      }
    }
  });
}

template <class S>
struct Backward {
  using T = acc_t<S>;
  using V = Vec<T>;
  const LayerNormBackwardParams& p;
  const int64_t l = p.l;
  Carver carve;
  const T* weight;
  const bool parameters = p.dweight.data != nullptr || p.dbias.data != nullptr;

  Backward(const LayerNormBackwardParams& params, void* workspace)
      : p(params), carve{static_cast<char*>(workspace)}, weight(widened<T>(p.weight, p.l, 1, carve)) {}

  // Sums of G = weight * grad and of G * (x - hi).
  GradSums sums(const S* grad, const S* x, V hi) const {
    GradSums total = {0, 0};
    for (int64_t start = 0; start < l; start += kChunk<T>) {
      V a[4], b[4];
      for (int k = 0; k < 4; ++k) a[k] = b[k] = V(T(0));
      sweep<V::width>(
          min64(kChunk<T>, l - start),
          [&](int64_t j, int k) {
            const int64_t i = start + j;
            ask(grad + i);
            ask(x + i);
            const V g = load(grad + i) * detail::load_raw(weight + i);
            a[k] += g;
            b[k] = fma(g, load(x + i) - hi, b[k]);
          },
          [&](int64_t j, int n) {
            const int64_t i = start + j;
            const V g = load_n(grad + i, n) * detail::load_raw_n(weight + i, n);
            a[3] += g;
            b[3] += select<T>(first_lanes<T>(n), g * (load_n(x + i, n) - hi), V(T(0)));
          });
      total.g += sum4(a);
      total.gd += sum4(b);
    }
    return total;
  }

  // N rows from r on: dx, and their part of dweight and dbias added to w and b where they are not null. Several rows at
  // once, because reading and writing w and b for each takes as long as all the rest.
  template <int N>
  void rows(int64_t r, T* w, T* b) const {
    const S* grad = static_cast<const S*>(p.grad) + r * l;
    const S* x = static_cast<const S*>(p.x) + r * l;
    S* dx = p.dx == nullptr ? nullptr : static_cast<S*>(p.dx) + r * l;
    V hi[N], scale[N], shift[N], ga[N], gb[N], gc[N];
    for (int k = 0; k < N; ++k) {
      const double mean = p.mean[r + k], invstd = 1 / __builtin_sqrt(p.var[r + k] + p.eps);
      const Affine normal = affine_of(p.dtype, mean, invstd, 1, 0);
      hi[k] = V(T(normal.hi)), scale[k] = V(T(normal.scale)), shift[k] = V(T(normal.shift));
      GradAffine a{};
      if (dx != nullptr && l > 1) {  // a row of one element has no gradient, where rounding would leave some
        const GradSums s = sums(grad + k * l, x + k * l, hi[k]);
        const double lo = mean - normal.hi;
        a = grad_affine(p.dtype, static_cast<double>(l), mean, invstd, 1, s.g, s.gd - lo * s.g);
      }
      ga[k] = V(T(a.a)), gb[k] = V(T(a.b)), gc[k] = V(T(a.c));
    }
    sweep<V::width>(
        l,
        [&](int64_t i, int) __attribute__((always_inline)) {
          const V scaled = detail::load_raw(weight + i);
          V dw(T(0)), db(T(0));
#pragma GCC unroll 4
          for (int k = 0; k < N; ++k) {
            __builtin_prefetch(grad + (N + k) * l + i, 0, 2);
            __builtin_prefetch(x + (N + k) * l + i, 0, 2);
            const V g = load(grad + k * l + i), d = load(x + k * l + i) - hi[k];
            if (dx != nullptr) store(dx + k * l + i, fma(g * scaled, ga[k], fma(d, gb[k], gc[k])));
            dw = fma(g, fma(d, scale[k], shift[k]), dw);
            db += g;
          }
          if (w == nullptr) return;
          detail::store_raw(w + i, detail::load_raw(w + i) + dw);
          detail::store_raw(b + i, detail::load_raw(b + i) + db);
        },
        [&](int64_t i, int n) {
          const V scaled = detail::load_raw_n(weight + i, n);
          V dw(T(0)), db(T(0));
          for (int k = 0; k < N; ++k) {
            const V g = load_n(grad + k * l + i, n), d = load_n(x + k * l + i, n) - hi[k];
            if (dx != nullptr) store_n(dx + k * l + i, fma(g * scaled, ga[k], fma(d, gb[k], gc[k])), n);
            dw = fma(g, fma(d, scale[k], shift[k]), dw);
            db += g;
          }
          if (w == nullptr) return;
          detail::store_raw_n(w + i, detail::load_raw_n(w + i, n) + dw, n);
          detail::store_raw_n(b + i, detail::load_raw_n(b + i, n) + db, n);
        });
  }

  void run(const Exec& exec) {
    if (!parameters) {
      parallel_for(exec, p.m, grain_of(l), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) rows<1>(r, nullptr, nullptr);
      });
      return;
    }
    const int64_t super_rows = layer_norm_super_rows(p.m), supers = ceil_div(p.m, super_rows);
    double* partial = carve.take<double>(2 * supers * l);
    T* sums = carve.take<T>(2 * l * exec.threads);
    parallel_slots(exec, supers, grain_of(super_rows * l), [&](int slot, int64_t begin, int64_t end) {
      T* w = sums + 2 * l * slot;
      T* b = w + l;
      for (int64_t u = begin; u < end; ++u) {
        double* total = partial + 2 * u * l;
        for (int64_t i = 0; i < 2 * l; ++i) total[i] = 0;
        const int64_t last = min64((u + 1) * super_rows, p.m);
        for (int64_t r = u * super_rows; r < last; r += kFlushRows) {
          for (int64_t i = 0; i < 2 * l; ++i) w[i] = 0;
          const int64_t stop = min64(r + kFlushRows, last);
          int64_t k = r;
          for (; k + 4 <= stop; k += 4) rows<4>(k, w, b);
          for (; k < stop; ++k) rows<1>(k, w, b);
          for (int64_t i = 0; i < 2 * l; ++i) total[i] += w[i];
        }
      }
    });
    parallel_for(exec, l, grain_of(2 * supers), [&](int64_t begin, int64_t end) {
      constexpr int64_t kSome = 64;  // a cache line of every partial sum is used while it is there
      for (int64_t i = begin; i < end; i += kSome) {
        const int64_t n = min64(kSome, end - i);
        double dweight[kSome] = {}, dbias[kSome] = {};
        for (int64_t u = 0; u < supers; ++u)
          for (int64_t j = 0; j < n; ++j) {
            dweight[j] += partial[2 * u * l + i + j];
            dbias[j] += partial[(2 * u + 1) * l + i + j];
          }
        for (int64_t j = 0; j < n; ++j) {
          write(p.dweight, i + j, dweight[j]);
          write(p.dbias, i + j, dbias[j]);
        }
      }
    });
  }
};

}  // namespace

void layer_norm(const LayerNormParams& p, const Exec& exec) {
  if (p.m * p.l == 0) {
    for (int64_t i = 0; i < p.m; ++i) p.mean[i] = p.var[i] = 0;
    return;
  }
  dispatch_float(p.dtype, [&](auto zero) { forward<decltype(zero)>(p, exec); });
}

void layer_norm_backward(const LayerNormBackwardParams& p, const Exec& exec) {
  if (p.m * p.l == 0) {
    for (int64_t i = 0; i < p.l; ++i) {
      write(p.dweight, i, 0);
      write(p.dbias, i, 0);
    }
    return;
  }
  dispatch_float(p.dtype, [&](auto zero) { Backward<decltype(zero)>(p, exec.workspace).run(exec); });
}

}  // namespace fastcv::FASTCV_ISA
