// How batch norm cuts its work: which elements are summed and mapped together, in what order, on which thread.
#include "norm/batch_norm.h"

#include "norm/batch_norm_forward.h"

namespace fastcv {
namespace {

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
  BatchNormForward run(p, kernels, exec.workspace);
  const int64_t bytes = run.bytes, image = p.c * p.s;
  if (p.channels_last)
    return run.rows(exec, [&] {
      if (p.y == nullptr) return;
      rows_backwards(exec, p.n * p.s, p.c, [&](int64_t first, int64_t rows) {
        const int64_t from = first * p.c;
        kernels.row_apply(at(p.x, from, bytes), at(p.residual, from, bytes), at(p.y, from, bytes), {rows, p.c},
                          {run.hi, run.scale, run.shift}, p.act);
      });
    });
  const auto apply = [&](int64_t from, int64_t c, Pieces pieces) {
    kernels.run_apply(at(p.x, from, bytes), at(p.residual, from, bytes), at(p.y, from, bytes), pieces, run.affine(c),
                      p.act);
  };
  run.planes(
      exec, p.y == nullptr, [&](int, int64_t c) { apply((p.n - 1) * image + c * p.s, c, {p.n, -image, p.s}); },
      [&] {
        if (p.y == nullptr) return;
        each_plane(exec, p.n * p.c, p.s, [&](int64_t plane, int64_t start, int64_t len) {
          apply(plane * p.s + start, plane % p.c, {1, 0, len});
        });
      });
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
