// The activations of fused convolution and their derivatives: y = grad * f^(order)(x), for gradients of any order.
//
// Contract: x, grad and y are dense in one order of elements, `size` of them; grad may be nullptr, which stands for
// ones; y overlaps neither. f32 f64 bf16 f16 (16-bit types compute in float). Where a derivative of relu, relu6 or
// hardswish vanishes, and from the second on leaky_relu's, y is 0 whatever grad is, as in torch; at the bends it is
// torch's one-sided choice. order is 0 to kActivationOrders.
#pragma once
#include "common/parallel.h"
#include "common/types.h"
#include "common/variant.h"
#include "conv/conv.h"

namespace fastcv {

inline constexpr int kActivationOrders = 8;

struct ConvActivationParams {
  const void* x;
  const void* grad;
  void* y;
  int64_t size;
  double slope;  // of leaky_relu where it is not above zero
  int order;
  Activation activation;
  DType dtype;
};

extern const VariantTable<ConvActivationParams> conv_activation_table;

void conv_activation_ref(const ConvActivationParams&, const Exec&);
#define FASTCV_CONV_ACTIVATION(isa)                               \
  namespace isa {                                                 \
  void conv_activation(const ConvActivationParams&, const Exec&); \
  }
FASTCV_CONV_ACTIVATION(portable)
FASTCV_CONV_ACTIVATION(avx2)
FASTCV_CONV_ACTIVATION(avx512)
#undef FASTCV_CONV_ACTIVATION

#define FASTCV_CONV_ACTIVATION(gpu)                                                                        \
  namespace gpu {                                                                                          \
  FASTCV_IF_LINKED int conv_activation(const ConvActivationParams&, void* workspace, CUstream_st* stream); \
  }
FASTCV_CONV_ACTIVATION(cuda)
FASTCV_CONV_ACTIVATION(emulated)
#undef FASTCV_CONV_ACTIVATION

}  // namespace fastcv
