// Vector pieces of the norm kernels, for *_simd.cpp files only: sweeps over memory, activations and their gates.
#pragma once
#include "common/simd.h"
#include "norm/norm_kernels.h"

namespace fastcv::FASTCV_ISA {
namespace {

// Elements summed in the accumulation type before they go to double: 64 in each of four vectors' lanes.
template <class T>
constexpr int64_t kChunk = 256 * Vec<T>::width;
constexpr int64_t kAhead = 2048;  // bytes: far enough ahead to cross a page before its first load waits for it

// Asks for what lies kAhead behind p: planes and rows follow each other in memory, so what lies behind the end of one
// is the beginning of the next, wanted soon. Asking for memory that does not exist does no harm.
template <class S>
FASTCV_INLINE void ask(const S* p) {
  __builtin_prefetch(reinterpret_cast<const char*>(p) + kAhead, 0, 2);
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
  for (; i + W <= len; i += W) full(i, 0);
  if (i < len) tail(i, static_cast<int>(len - i));
}

// [0, len), len >= W, in vectors of W of which the last two may overlap: for maps, where the same answer twice is
// right.
template <int W, class Body>
FASTCV_INLINE void cover(int64_t len, Body&& body) {
  for (int64_t i = 0; i < len; i += W) body(i <= len - W ? i : len - W);
}

template <class T>
FASTCV_INLINE T sum4(const Vec<T>* v) {
  return reduce_add((v[0] + v[1]) + (v[2] + v[3]));
}

// ---- activations ---------------------------------------------------------------------------------------------------

template <class T>
struct Act {
  Vec<T> slope, cap;
  Mask<T> keep;  // all ones where slope * v counts, zero for relu: 0 * -inf must be 0
  explicit Act(const Activation& a)
      : slope(static_cast<T>(a.slope)),
        cap(static_cast<T>(a.cap > 0 ? a.cap : __builtin_inf())),
        keep(static_cast<int_of<T>>(a.slope == 0 ? 0 : -1)) {}
};

template <class T>
FASTCV_INLINE Vec<T> bend(const Act<T>& a, Vec<T> v, Vec<T> by) {
  return select<T>(by <= Vec<T>(T(0)), bitcast<T>(bitcast<int_of<T>>(v * a.slope) & a.keep), v);
}
template <class T>
FASTCV_INLINE Vec<T> activate(const Act<T>& a, Vec<T> v) {
  const Vec<T> bent = bend(a, v, v);
  return select<T>(bent > a.cap, a.cap, bent);
}
// The gradient g through the activation of v (or of its result: both have the same signs and meet the cap together).
template <class T>
FASTCV_INLINE Vec<T> gate(const Act<T>& a, Vec<T> g, Vec<T> v) {
  return select<T>(v >= a.cap, Vec<T>(T(0)), bend(a, g, v));
}

// ---- gradients -----------------------------------------------------------------------------------------------------

template <class S>
struct Source {
  const S *g, *x, *y;
  void operator+=(int64_t i) {
    g += i;
    x += i;
    if (y != nullptr) y += i;
  }
};
template <class S>
FASTCV_INLINE Source<S> source_of(const GradSource& s) {
  return {static_cast<const S*>(s.g), static_cast<const S*>(s.x), static_cast<const S*>(s.y)};
}

// Calls f(behind), where behind(g, x - hi, load_y) is the gradient behind the gate, in one of three kinds: g itself, or
// gated by the recomputed pre-activation, or by the saved result.
template <class T, class F>
FASTCV_INLINE void with_gate(bool identity, bool saved, const Act<T>& act, Vec<T> scale, Vec<T> shift, F&& f) {
  if (identity) f([](Vec<T> g, Vec<T>, auto&&) __attribute__((always_inline)) { return g; });
  else if (saved) f([&](Vec<T> g, Vec<T>, auto&& y) __attribute__((always_inline)) { return gate(act, g, y()); });
  else f([&](Vec<T> g, Vec<T> d, auto&&) __attribute__((always_inline)) { return gate(act, g, fma(d, scale, shift)); });
}

template <class T>
FASTCV_INLINE Vec<T> masked(Vec<T> v, Mask<T> m) {
  return bitcast<T>(bitcast<int_of<T>>(v) & m);
}

}  // namespace
}  // namespace fastcv::FASTCV_ISA
