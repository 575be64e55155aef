#include "loss/linear_cross_entropy.h"

#include "common/dispatch.h"
#include "loss/targets.h"
#include "loss/tile.h"

// Three products per chunk of rows, all by one register tile: scores = X W^T + b, dX = G W, dW += G^T X. The right
// operand is packed (and widened) into panels of two vectors, a block of the summed dimension at a time; the left one
// is read in place, but for G^T, whose rows lie a row of scores apart: it is packed as well.
namespace fastcv::FASTCV_ISA {
namespace {

constexpr int64_t kDepth = 128;            // summed elements per panel: two vectors wide, it stays in the L1 cache
constexpr int64_t kWide = 512;             // columns packed at a time: they stay in the L2 cache
constexpr int64_t kChunkScores = 1 << 21;  // scores per chunk of rows: what is held instead of the whole matrix
constexpr int kTall = kVectorBytes == 64 ? 12 : kVectorBytes == 32 ? 6 : 4;  // rows of the register tile

constexpr int64_t kRows = 4 * kTall;                    // of G^T packed at a time: whole cache lines of G
constexpr int64_t kScratch = kDepth * (kWide + kRows);  // elements, of a thread
template <class T>
constexpr int64_t kPanel = 2 * Vec<T>::width;

// c(i, j) = start + sum_k a[i * ai + k * ak] * panel[k * 2w + j] for `rows` x n; start: c itself, a bias row, or 0. The
// sum joins the start when it is complete: one chain over 20000 classes would lose four times as much as chains of 128.
template <class T, int rows>
void micro_kernel(const T* a, int64_t ai, int64_t ak, const T* panel, int64_t depth, T* c, int64_t ldc, int n,
                  bool accumulate, const T* bias) {
  using V = Vec<T>;
  constexpr int w = V::width;
  const int n0 = n < w ? n : w, n1 = n - n0;
  V sum[rows][2];
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) sum[i][0] = sum[i][1] = V(T(0));
  for (int64_t k = 0; k < depth; ++k) {
    const V b0 = load(panel + k * 2 * w), b1 = load(panel + k * 2 * w + w);
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
      const V left(a[i * ai + k * ak]);
      sum[i][0] = fma(left, b0, sum[i][0]);
      sum[i][1] = fma(left, b1, sum[i][1]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) {
    const T* from = accumulate ? c + i * ldc : bias;
    store_up_to(c + i * ldc, from ? load_up_to(from, n0) + sum[i][0] : sum[i][0], n0);
    if (n1 > 0) store_up_to(c + i * ldc + w, from ? load_up_to(from + w, n1) + sum[i][1] : sum[i][1], n1);
  }
}

// C (rows x columns) from packed panels [panel][k][2w]: a panel stays in the L1 cache while the rows of A pass by,
// tiles of kTall of them `tile_step` apart.
template <class T>
void multiply_block(const T* a, int64_t ai, int64_t ak, int64_t tile_step, int64_t rows, const T* panels, int64_t depth,
                    T* c, int64_t ldc, int64_t columns, bool accumulate, const T* bias) {
  for (int64_t j = 0; j < columns; j += kPanel<T>) {
    const int n = static_cast<int>(columns - j < kPanel<T> ? columns - j : kPanel<T>);
    const auto tile = [&](auto size, int64_t i) {
      micro_kernel<T, size>(a + i / kTall * tile_step + i % kTall * ai, ai, ak, panels + j * kDepth, depth,
                            c + i * ldc + j, ldc, n, accumulate, bias ? bias + j : nullptr);
    };
    int64_t i = 0;
    for (; i + kTall <= rows; i += kTall) tile(std::integral_constant<int, kTall>{}, i);
    for (; i + 4 <= rows; i += 4) tile(std::integral_constant<int, 4>{}, i);
    for (; i < rows; ++i) tile(std::integral_constant<int, 1>{}, i);
  }
}

// The right operand B[k][j]: rows of `data` are the summed dimension (k), or the columns (j) if transposed.
template <class S>
struct Right {
  const S* data;
  int64_t ld;
  bool transposed;

  void pack_panels(int64_t k0, int64_t depth, int64_t j0, int64_t columns, acc_t<S>* panels) const {
    constexpr int64_t wide = kPanel<acc_t<S>>;
    for (int64_t j = 0; j < columns; j += wide)
      pack(k0, depth, j0 + j, static_cast<int>(columns - j < wide ? columns - j : wide), panels + j * kDepth);
  }

  // panel[k * 2w + j] = B[k0 + k][j0 + j], zeros from column n on.
  void pack(int64_t k0, int64_t depth, int64_t j0, int n, acc_t<S>* panel) const {
    using V = Vec<acc_t<S>>;
    constexpr int w = V::width;
    for (int half = 0; half < 2; ++half) {
      const int columns = n - half * w < w ? n - half * w : w;
      acc_t<S>* out = panel + half * w;
      if (columns <= 0) {
        for (int64_t k = 0; k < depth; ++k) store(out + k * 2 * w, V(acc_t<S>(0)));
      } else if (!transposed) {
        for (int64_t k = 0; k < depth; ++k)
          store(out + k * 2 * w, load_up_to(data + (k0 + k) * ld + j0 + half * w, columns));
      } else {
        for (int64_t k = 0; k < depth; k += w) {
          const int deep = static_cast<int>(depth - k < w ? depth - k : w);
          V block[w];
          for (int j = 0; j < w; ++j)
            block[j] = j < columns ? load_up_to(data + (j0 + half * w + j) * ld + k0 + k, deep) : V(acc_t<S>(0));
          transpose<w>(block);
          for (int d = 0; d < deep; ++d) store(out + (k + d) * 2 * w, block[d]);
        }
      }
    }
  }
};

// C (m x n) = A B, or += A B, or A B + bias; sums over kDepth in order, and these sums in order. Threads share out the
// panels of C's columns.
template <class S>
void multiply(const Exec& exec, char* scratch, const acc_t<S>* a, const Right<S>& b, int64_t m, int64_t n,
              int64_t depth, acc_t<S>* c, bool accumulate, const acc_t<S>* bias) {
  using T = acc_t<S>;
  parallel_slots(exec, (n + kPanel<T> - 1) / kPanel<T>, 1, [&](int slot, int64_t begin, int64_t end) {
    const int64_t last = end * kPanel<T> < n ? end * kPanel<T> : n;
    T* panels = reinterpret_cast<T*>(scratch) + slot * kScratch;
    for (int64_t j0 = begin * kPanel<T>; j0 < last; j0 += kWide) {
      const int64_t columns = last - j0 < kWide ? last - j0 : kWide;
      for (int64_t k0 = 0; k0 == 0 || k0 < depth; k0 += kDepth) {
        const int64_t deep = depth - k0 < kDepth ? depth - k0 : kDepth;
        b.pack_panels(k0, deep, j0, columns, panels);
        multiply_block(a + k0, depth, 1, kTall * depth, m, panels, deep, c + j0, n, columns, accumulate || k0 > 0,
                       bias ? bias + j0 : nullptr);
      }
    }
  });
}

// C (m x n) = A^T B, or += A^T B: sums as in multiply. Threads share out the rows of C.
template <class T>
void multiply_transposed(const Exec& exec, char* scratch, const T* a, const Right<T>& b, int64_t m, int64_t n,
                         int64_t depth, T* c, bool accumulate) {
  const int64_t blocks = (m + kRows - 1) / kRows;
  parallel_slots(exec, blocks, 1, [&](int slot, int64_t begin, int64_t end) {
    T* panels = reinterpret_cast<T*>(scratch) + slot * kScratch;
    T* left = panels + kDepth * kWide;  // [tile][k][kTall]
    for (int64_t j0 = 0; j0 < n; j0 += kWide) {
      const int64_t columns = n - j0 < kWide ? n - j0 : kWide;
      for (int64_t k0 = 0; k0 < depth; k0 += kDepth) {
        const int64_t deep = depth - k0 < kDepth ? depth - k0 : kDepth;
        b.pack_panels(k0, deep, j0, columns, panels);
        for (int64_t i0 = begin * kRows; i0 < end * kRows && i0 < m; i0 += kRows) {
          const int64_t rows = m - i0 < kRows ? m - i0 : kRows;
          for (int64_t k = 0; k < deep; ++k)
            for (int64_t i = 0; i < rows; i += kTall)
              for (int64_t r = 0; r < kTall && i + r < rows; ++r)
                left[(i / kTall * kDepth + k) * kTall + r] = a[(k0 + k) * m + i0 + i + r];
          multiply_block<T>(left, 1, kTall, kDepth * kTall, rows, panels, deep, c + i0 * n + j0, n, columns,
                            accumulate || k0 > 0, nullptr);
        }
      }
    }
  });
}

template <class S>
void widen(const S* from, int64_t n, acc_t<S>* to) {
  constexpr int w = Vec<acc_t<S>>::width;
  for (int64_t i = 0; i < n; i += w) {
    const int lanes = static_cast<int>(n - i < w ? n - i : w);
    store_up_to(to + i, load_up_to(from + i, lanes), lanes);
  }
}
template <class S>
void narrow(const acc_t<S>* from, int64_t n, S* to) {
  constexpr int w = Vec<acc_t<S>>::width;
  for (int64_t i = 0; i < n; i += w) {
    const int lanes = static_cast<int>(n - i < w ? n - i : w);
    store_up_to(to + i, load_up_to(from + i, lanes), lanes);
  }
}

// to[c] += the sum of column c, in segments of rows.
template <class T>
void add_columns(const Exec& exec, const T* scores, int64_t rows, int64_t classes, T* to) {
  constexpr int64_t kSegment = 32, kColumns = 256;
  parallel_for(exec, (classes + kColumns - 1) / kColumns, 4, [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      const int64_t begin = block * kColumns, n = classes - begin < kColumns ? classes - begin : kColumns;
      for (int64_t i = 0; i < rows; i += kSegment) {
        const int64_t end = rows - i < kSegment ? rows : i + kSegment;
        alignas(64) T sum[kColumns] = {};
        for (int64_t r = i; r < end; ++r)
          for (int64_t c = 0; c < n; ++c) sum[c] += scores[r * classes + begin + c];
        for (int64_t c = 0; c < n; ++c) to[begin + c] += sum[c];
      }
    }
  });
}

bool wants_grad(const LinearCrossEntropyParams& p) { return p.grad_x || p.grad_w || p.grad_b; }

// What stands where in the workspace.
struct Plan {
  int64_t chunk;  // rows at a time; depends on the number of classes only
  CrossEntropyParams ce;
  size_t targets, bias, class_weight, scores, soft, x, grad_x, grad_w, grad_b, losses, scales, panels, inner, bytes;
};

Plan plan_of(const LinearCrossEntropyParams& p, int threads) {
  Plan a{};
  const bool narrow_type = p.dtype >= DType::bf16;
  const int64_t size = p.dtype == DType::f64 ? 8 : 4;
  a.chunk = kChunkScores / (p.classes + 1) / 48 * 48;  // whole register tiles on every instruction set
  if (a.chunk < 48) a.chunk = 48;
  if (a.chunk > 960) a.chunk = 960;
  if (a.chunk > p.rows) a.chunk = p.rows;
  a.ce.outer = p.rows;
  a.ce.classes = p.classes;
  a.ce.inner = 1;
  a.ce.target = p.target;
  a.ce.weight = p.class_weight;
  a.ce.bad = p.bad;
  a.ce.ignore_index = p.ignore_index;
  a.ce.smoothing = p.smoothing;
  a.ce.dtype = p.dtype;
  a.ce.target_kind = p.target_kind;
  a.ce.reduction = Reduction::none;
  const auto place = [&](int64_t bytes) {
    const size_t at = a.bytes;
    a.bytes += (bytes + 63) / 64 * 64;
    return at;
  };
  const bool soft = p.target_kind == Target::probability;
  a.targets = place(target_blocks(a.ce) * sizeof(TargetBlock));
  a.bias = place(p.bias ? p.classes * size : 0);
  a.class_weight = place(p.class_weight ? p.classes * size : 0);
  a.scores = place(a.chunk * p.classes * size);
  a.soft = place(soft && narrow_type ? a.chunk * p.classes * size : 0);
  a.x = place(narrow_type ? a.chunk * p.features * size : 0);
  a.grad_x = place(p.grad_x && narrow_type ? a.chunk * p.features * size : 0);
  a.grad_w = place(p.grad_w && narrow_type ? p.classes * p.features * size : 0);
  a.grad_b = place(p.grad_b ? p.classes * size : 0);
  a.losses = place(p.rows * size);
  a.scales = place(a.chunk * size);
  a.panels = place(threads * kScratch * size);
  CrossEntropyParams chunk = a.ce;
  chunk.outer = a.chunk;
  chunk.dtype = p.dtype == DType::f64 ? DType::f64 : DType::f32;
  a.inner = a.bytes;
  a.bytes += cross_entropy_workspace(chunk, threads);
  return a;
}

template <class S>
void run(const LinearCrossEntropyParams& p, const Exec& exec) {
  using T = acc_t<S>;
  constexpr bool same = std::is_same_v<S, T>;
  Plan a = plan_of(p, exec.threads);
  char* base = static_cast<char*>(exec.workspace);
  const auto at = [&](size_t offset) { return reinterpret_cast<T*>(base + offset); };
  const double count = check_targets<S>(a.ce, exec, reinterpret_cast<TargetBlock*>(base + a.targets));
  if (*p.bad >= 0) return;
  const S *x = static_cast<const S*>(p.x), *w = static_cast<const S*>(p.w);
  const S* grad_loss = static_cast<const S*>(p.grad_loss);
  const bool each = p.reduction == Reduction::none, soft = p.target_kind == Target::probability;
  if (p.bias) widen(static_cast<const S*>(p.bias), p.classes, at(a.bias));
  if (p.class_weight) widen(static_cast<const S*>(p.class_weight), p.classes, at(a.class_weight));
  T* grad_w = same ? static_cast<T*>(p.grad_w) : p.grad_w ? at(a.grad_w) : nullptr;
  T* grad_b = p.grad_b ? at(a.grad_b) : nullptr;
  if (grad_b) __builtin_memset(grad_b, 0, p.classes * sizeof(T));
  if (grad_w && p.rows == 0) __builtin_memset(grad_w, 0, p.classes * p.features * sizeof(T));
  double scale = p.reduction == Reduction::mean ? 1 / count : 1;
  if (grad_loss && !each) scale *= load_one(grad_loss);
  T *scores = at(a.scores), *losses = at(a.losses), *scales = at(a.scales);

  for (int64_t r0 = 0; r0 < p.rows; r0 += a.chunk) {
    const int64_t m = p.rows - r0 < a.chunk ? p.rows - r0 : a.chunk;
    const T* left;
    if constexpr (same) left = x + r0 * p.features;
    else widen(x + r0 * p.features, m * p.features, at(a.x)), left = at(a.x);
    multiply<S>(exec, base + a.panels, left, {w, p.features, true}, m, p.classes, p.features, scores, false,
                p.bias ? at(a.bias) : nullptr);

    CrossEntropyParams ce = a.ce;
    ce.dtype = std::is_same_v<T, double> ? DType::f64 : DType::f32;
    ce.outer = m;
    ce.x = scores;
    ce.weight = p.class_weight ? at(a.class_weight) : nullptr;
    if (!soft) {
      const int64_t bytes = p.target_kind == Target::i64 ? 8 : 1;
      ce.target = static_cast<const char*>(p.target) + r0 * bytes;
    } else if constexpr (same) {
      ce.target = static_cast<const S*>(p.target) + r0 * p.classes;
    } else {
      widen(static_cast<const S*>(p.target) + r0 * p.classes, m * p.classes, at(a.soft));
      ce.target = at(a.soft);
    }
    for (int64_t i = 0; i < m; ++i)
      scales[i] = each && grad_loss ? load_one(grad_loss + r0 + i) : static_cast<T>(scale);
    ce.grad_loss = scales;
    ce.loss = losses + r0;
    ce.grad = wants_grad(p) ? scores : nullptr;
    Exec inner = exec;
    inner.workspace = base + a.inner;
    cross_entropy(ce, inner);
    if (!wants_grad(p)) continue;

    if (p.grad_x) {
      T* out;
      if constexpr (same) out = static_cast<T*>(p.grad_x) + r0 * p.features;
      else out = at(a.grad_x);
      multiply<S>(exec, base + a.panels, scores, {w, p.features, false}, m, p.features, p.classes, out, false, nullptr);
      if constexpr (!same) narrow(out, m * p.features, static_cast<S*>(p.grad_x) + r0 * p.features);
    }
    if (grad_w)
      multiply_transposed<T>(exec, base + a.panels, scores, {left, p.features, false}, p.classes, p.features, m, grad_w,
                             r0 > 0);
    if (grad_b) add_columns(exec, scores, m, p.classes, grad_b);
  }

  if (grad_b) narrow(grad_b, p.classes, static_cast<S*>(p.grad_b));
  if constexpr (!same)
    if (grad_w) narrow(grad_w, p.classes * p.features, static_cast<S*>(p.grad_w));
  if (!p.loss) return;
  if (each) return narrow(losses, p.rows, static_cast<S*>(p.loss));
  double total = 0;
  for (int64_t r = 0; r < p.rows; ++r) total += losses[r];
  store_one(static_cast<S*>(p.loss), static_cast<T>(p.reduction == Reduction::mean ? total / count : total));
}

}  // namespace

size_t linear_cross_entropy_workspace(const LinearCrossEntropyParams& p, int threads) {
  return plan_of(p, threads).bytes;
}

void linear_cross_entropy(const LinearCrossEntropyParams& p, const Exec& exec) {
  dispatch_float(p.dtype, [&](auto zero) { run<decltype(zero)>(p, exec); });
}

}  // namespace fastcv::FASTCV_ISA
