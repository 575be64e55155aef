#include "norm/local_response_norm.h"

#include "common/dispatch.h"
#include "norm/norm_driver.h"
#include "norm/norm_simd.h"

namespace fastcv::FASTCV_ISA {
namespace {

// v^-beta. The exponents of published networks by square roots, others by the C library.
template <class T>
FASTCV_INLINE Vec<T> inverse_power(Vec<T> v, double beta) {
  const Vec<T> one(T(1));
  if (beta == 0.75) {
    const Vec<T> root = sqrt(v);
    return one / (root * sqrt(root));
  }
  if (beta == 0.5) return one / sqrt(v);
  if (beta == 1) return one / v;
  T x[Vec<T>::width];
  detail::store_raw(x, v);
  for (int i = 0; i < Vec<T>::width; ++i) x[i] = static_cast<T>(__builtin_pow(x[i], -beta));
  return detail::load_raw(x);
}

template <class S>
struct Run {
  using T = acc_t<S>;
  using V = Vec<T>;
  static constexpr int w = V::width;
  const LocalResponseNormParams& p;
  const S* x = static_cast<const S*>(p.x);
  const S* grad = static_cast<const S*>(p.grad);
  S* y = static_cast<S*>(p.y);
  const V scale{static_cast<T>(p.scale)}, k{static_cast<T>(p.k)}, slope{static_cast<T>(-2 * p.scale * p.beta)};

  // ---- NCHW: NV vectors of positions at a time, all channels of them ----

  template <int NV>
  FASTCV_INLINE V at(const S* q, int j, int lanes) {
    return NV > 1 || lanes == w ? load(q + j * w) : load_n(q, lanes);
  }
  template <int NV>
  FASTCV_INLINE void put(S* q, int j, V v, int lanes) {
    if (NV > 1 || lanes == w) store(q + j * w, v);
    else store_n(q, v, lanes);
  }

  // The base k + scale * sum of squares at channel c.
  template <int NV>
  [[gnu::always_inline]] void base(const S* q, int64_t c, int lanes, V* sum) const {
    for (int j = 0; j < NV; ++j) sum[j] = V(T(0));
    const int64_t last = min64(c + p.after, p.c - 1);
    for (int64_t i = max64(0, c - p.before); i <= last; ++i)
      for (int j = 0; j < NV; ++j) {
        const V v = at<NV>(q + i * p.s, j, lanes);
        sum[j] = fma(v, v, sum[j]);
      }
    for (int j = 0; j < NV; ++j) sum[j] = fma(sum[j], scale, k);
  }

  template <int NV>
  void forward_positions(const S* q, S* to, int lanes) const {
    V v[NV];
    for (int64_t c = 0; c < p.c; ++c) {
      base<NV>(q, c, lanes, v);
      for (int j = 0; j < NV; ++j)
        put<NV>(to + c * p.s, j, at<NV>(q + c * p.s, j, lanes) * inverse_power(v[j], p.beta), lanes);
    }
  }

  // dx[i] = g[i] v[i]^-beta - 2 scale beta x[i] sum of t[c] over the channels whose window holds i, t = g x
  // v^(-beta-1).
  template <int NV>
  void backward_positions(const S* q, const S* g, S* to, int lanes, T* scratch) const {
    T* power = scratch;
    T* t = scratch + p.c * NV * w;
    V v[NV];
    for (int64_t c = 0; c < p.c; ++c) {
      base<NV>(q, c, lanes, v);
      for (int j = 0; j < NV; ++j) {
        const V f = inverse_power(v[j], p.beta) * at<NV>(g + c * p.s, j, lanes);
        detail::store_raw(power + (c * NV + j) * w, f);
        detail::store_raw(t + (c * NV + j) * w, f * at<NV>(q + c * p.s, j, lanes) / v[j]);
      }
    }
    for (int64_t c = 0; c < p.c; ++c) {
      for (int j = 0; j < NV; ++j) v[j] = V(T(0));
      const int64_t last = min64(c + p.before, p.c - 1);
      for (int64_t i = max64(0, c - p.after); i <= last; ++i)
        for (int j = 0; j < NV; ++j) v[j] += detail::load_raw(t + (i * NV + j) * w);
      for (int j = 0; j < NV; ++j) {
        const V own = detail::load_raw(power + (c * NV + j) * w);
        put<NV>(to + c * p.s, j, fma(slope * at<NV>(q + c * p.s, j, lanes), v[j], own), lanes);
      }
    }
  }

  void planes(const Exec& exec) const {
    const int64_t step = 4 * w, steps = ceil_div(p.s, step);
    parallel_slots(exec, p.n * steps, grain_of(step * p.c), [&](int slot, int64_t begin, int64_t end) {
      T* scratch = reinterpret_cast<T*>(static_cast<char*>(exec.workspace) + slot * local_response_norm_scratch(p.c));
      for (int64_t u = begin; u < end; ++u) {
        int64_t pos = u % steps * step;
        const int64_t last = min64(pos + step, p.s), image = u / steps * p.c * p.s;
        if (last - pos == step) {
          const int64_t i = image + pos;
          if (grad == nullptr) forward_positions<4>(x + i, y + i, w);
          else backward_positions<4>(x + i, grad + i, y + i, w, scratch);
          continue;
        }
        for (; pos < last; pos += w) {
          const int64_t i = image + pos;
          const int lanes = static_cast<int>(min64(w, last - pos));
          if (grad == nullptr) forward_positions<1>(x + i, y + i, lanes);
          else backward_positions<1>(x + i, grad + i, y + i, lanes, scratch);
        }
      }
    });
  }

  // ---- NHWC: a pixel at a time; squares (and t) in rows with zeros on both sides ----

  void rows(const Exec& exec) const {
    parallel_slots(exec, p.n * p.s, grain_of(p.c), [&](int slot, int64_t begin, int64_t end) {
      Carver carve{static_cast<char*>(exec.workspace) + slot * local_response_norm_scratch(p.c)};
      const int64_t margin = p.before + p.after, padded = p.c + margin + w;
      T* squares = carve.take<T>(padded);
      T* t = carve.take<T>(padded);
      T* power = carve.take<T>(p.c + w);
      for (int64_t i = 0; i < padded; ++i) squares[i] = t[i] = 0;
      const auto window = [&](const T* row, int64_t i) {
        V sum(T(0));
        for (int64_t j = 0; j <= margin; ++j) sum += detail::load_raw(row + i + j);
        return sum;
      };
      for (int64_t r = begin; r < end; ++r) {
        const S* q = x + r * p.c;
        S* to = y + r * p.c;
        sweep<w>(
            p.c,
            [&](int64_t i, int) {
              const V v = load(q + i);
              detail::store_raw(squares + p.before + i, v * v);
            },
            [&](int64_t i, int n) {
              const V v = load_n(q + i, n);
              detail::store_raw_n(squares + p.before + i, v * v, n);
            });
        if (grad == nullptr) {
          const auto factor = [&](int64_t i) { return inverse_power(fma(window(squares, i), scale, k), p.beta); };
          sweep<w>(
              p.c, [&](int64_t i, int) { store(to + i, load(q + i) * factor(i)); },
              [&](int64_t i, int n) { store_n(to + i, load_n(q + i, n) * factor(i), n); });
          continue;
        }
        const S* g = grad + r * p.c;
        for (int64_t i = 0; i < p.c; i += w) {
          const int n = static_cast<int>(min64(w, p.c - i));
          const V v = fma(window(squares, i), scale, k);
          const V f = inverse_power(v, p.beta) * load_n(g + i, n);
          detail::store_raw(power + i, f);
          detail::store_raw_n(t + p.after + i, f * load_n(q + i, n) / v, n);
        }
        for (int64_t i = 0; i < p.c; i += w) {
          const int n = static_cast<int>(min64(w, p.c - i));
          store_n(to + i, fma(slope * load_n(q + i, n), window(t, i), detail::load_raw(power + i)), n);
        }
      }
    });
  }

  void operator()(const Exec& exec) const {
    if (p.channels_last) rows(exec);
    else planes(exec);
  }
};

}  // namespace

void local_response_norm(const LocalResponseNormParams& p, const Exec& exec) {
  if (p.n * p.c * p.s == 0) return;
  dispatch_float(p.dtype, [&](auto zero) { Run<decltype(zero)>{p}(exec); });
}

void local_response_norm_backward(const LocalResponseNormParams& p, const Exec& exec) { local_response_norm(p, exec); }

}  // namespace fastcv::FASTCV_ISA
