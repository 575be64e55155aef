// What other doors may ask of the convolution's.
#pragma once
#include "common/door.h"

namespace fastcv {

// The raw op conv: its checks, its output, its kernel.
door::Tensor conv_of(const door::Tensor& input, const door::Tensor& weight, door::OptionalTensor bias,
                     door::Ints stride, door::Ints padding, door::Ints dilation, int64_t groups,
                     door::OptionalTensor residual, int64_t activation, int64_t precision, door::OptionalTensor packed,
                     double slope);

}  // namespace fastcv
