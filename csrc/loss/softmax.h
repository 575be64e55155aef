// softmax:              y = exp(x - m) / sum exp(x - m), m = max x, over the classes
// log_softmax:          y = (x - m) - log sum exp(x - m)
// softmax_backward:     dx = y (dy - sum dy y)
// log_softmax_backward: dx = dy - exp(y) sum dy
//
// Contract: all tensors are dense (outer, classes, inner), row-major; outputs do not overlap inputs. Two exceptions,
// for channels_last inputs of the forward pass: with `input_rows` the input is (outer, inner, classes) instead, the
// channels being the classes. With input_channels > 0, inner is 1 and the outputs' rows are (images, channels,
// positions), but the input is (images, positions, classes, channels). dtypes f32 f64 bf16 f16; 16-bit types compute in
// float. A slice with a NaN, with +inf, or with only -inf becomes NaN; -inf beside finite scores has probability 0.
// Sums run over the classes in an order that depends on `classes` only.
#pragma once
#include "common/parallel.h"
#include "common/types.h"
#include "common/variant.h"

namespace fastcv {

struct SoftmaxParams {
  const void* x;   // forward: scores; backward: the forward's output
  const void* dy;  // backward only
  void* y;         // forward: probabilities; backward: dx
  int64_t outer, classes, inner;
  DType dtype;
  bool log;
  bool input_rows;
  int64_t input_channels, input_positions;
};

extern const VariantTable<SoftmaxParams> softmax_table, log_softmax_table;
extern const VariantTable<SoftmaxParams> softmax_backward_table, log_softmax_backward_table;

void softmax_ref(const SoftmaxParams&, const Exec&);
void softmax_backward_ref(const SoftmaxParams&, const Exec&);

#define FASTCV_DECLARE(isa)                                 \
  namespace isa {                                           \
  size_t softmax_workspace(const SoftmaxParams&, int);      \
  void softmax(const SoftmaxParams&, const Exec&);          \
  void softmax_backward(const SoftmaxParams&, const Exec&); \
  }
FASTCV_DECLARE(portable)
FASTCV_DECLARE(avx2)
FASTCV_DECLARE(avx512)
#undef FASTCV_DECLARE

// On a GPU, and the same source on the emulator. The first two need the classes innermost (inner == 1).
#define FASTCV_DECLARE(gpu)                                                                                 \
  namespace gpu {                                                                                           \
  FASTCV_IF_LINKED int softmax(const SoftmaxParams&, void* workspace, CUstream_st* stream);                 \
  FASTCV_IF_LINKED int softmax_backward(const SoftmaxParams&, void* workspace, CUstream_st* stream);        \
  FASTCV_IF_LINKED int softmax_column(const SoftmaxParams&, void* workspace, CUstream_st* stream);          \
  FASTCV_IF_LINKED int softmax_column_backward(const SoftmaxParams&, void* workspace, CUstream_st* stream); \
  }
FASTCV_DECLARE(cuda)
FASTCV_DECLARE(emulated)
#undef FASTCV_DECLARE

}  // namespace fastcv
