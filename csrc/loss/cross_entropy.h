// Softmax cross-entropy without ever storing probabilities.
//
// Of a sample r with scores x_c, m = max x, s = sum exp(x - m), log p_c = (x_c - m) - log s:
//   class indices t:  loss_r = -(1 - e) w_t log p_t - e / C sum_c w_c log p_c       (0 where t == ignore_index)
//   probabilities q:  loss_r = -sum_c w_c ((1 - e) q_c + e / C) log p_c
// with class weights w (1 if null) and label smoothing e. Reductions: none; sum; mean, which divides by the sum of w_t
// over the samples that count (class indices) or by the number of samples (probabilities), and is NaN where that is 0.
//
// Contract: x, grad and q are dense with the same layout: element (o, c, i) at (o * classes + c) * inner + i (rows are
// inner == 1; channels_last is rows). Samples are numbered o * inner + i, so are targets and per-sample losses.
// grad may be null (then x is read once) or receive dloss / dx, times grad_loss if that is not null (one value, or one
// per sample for reduction none; forward gradients exist for mean and sum only). loss may be null.
// *bad receives the first sample whose class index is neither in [0, classes) nor ignore_index, else -1; if there is
// one, nothing else is written. dtypes f32 f64 bf16 f16; weight, loss and grad_loss have the dtype of x.
// Sums: over classes in an order that depends on `classes` only, over samples in double in fixed blocks.
#pragma once
#include "common/parallel.h"
#include "common/types.h"
#include "common/variant.h"

namespace fastcv {

enum class Reduction : int32_t { none, mean, sum };  // torch's numbers
enum class Target : int32_t { i64, u8, probability };

struct CrossEntropyParams {
  const void* x;
  const void* target;
  const void* weight;     // [classes] or null
  const void* grad_loss;  // null: 1
  void* loss;
  void* grad;
  int64_t* bad;
  int64_t outer, classes, inner;
  int64_t ignore_index;
  double smoothing;
  DType dtype;
  Target target_kind;
  Reduction reduction;
  // For linear_cross_entropy, of the vectorised kernels alone: samples are columns even where inner is 1, so that their
  // bits do not depend on their number, and a bias is added to float32 scores as they are read, [classes] or null.
  bool columns;
  const float* bias;
};

extern const VariantTable<CrossEntropyParams> cross_entropy_table, cross_entropy_backward_table;

void cross_entropy_ref(const CrossEntropyParams&, const Exec&);

#define FASTCV_DECLARE(isa)                                       \
  namespace isa {                                                 \
  size_t cross_entropy_workspace(const CrossEntropyParams&, int); \
  void cross_entropy(const CrossEntropyParams&, const Exec&);     \
  }
FASTCV_DECLARE(portable)
FASTCV_DECLARE(avx2)
FASTCV_DECLARE(avx512)
#undef FASTCV_DECLARE

// On a GPU, and the same source on the emulator. There `bad` starts at -1; where it is null, a bad target
// ends the kernel with an error. All but column need the classes innermost (inner == 1).
#define FASTCV_DECLARE(gpu)                                                                                    \
  namespace gpu {                                                                                              \
  FASTCV_IF_LINKED int cross_entropy_warp(const CrossEntropyParams&, void* workspace, CUstream_st* stream);    \
  FASTCV_IF_LINKED int cross_entropy_staged(const CrossEntropyParams&, void* workspace, CUstream_st* stream);  \
  FASTCV_IF_LINKED int cross_entropy_cluster(const CrossEntropyParams&, void* workspace, CUstream_st* stream); \
  FASTCV_IF_LINKED int cross_entropy_online(const CrossEntropyParams&, void* workspace, CUstream_st* stream);  \
  FASTCV_IF_LINKED int cross_entropy_column(const CrossEntropyParams&, void* workspace, CUstream_st* stream);  \
  }
FASTCV_DECLARE(cuda)
FASTCV_DECLARE(emulated)
#undef FASTCV_DECLARE

}  // namespace fastcv
