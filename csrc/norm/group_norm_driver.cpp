// How group norm cuts its work: which elements are summed and mapped together, in what order, on which thread.
#include "norm/group_norm.h"

#include "norm/norm_driver.h"

namespace fastcv {
namespace {

// f(exec, scratch, image) for every image: a thread per image while there are enough, else all threads on each image.
template <class F>
void each_image(const Exec& exec, char* scratch, int64_t bytes, int64_t n, F&& f) {
  if (n < exec.threads) {
    for (int64_t image = 0; image < n; ++image) f(exec, scratch, image);
    return;
  }
  const Exec serial{nullptr, 1, nullptr};
  parallel_slots(exec, n, 1, [&](int slot, int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; ++image) f(serial, scratch + slot * bytes, image);
  });
}

// first(group, i) for i < firsts and all groups, between(group) behind all first of a group, then second(group, i) for
// i < seconds. While groups are enough for the threads a thread takes a whole group, which stays in its cache; else the
// threads share each group: the parts are the same either way, and so is every bit.
template <class First, class Between, class Second>
void each_group(const Exec& exec, int64_t groups, int64_t elements, int64_t firsts, int64_t seconds, First&& first,
                Between&& between, Second&& second) {
  if (groups >= 2 * exec.threads || groups % exec.threads == 0) {
    parallel_for(exec, groups, grain_of(elements), [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; ++g) {
        for (int64_t i = 0; i < firsts; ++i) first(g, i);
        between(g);
        for (int64_t i = seconds - 1; i >= 0; --i) second(g, i);
      }
    });
    return;
  }
  parallel_for(exec, groups * firsts, grain_of(elements / firsts), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) first(i / firsts, i % firsts);
  });
  for (int64_t g = 0; g < groups; ++g) between(g);
  parallel_for(exec, groups * seconds, grain_of(elements / seconds), [&](int64_t begin, int64_t end) {
    for (int64_t i = end - 1; i >= begin; --i) second(i / seconds, i % seconds);
  });
}

// Piece i of a run that is cut into pieces of kNormSegment.
struct Piece {
  int64_t start, len;
};
Piece piece(int64_t i, int64_t run) { return {i * kNormSegment, min64(kNormSegment, run - i * kNormSegment)}; }

void forward_planes(const GroupNormParams& p, const NormKernels& kernels, const Exec& exec) {
  const int64_t D = p.c / p.groups, len = D * p.s, bytes = element_bytes(p.dtype);
  const int64_t parts = norm_parts(len), plane_parts = norm_parts(p.s);
  Moments* moments = static_cast<Moments*>(exec.workspace);  // of each part
  each_group(
      exec, p.n * p.groups, len, parts, D * plane_parts,
      [&](int64_t g, int64_t i) {
        const Piece q = piece(i, len);
        moments[g * parts + i] = kernels.run_moments(at(p.x, g * len + q.start, bytes), {1, 0, q.len});
      },
      [&](int64_t g) {
        Moments total = {0, 0};
        for (int64_t i = 0; i < parts; ++i) {
          const Piece q = piece(i, len);
          merge(static_cast<double>(q.start), total, static_cast<double>(q.len), moments[g * parts + i]);
        }
        p.mean[g] = total.mean;
        p.var[g] = total.m2 / static_cast<double>(len);
      },
      [&](int64_t g, int64_t i) {
        const int64_t j = i / plane_parts, c = g % p.groups * D + j;
        const Piece q = piece(i % plane_parts, p.s);
        const int64_t from = g * len + j * p.s + q.start;
        const Affine a =
            affine_of(p.dtype, p.mean[g], inverse_std(p.var[g], p.eps), read(p.weight, c, 1), read(p.bias, c, 0));
        kernels.run_apply(at(p.x, from, bytes), nullptr, at(p.y, from, bytes), {1, 0, q.len}, a, {1, 0});
      });
}

void forward_rows(const GroupNormParams& p, const NormKernels& kernels, const Exec& exec) {
  const int64_t C = p.c, D = C / p.groups, R = p.s, bytes = element_bytes(p.dtype);
  each_image(exec, static_cast<char*>(exec.workspace), group_norm_image_bytes(C, R), p.n,
             [&](const Exec& threads, char* scratch, int64_t image) {
               Carver carve{scratch};
               double* mean = carve.take<double>(C);
               double* m2 = carve.take<double>(C);
               double* hi = carve.take<double>(C);
               double* scale = carve.take<double>(C);
               double* shift = carve.take<double>(C);
               const void* x = at(p.x, image * R * C, bytes);
               void* y = at(p.y, image * R * C, bytes);
               rows_moments(threads, kernels, x, bytes, R, C, carve.take<double>(2 * norm_supers(R, C) * C), mean, m2);
               for (int64_t g = 0; g < p.groups; ++g) {
                 Moments m = {0, 0};
                 for (int64_t j = 0; j < D; ++j)
                   merge(static_cast<double>(j * R), m, static_cast<double>(R), {mean[g * D + j], m2[g * D + j]});
                 const double var = m.m2 / static_cast<double>(D * R), invstd = inverse_std(var, p.eps);
                 p.mean[image * p.groups + g] = m.mean;
                 p.var[image * p.groups + g] = var;
                 for (int64_t c = g * D; c < (g + 1) * D; ++c) {
                   const Affine a = affine_of(p.dtype, m.mean, invstd, read(p.weight, c, 1), read(p.bias, c, 0));
                   hi[c] = a.hi;
                   scale[c] = a.scale;
                   shift[c] = a.shift;
                 }
               }
               rows_backwards(threads, R, C, [&](int64_t first, int64_t rows) {
                 kernels.row_apply(at(x, first * C, bytes), nullptr, at(y, first * C, bytes), {rows, C},
                                   {hi, scale, shift}, {1, 0});
               });
             });
}

struct Backward {
  const GroupNormBackwardParams& p;
  const NormKernels& kernels;
  const int64_t D = p.c / p.groups, bytes = element_bytes(p.dtype);
  const GradSource source{p.grad, p.x, nullptr};
  // [n][c]: sums of the gradient, and of the gradient times (x - mean) / std.
  double *sum_g, *sum_gn;
  char* scratch;

  Backward(const GroupNormBackwardParams& params, const NormKernels& kernels, void* workspace)
      : p(params), kernels(kernels) {
    Carver carve{static_cast<char*>(workspace)};
    sum_g = carve.take<double>(p.n * p.c);
    sum_gn = carve.take<double>(p.n * p.c);
    scratch = carve.next;
  }

  // Turns the sums about hi into sums about the mean and returns the map of group i with weight 1.
  GradAffine finish(int64_t i, double invstd) {
    const double mean = p.mean[i], lo = mean - rounded(p.dtype, mean);
    double group_g = 0, group_gd = 0;
    for (int64_t j = 0; j < D; ++j) {
      const int64_t k = i * D + j;
      const double weight = read(p.weight, i % p.groups * D + j, 1), gd = sum_gn[k] - lo * sum_g[k];
      sum_gn[k] = gd * invstd;
      group_g += weight * sum_g[k];
      group_gd += weight * gd;
    }
    return grad_affine(p.dtype, static_cast<double>(D * p.s), mean, invstd, 1, group_g, group_gd);
  }

  void planes(const Exec& exec) {
    const int64_t len = D * p.s, plane_parts = norm_parts(p.s), parts = D * plane_parts;
    Carver carve{scratch};
    GradSums* sums = carve.take<GradSums>(p.n * p.groups * parts);
    GradAffine* maps = carve.take<GradAffine>(p.n * p.groups);
    const auto start = [&](int64_t g, int64_t i) {
      return g * len + i / plane_parts * p.s + i % plane_parts * kNormSegment;
    };
    const auto pieces = [&](int64_t i) { return Pieces{1, 0, piece(i % plane_parts, p.s).len}; };
    each_group(
        exec, p.n * p.groups, len, parts, parts,
        [&](int64_t g, int64_t i) {
          sums[g * parts + i] = kernels.run_grad_sums(at(source, start(g, i), bytes), pieces(i),
                                                      {rounded(p.dtype, p.mean[g]), 0, 0}, {1, 0});
        },
        [&](int64_t g) {
          for (int64_t j = 0; j < D; ++j) {
            GradSums total = {0, 0};
            for (int64_t i = j * plane_parts; i < (j + 1) * plane_parts; ++i) {
              total.g += sums[g * parts + i].g;
              total.gd += sums[g * parts + i].gd;
            }
            sum_g[g * D + j] = total.g;
            sum_gn[g * D + j] = total.gd;
          }
          maps[g] = finish(g, inverse_std(p.var[g], p.eps));
        },
        [&](int64_t g, int64_t i) {
          if (p.dx == nullptr) return;
          GradAffine map = maps[g];
          map.a = inverse_std(p.var[g], p.eps) * read(p.weight, g % p.groups * D + i / plane_parts, 1);
          kernels.run_grad_apply(at(source, start(g, i), bytes), at(p.dx, start(g, i), bytes), nullptr, pieces(i), true,
                                 {rounded(p.dtype, p.mean[g]), 0, 0}, map, {1, 0});
        });
  }

  void rows(const Exec& exec) {
    const int64_t C = p.c, R = p.s;
    each_image(exec, scratch, group_norm_image_bytes(C, R), p.n, [&](const Exec& threads, char* base, int64_t image) {
      Carver carve{base};
      double* hi = carve.take<double>(C);
      double* a = carve.take<double>(C);
      double* b = carve.take<double>(C);
      double* c0 = carve.take<double>(C);
      const GradSource from = at(source, image * R * C, bytes);
      const RowAffine affine{hi, hi, hi};  // without an activation nobody asks for scale and shift
      for (int64_t c = 0; c < C; ++c) hi[c] = rounded(p.dtype, p.mean[image * p.groups + c / D]);
      rows_grad_sums(threads, kernels, from, bytes, R, C, affine, {1, 0}, carve.take<double>(2 * norm_supers(R, C) * C),
                     sum_g + image * C, sum_gn + image * C, [](int64_t, int64_t) {});
      for (int64_t g = 0; g < p.groups; ++g) {
        const int64_t i = image * p.groups + g;
        const double invstd = inverse_std(p.var[i], p.eps);
        const GradAffine map = finish(i, invstd);
        for (int64_t c = g * D; c < (g + 1) * D; ++c) {
          a[c] = invstd * read(p.weight, c, 1);
          b[c] = map.b;
          c0[c] = map.c;
        }
      }
      if (p.dx == nullptr) return;
      void* dx = at(p.dx, image * R * C, bytes);
      rows_backwards(threads, R, C, [&](int64_t first, int64_t rows) {
        kernels.row_grad_apply(at(from, first * C, bytes), at(dx, first * C, bytes), nullptr, {rows, C}, true, affine,
                               {a, b, c0}, {1, 0});
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

void drive(const GroupNormParams& p, const Exec& exec, const NormKernels& kernels) {
  if (p.n * p.c * p.s == 0) {
    for (int64_t i = 0; i < p.n * p.groups; ++i) p.mean[i] = p.var[i] = 0;
    return;
  }
  if (p.channels_last) forward_rows(p, kernels, exec);
  else forward_planes(p, kernels, exec);
}

void drive(const GroupNormBackwardParams& p, const Exec& exec, const NormKernels& kernels) {
  if (p.n * p.c * p.s == 0) {
    for (int64_t c = 0; c < p.c; ++c) {
      write(p.dweight, c, 0);
      write(p.dbias, c, 0);
    }
    return;
  }
  Backward run(p, kernels, exec.workspace);
  if (p.channels_last) run.rows(exec);
  else run.planes(exec);
  if (p.dweight.data != nullptr || p.dbias.data != nullptr) run.parameters();
}

}  // namespace

FASTCV_NORM_DRIVER(group_norm, GroupNormParams)
FASTCV_NORM_DRIVER(group_norm_backward, GroupNormBackwardParams)

}  // namespace fastcv
