#include "loss/cross_entropy.h"

#include "common/dispatch.h"
#include "loss/targets.h"
#include "loss/tile.h"

// Long rows one at a time, everything else on column tiles (tile.h): three sweeps over scores that stay in cache, so
// that memory sees one read of the scores and, where a gradient is wanted, one write of it. Columns of many classes
// would not stay there: one sweep, whose sums follow the maximum so far, and another that makes the gradient.
namespace fastcv::FASTCV_ISA {
namespace {

constexpr int64_t kGrain = 1 << 13;      // scores a thread takes at least
constexpr int64_t kShortRow = 64;        // up to here a row is cheaper transposed: a lane reduction costs 10 vectors
constexpr int64_t kTileBytes = 1 << 17;  // columns: a larger tile would leave the L2 cache
constexpr int kStreamed = 2;             // vectors of columns of many classes

enum class Mode { hard, smooth, soft };  // class indices; class indices with smoothing; probabilities

// What all samples share.
template <class T>
struct Shared {
  const T* weight;  // [classes], or null in mode hard
  const T* bias;    // [classes] or null
  T keep;           // 1 - smoothing
  T spread;         // smoothing / classes
  T weight_sum;
  int64_t classes;
};

// What belongs to the samples of one tile of at most 4 vectors.
template <class T>
struct Samples {
  alignas(64) int_of<T> index[4 * Vec<T>::width];  // class, or -1 where ignored
  alignas(64) T weight[4 * Vec<T>::width];         // w_t
  alignas(64) T scale[4 * Vec<T>::width];          // dresult / dloss_r
  alignas(64) T loss[4 * Vec<T>::width];
};

// U vectors of samples. grad may be null, or x itself; it holds the exponentials on the way.
template <class T, int U, Mode mode>
void columns(const T* x, const T* q, T* grad, int64_t stride, const Shared<T>& k, Samples<T>& t) {
  using I = int_of<T>;
  using V = Vec<T>;
  constexpr int w = V::width;
  const V zero(T(0)), keep(k.keep), spread(k.spread);
  const auto score = [&](int64_t c, int u) {
    const V v = load(x + c * stride + u * w);
    return k.bias ? v + V(k.bias[c]) : v;
  };
  V m[U], sum[U], picked[U], dot[U], mass[U];
  Vec<I> index[U];
  for (int u = 0; u < U; ++u) {
    m[u] = V(-static_cast<T>(__builtin_inf()));
    sum[u] = picked[u] = dot[u] = mass[u] = zero;
    index[u] = load_int(t.index + u * w);
  }
  for (int64_t c = 0; c < k.classes; ++c)
    for (int u = 0; u < U; ++u) m[u] = max(score(c, u), m[u]);
  for (int64_t c = 0; c < k.classes; ++c) {
    const Vec<I> here(static_cast<I>(c));
    for (int u = 0; u < U; ++u) {
      if constexpr (U > 1) __builtin_prefetch(x + c * stride + (U + u) * w);  // the next samples, meanwhile
      const V z = score(c, u) - m[u], e = exp(z);
      sum[u] += e;
      if constexpr (mode == Mode::soft) {
        const V a = V(k.weight[c]) * fma(keep, load(q + c * stride + u * w), spread);
        dot[u] = fma(a, z, dot[u]);
        mass[u] += a;
      } else {
        picked[u] = select<T>(index[u] == here, z, picked[u]);
        if constexpr (mode == Mode::smooth) dot[u] = fma(V(k.weight[c]), z, dot[u]);
      }
      if (grad) store(grad + c * stride + u * w, e);
    }
  }
  V hit[U], factor[U];
  for (int u = 0; u < U; ++u) {
    const V logs = log(sum[u]), weight = load(t.weight + u * w), scale = load(t.scale + u * w);
    V loss;
    if constexpr (mode == Mode::soft) {
      loss = k.classes == 0 ? zero : mass[u] * logs - dot[u];
    } else {
      hit[u] = weight;
      mass[u] = weight;
      loss = weight * (logs - picked[u]);
      if constexpr (mode == Mode::smooth) {
        hit[u] = keep * weight;
        mass[u] = hit[u] + spread * V(k.weight_sum);
        loss = keep * loss + spread * (V(k.weight_sum) * logs - dot[u]);
      }
      loss = select<T>(index[u] < Vec<I>(I(0)), zero, loss);
    }
    store(t.loss + u * w, loss);
    factor[u] = scale * mass[u] / sum[u];
    if constexpr (mode != Mode::soft) hit[u] = hit[u] * scale;
  }
  if (!grad) return;
  for (int64_t c = 0; c < k.classes; ++c) {
    const Vec<I> here(static_cast<I>(c));
    for (int u = 0; u < U; ++u) {
      T* out = grad + c * stride + u * w;
      const V e = load(out);
      if constexpr (mode == Mode::soft) {
        const V a = V(k.weight[c]) * fma(keep, load(q + c * stride + u * w), spread);
        store(out, fma(e, factor[u], -(load(t.scale + u * w) * a)));
      } else {
        V minus = select<T>(index[u] == here, hit[u], zero);
        if constexpr (mode == Mode::smooth) minus += load(t.scale + u * w) * (spread * V(k.weight[c]));
        store(out, fma(e, factor[u], -minus));
      }
    }
  }
}

// U vectors of samples of many classes, of which `lanes` exist; of all vectors but the last, all. grad may be null, or
// x itself. Every kAtOnce classes the sum is brought to the maximum so far. What is summed beside the exponentials
// would lose digits so: there the maximum is found first.
template <int U, Mode mode, class S, class T>
void stream(const S* x, const S* q, S* grad, int64_t stride, int lanes, const Shared<T>& k, Samples<T>& t) {
  using I = int_of<T>;
  using V = Vec<T>;
  constexpr int w = V::width;
  constexpr int64_t kAtOnce = 8, kTogether = 128, kAhead = 2 * kAtOnce;
  const V zero(T(0)), lowest(-static_cast<T>(__builtin_inf())), keep(k.keep), spread(k.spread);
  const auto read = [&](const S* from, int64_t c, int u) {
    return load_up_to(from + c * stride + u * w, lanes - u * w);
  };
  const auto score = [&](int64_t c, int u) {
    __builtin_prefetch(x + (c + kAhead) * stride + u * w);
    const V v = read(x, c, u);
    return k.bias ? v + V(k.bias[c]) : v;
  };
  V m[U], sum[U], picked[U], dot[U], mass[U], some_dot[U], some_mass[U];  // some: of kTogether classes
  Vec<I> index[U];
  for (int u = 0; u < U; ++u) {
    m[u] = lowest;
    sum[u] = picked[u] = dot[u] = mass[u] = some_dot[u] = some_mass[u] = zero;
    index[u] = load_int(t.index + u * w);
  }
  const auto together = [&] {
    for (int u = 0; u < U; ++u) {
      dot[u] += some_dot[u], mass[u] += some_mass[u];
      some_dot[u] = some_mass[u] = zero;
    }
  };
  const auto add = [&](auto count, int64_t first) {
    constexpr int n = count;
    V v[n][U], base[U], shrunk[U];  // base: the maximum, 0 while that is -inf
    for (int u = 0; u < U; ++u) {
      const V before = m[u];
      for (int i = 0; i < n; ++i) v[i][u] = score(first + i, u), m[u] = max(v[i][u], m[u]);
      base[u] = select<T>(m[u] == lowest, zero, m[u]);
      shrunk[u] = exp(select<T>(before == lowest, zero, before - base[u]));
    }
    // Long sums are made of shorter ones, which round less.
    V more[U], more_dot[U], more_mass[U];
    for (int u = 0; u < U; ++u) more[u] = more_dot[u] = more_mass[u] = zero;
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) {
      const Vec<I> here(static_cast<I>(first + i));
      for (int u = 0; u < U; ++u) {
        more[u] += exp(v[i][u] - base[u]);
        if constexpr (mode != Mode::soft) picked[u] = select<T>(index[u] == here, v[i][u], picked[u]);
        if constexpr (mode != Mode::hard) {
          V a(k.weight[first + i]);
          if constexpr (mode == Mode::soft) a = a * fma(keep, read(q, first + i, u), spread);
          more_dot[u] = fma(a, v[i][u] - base[u], more_dot[u]);
          more_mass[u] += a;
        }
      }
    }
    for (int u = 0; u < U; ++u) {
      sum[u] = fma(sum[u], shrunk[u], more[u]);
      if constexpr (mode != Mode::hard) some_dot[u] += more_dot[u], some_mass[u] += more_mass[u];
    }
    if constexpr (mode != Mode::hard)
      if ((first + n) % kTogether == 0) together();
  };
  int64_t c = 0;
  if constexpr (mode != Mode::hard) {
    for (; c < k.classes; ++c)
      for (int u = 0; u < U; ++u) m[u] = max(score(c, u), m[u]);
    c = 0;
  }
  for (; c + kAtOnce <= k.classes; c += kAtOnce) add(std::integral_constant<int, kAtOnce>{}, c);
  for (; c < k.classes; ++c) add(std::integral_constant<int, 1>{}, c);
  together();
  V hit[U], factor[U];
  for (int u = 0; u < U; ++u) {
    const V logs = log(sum[u]), weight = load(t.weight + u * w), scale = load(t.scale + u * w);
    V loss, all;
    if constexpr (mode == Mode::soft) {
      all = mass[u];
      loss = k.classes == 0 ? zero : all * logs - dot[u];
    } else {
      hit[u] = all = weight;
      loss = weight * (logs - (picked[u] - m[u]));
      if constexpr (mode == Mode::smooth) {
        hit[u] = keep * weight;
        all = hit[u] + spread * V(k.weight_sum);
        loss = keep * loss + spread * (V(k.weight_sum) * logs - dot[u]);
      }
      loss = select<T>(index[u] < Vec<I>(I(0)), zero, loss);
      hit[u] = hit[u] * scale;
    }
    store(t.loss + u * w, loss);
    factor[u] = scale * all / sum[u];
  }
  if (!grad) return;
  for (c = 0; c < k.classes; ++c) {
    const Vec<I> here(static_cast<I>(c));
    for (int u = 0; u < U; ++u) {
      const V e = exp(score(c, u) - m[u]);
      V minus;
      if constexpr (mode == Mode::soft) {
        minus = load(t.scale + u * w) * (V(k.weight[c]) * fma(keep, read(q, c, u), spread));
      } else {
        minus = select<T>(index[u] == here, hit[u], zero);
        if constexpr (mode == Mode::smooth) minus += load(t.scale + u * w) * (spread * V(k.weight[c]));
      }
      store_up_to(grad + c * stride + u * w, fma(e, factor[u], -minus), lanes - u * w);
    }
  }
}

// One long row; sample 0 of t. grad as above.
template <class T, Mode mode>
void row(const T* x, const T* q, T* grad, const Shared<T>& k, Samples<T>& t) {
  using V = Vec<T>;
  constexpr int w = V::width;
  constexpr T kLowest = -static_cast<T>(__builtin_inf());
  const int64_t classes = k.classes, whole = classes / w * w, four = classes / (4 * w) * (4 * w);
  const int rest = static_cast<int>(classes - whole);
  const V zero(T(0)), keep(k.keep), spread(k.spread);
  const Mask<T> tail = first_lanes<T>(rest);
  V m[4] = {V(kLowest), V(kLowest), V(kLowest), V(kLowest)};
  int64_t c = 0;
  for (; c < four; c += 4 * w)
    for (int u = 0; u < 4; ++u) m[u] = max(load(x + c + u * w), m[u]);
  for (; c < whole; c += w) m[0] = max(load(x + c), m[0]);
  if (rest) m[1] = max(select<T>(tail, load_n(x + c, rest), V(kLowest)), m[1]);
  const T top = reduce_max(max(max(m[0], m[1]), max(m[2], m[3])));
  const V top_v(top);

  // The target's score is read before exponentials take its place.
  const int64_t index = t.index[0];
  const T picked = mode != Mode::soft && index >= 0 ? load_one(x + index) - top : T(0);

  V sum[4] = {zero, zero, zero, zero}, dot[4] = {zero, zero, zero, zero}, mass[4] = {zero, zero, zero, zero};
  const auto term = [&](int u, int64_t at, V v, V score_q, V class_w) {
    __builtin_prefetch(x + at + classes);  // the next row comes while this one's exponentials are computed
    const V z = v - top_v, e = exp(z);
    sum[u] += e;
    if constexpr (mode == Mode::soft) {
      const V a = class_w * fma(keep, score_q, spread);
      dot[u] = fma(a, z, dot[u]);
      mass[u] += a;
    } else if constexpr (mode == Mode::smooth) {
      dot[u] = fma(class_w, z, dot[u]);
    }
    if (grad) store(grad + at, e);
  };
  const auto q_at = [&](int64_t at) { return mode == Mode::soft ? load(q + at) : zero; };
  const auto w_at = [&](int64_t at) { return mode == Mode::hard ? zero : load(k.weight + at); };
  for (c = 0; c < four; c += 4 * w)
    for (int u = 0; u < 4; ++u) term(u, c + u * w, load(x + c + u * w), q_at(c + u * w), w_at(c + u * w));
  for (; c < whole; c += w) term(0, c, load(x + c), q_at(c), w_at(c));
  if (rest) {
    const V z = load_n(x + c, rest) - top_v, e = exp(z);
    sum[1] += select<T>(tail, e, zero);
    if constexpr (mode == Mode::soft) {
      const V a = load_n(k.weight + c, rest) * fma(keep, load_n(q + c, rest), spread);
      dot[1] += select<T>(tail, a * z, zero);
      mass[1] += select<T>(tail, a, zero);
    } else if constexpr (mode == Mode::smooth) {
      dot[1] += select<T>(tail, load_n(k.weight + c, rest) * z, zero);
    }
    if (grad) store_n(grad + c, e, rest);
  }
  const T total = reduce_add((sum[0] + sum[1]) + (sum[2] + sum[3]));
  const T logs = log(V(total))[0];
  const T weight = t.weight[0], scale = t.scale[0];
  T all, hit = weight, loss;
  if constexpr (mode == Mode::soft) {
    all = reduce_add((mass[0] + mass[1]) + (mass[2] + mass[3]));
    loss = all * logs - reduce_add((dot[0] + dot[1]) + (dot[2] + dot[3]));
  } else {
    loss = index < 0 ? T(0) : weight * (logs - picked);
    all = weight;
    if constexpr (mode == Mode::smooth) {
      hit = k.keep * weight;
      all = hit + k.spread * k.weight_sum;
      const T others = k.weight_sum * logs - reduce_add((dot[0] + dot[1]) + (dot[2] + dot[3]));
      loss = index < 0 ? T(0) : k.keep * loss + k.spread * others;
    }
  }
  t.loss[0] = loss;
  if (!grad) return;
  const V factor(scale * all / total), scale_v(scale);
  const auto result = [&](V e, V score_q, V class_w) {
    if constexpr (mode == Mode::soft) return fma(e, factor, -(scale_v * (class_w * fma(keep, score_q, spread))));
    else if constexpr (mode == Mode::smooth) return fma(e, factor, -(scale_v * (spread * class_w)));
    else return e * factor;
  };
  const T at_target = mode != Mode::soft && index >= 0 ? grad[index] : T(0);
#pragma GCC unroll 4
  for (c = 0; c < whole; c += w) store(grad + c, result(load(grad + c), q_at(c), w_at(c)));
  if (rest) {
    const V score_q = mode == Mode::soft ? load_n(q + c, rest) : zero;
    const V class_w = mode == Mode::hard ? zero : load_n(k.weight + c, rest);
    store_n(grad + c, result(load_n(grad + c, rest), score_q, class_w), rest);
  }
  if constexpr (mode != Mode::soft) {
    if (index < 0) return;
    const V class_w = mode == Mode::smooth ? V(k.weight[index]) : zero;
    grad[index] = result(V(at_target), zero, class_w)[0] - scale * hit;
  }
}

// The cores, by run-time mode.
template <int U, class T>
void columns(Mode mode, const T* x, const T* q, T* grad, int64_t stride, const Shared<T>& k, Samples<T>& t) {
  if (mode == Mode::hard) columns<T, U, Mode::hard>(x, q, grad, stride, k, t);
  else if (mode == Mode::smooth) columns<T, U, Mode::smooth>(x, q, grad, stride, k, t);
  else columns<T, U, Mode::soft>(x, q, grad, stride, k, t);
}
template <int U, class S, class T>
void stream(Mode mode, const S* x, const S* q, S* grad, int64_t stride, int lanes, const Shared<T>& k, Samples<T>& t) {
  if (mode == Mode::hard) stream<U, Mode::hard>(x, q, grad, stride, lanes, k, t);
  else if (mode == Mode::smooth) stream<U, Mode::smooth>(x, q, grad, stride, lanes, k, t);
  else stream<U, Mode::soft>(x, q, grad, stride, lanes, k, t);
}
template <class T>
void row(Mode mode, const T* x, const T* q, T* grad, const Shared<T>& k, Samples<T>& t) {
  if (mode == Mode::hard) row<T, Mode::hard>(x, q, grad, k, t);
  else if (mode == Mode::smooth) row<T, Mode::smooth>(x, q, grad, k, t);
  else row<T, Mode::soft>(x, q, grad, k, t);
}

// ---- the whole ----------------------------------------------------------------------------------------------------

struct Layout {
  int64_t units, samples;  // tiles, and how many samples each holds at most
  bool in_rows, long_rows, wide;
  size_t blocks_at, sums_at, weights_at, tiles_at, tile_bytes, bytes;
};

// How the samples are cut into tiles, and where things stand in the workspace.
Layout layout_of(const CrossEntropyParams& p, int threads) {
  const int64_t size = p.dtype == DType::f64 ? 8 : 4, w = kVectorBytes / size, rows = p.outer * p.inner;
  Layout a{};
  a.in_rows = p.inner == 1 && !p.columns;
  a.long_rows = a.in_rows && p.classes > kShortRow;
  a.wide = !a.in_rows && p.classes * 4 * kVectorBytes <= kTileBytes;
  a.samples = a.long_rows ? 1 : a.in_rows ? w : a.wide ? 4 * w : kStreamed * w;
  a.units = a.in_rows ? (rows + a.samples - 1) / a.samples : p.outer * ((p.inner + a.samples - 1) / a.samples);
  const auto place = [&](size_t bytes) {
    const size_t at = a.bytes;
    a.bytes += (bytes + 63) / 64 * 64;
    return at;
  };
  a.blocks_at = place(target_blocks(p) * sizeof(TargetBlock));
  a.sums_at = place(a.units * sizeof(double));
  a.weights_at = place(p.classes * size);
  const bool narrow = p.dtype >= DType::bf16, staged = a.in_rows ? !a.long_rows || narrow : a.wide;
  a.tile_bytes = staged ? (p.classes * a.samples * size + 63) / 64 * 64 : 0;
  a.tiles_at = place(2 * threads * a.tile_bytes);
  return a;
}

// n elements each of `classes` lines, from lines `from_stride` apart to lines `to_stride` apart, converting.
template <class From, class To>
[[gnu::noinline]] void copy_lines(const From* from, int64_t from_stride, To* to, int64_t to_stride, int64_t lines,
                                  int64_t n) {
  constexpr int w = Vec<acc_t<From>>::width;
  for (int64_t c = 0; c < lines; ++c)
    for (int64_t i = 0; i < n; i += w) {
      const int lanes = static_cast<int>(n - i < w ? n - i : w);
      store_up_to(to + c * to_stride + i, load_up_to(from + c * from_stride + i, lanes), lanes);
    }
}

template <class S>
void run(const CrossEntropyParams& p, const Exec& exec) {
  using T = acc_t<S>;
  constexpr int w = Vec<T>::width;
  constexpr bool direct = std::is_same_v<S, T>;  // 16-bit scores are widened into the tile first
  const Mode mode = p.target_kind == Target::probability ? Mode::soft : p.smoothing > 0 ? Mode::smooth : Mode::hard;
  const Layout a = layout_of(p, exec.threads);
  char* workspace = static_cast<char*>(exec.workspace);
  double* sums = reinterpret_cast<double*>(workspace + a.sums_at);
  const double count = check_targets<S>(p, exec, reinterpret_cast<TargetBlock*>(workspace + a.blocks_at));
  if (*p.bad >= 0) return;

  const S *x = static_cast<const S*>(p.x), *q = static_cast<const S*>(mode == Mode::soft ? p.target : nullptr);
  const S *weight = static_cast<const S*>(p.weight), *grad_loss = static_cast<const S*>(p.grad_loss);
  S *loss = static_cast<S*>(p.loss), *grad = static_cast<S*>(p.grad);
  const bool each = p.reduction == Reduction::none;
  const T spread = static_cast<T>(p.smoothing / static_cast<double>(p.classes));
  Shared<T> k{nullptr, nullptr, static_cast<T>(1 - p.smoothing), spread, T(0), p.classes};
  if constexpr (std::is_same_v<S, float>) k.bias = p.bias;
  if (mode != Mode::hard || weight) {
    T* weights = reinterpret_cast<T*>(workspace + a.weights_at);
    double weight_sum = 0;
    for (int64_t c = 0; c < p.classes; ++c) weight_sum += weights[c] = weight ? load_one(weight + c) : T(1);
    k.weight = weights;
    k.weight_sum = static_cast<T>(weight_sum);
  }
  double scale = p.reduction == Reduction::mean ? 1 / count : 1;
  if (grad_loss && !each) scale *= load_one(grad_loss);

  // Fills `lanes` samples, of which n exist.
  const auto prepare = [&](Samples<T>& t, int64_t first, int n, int lanes) __attribute__((noinline)) {
    for (int i = n; i < lanes; ++i) t.index[i] = -1, t.weight[i] = T(0), t.scale[i] = T(0);
    if (mode != Mode::soft && p.target_kind == Target::i64 && !weight && !(each && grad_loss)) {
      // The usual case, without a branch: with few classes this is most of the work.
      const int64_t* target = static_cast<const int64_t*>(p.target) + first;
      const T scales[2] = {static_cast<T>(scale), T(0)}, weights[2] = {T(1), T(0)};
      for (int i = 0; i < n; ++i) {
        const bool ignored = target[i] == p.ignore_index;
        t.index[i] = static_cast<int_of<T>>(ignored ? -1 : target[i]);
        t.weight[i] = weights[ignored];
        t.scale[i] = scales[ignored];
      }
      return;
    }
    for (int i = 0; i < n; ++i) {
      const int64_t r = first + i;
      t.scale[i] = each && grad_loss ? load_one(grad_loss + r) : static_cast<T>(scale);
      t.weight[i] = T(1);
      if (mode == Mode::soft) continue;
      const int64_t target = target_at(p, r);
      const bool ignored = target == p.ignore_index;
      t.index[i] = ignored ? -1 : static_cast<int_of<T>>(target);
      if (weight && !ignored) t.weight[i] = k.weight[target];
      if (ignored) t.weight[i] = t.scale[i] = T(0);
    }
  };
  const auto finish = [&](const Samples<T>& t, int64_t first, int n) __attribute__((noinline)) {
    double sums[4] = {0, 0, 0, 0};  // an addition waits for the one before
    if (each && loss)
      for (int i = 0; i < n; ++i) store_one(loss + first + i, t.loss[i]);
    else
      for (int i = 0; i < n; ++i) sums[i % 4] += t.loss[i];
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
  };

  const int64_t total = p.outer * p.classes * p.inner, per = (p.inner + a.samples - 1) / a.samples;
  parallel_slots(exec, a.units, kGrain / (p.classes * a.samples + 1) + 1, [&](int slot, int64_t begin, int64_t end) {
    Samples<T> t;
    T* tile = reinterpret_cast<T*>(workspace + a.tiles_at + 2 * slot * a.tile_bytes);
    T* tile_q = q ? reinterpret_cast<T*>(workspace + a.tiles_at + (2 * slot + 1) * a.tile_bytes) : nullptr;
    T* tile_grad = grad ? tile : nullptr;
    for (int64_t unit = begin; unit < end; ++unit) {
      if (a.long_rows) {
        const int64_t at = unit * p.classes;
        prepare(t, unit, 1, 1);
        if constexpr (direct) {
          row<T>(mode, x + at, q ? q + at : nullptr, grad ? grad + at : nullptr, k, t);
        } else {
          copy_lines(x + at, 0, tile, 0, 1, p.classes);
          if (q) copy_lines(q + at, 0, tile_q, 0, 1, p.classes);
          row<T>(mode, tile, tile_q, tile_grad, k, t);
          if (grad) copy_lines(tile, 0, grad + at, 0, 1, p.classes);
        }
        sums[unit] = finish(t, unit, 1);
        continue;
      }
      if (a.in_rows) {
        const int64_t first = unit * w, at = first * p.classes;
        const int n = static_cast<int>(p.outer - first < w ? p.outer - first : w);
        prepare(t, first, n, w);
        load_transposed(x + at, n, p.classes, total - at, tile);
        if (q) load_transposed(q + at, n, p.classes, total - at, tile_q);
        columns<1>(mode, tile, tile_q, tile_grad, w, k, t);
        if (grad) store_transposed(tile, n, p.classes, grad + at);
        sums[unit] = finish(t, first, n);
        continue;
      }
      const int64_t o = unit / per, i0 = unit % per * a.samples, first = o * p.inner + i0;
      const int64_t at = o * p.classes * p.inner + i0;
      const int n = static_cast<int>(p.inner - i0 < a.samples ? p.inner - i0 : a.samples);
      if (n == 4 * w) {
        prepare(t, first, n, n);
        if constexpr (direct) {
          columns<4>(mode, x + at, q ? q + at : nullptr, grad ? grad + at : nullptr, p.inner, k, t);
        } else {
          copy_lines(x + at, p.inner, tile, n, p.classes, n);
          if (q) copy_lines(q + at, p.inner, tile_q, n, p.classes, n);
          columns<4>(mode, tile, tile_q, tile_grad, n, k, t);
          if (grad) copy_lines(tile, n, grad + at, p.inner, p.classes, n);
        }
        sums[unit] = finish(t, first, n);
        continue;
      }
      if (!a.wide && n == kStreamed * w) {
        prepare(t, first, n, n);
        stream<kStreamed>(mode, x + at, q ? q + at : nullptr, grad ? grad + at : nullptr, p.inner, n, k, t);
        sums[unit] = finish(t, first, n);
        continue;
      }
      double sum = 0;
      for (int i = 0; i < n; i += w) {
        const int lanes = n - i < w ? n - i : w;
        prepare(t, first + i, lanes, w);
        if (a.wide) {
          copy_lines(x + at + i, p.inner, tile, w, p.classes, lanes);
          if (q) copy_lines(q + at + i, p.inner, tile_q, w, p.classes, lanes);
          columns<1>(mode, tile, tile_q, tile_grad, w, k, t);
          if (grad) copy_lines(tile, w, grad + at + i, p.inner, p.classes, lanes);
        } else {
          stream<1>(mode, x + at + i, q ? q + at + i : nullptr, grad ? grad + at + i : nullptr, p.inner, lanes, k, t);
        }
        sum += finish(t, first + i, lanes);
      }
      sums[unit] = sum;
    }
  });

  if (!loss || each) return;
  double parts[4] = {0, 0, 0, 0};
  for (int64_t unit = 0; unit < a.units; ++unit) parts[unit % 4] += sums[unit];
  const double sum = (parts[0] + parts[1]) + (parts[2] + parts[3]);
  store_one(loss, static_cast<T>(p.reduction == Reduction::mean ? sum / count : sum));
}

}  // namespace

size_t cross_entropy_workspace(const CrossEntropyParams& p, int threads) { return layout_of(p, threads).bytes; }

void cross_entropy(const CrossEntropyParams& p, const Exec& exec) {
  dispatch_float(p.dtype, [&](auto zero) { run<decltype(zero)>(p, exec); });
}

}  // namespace fastcv::FASTCV_ISA
