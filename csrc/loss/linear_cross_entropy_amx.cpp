#include "loss/targets.h"

#include "conv/conv.h"
#include "conv/conv_wgrad.h"
#include "loss/linear_cross_entropy.h"
#include "loss/tile.h"

// float32 on matrix tiles, by the kernels of convolutions of one tap. The pixels are the classes, so that the large
// matrix is cut into parts as it streams by and the few rows of a chunk are the weights that are packed: transposed
// scores W X^T, of which the loss takes columns, and dW += G^T X of the transposed score gradients G^T are
// convolutions, dX, which sums over the pixels, is a weight gradient.
namespace fastcv::FASTCV_ISA {
namespace {

constexpr int64_t kChunkScores = 1 << 22;  // scores per chunk of rows: what is held instead of the whole matrix
constexpr int64_t kLeastRows = 96, kMostRows = 960;

// A convolution of `pixels` pixels by kernels of one tap.
ConvParams product(const float* x, int64_t pixels, int64_t channels, const float* w, bool transposed, int64_t outputs,
                   float* y, bool add = false) {
  ConvParams p = ConvParams::of_one_image();
  p.c = channels, p.k = outputs, p.groups = 1;
  for (int i = 0; i < 3; ++i) p.in[i] = p.out[i] = p.kernel[i] = p.stride[i] = p.dilation[i] = 1;
  p.in[2] = p.out[2] = pixels;
  p.x = x, p.w = w, p.y = y, p.residual = add ? y : nullptr;
  p.dtype = DType::f32;
  p.transposed = transposed;
  p.channels_last = true;
  return p;
}

// dX[row][feature] = sum over classes of G^T[class][row] W[class][feature], in so many parts.
ConvWgradParams sum_over_classes(const LinearCrossEntropyParams& p, const float* scores, int64_t rows, int64_t parts,
                                 float* grad_x) {
  ConvWgradParams g = ConvWgradParams::of_one_image();
  g.input = p.w, g.grad_output = scores, g.grad_weight = grad_x;
  g.in_channels = p.features, g.out_channels = rows, g.groups = 1;
  for (int i = 0; i < 3; ++i) g.in[i] = g.out[i] = g.kernel[i] = g.stride[i] = g.dilation[i] = 1;
  g.in[2] = g.out[2] = p.classes;
  g.parts = parts;
  g.input_channels_last = g.grad_channels_last = true;
  g.dtype = DType::f32;
  return g;
}

// What stands where in the workspace.
struct Plan {
  int64_t chunk;      // rows at a time; depends on the number of classes only
  bool sum_on_tiles;  // dX, where a whole chunk has enough products for each number cut
  int64_t sum_parts;  // of it, so many that threads have something to share; as a row alone has them
  CrossEntropyParams ce;
  size_t targets, scores, losses, scales, inner, bytes;
};

Plan plan_of(const LinearCrossEntropyParams& p, int threads) {
  Plan a{};
  a.chunk = kChunkScores / p.classes / 32 * 32;
  if (a.chunk < kLeastRows) a.chunk = kLeastRows;
  if (a.chunk > kMostRows) a.chunk = kMostRows;
  a.sum_on_tiles = a.chunk * p.features >= 96 * (a.chunk + p.features);
  a.sum_parts = (a.sum_on_tiles ? 8 : 64) * 32 / p.features + 1;
  const int64_t most_parts = (int64_t{1} << 20) / (a.chunk * p.features) + 1;  // 4 MB
  if (a.sum_parts > most_parts) a.sum_parts = most_parts;
  if (a.chunk > p.rows) a.chunk = p.rows;
  a.ce.outer = 1;
  a.ce.classes = p.classes;
  a.ce.inner = p.rows;
  a.ce.target = p.target;
  a.ce.weight = p.class_weight;
  a.ce.bad = p.bad;
  a.ce.ignore_index = p.ignore_index;
  a.ce.smoothing = p.smoothing;
  a.ce.dtype = DType::f32;
  a.ce.target_kind = p.target_kind;
  a.ce.reduction = Reduction::none;
  a.ce.columns = true;
  a.ce.bias = static_cast<const float*>(p.bias);
  const auto place = [&](size_t bytes) {
    const size_t at = a.bytes;
    a.bytes += (bytes + 63) / 64 * 64;
    return at;
  };
  const auto floats = [](int64_t n) { return static_cast<size_t>(n) * sizeof(float); };
  a.targets = place(static_cast<size_t>(target_blocks(a.ce)) * sizeof(TargetBlock));
  a.scores = place(floats(a.chunk * p.classes));
  a.losses = place(floats(p.rows));
  a.scales = place(floats(a.chunk));
  CrossEntropyParams ce = a.ce;
  ce.inner = a.chunk;
  size_t inner = avx512::cross_entropy_workspace(ce, threads);
  const auto grow = [&](size_t bytes) { inner = bytes > inner ? bytes : inner; };
  for (const int64_t m : {a.chunk, p.rows % (a.chunk + (a.chunk == 0))}) {  // rows of a chunk, and of the last
    if (m == 0) continue;
    grow(conv_igemm_bf16x6_workspace(product(nullptr, p.classes, p.features, nullptr, false, m, nullptr), threads));
    if (p.grad_w)
      grow(conv_igemm_bf16x6_workspace(product(nullptr, p.classes, m, nullptr, true, p.features, nullptr), threads));
    const ConvWgradParams sum = sum_over_classes(p, nullptr, m, a.sum_parts, nullptr);
    if (p.grad_x)
      grow(a.sum_on_tiles ? conv_wgrad_bf16x6_workspace(sum, threads) : avx512::conv_wgrad_workspace(sum, threads));
  }
  a.inner = place(inner);
  return a;
}

}  // namespace

size_t linear_cross_entropy_workspace(const LinearCrossEntropyParams& p, int threads) {
  return plan_of(p, threads).bytes;
}

void linear_cross_entropy(const LinearCrossEntropyParams& p, const Exec& exec) {
  const Plan a = plan_of(p, exec.threads);
  char* base = static_cast<char*>(exec.workspace);
  const auto at = [&](size_t offset) { return reinterpret_cast<float*>(base + offset); };
  const double count = check_targets<float>(a.ce, exec, reinterpret_cast<TargetBlock*>(base + a.targets));
  if (*p.bad >= 0) return;
  Exec inner = exec;
  inner.workspace = base + a.inner;
  const bool each = p.reduction == Reduction::none;
  const float *w = static_cast<const float*>(p.w), *grad_loss = static_cast<const float*>(p.grad_loss);
  float *grad_x = static_cast<float*>(p.grad_x), *grad_w = static_cast<float*>(p.grad_w),
        *grad_b = static_cast<float*>(p.grad_b), *scores = at(a.scores), *losses = at(a.losses), *scales = at(a.scales);
  if (grad_b) __builtin_memset(grad_b, 0, static_cast<size_t>(p.classes) * sizeof(float));
  if (grad_w && p.rows == 0) __builtin_memset(grad_w, 0, static_cast<size_t>(p.classes * p.features) * sizeof(float));
  double scale = p.reduction == Reduction::mean ? 1 / count : 1;
  if (grad_loss && !each) scale *= grad_loss[0];
  constexpr int64_t kGrain = 1 << 14;  // scores a thread takes at least

  for (int64_t r0 = 0; r0 < p.rows; r0 += a.chunk) {
    const int64_t m = p.rows - r0 < a.chunk ? p.rows - r0 : a.chunk;
    const float* x = static_cast<const float*>(p.x) + r0 * p.features;
    conv_igemm_bf16x6(product(w, p.classes, p.features, x, false, m, scores), inner);

    CrossEntropyParams ce = a.ce;
    ce.inner = m;
    ce.x = scores;
    ce.target = static_cast<const char*>(p.target) + r0 * (p.target_kind == Target::i64 ? 8 : 1);
    for (int64_t i = 0; i < m; ++i) scales[i] = each && grad_loss ? grad_loss[r0 + i] : static_cast<float>(scale);
    ce.grad_loss = scales;
    ce.loss = losses + r0;
    ce.grad = grad_x || grad_w || grad_b ? scores : nullptr;
    avx512::cross_entropy(ce, inner);

    if (grad_x) {
      const ConvWgradParams sum = sum_over_classes(p, scores, m, a.sum_parts, grad_x + r0 * p.features);
      a.sum_on_tiles ? conv_wgrad_bf16x6(sum, inner) : avx512::conv_wgrad(sum, inner);
    }
    if (grad_w) conv_igemm_bf16x6(product(scores, p.classes, m, x, true, p.features, grad_w, r0 > 0), inner);
    if (grad_b)
      parallel_for(exec, p.classes, kGrain / m + 1, [&](int64_t begin, int64_t end) {
        for (int64_t c = begin; c < end; ++c) {
          Vec<float> sum(0.0f);
          for (int64_t i = 0; i < m; i += 16)
            sum += load_up_to(scores + c * m + i, static_cast<int>(m - i < 16 ? m - i : 16));
          grad_b[c] += reduce_add(sum);
        }
      });
  }

  if (!p.loss) return;
  float* loss = static_cast<float*>(p.loss);
  if (each) {
    __builtin_memcpy(loss, losses, static_cast<size_t>(p.rows) * sizeof(float));
    return;
  }
  double total = 0;
  for (int64_t r = 0; r < p.rows; ++r) total += losses[r];
  *loss = static_cast<float>(p.reduction == Reduction::mean ? total / count : total);
}

}  // namespace fastcv::FASTCV_ISA
