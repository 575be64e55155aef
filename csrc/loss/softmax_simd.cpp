#include "loss/softmax.h"

#include "common/dispatch.h"
#include "loss/tile.h"

// Long rows: maximum, exponentials and their sum, then the result, while the row is in cache. Columns: the same on
// 4 vectors of neighbouring samples at once. Short rows, ends of columns: through a transposed tile in scratch.
namespace fastcv::FASTCV_ISA {
namespace {

constexpr int64_t kGrain = 1 << 14;      // elements a thread takes at least
constexpr int64_t kShortRow = 64;        // up to here a row is cheaper transposed: a lane reduction costs 10 vectors
constexpr int64_t kTileBytes = 1 << 18;  // columns: cut to fewer vectors when a tile would leave the L2 cache

// U vectors of neighbouring samples; class c stands at x + c * xs. Exponentials wait in tile, [classes][U * w], which
// may be x: results may lie so that the lines of all classes compete for one set of a cache, and are written once.
template <class X, class S, int U, bool log_>
[[gnu::noinline]] void column_tile(const X* x, int64_t xs, acc_t<S>* tile, S* y, int64_t ys, int64_t classes) {
  using T = acc_t<S>;
  using V = Vec<T>;
  constexpr int w = V::width;
  V m[U], sum[U];
  for (int u = 0; u < U; ++u) m[u] = V(-static_cast<T>(__builtin_inf())), sum[u] = V(T(0));
  for (int64_t c = 0; c < classes; ++c)
    for (int u = 0; u < U; ++u) m[u] = max(load(x + c * xs + u * w), m[u]);
  for (int64_t c = 0; c < classes; ++c)
    for (int u = 0; u < U; ++u) {
      const V e = exp(load(x + c * xs + u * w) - m[u]);
      sum[u] += e;
      if constexpr (!log_) store(tile + (c * U + u) * w, e);
      __builtin_prefetch(y + c * ys + u * w, 1);  // fetched while the exponentials are computed
    }
  for (int u = 0; u < U; ++u) sum[u] = log_ ? log(sum[u]) : V(T(1)) / sum[u];
  for (int64_t c = 0; c < classes; ++c)
    for (int u = 0; u < U; ++u) {
      if constexpr (log_) store(y + c * ys + u * w, load(x + c * xs + u * w) - m[u] - sum[u]);
      else store(y + c * ys + u * w, load(tile + (c * U + u) * w) * sum[u]);
    }
}

template <class S, bool log_>
void row(const S* x, S* y, int64_t classes) {
  using T = acc_t<S>;
  using V = Vec<T>;
  constexpr int w = V::width;
  constexpr T kLowest = -static_cast<T>(__builtin_inf());
  const int64_t whole = classes / w * w, four = classes / (4 * w) * (4 * w);
  const int rest = static_cast<int>(classes - whole);
  V m[4] = {V(kLowest), V(kLowest), V(kLowest), V(kLowest)};
  int64_t c = 0;
  for (; c < four; c += 4 * w)
    for (int u = 0; u < 4; ++u) m[u] = max(load(x + c + u * w), m[u]);
  for (; c < whole; c += w) m[0] = max(load(x + c), m[0]);
  const Mask<T> tail = first_lanes<T>(rest);
  if (rest) m[1] = max(select<T>(tail, load_n(x + c, rest), V(kLowest)), m[1]);
  // A NaN score may hide from the maximum, but not from the sum.
  const V top(reduce_max(max(max(m[0], m[1]), max(m[2], m[3]))));
  V s[4] = {V(T(0)), V(T(0)), V(T(0)), V(T(0))};
  const auto term = [&](int64_t at, V v) {
    __builtin_prefetch(x + at + classes);  // the next row comes while this one's exponentials are computed
    const V e = exp(v - top);
    if constexpr (!log_ && std::is_floating_point_v<S>) store(y + at, e);
    return e;
  };
  for (c = 0; c < four; c += 4 * w)
    for (int u = 0; u < 4; ++u) s[u] += term(c + u * w, load(x + c + u * w));
  for (; c < whole; c += w) s[0] += term(c, load(x + c));
  if (rest) {
    const V e = exp(load_n(x + c, rest) - top);
    if constexpr (!log_ && std::is_floating_point_v<S>) store_n(y + c, e, rest);
    s[1] += select<T>(tail, e, V(T(0)));
  }
  const V sum(reduce_add((s[0] + s[1]) + (s[2] + s[3])));
  const V last = log_ ? log(sum) : V(T(1)) / sum;
  const auto result = [&](V v) {
    if constexpr (log_) return v - top - last;
    else if constexpr (std::is_floating_point_v<S>) return v * last;
    else return exp(v - top) * last;
  };
  const S* from = !log_ && std::is_floating_point_v<S> ? y : x;
#pragma GCC unroll 4
  for (c = 0; c < whole; c += w) store(y + c, result(load(from + c)));
  if (rest) store_n(y + c, result(load_n(from + c, rest)), rest);
}

// Whether columns are taken four vectors at a time, and the bytes of a thread's tile.
bool is_wide(const SoftmaxParams& p) { return p.inner > 1 && 4 * p.classes * kVectorBytes <= kTileBytes; }
int64_t softmax_tile(const SoftmaxParams& p) {
  constexpr int64_t kLanes = kVectorBytes / 4;  // float64 has half as many, and so half as many rows twice as long
  const int64_t classes = p.input_channels > 0 ? (p.classes + kLanes - 1) / kLanes * kLanes : p.classes;
  return (is_wide(p) ? 4 : 1) * classes * kVectorBytes;
}

// Rows of which a vector's width, one of each channel, stand element by element beside each other: untangled in
// scratch.
template <class S, bool log_>
void forward_channels(const SoftmaxParams& p, const Exec& exec) {
  using V = Vec<acc_t<S>>;
  constexpr int w = V::width;
  const int64_t classes = p.classes, channels = p.input_channels, positions = p.input_positions;
  const int64_t pitch = (classes + w - 1) / w * w, sets = p.outer / channels, tile_bytes = softmax_tile(p);
  parallel_slots(exec, sets, kGrain / (classes * channels) + 1, [&](int slot, int64_t begin, int64_t end) {
    S* tile = reinterpret_cast<S*>(static_cast<char*>(exec.workspace) + slot * tile_bytes);
    for (int64_t set = begin; set < end; ++set) {
      const S* x = static_cast<const S*>(p.x) + set * classes * channels;
      const int64_t readable = (sets - set) * classes * channels;  // whole vectors, of which junk lanes are dropped
      S* y = static_cast<S*>(p.y) + (set / positions * channels * positions + set % positions) * classes;
      for (int64_t c0 = 0; c0 < channels; c0 += w) {
        const int wide = static_cast<int>(channels - c0 < w ? channels - c0 : w);
        for (int64_t k = 0; k < classes; k += w) {
          V block[w];
          if (classes - k >= w && (k + w - 1) * channels + c0 + w <= readable) {
#pragma GCC unroll 16
            for (int i = 0; i < w; ++i) block[i] = load(x + (k + i) * channels + c0);
          } else {
            for (int i = 0; i < w; ++i)
              block[i] = k + i < classes ? load_up_to(x + (k + i) * channels + c0, wide) : V(acc_t<S>(0));
          }
          transpose<w>(block);
          for (int j = 0; j < wide; ++j) store(tile + j * pitch + k, block[j]);
        }
        for (int j = 0; j < wide; ++j) row<S, log_>(tile + j * pitch, y + (c0 + j) * positions * classes, classes);
      }
    }
  });
}

template <class S, bool log_>
void forward(const SoftmaxParams& p, const Exec& exec) {
  using T = acc_t<S>;
  constexpr int w = Vec<T>::width;
  const S* x = static_cast<const S*>(p.x);
  S* y = static_cast<S*>(p.y);
  const int64_t classes = p.classes, inner = p.inner, total = p.outer * classes * inner;
  const bool rows_out = inner == 1;
  if (p.input_channels > 0) return forward_channels<S, log_>(p, exec);
  if (rows_out && classes > kShortRow) {
    parallel_for(exec, p.outer, kGrain / classes + 1, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) row<S, log_>(x + r * classes, y + r * classes, classes);
    });
    return;
  }
  const int64_t tile_bytes = softmax_tile(p);
  const auto tile_of = [&](int slot) {
    return reinterpret_cast<T*>(static_cast<char*>(exec.workspace) + slot * tile_bytes);
  };
  if (rows_out) {
    const int64_t tiles = (p.outer + w - 1) / w;
    parallel_slots(exec, tiles, kGrain / (classes * w) + 1, [&](int slot, int64_t begin, int64_t end) {
      T* tile = tile_of(slot);
      for (int64_t t = begin; t < end; ++t) {
        const int64_t at = t * w * classes;
        const int rows = static_cast<int>(p.outer - t * w < w ? p.outer - t * w : w);
        load_transposed(x + at, rows, classes, total - at, tile);
        column_tile<T, T, 1, log_>(tile, w, tile, tile, w, classes);
        store_transposed(tile, rows, classes, y + at);
      }
    });
    return;
  }
  const bool wide = is_wide(p);
  const int64_t span = wide ? 4 * w : w, per = (inner + span - 1) / span;
  parallel_slots(exec, p.outer * per, kGrain / (classes * span) + 1, [&](int slot, int64_t begin, int64_t end) {
    T* tile = tile_of(slot);
    for (int64_t t = begin; t < end; ++t) {
      const int64_t o = t / per, first = t % per * span, last = first + span < inner ? first + span : inner;
      S* out = y + o * classes * inner;
      if (wide && last - first == 4 * w) {
        if (p.input_rows) {
          for (int u = 0; u < 4; ++u) {
            const int64_t at = (o * inner + first + u * w) * classes;
            load_transposed(x + at, w, classes, total - at, tile + u * w, 4 * w);
          }
          column_tile<T, S, 4, log_>(tile, 4 * w, tile, out + first, inner, classes);
        } else {
          column_tile<S, S, 4, log_>(x + o * classes * inner + first, inner, tile, out + first, inner, classes);
        }
        continue;
      }
      for (int64_t i = first; i < last; i += w) {
        const int n = static_cast<int>(last - i < w ? last - i : w);
        if (p.input_rows) {
          const int64_t at = (o * inner + i) * classes;
          load_transposed(x + at, n, classes, total - at, tile);
        } else {
          const S* in = x + o * classes * inner + i;
          for (int64_t c = 0; c < classes; ++c) store(tile + c * w, load_up_to(in + c * inner, n));
        }
        column_tile<T, T, 1, log_>(tile, w, tile, tile, w, classes);
        for (int64_t c = 0; c < classes; ++c) store_up_to(out + c * inner + i, load(tile + c * w), n);
      }
    }
  });
}

// ---- backward -----------------------------------------------------------------------------------------------------

template <class S, bool log_>
void row_backward(const S* y, const S* dy, S* dx, int64_t classes) {
  using T = acc_t<S>;
  using V = Vec<T>;
  constexpr int w = V::width;
  const int64_t whole = classes / w * w;
  const int rest = static_cast<int>(classes - whole);
  const auto term = [](V v, V g) { return log_ ? g : g * v; };
  V s[4] = {V(T(0)), V(T(0)), V(T(0)), V(T(0))};
  int64_t c = 0;
  for (; c + 4 * w <= whole; c += 4 * w)
    for (int u = 0; u < 4; ++u) s[u] += term(load(y + c + u * w), load(dy + c + u * w));
  for (; c < whole; c += w) s[0] += term(load(y + c), load(dy + c));
  if (rest) s[1] += term(load_n(y + c, rest), load_n(dy + c, rest));
  const V sum(reduce_add((s[0] + s[1]) + (s[2] + s[3])));
  const auto result = [&](V v, V g) { return log_ ? g - exp(v) * sum : v * (g - sum); };
  for (c = 0; c < whole; c += w) store(dx + c, result(load(y + c), load(dy + c)));
  if (rest) store_n(dx + c, result(load_n(y + c, rest), load_n(dy + c, rest)), rest);
}

// U vectors of neighbouring samples, the last of n lanes. `next`: as many follow, and are asked for; the hardware does
// not follow so many streams.
template <class S, int U, bool log_>
[[gnu::noinline]] void column_backward(const S* y, const S* dy, S* dx, int64_t classes, int64_t inner, int n,
                                       bool next) {
  using T = acc_t<S>;
  using V = Vec<T>;
  constexpr int w = V::width;
  const auto get = [&](const S* from, int u) { return U > 1 ? load(from + u * w) : load_up_to(from, n); };
  V sum[U];
  for (int u = 0; u < U; ++u) sum[u] = V(T(0));
  for (int64_t c = 0; c < classes; ++c)
    for (int u = 0; u < U; ++u) {
      const V g = get(dy + c * inner, u);
      sum[u] += log_ ? g : g * get(y + c * inner, u);
    }
  for (int64_t c = 0; c < classes; ++c)
    for (int u = 0; u < U; ++u) {
      if (next) __builtin_prefetch(y + c * inner + (U + u) * w), __builtin_prefetch(dy + c * inner + (U + u) * w);
      const V v = get(y + c * inner, u), g = get(dy + c * inner, u), d = log_ ? g - exp(v) * sum[u] : v * (g - sum[u]);
      if constexpr (U > 1) store(dx + c * inner + u * w, d);
      else store_up_to(dx + c * inner, d, n);
    }
}

template <class S, bool log_>
void backward(const SoftmaxParams& p, const Exec& exec) {
  constexpr int w = Vec<acc_t<S>>::width;
  const S *y = static_cast<const S*>(p.x), *dy = static_cast<const S*>(p.dy);
  S* dx = static_cast<S*>(p.y);
  const int64_t classes = p.classes, inner = p.inner;
  if (inner == 1) {
    parallel_for(exec, p.outer, kGrain / classes + 1, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        row_backward<S, log_>(y + r * classes, dy + r * classes, dx + r * classes, classes);
    });
    return;
  }
  const bool wide = classes * 8 * w * static_cast<int64_t>(sizeof(S)) <= kTileBytes;
  const int64_t span = wide ? 4 * w : w, per = (inner + span - 1) / span;
  parallel_for(exec, p.outer * per, kGrain / (classes * span) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t first = t % per * span, left = inner - first, at = t / per * classes * inner + first;
      if (wide && left >= span) {
        column_backward<S, 4, log_>(y + at, dy + at, dx + at, classes, inner, w, left >= 2 * span);
        continue;
      }
      for (int64_t i = 0; i < left && i < span; i += w)
        column_backward<S, 1, log_>(y + at + i, dy + at + i, dx + at + i, classes, inner,
                                    left - i < w ? static_cast<int>(left - i) : w, false);
    }
  });
}

bool is_empty(const SoftmaxParams& p) { return p.outer == 0 || p.classes == 0 || p.inner == 0; }

}  // namespace

size_t softmax_workspace(const SoftmaxParams& p, int threads) {
  if (p.inner == 1 && p.classes > kShortRow && p.input_channels == 0) return 0;
  return static_cast<size_t>(threads * softmax_tile(p));
}

void softmax(const SoftmaxParams& p, const Exec& exec) {
  if (is_empty(p)) return;
  dispatch_float(p.dtype, [&](auto zero) {
    using S = decltype(zero);
    p.log ? forward<S, true>(p, exec) : forward<S, false>(p, exec);
  });
}

void softmax_backward(const SoftmaxParams& p, const Exec& exec) {
  if (is_empty(p)) return;
  dispatch_float(p.dtype, [&](auto zero) {
    using S = decltype(zero);
    p.log ? backward<S, true>(p, exec) : backward<S, false>(p, exec);
  });
}

}  // namespace fastcv::FASTCV_ISA
