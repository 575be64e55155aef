// Vector pieces of the norm kernels, for *_simd.cpp files only. Two shapes of memory meet here:
//   runs   contiguous elements that share one parameter set (a plane of NCHW, a group): parameters are broadcast
//   rows   contiguous channels, each with parameters of its own (a pixel of NHWC): parameters are loaded
//
// Statistics: within a chunk of at most kChunk elements the deviations from the chunk's own mean are summed in the
// accumulation type; chunks are merged in double by Chan's formula, always in index order. A large mean costs nothing
// and an outlier spoils only its own chunk.
// Normalisation: y = (x - hi) * scale + shift, where hi is the mean rounded to the accumulation type and shift carries
// what the rounding left, so that no cancellation happens after rounding.
#pragma once
#include "common/simd.h"
#include "norm/norm.h"

namespace fastcv::FASTCV_ISA {
namespace {

constexpr int64_t kChunk = 4096;     // elements summed in the accumulation type before they go to double
constexpr int64_t kGrain = 1 << 14;  // elements below which a second thread costs more than it saves

FASTCV_INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
FASTCV_INLINE int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
FASTCV_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
FASTCV_INLINE int64_t grain_of(int64_t elements_per_task) { return max64(1, kGrain / max64(1, elements_per_task)); }

FASTCV_INLINE double read(const NormVector& v, int64_t i, double absent) {
  if (v.data == nullptr) return absent;
  switch (v.dtype) {
    case DType::f32:
      return static_cast<const float*>(v.data)[i];
    case DType::f64:
      return static_cast<const double*>(v.data)[i];
    case DType::bf16:
      return load_one(static_cast<const bf16*>(v.data) + i);
    default:
      return load_one(static_cast<const f16*>(v.data) + i);
  }
}

FASTCV_INLINE void write(const NormVector& v, int64_t i, double x) {
  if (v.data == nullptr) return;
  void* p = const_cast<void*>(v.data);
  switch (v.dtype) {
    case DType::f32:
      static_cast<float*>(p)[i] = static_cast<float>(x);
      return;
    case DType::f64:
      static_cast<double*>(p)[i] = x;
      return;
    case DType::bf16:
      return store_one(static_cast<bf16*>(p) + i, static_cast<float>(x));
    default:
      return store_one(static_cast<f16*>(p) + i, static_cast<float>(x));
  }
}

// Hands out 64-byte aligned pieces of the workspace.
struct Carver {
  char* next;
  template <class T>
  T* take(int64_t count) {
    T* p = reinterpret_cast<T*>(next);
    next += (static_cast<size_t>(count) * sizeof(T) + 63) & ~size_t{63};
    return p;
  }
};

// ---- moments -----------------------------------------------------------------------------------------------------

struct Moments {
  double mean, m2;  // m2: sum of squared deviations from the mean
};

// Adds nb values with moments b to na values with moments a. An infinite mean stays infinite, its m2 is NaN.
FASTCV_INLINE void merge(double na, Moments& a, double nb, Moments b) {
  const double delta = b.mean - a.mean, share = nb / (na + nb);
  if (na == 0) {
    a = b;
  } else if (!__builtin_isfinite(delta)) {
    a = {a.mean + b.mean, __builtin_nan("")};
  } else {
    a.mean += delta * share;
    a.m2 += b.m2 + delta * delta * (na * share);
  }
}

FASTCV_INLINE Moments moments_of_sums(double n, double centre, double sum, double squares) {
  if (!__builtin_isfinite(centre)) return {centre, __builtin_nan("")};
  const double m2 = squares - sum * (sum / n);
  return {centre + sum / n, m2 < 0 ? 0 : m2};
}

// [0, len) in vectors of W: full(i, k) for those at i, to be added into accumulator k in 0..3; tail(i, n) for the last
// n elements.
template <int W, class Full, class Tail>
FASTCV_INLINE void sweep(int64_t len, Full&& full, Tail&& tail) {
  int64_t i = 0;
  for (; i + 4 * W <= len; i += 4 * W) {
    full(i, 0);
    full(i + W, 1);
    full(i + 2 * W, 2);
    full(i + 3 * W, 3);
  }
  if (i + 2 * W <= len) {
    full(i, 0);
    full(i + W, 1);
    i += 2 * W;
  }
  if (i + W <= len) {
    full(i, 2);
    i += W;
  }
  if (i < len) tail(i, static_cast<int>(len - i));
}

// The same without accumulators: full(i) and tail(i, n).
template <int W, class Full, class Tail>
FASTCV_INLINE void stream(int64_t len, Full&& full, Tail&& tail) {
  int64_t i = 0;
  for (; i + W <= len; i += W) full(i);
  if (i < len) tail(i, static_cast<int>(len - i));
}

// Moments of `pieces` runs of `len` elements, `stride` apart; at most kChunk elements.
template <class S>
[[gnu::noinline]] static Moments chunk_moments(const S* x, int64_t pieces, int64_t stride, int64_t len) {
  using T = acc_t<S>;
  using V = Vec<T>;
  V sum[4], squares[4];
  for (int k = 0; k < 4; ++k) sum[k] = V(T(0));
  for (int64_t p = 0; p < pieces; ++p) {
    const S* q = x + p * stride;
    sweep<V::width>(
        len, [&](int64_t i, int k) { sum[k] += load(q + i); }, [&](int64_t i, int n) { sum[3] += load_n(q + i, n); });
  }
  const double n = static_cast<double>(pieces * len);
  const T centre = static_cast<T>(reduce_add((sum[0] + sum[1]) + (sum[2] + sum[3])) / n);
  const V c(centre), zero(T(0));
  for (int k = 0; k < 4; ++k) sum[k] = squares[k] = zero;
  for (int64_t p = 0; p < pieces; ++p) {
    const S* q = x + p * stride;
    sweep<V::width>(
        len,
        [&](int64_t i, int k) {
          const V d = load(q + i) - c;
          sum[k] += d;
          squares[k] = fma(d, d, squares[k]);
        },
        [&](int64_t i, int m) {
          const V d = select<T>(first_lanes<T>(m), load_n(q + i, m) - c, zero);
          sum[3] += d;
          squares[3] = fma(d, d, squares[3]);
        });
  }
  return moments_of_sums(n, centre, reduce_add((sum[0] + sum[1]) + (sum[2] + sum[3])),
                         reduce_add((squares[0] + squares[1]) + (squares[2] + squares[3])));
}

// Moments of `pieces` runs of `len` elements, `stride` apart; any number of elements.
template <class S>
static Moments run_moments(const S* x, int64_t pieces, int64_t stride, int64_t len) {
  Moments total = {0, 0};
  double count = 0;
  if (len <= kChunk) {
    const int64_t step = max64(1, kChunk / max64(1, len));
    for (int64_t p = 0; p < pieces; p += step) {
      const int64_t here = min64(step, pieces - p);
      merge(count, total, static_cast<double>(here * len), chunk_moments(x + p * stride, here, stride, len));
      count += static_cast<double>(here * len);
    }
    return total;
  }
  for (int64_t p = 0; p < pieces; ++p) {
    for (int64_t i = 0; i < len; i += kChunk) {
      const int64_t here = min64(kChunk, len - i);
      merge(count, total, static_cast<double>(here), chunk_moments(x + p * stride + i, 1, 0, here));
      count += static_cast<double>(here);
    }
  }
  return total;
}

// ---- the affine map and its activation ----------------------------------------------------------------------------

template <class T>
struct Affine {
  T hi, scale, shift;
};

template <class T>
FASTCV_INLINE Affine<T> affine_of(double mean, double invstd, double weight, double bias) {
  const double scale = invstd * weight;
  const T hi = static_cast<T>(mean);
  const double lo = __builtin_isfinite(mean) ? mean - static_cast<double>(hi) : 0;
  return {hi, static_cast<T>(scale), static_cast<T>(bias - lo * scale)};
}

template <class T>
struct Act {
  Vec<T> slope, cap;
  Mask<T> keep;  // all ones where slope * v counts, zero for relu: 0 * -inf must be 0
  bool identity;
  explicit Act(const Activation& a)
      : slope(static_cast<T>(a.slope)),
        cap(static_cast<T>(a.cap > 0 ? a.cap : __builtin_inf())),
        keep(static_cast<int_of<T>>(a.slope == 0 ? 0 : -1)),
        identity(a.slope == 1 && !(a.cap > 0)) {}
};

template <class T>
FASTCV_INLINE Vec<T> scaled(const Act<T>& a, Vec<T> v) {
  return bitcast<T>(bitcast<int_of<T>>(v * a.slope) & a.keep);
}
template <class T>
FASTCV_INLINE Vec<T> activate(const Act<T>& a, Vec<T> v) {
  const Vec<T> bent = select<T>(v <= Vec<T>(T(0)), scaled(a, v), v);
  return select<T>(bent > a.cap, a.cap, bent);
}
// The gradient g through the activation of v (or of its result: both have the same signs and meet the cap together).
template <class T>
FASTCV_INLINE Vec<T> gate(const Act<T>& a, Vec<T> g, Vec<T> v) {
  const Vec<T> bent = select<T>(v <= Vec<T>(T(0)), scaled(a, g), g);
  return select<T>(v >= a.cap, Vec<T>(T(0)), bent);
}

// Parameters of a run (one value, broadcast) or of a row (one per element).
template <class T, bool PerElement>
FASTCV_INLINE Vec<T> param(const T* p, int64_t i) {
  if constexpr (PerElement) return detail::load_raw(p + i);
  else return Vec<T>(*p);
}
template <class T, bool PerElement>
FASTCV_INLINE Vec<T> param_n(const T* p, int64_t i, int n) {
  if constexpr (PerElement) return detail::load_raw_n(p + i, n);
  else return Vec<T>(*p);
}

// y = act((x - hi) * scale + shift + residual) over `rows` rows of `len` elements, one after the other; residual may be
// null. A run is one row with PerElement false.
template <bool PerElement, class S, class T = acc_t<S>>
[[gnu::noinline]] static void apply(const S* x, const S* residual, S* y, int64_t rows, int64_t len, const T* hi,
                                    const T* scale, const T* shift, const Act<T>& activation) {
  using V = Vec<T>;
  constexpr bool P = PerElement;
  const Act<T> act = activation;
  for (int64_t row = 0; row < rows; ++row, x += len, y += len) {
    if (residual == nullptr && act.identity) {
      stream<V::width>(
          len,
          [&](int64_t i) {
            store(y + i, fma(load(x + i) - param<T, P>(hi, i), param<T, P>(scale, i), param<T, P>(shift, i)));
          },
          [&](int64_t i, int n) {
            const V d = load_n(x + i, n) - param_n<T, P>(hi, i, n);
            store_n(y + i, fma(d, param_n<T, P>(scale, i, n), param_n<T, P>(shift, i, n)), n);
          });
      continue;
    }
    stream<V::width>(
        len,
        [&](int64_t i) {
          V v = fma(load(x + i) - param<T, P>(hi, i), param<T, P>(scale, i), param<T, P>(shift, i));
          if (residual != nullptr) v += load(residual + i);
          store(y + i, activate(act, v));
        },
        [&](int64_t i, int n) {
          const V d = load_n(x + i, n) - param_n<T, P>(hi, i, n);
          V v = fma(d, param_n<T, P>(scale, i, n), param_n<T, P>(shift, i, n));
          if (residual != nullptr) v += load_n(residual + i, n);
          store_n(y + i, activate(act, v), n);
        });
    if (residual != nullptr) residual += len;
  }
}

// ---- gradients ------------------------------------------------------------------------------------------------------

// Where the gradient of an element comes from: g through the gate of `y` (the saved result) or, without one, of the
// pre-activation recomputed from x.
template <bool PerElement, class S, class T = acc_t<S>>
struct Gradient {
  const S* g;
  const S* x;
  const S* y;
  const T* hi;
  const T* scale;
  const T* shift;
  Act<T> act;

  // The gradient of the pre-activation at i, given d = x - hi.
  [[gnu::always_inline]] Vec<T> at(int64_t i, Vec<T> d) const {
    const Vec<T> grad = load(g + i);
    if (act.identity) return grad;
    if (y != nullptr) return gate(act, grad, load(y + i));
    return gate(act, grad, fma(d, param<T, PerElement>(scale, i), param<T, PerElement>(shift, i)));
  }
  [[gnu::always_inline]] Vec<T> at_n(int64_t i, Vec<T> d, int n) const {
    const Vec<T> grad = load_n(g + i, n);
    if (act.identity) return grad;
    if (y != nullptr) return gate(act, grad, load_n(y + i, n));
    return gate(act, grad, fma(d, param_n<T, PerElement>(scale, i, n), param_n<T, PerElement>(shift, i, n)));
  }
  [[gnu::always_inline]] Vec<T> deviation(int64_t i) const { return load(x + i) - param<T, PerElement>(hi, i); }
  [[gnu::always_inline]] Vec<T> deviation_n(int64_t i, int n) const {
    return load_n(x + i, n) - param_n<T, PerElement>(hi, i, n);
  }
};

struct GradSums {
  double g, gd;  // sum of the gradient, and of the gradient times (x - hi)
};

// Adds the sums over `pieces` runs of `len` elements, `stride` apart.
template <class S, class T = acc_t<S>>
[[gnu::noinline]] static GradSums run_grad_sums(const Gradient<false, S>& from, int64_t pieces, int64_t stride,
                                                int64_t len) {
  using V = Vec<T>;
  GradSums total = {0, 0};
  const V zero(T(0));
  const int64_t step = max64(1, kChunk / max64(1, len));
  for (int64_t p = 0; p < pieces; p += step) {
    const int64_t last = min64(p + step, pieces);
    for (int64_t start = 0; start < len; start += kChunk) {
      const int64_t here = min64(kChunk, len - start);
      V a[4], b[4];
      for (int k = 0; k < 4; ++k) a[k] = b[k] = zero;
      for (int64_t piece = p; piece < last; ++piece) {
        const int64_t at = piece * stride + start;
        sweep<V::width>(
            here,
            [&](int64_t i, int k) {
              const V d = from.deviation(at + i), g = from.at(at + i, d);
              a[k] += g;
              b[k] = fma(g, d, b[k]);
            },
            [&](int64_t i, int n) {
              const V d = from.deviation_n(at + i, n);
              const Mask<T> lanes = first_lanes<T>(n);
              const V g = from.at_n(at + i, d, n);
              a[3] += select<T>(lanes, g, zero);
              b[3] += select<T>(lanes, g * d, zero);
            });
      }
      total.g += reduce_add((a[0] + a[1]) + (a[2] + a[3]));
      total.gd += reduce_add((b[0] + b[1]) + (b[2] + b[3]));
    }
  }
  return total;
}

// dx = a * g + b * (x - hi) + c over `rows` rows of `len` elements, dresidual = g. Without `full` only a counts: x is
// then not looked at, so that its infinities do no harm. dx and dresidual may be null.
template <bool PerElement, class S, class T = acc_t<S>>
[[gnu::noinline]] static void grad_apply(const Gradient<PerElement, S>& source, S* dx, S* dresidual, int64_t rows,
                                         int64_t len, bool full, const T* a, const T* b, const T* c) {
  using V = Vec<T>;
  constexpr bool P = PerElement;
  Gradient<PerElement, S> from = source;
  const bool look = full || (!from.act.identity && from.y == nullptr);
  for (int64_t row = 0; row < rows; ++row) {
    stream<V::width>(
        len,
        [&](int64_t i) {
          const V d = look ? from.deviation(i) : V(T(0));
          const V g = from.at(i, d);
          if (dresidual != nullptr) store(dresidual + i, g);
          if (dx == nullptr) return;
          const V rest = full ? fma(d, param<T, P>(b, i), param<T, P>(c, i)) : V(T(0));
          store(dx + i, fma(g, param<T, P>(a, i), rest));
        },
        [&](int64_t i, int n) {
          const V d = look ? from.deviation_n(i, n) : V(T(0));
          const V g = from.at_n(i, d, n);
          if (dresidual != nullptr) store_n(dresidual + i, g, n);
          if (dx == nullptr) return;
          const V rest = full ? fma(d, param_n<T, P>(b, i, n), param_n<T, P>(c, i, n)) : V(T(0));
          store_n(dx + i, fma(g, param_n<T, P>(a, i, n), rest), n);
        });
    from.g += len;
    from.x += len;
    if (from.y != nullptr) from.y += len;
    if (dx != nullptr) dx += len;
    if (dresidual != nullptr) dresidual += len;
  }
}

// dx of a normalisation over n values: a = weight * invstd, b and c fold the mean of the gradient and of gradient * x.
// sums are about hi; lo = mean - hi.
template <class T>
struct GradAffine {
  T a, b, c;
};
// With G = weight * g: dx = invstd * (G - mean(G) - (x - mean) * invstd^2 * mean(G * (x - mean))).
// sum_g and sum_gd are the sums of G and of G * (x - mean).
template <class T>
FASTCV_INLINE GradAffine<T> grad_affine(double n, double mean, double invstd, double weight, double sum_g,
                                        double sum_gd) {
  const double lo = mean - static_cast<double>(static_cast<T>(mean));
  const double slope = -invstd * invstd * invstd * (sum_gd / n);
  return {static_cast<T>(invstd * weight), static_cast<T>(slope), static_cast<T>(-invstd * (sum_g / n) - slope * lo)};
}

}  // namespace
}  // namespace fastcv::FASTCV_ISA
