// The algebra of F(H x W, 3 x 3): H x W outputs of a 3 x 3 correlation from (H + 2) (W + 2) products instead of 9 H W.
//
//   y = Out ( (Weight g) * (Input d) )   applied along the height and the width; * multiplies point by point
//
// M = 2 along a dim interpolates at 0, 1, -1 and infinity: 1.5 times fewer products. M = 4 interpolates at 0, a, -a, b,
// -b and infinity: 2 times fewer. For each point, a row of Input is prod (x - other points), a row of Weight the powers
// over prod (point - other points), a column of Out the powers.
//
// The gradient of the weight is the same form read backwards: with dy the gradient of the outputs,
//
//   dg = Weight^T ( sum over tiles of (Out^T dy) * (Input d) )
//
// A rounding error of a product is amplified on its way to y. For normal data and per dim, by 1.3 for M = 2 and by 2.7
// for M = 4 with a = 1 / sqrt 2, b = sqrt 2 (10 with the customary 1 and 2) at the worst output. So 4 x 4 loses about 7
// times what a direct sum as long as the number of channels loses, 4 x 2 about 3.5 times, 2 x 2 about 1.7 times.
#pragma once
#include "conv/conv_plan.h"

namespace fastcv::FASTCV_ISA {

template <int M>
struct WinogradAlgebra;

template <>
struct WinogradAlgebra<2> {
  using V = Vec<float>;
  FASTCV_INLINE void input(const V (&d)[4], V (&v)[4]) {
    v[0] = d[0] - d[2];
    v[1] = d[1] + d[2];
    v[2] = d[2] - d[1];
    v[3] = d[1] - d[3];
  }
  FASTCV_INLINE void weight(const V (&g)[3], V (&u)[4]) {
    const V even = (g[0] + g[2]) * V(0.5f);
    u[0] = g[0];
    u[1] = fma(V(0.5f), g[1], even);
    u[2] = fma(V(-0.5f), g[1], even);
    u[3] = g[2];
  }
  FASTCV_INLINE void output(const V (&m)[4], V (&y)[2]) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] - m[3];
  }
  FASTCV_INLINE void output_transposed(const V (&y)[2], V (&m)[4]) {
    m[0] = y[0];
    m[1] = y[0] + y[1];
    m[2] = y[0] - y[1];
    m[3] = V(0.0f) - y[1];
  }
  FASTCV_INLINE void weight_transposed(const V (&u)[4], V (&g)[3]) {
    const V even = V(0.5f) * (u[1] + u[2]);
    g[0] = u[0] + even;
    g[1] = V(0.5f) * (u[1] - u[2]);
    g[2] = even + u[3];
  }
};

template <>
struct WinogradAlgebra<4> {
  using V = Vec<float>;
  static constexpr float a = 0.70710678118654752440f, b = 1.41421356237309504880f;

  // Pairs of points share their even and odd parts.
  FASTCV_INLINE void input(const V (&d)[6], V (&v)[6]) {
    const V even_a = fma(V(-2.0f), d[2], d[4]), odd_a = fma(V(-2.0f), d[1], d[3]);
    const V even_b = fma(V(-0.5f), d[2], d[4]), odd_b = fma(V(-0.5f), d[1], d[3]);
    v[0] = fma(V(-2.5f), d[2], d[0] + d[4]);
    v[1] = fma(V(a), odd_a, even_a);
    v[2] = fma(V(-a), odd_a, even_a);
    v[3] = fma(V(b), odd_b, even_b);
    v[4] = fma(V(-b), odd_b, even_b);
    v[5] = fma(V(-2.5f), d[3], d[1] + d[5]);
  }
  FASTCV_INLINE void weight(const V (&g)[3], V (&u)[6]) {
    const V even_a = fma(V(0.5f), g[2], g[0]) * V(-2.0f / 3), even_b = fma(V(2.0f), g[2], g[0]) * V(1.0f / 6);
    u[0] = g[0];
    u[1] = fma(V(-2.0f / 3 * a), g[1], even_a);
    u[2] = fma(V(2.0f / 3 * a), g[1], even_a);
    u[3] = fma(V(b / 6), g[1], even_b);
    u[4] = fma(V(-b / 6), g[1], even_b);
    u[5] = g[2];
  }
  FASTCV_INLINE void output(const V (&m)[6], V (&y)[4]) {
    const V even_a = m[1] + m[2], odd_a = m[1] - m[2], even_b = m[3] + m[4], odd_b = m[3] - m[4];
    y[0] = m[0] + even_a + even_b;
    y[1] = fma(V(b), odd_b, V(a) * odd_a);
    y[2] = fma(V(2.0f), even_b, V(0.5f) * even_a);
    y[3] = fma(V(2 * b), odd_b, fma(V(a / 2), odd_a, m[5]));
  }
  FASTCV_INLINE void output_transposed(const V (&y)[4], V (&m)[6]) {
    const V even_a = fma(V(0.5f), y[2], y[0]), odd_a = fma(V(0.5f), y[3], y[1]);
    const V even_b = fma(V(2.0f), y[2], y[0]), odd_b = fma(V(2.0f), y[3], y[1]);
    m[0] = y[0];
    m[1] = fma(V(a), odd_a, even_a);
    m[2] = fma(V(-a), odd_a, even_a);
    m[3] = fma(V(b), odd_b, even_b);
    m[4] = fma(V(-b), odd_b, even_b);
    m[5] = y[3];
  }
  FASTCV_INLINE void weight_transposed(const V (&u)[6], V (&g)[3]) {
    const V even_a = u[1] + u[2], odd_a = u[1] - u[2], even_b = u[3] + u[4], odd_b = u[3] - u[4];
    g[0] = fma(V(1.0f / 6), even_b, fma(V(-2.0f / 3), even_a, u[0]));
    g[1] = fma(V(b / 6), odd_b, V(-2.0f / 3 * a) * odd_a);
    g[2] = fma(V(1.0f / 3), even_b, fma(V(-1.0f / 3), even_a, u[5]));
  }
};

// A transform of a line of N points to M.
template <int N, int M>
using WinogradLine = void(const Vec<float> (&)[N], Vec<float> (&)[M]);
template <int N, int M>
constexpr int points_in(WinogradLine<N, M>*) {
  return N;
}
template <int N, int M>
constexpr int points_out(WinogradLine<N, M>*) {
  return M;
}

// Both dims: `down` on every column of what get(row, column) gives, `across` on every row of that, each vector of the
// result to keep(row, column, vector).
template <auto* down, auto* across, class Get, class Keep>
FASTCV_INLINE void transform_tile(Get get, Keep keep) {
  constexpr int kRows = points_in(down), kNewRows = points_out(down);
  constexpr int kColumns = points_in(across), kNewColumns = points_out(across);
  Vec<float> half[kNewRows][kColumns];
#pragma GCC unroll 6
  for (int j = 0; j < kColumns; ++j) {
    Vec<float> line[kRows], changed[kNewRows];
#pragma GCC unroll 6
    for (int i = 0; i < kRows; ++i) line[i] = get(i, j);
    down(line, changed);
#pragma GCC unroll 6
    for (int i = 0; i < kNewRows; ++i) half[i][j] = changed[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < kNewRows; ++i) {
    Vec<float> changed[kNewColumns];
    across(half[i], changed);
#pragma GCC unroll 6
    for (int j = 0; j < kNewColumns; ++j) keep(i, j, changed[j]);
  }
}

// A tile of H x W outputs. Pixel (i, j) is at x + i * row + j * column, point (i, j) at out + (i * (W + 2) + j) * step.
template <int H, int W>
FASTCV_INLINE void winograd_input(const float* x, int64_t row, int64_t column, float* out, int64_t step) {
  transform_tile<WinogradAlgebra<H>::input, WinogradAlgebra<W>::input>(
      [&](int i, int j) __attribute__((always_inline)) { return load(x + i * row + j * column); },
      [&](int i, int j, Vec<float> v) __attribute__((always_inline)) { store(out + (i * (W + 2) + j) * step, v); });
}

// Tap (i, j) is the vector i * 3 + j at w; Rotated: upside down and mirrored.
template <int H, int W, bool Rotated>
FASTCV_INLINE void winograd_weight(const float* w, float* out, int64_t step) {
  constexpr int L = Vec<float>::width;
  transform_tile<WinogradAlgebra<H>::weight, WinogradAlgebra<W>::weight>(
      [&](int i, int j)
          __attribute__((always_inline)) { return load(w + (Rotated ? 8 - (i * 3 + j) : i * 3 + j) * L); },
      [&](int i, int j, Vec<float> v) __attribute__((always_inline)) { store(out + (i * (W + 2) + j) * step, v); });
}

template <int H, int W>
FASTCV_INLINE void winograd_output(const float* m, int64_t step, Vec<float> bias, Vec<float> (&y)[H][W]) {
  transform_tile<WinogradAlgebra<H>::output, WinogradAlgebra<W>::output>(
      [&](int i, int j) __attribute__((always_inline)) { return load(m + (i * (W + 2) + j) * step); },
      [&](int i, int j, Vec<float> v) __attribute__((always_inline)) { y[i][j] = v + bias; });
}

// The H x W output gradients of a tile, addressed as the pixels of winograd_input are.
template <int H, int W>
FASTCV_INLINE void winograd_output_transposed(const float* dy, int64_t row, int64_t column, float* out, int64_t step) {
  transform_tile<WinogradAlgebra<H>::output_transposed, WinogradAlgebra<W>::output_transposed>(
      [&](int i, int j) __attribute__((always_inline)) { return load(dy + i * row + j * column); },
      [&](int i, int j, Vec<float> v) __attribute__((always_inline)) { store(out + (i * (W + 2) + j) * step, v); });
}

// From the sums of the points to the gradients of the nine taps.
template <int H, int W>
FASTCV_INLINE void winograd_weight_transposed(const float* sums, int64_t step, Vec<float> (&taps)[9]) {
  transform_tile<WinogradAlgebra<H>::weight_transposed, WinogradAlgebra<W>::weight_transposed>(
      [&](int i, int j) __attribute__((always_inline)) { return load(sums + (i * (W + 2) + j) * step); },
      [&](int i, int j, Vec<float> v) __attribute__((always_inline)) { taps[i * 3 + j] = v; });
}

}  // namespace fastcv::FASTCV_ISA
