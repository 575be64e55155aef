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

// A tile of H x W outputs. Pixel (i, j) is at x + i * row + j * column, point (i, j) at out + (i * (W + 2) + j) * step.
template <int H, int W>
FASTCV_INLINE void winograd_input(const float* x, int64_t row, int64_t column, float* out, int64_t step) {
  constexpr int NH = H + 2, NW = W + 2;
  Vec<float> half[NH][NW];
#pragma GCC unroll 6
  for (int j = 0; j < NW; ++j) {
    Vec<float> d[NH], v[NH];
#pragma GCC unroll 6
    for (int i = 0; i < NH; ++i) d[i] = load(x + i * row + j * column);
    WinogradAlgebra<H>::input(d, v);
#pragma GCC unroll 6
    for (int i = 0; i < NH; ++i) half[i][j] = v[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < NH; ++i) {
    Vec<float> v[NW];
    WinogradAlgebra<W>::input(half[i], v);
#pragma GCC unroll 6
    for (int j = 0; j < NW; ++j) store(out + (i * NW + j) * step, v[j]);
  }
}

// Tap (i, j) is the vector i * 3 + j at w; Rotated: upside down and mirrored.
template <int H, int W, bool Rotated>
FASTCV_INLINE void winograd_weight(const float* w, float* out, int64_t step) {
  constexpr int NH = H + 2, NW = W + 2, L = Vec<float>::width;
  Vec<float> half[NH][3];
#pragma GCC unroll 3
  for (int j = 0; j < 3; ++j) {
    Vec<float> g[3], u[NH];
#pragma GCC unroll 3
    for (int i = 0; i < 3; ++i) g[i] = load(w + (Rotated ? 8 - (i * 3 + j) : i * 3 + j) * L);
    WinogradAlgebra<H>::weight(g, u);
#pragma GCC unroll 6
    for (int i = 0; i < NH; ++i) half[i][j] = u[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < NH; ++i) {
    Vec<float> u[NW];
    WinogradAlgebra<W>::weight(half[i], u);
#pragma GCC unroll 6
    for (int j = 0; j < NW; ++j) store(out + (i * NW + j) * step, u[j]);
  }
}

template <int H, int W>
FASTCV_INLINE void winograd_output(const float* m, int64_t step, Vec<float> bias, Vec<float> (&y)[H][W]) {
  constexpr int NH = H + 2, NW = W + 2;
  Vec<float> half[H][NW];
#pragma GCC unroll 6
  for (int j = 0; j < NW; ++j) {
    Vec<float> d[NH], v[H];
#pragma GCC unroll 6
    for (int i = 0; i < NH; ++i) d[i] = load(m + (i * NW + j) * step);
    WinogradAlgebra<H>::output(d, v);
#pragma GCC unroll 4
    for (int i = 0; i < H; ++i) half[i][j] = v[i];
  }
#pragma GCC unroll 4
  for (int i = 0; i < H; ++i) {
    WinogradAlgebra<W>::output(half[i], y[i]);
#pragma GCC unroll 4
    for (int j = 0; j < W; ++j) y[i][j] += bias;
  }
}

// The H x W output gradients of a tile, addressed as the pixels of winograd_input are.
template <int H, int W>
FASTCV_INLINE void winograd_output_transposed(const float* dy, int64_t row, int64_t column, float* out, int64_t step) {
  constexpr int NH = H + 2, NW = W + 2;
  Vec<float> half[NH][W];
#pragma GCC unroll 4
  for (int j = 0; j < W; ++j) {
    Vec<float> d[H], v[NH];
#pragma GCC unroll 4
    for (int i = 0; i < H; ++i) d[i] = load(dy + i * row + j * column);
    WinogradAlgebra<H>::output_transposed(d, v);
#pragma GCC unroll 6
    for (int i = 0; i < NH; ++i) half[i][j] = v[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < NH; ++i) {
    Vec<float> v[NW];
    WinogradAlgebra<W>::output_transposed(half[i], v);
#pragma GCC unroll 6
    for (int j = 0; j < NW; ++j) store(out + (i * NW + j) * step, v[j]);
  }
}

// From the sums of the points to the gradients of the nine taps.
template <int H, int W>
FASTCV_INLINE void winograd_weight_transposed(const float* sums, int64_t step, Vec<float> (&taps)[9]) {
  constexpr int NH = H + 2, NW = W + 2;
  Vec<float> half[3][NW];
#pragma GCC unroll 6
  for (int j = 0; j < NW; ++j) {
    Vec<float> u[NH], g[3];
#pragma GCC unroll 6
    for (int i = 0; i < NH; ++i) u[i] = load(sums + (i * NW + j) * step);
    WinogradAlgebra<H>::weight_transposed(u, g);
#pragma GCC unroll 3
    for (int i = 0; i < 3; ++i) half[i][j] = g[i];
  }
#pragma GCC unroll 3
  for (int i = 0; i < 3; ++i) {
    Vec<float> g[3];
    WinogradAlgebra<W>::weight_transposed(half[i], g);
#pragma GCC unroll 3
    for (int j = 0; j < 3; ++j) taps[i * 3 + j] = g[j];
  }
}

}  // namespace fastcv::FASTCV_ISA
