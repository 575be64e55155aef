// Inner loops over runs: contiguous elements that share their parameters.
#include "norm/norm_simd.h"

#include "common/dispatch.h"

namespace fastcv::FASTCV_ISA {
namespace {

template <class S>
FASTCV_INLINE void sums_about(const S* x, Pieces p, acc_t<S> centre, double& sum, double& squares) {
  using T = acc_t<S>;
  using V = Vec<T>;
  const V c(centre), zero(T(0));
  V s[4], q[4];
  for (int k = 0; k < 4; ++k) s[k] = q[k] = zero;
  for (int64_t piece = 0; piece < p.count; ++piece, x += p.stride) {
    sweep<V::width>(
        p.len,
        [&](int64_t i, int k) __attribute__((always_inline)) {
          ask(x + i);
          const V d = load(x + i) - c;
          s[k] += d;
          q[k] = fma(d, d, q[k]);
        },
        [&](int64_t i, int n) __attribute__((always_inline)) {
          const V d = select<T>(first_lanes<T>(n), load_n(x + i, n) - c, zero);
          s[1] += d;
          q[1] = fma(d, d, q[1]);
        });
  }
  sum = sum4(s);
  squares = sum4(q);
}

// Moments of at most kChunk elements.
template <class S>
[[gnu::noinline]] Moments chunk_moments(const S* x, Pieces p) {
  using T = acc_t<S>;
  using V = Vec<T>;
  V first[4] = {V(T(0)), V(T(0)), V(T(0)), V(T(0))};
  const int64_t sample = min64(p.len, 16 * V::width);
  sweep<V::width>(
      sample, [&](int64_t i, int k) { first[k] += load(x + i); },
      [&](int64_t i, int n) { first[1] += load_n(x + i, n); });
  T centre = static_cast<T>(sum4(first) / static_cast<T>(sample));
  if (!__builtin_isfinite(centre)) centre = T(0);
  const double n = static_cast<double>(p.count * p.len);
  for (bool again = true;; again = false) {
    double sum, squares;
    sums_about(x, p, centre, sum, squares);
    const double off = sum / n, m2 = squares - sum * off, mean = centre + off;
    if (!__builtin_isfinite(mean)) return {mean, __builtin_nan("")};
    if (!again || !(off * sum > m2)) return {mean, m2 < 0 ? 0 : m2};
    centre = static_cast<T>(mean);
  }
}

// Moments of any number of elements.
template <class S>
Moments moments(const void* from, Pieces p) {
  using T = acc_t<S>;
  const S* x = static_cast<const S*>(from);
  if (p.count == 1 && p.len <= kChunk<T>) return chunk_moments(x, p);
  Moments total = {0, 0};
  double count = 0;
  const int64_t step = max64(1, kChunk<T> / max64(1, p.len));
  for (int64_t piece = 0; piece < p.count; piece += step) {
    const int64_t pieces = min64(step, p.count - piece);
    for (int64_t i = 0; i < p.len; i += kChunk<T>) {
      const int64_t len = min64(kChunk<T>, p.len - i);
      const double here = static_cast<double>(pieces * len);
      merge(count, total, here, chunk_moments(x + piece * p.stride + i, {pieces, p.stride, len}));
      count += here;
    }
  }
  return total;
}

template <class S, class T = acc_t<S>>
void apply(const void* from, const void* added, void* to, Pieces p, Affine a, Activation activation) {
  using V = Vec<T>;
  constexpr int w = V::width;
  const S* x = static_cast<const S*>(from);
  const S* residual = static_cast<const S*>(added);
  S* y = static_cast<S*>(to);
  const V hi(T(a.hi)), scale(T(a.scale)), shift(T(a.shift));
  const Act<T> act(activation);
  const bool plain = residual == nullptr && is_identity(activation);
  for (int64_t piece = 0; piece < p.count; ++piece, x += p.stride, y += p.stride) {
    if (p.len < w) {
      const int n = static_cast<int>(p.len);
      V v = fma(load_n(x, n) - hi, scale, shift);
      if (residual != nullptr) v += load_n(residual, n);
      store_n(y, activate(act, v), n);
    } else if (plain) {
      cover<w>(p.len, [&](int64_t i) { store(y + i, fma(load(x + i) - hi, scale, shift)); });
    } else if (residual == nullptr) {
      cover<w>(p.len, [&](int64_t i) { store(y + i, activate(act, fma(load(x + i) - hi, scale, shift))); });
    } else {
      cover<w>(p.len, [&](int64_t i) {
        store(y + i, activate(act, fma(load(x + i) - hi, scale, shift) + load(residual + i)));
      });
    }
    if (residual != nullptr) residual += p.stride;
  }
}

template <class S, class T = acc_t<S>>
GradSums grad_sums(GradSource source, Pieces p, Affine affine, Activation activation) {
  using V = Vec<T>;
  const V hi(T(affine.hi)), zero(T(0));
  GradSums total = {0, 0};
  const int64_t step = max64(1, kChunk<T> / max64(1, p.len));
  const Act<T> act(activation);
  with_gate<T>(is_identity(activation), source.y != nullptr, act, V(T(affine.scale)), V(T(affine.shift)),
               [&](auto behind) {
                 for (int64_t piece = 0; piece < p.count; piece += step) {
                   for (int64_t start = 0; start < p.len; start += kChunk<T>) {
                     Source<S> from = source_of<S>(source);
                     from += piece * p.stride + start;
                     V a[4], b[4];
                     for (int k = 0; k < 4; ++k) a[k] = b[k] = zero;
                     for (int64_t i = piece; i < min64(piece + step, p.count); ++i, from += p.stride) {
                       sweep<V::width>(
                           min64(kChunk<T>, p.len - start),
                           [&](int64_t i, int k) __attribute__((always_inline)) {
                             ask(from.x + i);
                             ask(from.g + i);
                             const V d = load(from.x + i) - hi;
                             const V g = behind(load(from.g + i), d, [&] { return load(from.y + i); });
                             a[k] += g;
                             b[k] = fma(g, d, b[k]);
                           },
                           [&](int64_t i, int n) __attribute__((always_inline)) {
                             const V d = load_n(from.x + i, n) - hi;
                             const Mask<T> lanes = first_lanes<T>(n);
                             const V g = behind(load_n(from.g + i, n), d, [&] { return load_n(from.y + i, n); });
                             a[1] += select<T>(lanes, g, zero);
                             b[1] += select<T>(lanes, g * d, zero);
                           });
                     }
                     total.g += sum4(a);
                     total.gd += sum4(b);
                   }
                 }
               });
  return total;
}

template <class S, class T = acc_t<S>>
void grad_apply(GradSource source, void* to, void* side, Pieces p, bool full, Affine affine, GradAffine ga,
                Activation activation) {
  using V = Vec<T>;
  constexpr int w = V::width;
  Source<S> from = source_of<S>(source);
  S* dx = static_cast<S*>(to);
  S* dresidual = static_cast<S*>(side);
  const V hi(T(affine.hi)), a(T(ga.a)), b(T(full ? ga.b : 0)), c(T(full ? ga.c : 0));
  const Act<T> act(activation);
  const bool identity = is_identity(activation), saved = from.y != nullptr;
  const bool look = full || (!identity && !saved);
  if (!look) from.x = from.g;  // masked out below; g is read anyhow
  const Mask<T> looked(static_cast<int_of<T>>(look ? -1 : 0)), counted(static_cast<int_of<T>>(full ? -1 : 0));
  const V scale(T(affine.scale)), shift(T(affine.shift));
  const auto put = [&](int64_t i, V d, V g) __attribute__((always_inline)) { store(dx + i, fma(g, a, fma(d, b, c))); };
  const bool usual = full && dx != nullptr && dresidual == nullptr && !saved;
  for (int64_t piece = 0; piece < p.count; ++piece, from += p.stride) {
    if (p.len >= w && usual && identity) {
      cover<w>(p.len, [&](int64_t i) { put(i, load(from.x + i) - hi, load(from.g + i)); });
    } else if (p.len >= w && usual) {
      cover<w>(p.len, [&](int64_t i) {
        const V d = load(from.x + i) - hi;
        put(i, d, gate(act, load(from.g + i), fma(d, scale, shift)));
      });
    } else {
      for (int64_t i = 0; i < p.len; i += w) {
        const int n = static_cast<int>(min64(w, p.len - i));
        const auto some = [&](const S* q)
                              __attribute__((always_inline)) { return n == w ? load(q + i) : load_n(q + i, n); };
        const V d = masked<T>(some(from.x) - hi, looked);
        V g = some(from.g);
        if (!identity) g = gate(act, g, saved ? some(from.y) : fma(d, scale, shift));
        const V value = fma(g, a, fma(masked<T>(d, counted), b, c));
        if (dresidual != nullptr) n == w ? store(dresidual + i, g) : store_n(dresidual + i, g, n);
        if (dx != nullptr) n == w ? store(dx + i, value) : store_n(dx + i, value, n);
      }
    }
    if (dx != nullptr) dx += p.stride;
    if (dresidual != nullptr) dresidual += p.stride;
  }
}

}  // namespace

void set_run_kernels(DType dtype, NormKernels& kernels) {
  dispatch_float(dtype, [&](auto zero) {
    using S = decltype(zero);
    kernels.run_moments = &moments<S>;
    kernels.run_apply = &apply<S>;
    kernels.run_grad_sums = &grad_sums<S>;
    kernels.run_grad_apply = &grad_apply<S>;
  });
}

}  // namespace fastcv::FASTCV_ISA
