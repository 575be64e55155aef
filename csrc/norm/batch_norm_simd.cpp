#include "norm/batch_norm.h"

#include "common/dispatch.h"
#include "norm/norm_rows.h"

namespace fastcv::FASTCV_ISA {
namespace {

// NCHW: units of work of one channel. Small planes are taken many at a time, large ones in parts.
struct Segment {
  int64_t plane, planes, start, len;  // planes [plane, plane + planes), elements [start, start + len) of each
};
FASTCV_INLINE Segment segment(int64_t i, int64_t n, int64_t s) {
  if (s > kNormSegment) {
    const int64_t parts = ceil_div(s, kNormSegment), start = i % parts * kNormSegment;
    return {i / parts, 1, start, min64(kNormSegment, s - start)};
  }
  const int64_t planes = kNormSegment / s;
  return {i * planes, min64(planes, n - i * planes), 0, s};
}

// f(plane, start, length) over all planes of [n * c][s], large planes in parts.
template <class F>
FASTCV_INLINE void each_plane(const Exec& exec, int64_t planes, int64_t s, F&& f) {
  const int64_t parts = ceil_div(s, kNormSegment);
  parallel_for(exec, planes * parts, grain_of(min64(s, kNormSegment)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t start = i % parts * kNormSegment;
      f(i / parts, start, min64(kNormSegment, s - start));
    }
  });
}

// A thread per channel keeps the channel in its cache between the two passes; with too few channels work is cut finer.
FASTCV_INLINE bool channel_per_task(const Exec& exec, int64_t c, int64_t segments) {
  return segments <= 1 || c >= 2 * exec.threads;
}

template <class T>
FASTCV_INLINE double inverse_std(double var, double eps) {
  return 1 / __builtin_sqrt(var + eps);
}

template <class S>
struct Forward {
  using T = acc_t<S>;
  const BatchNormParams& p;
  const S* x = static_cast<const S*>(p.x);
  const S* residual = static_cast<const S*>(p.residual);
  S* y = static_cast<S*>(p.y);
  Act<T> act{p.act};
  Carver carve;
  double* partial;
  T *hi, *scale, *shift;
  const double count = static_cast<double>(p.n * p.s);

  Forward(const BatchNormParams& params, void* workspace) : p(params), carve{static_cast<char*>(workspace)} {
    hi = carve.take<T>(p.c);
    scale = carve.take<T>(p.c);
    shift = carve.take<T>(p.c);
  }

  void set_affine(int64_t c, double mean, double var) {
    const Affine<T> a = affine_of<T>(mean, inverse_std<T>(var, p.eps), read(p.weight, c, 1), read(p.bias, c, 0));
    hi[c] = a.hi;
    scale[c] = a.scale;
    shift[c] = a.shift;
  }
  void set_statistics(int64_t c, Moments m) {
    p.save_mean[c] = m.mean;
    p.save_var[c] = m.m2 / count;
    set_affine(c, m.mean, m.m2 / count);
  }

  void apply_run(int64_t plane, int64_t start, int64_t len, int64_t c) {
    const int64_t at = plane * p.s + start;
    apply<false>(x + at, residual == nullptr ? nullptr : residual + at, y + at, 1, len, hi + c, scale + c, shift + c,
                 act);
  }

  void planes(const Exec& exec) {
    if (!p.training) {
      for (int64_t c = 0; c < p.c; ++c) set_affine(c, read(p.mean, c, 0), read(p.var, c, 0));
      each_plane(exec, p.n * p.c, p.s,
                 [&](int64_t plane, int64_t start, int64_t len) { apply_run(plane, start, len, plane % p.c); });
      return;
    }
    const int64_t segments = norm_segments(p.n, p.s);
    const auto moments = [&](int64_t c, int64_t i, double& n) {
      const Segment g = segment(i, p.n, p.s);
      n = static_cast<double>(g.planes * g.len);
      return run_moments(x + (g.plane * p.c + c) * p.s + g.start, g.planes, p.c * p.s, g.len);
    };
    if (channel_per_task(exec, p.c, segments)) {
      parallel_for(exec, p.c, grain_of(p.n * p.s), [&](int64_t begin, int64_t end) {
        for (int64_t c = begin; c < end; ++c) {
          Moments total = {0, 0};
          double before = 0, n;
          for (int64_t i = 0; i < segments; ++i, before += n) {
            const Moments m = moments(c, i, n);
            merge(before, total, n, m);
          }
          set_statistics(c, total);
          if (y == nullptr) continue;
          for (int64_t image = p.n - 1; image >= 0; --image) apply_run(image * p.c + c, 0, p.s, c);
        }
      });
      return;
    }
    Moments* parts = carve.take<Moments>(p.c * segments);
    parallel_for(exec, p.c * segments, 1, [&](int64_t begin, int64_t end) {
      double n;
      for (int64_t i = begin; i < end; ++i) parts[i] = moments(i / segments, i % segments, n);
    });
    for (int64_t c = 0; c < p.c; ++c) {
      Moments total = {0, 0};
      double before = 0;
      for (int64_t i = 0; i < segments; ++i) {
        const Segment g = segment(i, p.n, p.s);
        merge(before, total, static_cast<double>(g.planes * g.len), parts[c * segments + i]);
        before += static_cast<double>(g.planes * g.len);
      }
      set_statistics(c, total);
    }
    if (y == nullptr) return;
    each_plane(exec, p.n * p.c, p.s,
               [&](int64_t plane, int64_t start, int64_t len) { apply_run(plane, start, len, plane % p.c); });
  }

  void rows(const Exec& exec) {
    const int64_t R = p.n * p.s, C = p.c;
    if (p.training) {
      double* mean = carve.take<double>(C);
      double* m2 = carve.take<double>(C);
      rows_moments(exec, x, R, C, carve.take<double>(2 * norm_supers(R, C) * C), mean, m2);
      for (int64_t c = 0; c < C; ++c) set_statistics(c, {mean[c], m2[c]});
      if (y == nullptr) return;
    } else {
      for (int64_t c = 0; c < C; ++c) set_affine(c, read(p.mean, c, 0), read(p.var, c, 0));
    }
    rows_backwards(exec, R, C, [&](int64_t first, int64_t last) {
      const int64_t at = first * C;
      apply<true>(x + at, residual == nullptr ? nullptr : residual + at, y + at, last - first, C, hi, scale, shift,
                  act);
    });
  }
};

template <class S>
struct Backward {
  using T = acc_t<S>;
  const BatchNormBackwardParams& p;
  const S* grad = static_cast<const S*>(p.grad);
  const S* x = static_cast<const S*>(p.x);
  const S* y = static_cast<const S*>(p.y);
  S* dx = static_cast<S*>(p.dx);
  S* dresidual = static_cast<S*>(p.dresidual);
  Act<T> act{p.act};
  Carver carve;
  T *hi, *scale, *shift, *b, *c0;
  const double count = static_cast<double>(p.n * p.s);
  // Only the training formula and the parameters' gradients need sums; only the former needs them before dx.
  const bool want_sums =
      p.dweight.data != nullptr || p.dbias.data != nullptr || (p.training && p.dx != nullptr && p.sums == nullptr);
  const bool want_apply = p.dx != nullptr || p.dresidual != nullptr;

  Backward(const BatchNormBackwardParams& params, void* workspace) : p(params), carve{static_cast<char*>(workspace)} {
    hi = carve.take<T>(p.c);
    scale = carve.take<T>(p.c);
    shift = carve.take<T>(p.c);
    b = carve.take<T>(p.c);
    c0 = carve.take<T>(p.c);
    for (int64_t c = 0; c < p.c; ++c) {
      const Affine<T> a = affine_of<T>(read(p.mean, c, 0), inverse_std<T>(read(p.var, c, 0), p.eps),
                                       read(p.weight, c, 1), read(p.bias, c, 0));
      hi[c] = a.hi;
      scale[c] = a.scale;
      shift[c] = a.shift;
      if (p.sums != nullptr) set_grad_affine(c, static_cast<double>(p.count), p.sums[c], p.sums[p.c + c]);
    }
  }

  // sum_gn: of grad * (x - mean) / std.
  void set_grad_affine(int64_t c, double values, double sum_g, double sum_gn) {
    const double invstd = inverse_std<T>(read(p.var, c, 0), p.eps), weight = read(p.weight, c, 1);
    const GradAffine<T> a =
        grad_affine<T>(values, read(p.mean, c, 0), invstd, weight, weight * sum_g, weight * sum_gn / invstd);
    b[c] = a.b;
    c0[c] = a.c;
  }

  void set_sums(int64_t c, double sum_g, double sum_gd) {
    const double mean = read(p.mean, c, 0), invstd = inverse_std<T>(read(p.var, c, 0), p.eps);
    const double weight = read(p.weight, c, 1), lo = mean - static_cast<double>(hi[c]);
    sum_gd -= lo * sum_g;
    write(p.dweight, c, sum_gd * invstd);
    write(p.dbias, c, sum_g);
    const GradAffine<T> a = grad_affine<T>(count, mean, invstd, weight, weight * sum_g, weight * sum_gd);
    b[c] = a.b;
    c0[c] = a.c;
  }

  Gradient<false, S> run_at(int64_t at, int64_t c) const {
    return {grad + at, x + at, y == nullptr ? nullptr : y + at, hi + c, scale + c, shift + c, act};
  }
  void apply_run(int64_t plane, int64_t start, int64_t len, int64_t c) {
    const int64_t at = plane * p.s + start;
    S* to = dx == nullptr ? nullptr : dx + at;
    S* side = dresidual == nullptr ? nullptr : dresidual + at;
    grad_apply<false>(run_at(at, c), to, side, 1, len, p.training, scale + c, b + c, c0 + c);
  }

  void planes(const Exec& exec) {
    const int64_t segments = norm_segments(p.n, p.s);
    const auto sums = [&](int64_t c, int64_t i) {
      const Segment g = segment(i, p.n, p.s);
      return run_grad_sums(run_at((g.plane * p.c + c) * p.s + g.start, c), g.planes, p.c * p.s, g.len);
    };
    if (want_sums && channel_per_task(exec, p.c, segments)) {
      parallel_for(exec, p.c, grain_of(p.n * p.s), [&](int64_t begin, int64_t end) {
        for (int64_t c = begin; c < end; ++c) {
          GradSums total = {0, 0};
          for (int64_t i = 0; i < segments; ++i) {
            const GradSums part = sums(c, i);
            total.g += part.g;
            total.gd += part.gd;
          }
          set_sums(c, total.g, total.gd);
          if (!want_apply) continue;
          for (int64_t image = p.n - 1; image >= 0; --image) apply_run(image * p.c + c, 0, p.s, c);
        }
      });
      return;
    }
    if (want_sums) {
      GradSums* parts = carve.take<GradSums>(p.c * segments);
      parallel_for(exec, p.c * segments, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) parts[i] = sums(i / segments, i % segments);
      });
      for (int64_t c = 0; c < p.c; ++c) {
        GradSums total = {0, 0};
        for (int64_t i = 0; i < segments; ++i) {
          total.g += parts[c * segments + i].g;
          total.gd += parts[c * segments + i].gd;
        }
        set_sums(c, total.g, total.gd);
      }
    }
    if (!want_apply) return;
    each_plane(exec, p.n * p.c, p.s,
               [&](int64_t plane, int64_t start, int64_t len) { apply_run(plane, start, len, plane % p.c); });
  }

  void apply_rows(int64_t first, int64_t last) {
    const int64_t at = first * p.c;
    const Gradient<true, S> from{grad + at, x + at, y == nullptr ? nullptr : y + at, hi, scale, shift, act};
    S* to = dx == nullptr ? nullptr : dx + at;
    S* side = dresidual == nullptr ? nullptr : dresidual + at;
    grad_apply<true>(from, to, side, last - first, p.c, p.training, scale, b, c0);
  }

  void rows(const Exec& exec) {
    const int64_t R = p.n * p.s, C = p.c;
    const bool at_once = want_sums && want_apply && !p.training;
    if (want_sums) {
      double* sum_g = carve.take<double>(C);
      double* sum_gd = carve.take<double>(C);
      rows_grad_sums(exec, Gradient<true, S>{grad, x, y, hi, scale, shift, act}, R, C,
                     carve.take<double>(2 * norm_supers(R, C) * C), sum_g, sum_gd, [&](int64_t first, int64_t last) {
                       if (at_once) apply_rows(first, last);
                     });
      for (int64_t c = 0; c < C; ++c) set_sums(c, sum_g[c], sum_gd[c]);
    }
    if (want_apply && !at_once)
      rows_backwards(exec, R, C, [&](int64_t first, int64_t last) { apply_rows(first, last); });
  }
};

}  // namespace

void batch_norm(const BatchNormParams& p, const Exec& exec) {
  if (p.n * p.s == 0) {
    for (int64_t c = 0; c < p.c && p.training; ++c) p.save_mean[c] = p.save_var[c] = 0;
    return;
  }
  dispatch_float(p.dtype, [&](auto zero) {
    Forward<decltype(zero)> run(p, exec.workspace);
    if (p.channels_last) run.rows(exec);
    else run.planes(exec);
  });
}

void batch_norm_backward(const BatchNormBackwardParams& p, const Exec& exec) {
  if (p.n * p.s == 0) {
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
  });
}

}  // namespace fastcv::FASTCV_ISA
