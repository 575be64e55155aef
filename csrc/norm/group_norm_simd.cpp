#include "norm/group_norm.h"

#include "common/dispatch.h"
#include "norm/norm_rows.h"

namespace fastcv::FASTCV_ISA {
namespace {

FASTCV_INLINE double inverse_std(double var, double eps) { return 1 / __builtin_sqrt(var + eps); }

// f(exec, scratch, image) for every image: a thread per image while there are enough, else all threads on each image.
template <class F>
FASTCV_INLINE void each_image(const Exec& exec, char* scratch, int64_t bytes, int64_t n, F&& f) {
  if (n < exec.threads) {
    for (int64_t image = 0; image < n; ++image) f(exec, scratch, image);
    return;
  }
  const Exec serial{nullptr, 1, nullptr};
  parallel_slots(exec, n, 1, [&](int slot, int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; ++image) f(serial, scratch + slot * bytes, image);
  });
}

FASTCV_INLINE int64_t image_bytes(int64_t c, int64_t s) {
  return c * (2 * norm_supers(s, c) + 8) * static_cast<int64_t>(sizeof(double)) + 15 * 64;
}

template <class S>
void forward_planes(const GroupNormParams& p, const Exec& exec) {
  using T = acc_t<S>;
  const int64_t D = p.c / p.groups, len = D * p.s;
  const Act<T> none{Activation{1, 0}};
  parallel_for(exec, p.n * p.groups, grain_of(len), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const S* x = static_cast<const S*>(p.x) + i * len;
      S* y = static_cast<S*>(p.y) + i * len;
      const Moments m = run_moments(x, 1, 0, len);
      p.mean[i] = m.mean;
      p.var[i] = m.m2 / static_cast<double>(len);
      const double invstd = inverse_std(p.var[i], p.eps);
      for (int64_t j = D - 1; j >= 0; --j) {
        const int64_t c = i % p.groups * D + j;
        const Affine<T> a = affine_of<T>(m.mean, invstd, read(p.weight, c, 1), read(p.bias, c, 0));
        apply<false>(x + j * p.s, static_cast<const S*>(nullptr), y + j * p.s, 1, p.s, &a.hi, &a.scale, &a.shift, none);
      }
    }
  });
}

template <class S>
void forward_rows(const GroupNormParams& p, const Exec& exec) {
  using T = acc_t<S>;
  const int64_t C = p.c, D = C / p.groups, R = p.s;
  const Act<T> none{Activation{1, 0}};
  each_image(exec, static_cast<char*>(exec.workspace), image_bytes(C, R), p.n,
             [&](const Exec& threads, char* scratch, int64_t image) {
               Carver carve{scratch};
               double* mean = carve.take<double>(C);
               double* m2 = carve.take<double>(C);
               T* hi = carve.take<T>(C);
               T* scale = carve.take<T>(C);
               T* shift = carve.take<T>(C);
               const S* x = static_cast<const S*>(p.x) + image * R * C;
               S* y = static_cast<S*>(p.y) + image * R * C;
               rows_moments(threads, x, R, C, carve.take<double>(2 * norm_supers(R, C) * C), mean, m2);
               for (int64_t g = 0; g < p.groups; ++g) {
                 Moments m = {0, 0};
                 for (int64_t j = 0; j < D; ++j)
                   merge(static_cast<double>(j * R), m, static_cast<double>(R), {mean[g * D + j], m2[g * D + j]});
                 const double var = m.m2 / static_cast<double>(D * R), invstd = inverse_std(var, p.eps);
                 p.mean[image * p.groups + g] = m.mean;
                 p.var[image * p.groups + g] = var;
                 for (int64_t c = g * D; c < (g + 1) * D; ++c) {
                   const Affine<T> a = affine_of<T>(m.mean, invstd, read(p.weight, c, 1), read(p.bias, c, 0));
                   hi[c] = a.hi;
                   scale[c] = a.scale;
                   shift[c] = a.shift;
                 }
               }
               rows_backwards(threads, R, C, [&](int64_t first, int64_t last) {
                 apply<true>(x + first * C, static_cast<const S*>(nullptr), y + first * C, last - first, C, hi, scale,
                             shift, none);
               });
             });
}

template <class S>
struct Backward {
  using T = acc_t<S>;
  const GroupNormBackwardParams& p;
  const S* grad = static_cast<const S*>(p.grad);
  const S* x = static_cast<const S*>(p.x);
  S* dx = static_cast<S*>(p.dx);
  const int64_t D = p.c / p.groups;
  const Act<T> none{Activation{1, 0}};
  // [n][c]: sums of the gradient, and of the gradient times (x - mean) / std.
  double *sum_g, *sum_gn;
  char* scratch;

  Backward(const GroupNormBackwardParams& params, void* workspace) : p(params) {
    Carver carve{static_cast<char*>(workspace)};
    sum_g = carve.take<double>(p.n * p.c);
    sum_gn = carve.take<double>(p.n * p.c);
    scratch = carve.next;
  }

  // Turns the sums about hi into sums about the mean and returns the map of group i with weight 1.
  GradAffine<T> finish(int64_t i, double invstd) {
    const double mean = p.mean[i], lo = mean - static_cast<double>(static_cast<T>(mean));
    double group_g = 0, group_gd = 0;
    for (int64_t j = 0; j < D; ++j) {
      const int64_t at = i * D + j;
      const double weight = read(p.weight, i % p.groups * D + j, 1), gd = sum_gn[at] - lo * sum_g[at];
      sum_gn[at] = gd * invstd;
      group_g += weight * sum_g[at];
      group_gd += weight * gd;
    }
    return grad_affine<T>(static_cast<double>(D * p.s), mean, invstd, 1, group_g, group_gd);
  }

  void planes(const Exec& exec) {
    parallel_for(exec, p.n * p.groups, grain_of(D * p.s), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const T hi = static_cast<T>(p.mean[i]);
        const double invstd = inverse_std(p.var[i], p.eps);
        const auto from = [&](int64_t j) {
          const int64_t at = (i * D + j) * p.s;
          return Gradient<false, S>{grad + at, x + at, nullptr, &hi, &hi, &hi, none};
        };
        for (int64_t j = 0; j < D; ++j) {
          const GradSums sums = run_grad_sums(from(j), 1, 0, p.s);
          sum_g[i * D + j] = sums.g;
          sum_gn[i * D + j] = sums.gd;
        }
        const GradAffine<T> a = finish(i, invstd);
        for (int64_t j = D - 1; j >= 0 && dx != nullptr; --j) {
          const T scale = static_cast<T>(invstd * read(p.weight, i % p.groups * D + j, 1));
          grad_apply<false>(from(j), dx + (i * D + j) * p.s, static_cast<S*>(nullptr), 1, p.s, true, &scale, &a.b,
                            &a.c);
        }
      }
    });
  }

  void rows(const Exec& exec) {
    const int64_t C = p.c, R = p.s;
    each_image(exec, scratch, image_bytes(C, R), p.n, [&](const Exec& threads, char* base, int64_t image) {
      Carver carve{base};
      T* hi = carve.take<T>(C);
      T* a = carve.take<T>(C);
      T* b = carve.take<T>(C);
      T* c0 = carve.take<T>(C);
      const int64_t at = image * R * C;
      for (int64_t c = 0; c < C; ++c) hi[c] = static_cast<T>(p.mean[image * p.groups + c / D]);
      rows_grad_sums(threads, Gradient<true, S>{grad + at, x + at, nullptr, hi, hi, hi, none}, R, C,
                     carve.take<double>(2 * norm_supers(R, C) * C), sum_g + image * C, sum_gn + image * C,
                     [](int64_t, int64_t) {});
      for (int64_t g = 0; g < p.groups; ++g) {
        const int64_t i = image * p.groups + g;
        const double invstd = inverse_std(p.var[i], p.eps);
        const GradAffine<T> map = finish(i, invstd);
        for (int64_t c = g * D; c < (g + 1) * D; ++c) {
          a[c] = static_cast<T>(invstd * read(p.weight, c, 1));
          b[c] = map.b;
          c0[c] = map.c;
        }
      }
      if (dx == nullptr) return;
      rows_backwards(threads, R, C, [&](int64_t first, int64_t last) {
        const int64_t from = at + first * C;
        grad_apply<true>(Gradient<true, S>{grad + from, x + from, nullptr, hi, hi, hi, none}, dx + from,
                         static_cast<S*>(nullptr), last - first, C, true, a, b, c0);
      });
    });
  }

  void parameters() {
    for (int64_t c = 0; c < p.c; ++c) {
      double dweight = 0, dbias = 0;
      for (int64_t image = 0; image < p.n; ++image) {
        dweight += sum_gn[image * p.c + c];
        dbias += sum_g[image * p.c + c];
      }
      write(p.dweight, c, dweight);
      write(p.dbias, c, dbias);
    }
  }
};

}  // namespace

void group_norm(const GroupNormParams& p, const Exec& exec) {
  if (p.n * p.c * p.s == 0) {
    for (int64_t i = 0; i < p.n * p.groups; ++i) p.mean[i] = p.var[i] = 0;
    return;
  }
  dispatch_float(p.dtype, [&](auto zero) {
    if (p.channels_last) forward_rows<decltype(zero)>(p, exec);
    else forward_planes<decltype(zero)>(p, exec);
  });
}

void group_norm_backward(const GroupNormBackwardParams& p, const Exec& exec) {
  if (p.n * p.c * p.s == 0) {
    for (int64_t c = 0; c < p.c; ++c) {
      write(p.dweight, c, 0);
      write(p.dbias, c, 0);
    }
    return;
  }
  dispatch_float(p.dtype, [&](auto zero) {
    Backward<decltype(zero)> run(p, exec.workspace);
    if (p.channels_last) run.rows(exec);
    else run.planes(exec);
    if (p.dweight.data != nullptr || p.dbias.data != nullptr) run.parameters();
  });
}

}  // namespace fastcv::FASTCV_ISA
