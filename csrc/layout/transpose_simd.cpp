#include "layout/transpose.h"

#include "common/simd.h"

// Squares of a vector's width, transposed in registers. They are walked in blocks that stay in the second-level cache,
// along the longer side: there each row of the result, or each row of the input, is a run and no scatter of lines.
namespace fastcv::FASTCV_ISA {
namespace {

// The elements of one vector's width of rows and columns, fewer at the edges.
template <class S>
FASTCV_INLINE void square(const S* x, S* y, int64_t rows, int64_t columns, int64_t row, int64_t column) {
  using V = Vec<acc_t<S>>;
  constexpr int w = V::width;
  V v[w];
  x += row * columns + column;
  y += column * rows + row;
  if (row + w <= rows && column + w <= columns) {
#pragma GCC unroll 16
    for (int i = 0; i < w; ++i) v[i] = load(x + i * columns);
    transpose<w>(v);
#pragma GCC unroll 16
    for (int i = 0; i < w; ++i) store(y + i * rows, v[i]);
    return;
  }
  const int high = static_cast<int>(rows - row < w ? rows - row : w);
  const int wide = static_cast<int>(columns - column < w ? columns - column : w);
  const auto get = [&](const S* from) { return wide == w ? load(from) : load_n(from, wide); };
  for (int i = 0; i < w; ++i) v[i] = i < high ? get(x + i * columns) : V(acc_t<S>(0));
  transpose<w>(v);
  for (int i = 0; i < wide; ++i) {
    if (high == w) store(y + i * rows, v[i]);
    else store_n(y + i * rows, v[i], high);
  }
}

// Bytes: too rare for vectors.
template <>
void square(const uint8_t* x, uint8_t* y, int64_t rows, int64_t columns, int64_t row, int64_t column) {
  for (int64_t c = column; c < columns && c < column + 16; ++c)
    for (int64_t r = row; r < rows && r < row + 16; ++r) y[c * rows + r] = x[r * columns + c];
}

template <class S>
void blocks(const TransposeParams& p, const Exec& exec) {
  constexpr int64_t w = sizeof(S) == 1 ? 16 : Vec<acc_t<S>>::width;
  const bool tall = p.rows >= p.columns;
  const int64_t high = tall ? 1024 : 128, wide = tall ? 32 : 128;  // of a block
  const int64_t down = (p.rows + high - 1) / high, across = (p.columns + wide - 1) / wide;
  parallel_for(exec, p.n * down * across, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t image = b / (down * across), top = b / across % down * high, left = b % across * wide;
      const int64_t bottom = top + high < p.rows ? top + high : p.rows;
      const int64_t right = left + wide < p.columns ? left + wide : p.columns;
      const S* x = static_cast<const S*>(p.x) + image * p.rows * p.columns;
      S* y = static_cast<S*>(p.y) + image * p.rows * p.columns;
      if (tall) {
        for (int64_t c = left; c < right; c += w)
          for (int64_t r = top; r < bottom; r += w) square(x, y, p.rows, p.columns, r, c);
      } else {
        for (int64_t r = top; r < bottom; r += w)
          for (int64_t c = left; c < right; c += w) square(x, y, p.rows, p.columns, r, c);
      }
    }
  });
}

}  // namespace

void transpose_images(const TransposeParams& p, const Exec& exec) {
  switch (p.bytes) {
    case 1:
      return blocks<uint8_t>(p, exec);
    case 2:
      return blocks<bf16>(p, exec);
    case 4:
      return blocks<float>(p, exec);
    default:
      return blocks<double>(p, exec);
  }
}

}  // namespace fastcv::FASTCV_ISA
