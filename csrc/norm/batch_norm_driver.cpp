// How batch norm cuts its work: which elements are summed and mapped together, in what order, on which thread.
#include "norm/batch_norm.h"

#include "norm/norm_driver.h"

namespace fastcv {
namespace {

// NCHW: units of work of one channel. Small planes are taken many at a time, large ones in parts.
struct Segment {
  int64_t plane, planes, start, len;  // planes [plane, plane + planes), elements [start, start + len) of each
};
Segment segment(int64_t i, int64_t n, int64_t s) {
  if (s > kNormSegment) {
    const int64_t parts = ceil_div(s, kNormSegment), start = i % parts * kNormSegment;
    return {i / parts, 1, start, min64(kNormSegment, s - start)};
  }
  const int64_t planes = kNormSegment / s;
  return {i * planes, min64(planes, n - i * planes), 0, s};
}

// f(plane, start, length) over all planes of [n * c][s], large planes in parts.
template <class F>
void each_plane(const Exec& exec, int64_t planes, int64_t s, F&& f) {
  const int64_t parts = ceil_div(s, kNormSegment);
  parallel_for(exec, planes * parts, grain_of(min64(s, kNormSegment)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t start = i % parts * kNormSegment;
      f(i / parts, start, min64(kNormSegment, s - start));
    }
  });
}

// A thread per channel keeps the channel in its cache between the two passes; with too few channels work is cut finer.
bool channel_per_task(const Exec& exec, int64_t c, int64_t segments) { return segments <= 1 || c >= 2 * exec.threads; }

struct Forward {
  const BatchNormParams& p;
  const NormKernels& kernels;
  const int64_t bytes = element_bytes(p.dtype);
  Carver carve;
  double *hi, *scale, *shift;
  const double count = static_cast<double>(p.n * p.s);

  Forward(const BatchNormParams& params, const NormKernels& kernels, void* workspace)
      : p(params), kernels(kernels), carve{static_cast<char*>(workspace)} {
    hi = carve.take<double>(p.c);
    scale = carve.take<double>(p.c);
    shift = carve.take<double>(p.c);
  }

  void set_affine(int64_t c, double mean, double var) {
    const Affine a = affine_of(p.dtype, mean, inverse_std(var, p.eps), read(p.weight, c, 1), read(p.bias, c, 0));
    hi[c] = a.hi;
    scale[c] = a.scale;
    shift[c] = a.shift;
  }
  void set_statistics(int64_t c, Moments m) {
    p.save_mean[c] = m.mean;
    p.save_var[c] = m.m2 / count;
    set_affine(c, m.mean, m.m2 / count);
  }
  void set_given_statistics() {
    for (int64_t c = 0; c < p.c; ++c) set_affine(c, read(p.mean, c, 0), read(p.var, c, 0));
  }

  void planes(const Exec& exec) {
    const auto apply = [&](int64_t from, int64_t c, Pieces pieces) {
      kernels.run_apply(at(p.x, from, bytes), at(p.residual, from, bytes), at(p.y, from, bytes), pieces,
                        {hi[c], scale[c], shift[c]}, p.act);
    };
    const auto apply_all = [&] {
      each_plane(exec, p.n * p.c, p.s, [&](int64_t plane, int64_t start, int64_t len) {
        apply(plane * p.s + start, plane % p.c, {1, 0, len});
      });
    };
    if (!p.training) {
      set_given_statistics();
      return apply_all();
    }
    const int64_t segments = norm_segments(p.n, p.s), image = p.c * p.s;
    const auto moments = [&](int64_t c, int64_t i) {
      const Segment g = segment(i, p.n, p.s);
      return kernels.run_moments(at(p.x, g.plane * image + c * p.s + g.start, bytes), {g.planes, image, g.len});
    };
    const auto merged = [&](auto&& part) {
      Moments total = {0, 0};
      double before = 0;
      for (int64_t i = 0; i < segments; ++i) {
        const Segment g = segment(i, p.n, p.s);
        const double n = static_cast<double>(g.planes * g.len);
        merge(before, total, n, part(i));
        before += n;
      }
      return total;
    };
    if (channel_per_task(exec, p.c, segments)) {
      parallel_for(exec, p.c, grain_of(p.n * p.s), [&](int64_t begin, int64_t end) {
        for (int64_t c = begin; c < end; ++c) {
          set_statistics(c, merged([&](int64_t i) { return moments(c, i); }));
          if (p.y != nullptr) apply((p.n - 1) * image + c * p.s, c, {p.n, -image, p.s});
        }
      });
      return;
    }
    Moments* parts = carve.take<Moments>(p.c * segments);
    parallel_for(exec, p.c * segments, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) parts[i] = moments(i / segments, i % segments);
    });
    for (int64_t c = 0; c < p.c; ++c) set_statistics(c, merged([&](int64_t i) { return parts[c * segments + i]; }));
    if (p.y != nullptr) apply_all();
  }

  void rows(const Exec& exec) {
    const int64_t R = p.n * p.s, C = p.c;
    if (p.training) {
      double* mean = carve.take<double>(C);
      double* m2 = carve.take<double>(C);
      rows_moments(exec, kernels, p.x, bytes, R, C, carve.take<double>(2 * norm_supers(R, C) * C), mean, m2);
      for (int64_t c = 0; c < C; ++c) set_statistics(c, {mean[c], m2[c]});
      if (p.y == nullptr) return;
    } else {
      set_given_statistics();
    }
    rows_backwards(exec, R, C, [&](int64_t first, int64_t rows) {
      const int64_t from = first * C;
      kernels.row_apply(at(p.x, from, bytes), at(p.residual, from, bytes), at(p.y, from, bytes), {rows, C},
                        {hi, scale, shift}, p.act);
    });
  }
};

struct Backward {
  const BatchNormBackwardParams& p;
  const NormKernels& kernels;
  const int64_t bytes = element_bytes(p.dtype);
  const GradSource source{p.grad, p.x, p.y};
  Carver carve;
  double *hi, *scale, *shift, *b, *c0;
  const double count = static_cast<double>(p.n * p.s);
  // Only the training formula and the parameters' gradients need sums; only the former needs them before dx.
  const bool want_sums =
      p.dweight.data != nullptr || p.dbias.data != nullptr || (p.training && p.dx != nullptr && p.sums == nullptr);
  const bool want_apply = p.dx != nullptr || p.dresidual != nullptr;

  Backward(const BatchNormBackwardParams& params, const NormKernels& kernels, void* workspace)
      : p(params), kernels(kernels), carve{static_cast<char*>(workspace)} {
    hi = carve.take<double>(p.c);
    scale = carve.take<double>(p.c);
    shift = carve.take<double>(p.c);
    b = carve.take<double>(p.c);
    c0 = carve.take<double>(p.c);
    for (int64_t c = 0; c < p.c; ++c) {
      const Affine a = affine_of(p.dtype, read(p.mean, c, 0), inverse_std(read(p.var, c, 0), p.eps),
                                 read(p.weight, c, 1), read(p.bias, c, 0));
      hi[c] = a.hi;
      scale[c] = a.scale;
      shift[c] = a.shift;
      b[c] = c0[c] = 0;
      const double deviation = 1 / inverse_std(read(p.var, c, 0), p.eps);
      if (p.sums != nullptr) set_grad_affine(c, static_cast<double>(p.count), {p.sums[c], p.sums[p.c + c] * deviation});
    }
  }

  // sums: of the gradient, and of its product with x - mean, over `values` values.
  void set_grad_affine(int64_t c, double values, GradSums sums) {
    const double invstd = inverse_std(read(p.var, c, 0), p.eps), weight = read(p.weight, c, 1);
    const GradAffine a =
        grad_affine(p.dtype, values, read(p.mean, c, 0), invstd, weight, weight * sums.g, weight * sums.gd);
    b[c] = a.b;
    c0[c] = a.c;
  }

  void set_sums(int64_t c, GradSums sums) {
    sums.gd -= (read(p.mean, c, 0) - hi[c]) * sums.g;
    write(p.dweight, c, sums.gd * inverse_std(read(p.var, c, 0), p.eps));
    write(p.dbias, c, sums.g);
    if (p.sums == nullptr) set_grad_affine(c, count, sums);
  }

  void planes(const Exec& exec) {
    const int64_t segments = norm_segments(p.n, p.s), image = p.c * p.s;
    const auto apply = [&](int64_t from, int64_t c, Pieces pieces) {
      kernels.run_grad_apply(at(source, from, bytes), at(p.dx, from, bytes), at(p.dresidual, from, bytes), pieces,
                             p.training, {hi[c], scale[c], shift[c]}, {scale[c], b[c], c0[c]}, p.act);
    };
    const auto sums = [&](int64_t c, int64_t i) {
      const Segment g = segment(i, p.n, p.s);
      return kernels.run_grad_sums(at(source, g.plane * image + c * p.s + g.start, bytes), {g.planes, image, g.len},
                                   {hi[c], scale[c], shift[c]}, p.act);
    };
    const auto added = [&](auto&& part) {
      GradSums total = {0, 0};
      for (int64_t i = 0; i < segments; ++i) {
        const GradSums one = part(i);
        total.g += one.g;
        total.gd += one.gd;
      }
      return total;
    };
    if (want_sums && channel_per_task(exec, p.c, segments)) {
      parallel_for(exec, p.c, grain_of(p.n * p.s), [&](int64_t begin, int64_t end) {
        for (int64_t c = begin; c < end; ++c) {
          set_sums(c, added([&](int64_t i) { return sums(c, i); }));
          if (want_apply) apply((p.n - 1) * image + c * p.s, c, {p.n, -image, p.s});
        }
      });
      return;
    }
    if (want_sums) {
      GradSums* parts = carve.take<GradSums>(p.c * segments);
      parallel_for(exec, p.c * segments, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) parts[i] = sums(i / segments, i % segments);
      });
      for (int64_t c = 0; c < p.c; ++c) set_sums(c, added([&](int64_t i) { return parts[c * segments + i]; }));
    }
    if (!want_apply) return;
    each_plane(exec, p.n * p.c, p.s, [&](int64_t plane, int64_t start, int64_t len) {
      apply(plane * p.s + start, plane % p.c, {1, 0, len});
    });
  }

  void rows(const Exec& exec) {
    const int64_t R = p.n * p.s, C = p.c;
    const RowAffine affine{hi, scale, shift};
    const auto apply = [&](int64_t first, int64_t rows) {
      const int64_t from = first * C;
      kernels.row_grad_apply(at(source, from, bytes), at(p.dx, from, bytes), at(p.dresidual, from, bytes), {rows, C},
                             p.training, affine, {scale, b, c0}, p.act);
    };
    const bool at_once = want_sums && want_apply && !p.training;
    if (want_sums) {
      double* sum_g = carve.take<double>(C);
      double* sum_gd = carve.take<double>(C);
      rows_grad_sums(exec, kernels, source, bytes, R, C, affine, p.act, carve.take<double>(2 * norm_supers(R, C) * C),
                     sum_g, sum_gd, [&](int64_t first, int64_t rows) {
                       if (at_once) apply(first, rows);
                     });
      for (int64_t c = 0; c < C; ++c) set_sums(c, {sum_g[c], sum_gd[c]});
    }
    if (want_apply && !at_once) rows_backwards(exec, R, C, apply);
  }
};

void drive(const BatchNormParams& p, const Exec& exec, const NormKernels& kernels) {
  if (p.n * p.s == 0) {
    for (int64_t c = 0; c < p.c && p.training; ++c) p.save_mean[c] = p.save_var[c] = 0;
    return;
  }
  Forward run(p, kernels, exec.workspace);
  if (p.channels_last) run.rows(exec);
  else run.planes(exec);
}

void drive(const BatchNormBackwardParams& p, const Exec& exec, const NormKernels& kernels) {
  if (p.n * p.s == 0) {
    for (int64_t c = 0; c < p.c; ++c) {
      write(p.dweight, c, 0);
      write(p.dbias, c, 0);
    }
    return;
  }
  Backward run(p, kernels, exec.workspace);
  if (p.channels_last) run.rows(exec);
  else run.planes(exec);
}

}  // namespace

FASTCV_NORM_DRIVER(batch_norm, BatchNormParams)
FASTCV_NORM_DRIVER(batch_norm_backward, BatchNormBackwardParams)

}  // namespace fastcv
