// Inner loops over rows: contiguous channels, each with parameters of its own.
// Sums: a column of kColumn vectors at a time, so that sums and parameters stay in registers while it goes down the
// rows; the last column of a row may overlap the one before it.
#include "norm/norm_simd.h"

#include "common/dispatch.h"

namespace fastcv::FASTCV_ISA {
namespace {

constexpr int64_t kShortSum = 16;  // rows summed in one chain: half the digits that a chain over a block would lose
#if defined(__AVX512F__)
constexpr int kColumn = 4;
#else
constexpr int kColumn = 2;  // sixteen registers
#endif

// The next rows of the same column: the hardware does not follow columns.
template <class S>
FASTCV_INLINE void ask_below(const S* p, int64_t channels) {
  __builtin_prefetch(p + 8 * channels, 0, 2);
}

// f.operator()<NV, partial>(channel, skip, lanes): columns of NV vectors that begin at `channel`, of which the first
// `skip` channels were done before; partial: one vector of only `lanes` channels.
template <class T, class F>
FASTCV_INLINE void columns(int64_t channels, F&& f) {
  constexpr int w = Vec<T>::width;
  if (channels < w) return f.template operator()<1, true>(0, 0, static_cast<int>(channels));
  if (channels < kColumn * w) {
    for (int64_t c = 0; c < channels; c += w) {
      const int64_t at = min64(c, channels - w);
      f.template operator()<1, false>(at, static_cast<int>(c - at), w);
    }
    return;
  }
  for (int64_t c = 0; c < channels; c += kColumn * w) {
    const int64_t at = min64(c, channels - kColumn * w);
    f.template operator()<kColumn, false>(at, static_cast<int>(c - at), w);
  }
}

template <bool partial, class S>
FASTCV_INLINE Vec<acc_t<S>> load_lanes(const S* p, int lanes) {
  if constexpr (partial) return load_n(p, lanes);
  else return load(p);
}
// A vector of parameters in the accumulation type.
template <class T, bool partial>
FASTCV_INLINE Vec<T> param(const double* p, int lanes) {
  constexpr int w = Vec<T>::width;
  if constexpr (partial) {
    T few[w] = {};
    for (int j = 0; j < lanes; ++j) few[j] = static_cast<T>(p[j]);
    return detail::load_raw(few);
  } else if constexpr (std::is_same_v<T, double>) {
    return detail::load_raw(p);
  } else {
    typedef double Wide __attribute__((vector_size(w * sizeof(double))));
    Wide wide;
    std::memcpy(&wide, p, sizeof wide);
    return Vec<T>(__builtin_convertvector(wide, typename Vec<T>::Raw));
  }
}
template <bool partial, class S>
FASTCV_INLINE void store_lanes(S* p, Vec<acc_t<S>> v, int lanes) {
  if constexpr (partial) store_n(p, v, lanes);
  else store(p, v);
}

// Sums over the rows of the deviations from centre and of their squares.
template <int NV, bool partial, class S>
FASTCV_INLINE void column_sums(const S* x, int64_t rows, int64_t channels, int lanes, const Vec<acc_t<S>>* centre,
                               Vec<acc_t<S>>* total_sum, Vec<acc_t<S>>* total_squares) {
  using V = Vec<acc_t<S>>;
  const V zero(acc_t<S>(0));
  for (int k = 0; k < NV; ++k) total_sum[k] = total_squares[k] = zero;
  for (int64_t first = 0; first < rows; first += kShortSum) {
    V sum[NV], squares[NV];
    for (int k = 0; k < NV; ++k) sum[k] = squares[k] = zero;
    for (int64_t r = first; r < min64(first + kShortSum, rows); ++r)
      for (int k = 0; k < NV; ++k) {
        const S* p = x + r * channels + k * V::width;
        ask_below(p, channels);
        const V d = load_lanes<partial>(p, lanes) - centre[k];
        sum[k] += d;
        squares[k] = fma(d, d, squares[k]);
      }
    for (int k = 0; k < NV; ++k) {
      total_sum[k] += sum[k];
      total_squares[k] += squares[k];
    }
  }
}

// Merges sums over n rows of deviations from `centre` into the moments of `before` rows, lane by lane.
template <class T>
[[gnu::noinline]] void merge_lanes(const T* centre, const T* sum, const T* squares, int64_t n, int64_t before,
                                   int lanes, double* __restrict mean, double* __restrict m2) {
  const double inv = 1.0 / static_cast<double>(n), share = static_cast<double>(n) / static_cast<double>(n + before);
  const double weight = share * static_cast<double>(before);
  for (int j = 0; j < lanes; ++j) {
    const double s = sum[j], block_mean = centre[j] + s * inv;
    double block_m2 = squares[j] - s * (s * inv);
    block_m2 = block_m2 < 0 ? 0 : block_m2;
    const double delta = block_mean - mean[j];
    const bool finite = delta - delta == 0;
    const double next = mean[j] + delta * share, both = mean[j] + block_mean;
    m2[j] = m2[j] + block_m2 + delta * delta * weight;
    mean[j] = before == 0 ? block_mean : finite ? next : both;
  }
}

template <class S>
void moments(const void* from, Rows size, int64_t before, double* mean, double* m2) {
  using T = acc_t<S>;
  using V = Vec<T>;
  const int64_t rows = size.count, channels = size.channels;
  constexpr int w = V::width;
  columns<T>(channels, [&]<int NV, bool partial>(int64_t c, int skip, int lanes) {
    const S* x = static_cast<const S*>(from) + c;
    const V zero(T(0)), n(static_cast<T>(rows));
    V centre[NV], sum[NV], squares[NV];
    const int64_t sample = min64(rows, 8);
    for (int k = 0; k < NV; ++k) {
      V first = zero;
      for (int64_t r = 0; r < sample; ++r) first += load_lanes<partial>(x + r * channels + k * w, lanes);
      const V guess = first / V(static_cast<T>(sample));
      centre[k] = select<T>(guess - guess == zero, guess, zero);  // an infinity is no centre
    }
    for (int pass = 0; pass < 2; ++pass) {
      column_sums<NV, partial>(x, rows, channels, lanes, centre, sum, squares);
      Mask<T> far(int_of<T>(0));  // where a centre is more than a standard deviation off: once more about a better one
      for (int k = 0; k < NV; ++k) {
        const V off = sum[k] / n, lost = off * sum[k];
        const Mask<T> here = lost > squares[k] - lost;
        if (pass == 0) centre[k] = select<T>(here, centre[k] + off, centre[k]);
        far = far | here;
      }
      if (pass == 1 || !any(far)) break;
    }
    T a[NV * w], s[NV * w], q[NV * w];
    for (int k = 0; k < NV; ++k) {
      detail::store_raw(a + k * w, centre[k]);
      detail::store_raw(s + k * w, sum[k]);
      detail::store_raw(q + k * w, squares[k]);
    }
    merge_lanes(a + skip, s + skip, q + skip, rows, before, (partial ? lanes : NV * w) - skip, mean + c + skip,
                m2 + c + skip);
  });
}

// Maps go along the rows. Parameters are laid out once per call in the accumulation type, for a panel of channels, and
// where channels are few for several rows, which then count as one.
template <class T, int kCount>
struct Panels {
  static constexpr int64_t kWidth = 4096 / sizeof(T), kFew = 256;
  T values[kCount][kWidth + 128 / sizeof(T)];  // not a multiple of a page apart: they would share a cache set

  // f(element, length) over stretches of memory, values[k][0 ..] being the parameters from[k] of its elements.
  template <class F>
  [[gnu::always_inline]] void each(Rows size, const double* const (&from)[kCount], F&& f) {
    const int64_t C = size.channels, together = max64(1, min64(kFew / C, size.count));
    for (int64_t c = 0; c < C; c += kWidth) {
      const int64_t n = min64(kWidth, C - c);
      for (int k = 0; k < kCount; ++k) {
        for (int64_t i = 0; i < n; ++i) values[k][i] = static_cast<T>(from[k][c + i]);
        for (int64_t i = n; i < together * n; ++i) values[k][i] = values[k][i - n];
      }
      for (int64_t r = 0; r < size.count; r += together) f(r * C + c, min64(together, size.count - r) * n);
    }
  }
};

template <class S, class T = acc_t<S>>
void apply(const void* from, const void* added, void* to, Rows size, RowAffine affine, Activation activation) {
  using V = Vec<T>;
  constexpr int w = V::width;
  const Act<T> act(activation);
  const bool identity = is_identity(activation);
  Panels<T, 3> p;
  p.each(size, {affine.hi, affine.scale, affine.shift}, [&](int64_t start, int64_t len) {
    const S* x = static_cast<const S*>(from) + start;
    const S* residual = added == nullptr ? nullptr : static_cast<const S*>(added) + start;
    S* y = static_cast<S*>(to) + start;
    const auto value = [&](int64_t i) __attribute__((always_inline)) {
      return fma(load(x + i) - detail::load_raw(p.values[0] + i), detail::load_raw(p.values[1] + i),
                 detail::load_raw(p.values[2] + i));
    };
    if (len < w) {
      const int n = static_cast<int>(len);
      V v = fma(load_n(x, n) - detail::load_raw(p.values[0]), detail::load_raw(p.values[1]),
                detail::load_raw(p.values[2]));
      if (residual != nullptr) v += load_n(residual, n);
      store_n(y, activate(act, v), n);
    } else if (residual != nullptr) {
      cover<w>(len, [&](int64_t i) { store(y + i, activate(act, value(i) + load(residual + i))); });
    } else if (identity) {
      cover<w>(len, [&](int64_t i) { store(y + i, value(i)); });
    } else {
      cover<w>(len, [&](int64_t i) { store(y + i, activate(act, value(i))); });
    }
  });
}

template <class S, class T = acc_t<S>>
void grad_sums(GradSource source, Rows size, RowAffine affine, Activation activation, double* sum_g, double* sum_gd) {
  using V = Vec<T>;
  const int64_t rows = size.count, channels = size.channels;
  constexpr int w = V::width;
  const Source<S> from = source_of<S>(source);
  const Act<T> act(activation);
  columns<T>(channels, [&]<int NV, bool partial>(int64_t c, int skip, int lanes) {
    V a[NV], b[NV], hi[NV], scale[NV], shift[NV], total_a[NV], total_b[NV];
    for (int k = 0; k < NV; ++k) {
      total_a[k] = total_b[k] = V(T(0));
      hi[k] = param<T, partial>(affine.hi + c + k * w, lanes);
      scale[k] = param<T, partial>(affine.scale + c + k * w, lanes);
      shift[k] = param<T, partial>(affine.shift + c + k * w, lanes);
    }
    const auto down = [&](auto&& behind) __attribute__((always_inline)) {
      for (int64_t first = 0; first < rows; first += kShortSum) {
        for (int k = 0; k < NV; ++k) a[k] = b[k] = V(T(0));
        for (int64_t r = first; r < min64(first + kShortSum, rows); ++r)
          for (int k = 0; k < NV; ++k) {
            const int64_t i = r * channels + c + k * w;
            ask_below(from.x + i, channels);
            ask_below(from.g + i, channels);
            const V d = load_lanes<partial>(from.x + i, lanes) - hi[k];
            const V g = behind(load_lanes<partial>(from.g + i, lanes), d, i, k);
            a[k] += g;
            b[k] = fma(g, d, b[k]);
          }
        for (int k = 0; k < NV; ++k) {
          total_a[k] += a[k];
          total_b[k] += b[k];
        }
      }
    };
    if (is_identity(activation)) down([](V g, V, int64_t, int) { return g; });
    else if (from.y != nullptr)
      down([&](V g, V, int64_t i, int) { return gate(act, g, load_lanes<partial>(from.y + i, lanes)); });
    else down([&](V g, V d, int64_t, int k) { return gate(act, g, fma(d, scale[k], shift[k])); });
    T s[NV * w], q[NV * w];
    for (int k = 0; k < NV; ++k) {
      detail::store_raw(s + k * w, total_a[k]);
      detail::store_raw(q + k * w, total_b[k]);
    }
    for (int j = skip; j < (partial ? lanes : NV * w); ++j) {
      sum_g[c + j] += s[j];
      sum_gd[c + j] += q[j];
    }
  });
}

template <class S, class T = acc_t<S>>
void grad_apply(GradSource source, void* to, void* side, Rows size, bool full, RowAffine affine, RowGradAffine ga,
                Activation activation) {
  using V = Vec<T>;
  constexpr int w = V::width;
  const Act<T> act(activation);
  const bool identity = is_identity(activation), saved = source.y != nullptr;
  const bool look = full || (!identity && !saved);
  if (!look) source.x = source.g;  // masked out below; g is read anyhow
  const Mask<T> looked(static_cast<int_of<T>>(look ? -1 : 0)), counted(static_cast<int_of<T>>(full ? -1 : 0));
  const bool usual = full && to != nullptr && side == nullptr && !saved;
  Panels<T, 6> p;
  p.each(size, {affine.hi, affine.scale, affine.shift, ga.a, ga.b, ga.c}, [&](int64_t start, int64_t len) {
    Source<S> from = source_of<S>(source);
    from += start;
    S* dx = to == nullptr ? nullptr : static_cast<S*>(to) + start;
    S* dresidual = side == nullptr ? nullptr : static_cast<S*>(side) + start;
    const auto param = [&](int k, int64_t i)
                           __attribute__((always_inline)) { return detail::load_raw(p.values[k] + i); };
    const auto put = [&](int64_t i, V d, V g) __attribute__((always_inline)) {
      store(dx + i, fma(g, param(3, i), fma(d, param(4, i), param(5, i))));
    };
    if (len >= w && usual && identity) {
      cover<w>(len, [&](int64_t i) { put(i, load(from.x + i) - param(0, i), load(from.g + i)); });
    } else if (len >= w && usual) {
      cover<w>(len, [&](int64_t i) {
        const V d = load(from.x + i) - param(0, i);
        put(i, d, gate(act, load(from.g + i), fma(d, param(1, i), param(2, i))));
      });
    } else {
      for (int64_t i = 0; i < len; i += w) {
        const int n = static_cast<int>(min64(w, len - i));
        const auto some = [&](const S* q)
                              __attribute__((always_inline)) { return n == w ? load(q + i) : load_n(q + i, n); };
        const V d = masked<T>(some(from.x) - param(0, i), looked), m = masked<T>(d, counted);
        V g = some(from.g);
        if (!identity) g = gate(act, g, saved ? some(from.y) : fma(d, param(1, i), param(2, i)));
        const V rest = full ? fma(m, param(4, i), param(5, i)) : V(T(0));
        const V value = fma(g, param(3, i), rest);
        if (dresidual != nullptr) n == w ? store(dresidual + i, g) : store_n(dresidual + i, g, n);
        if (dx != nullptr) n == w ? store(dx + i, value) : store_n(dx + i, value, n);
      }
    }
  });
}

}  // namespace

void set_row_kernels(DType dtype, NormKernels& kernels) {
  dispatch_float(dtype, [&](auto zero) {
    using S = decltype(zero);
    kernels.row_moments = &moments<S>;
    kernels.row_apply = &apply<S>;
    kernels.row_grad_sums = &grad_sums<S>;
    kernels.row_grad_apply = &grad_apply<S>;
  });
}

}  // namespace fastcv::FASTCV_ISA
