// What doors of other families may ask of batch norm's.
#pragma once
#include <tuple>

#include "common/door.h"

namespace fastcv {

// Mean and biased variance of every channel of a tensor [n][channels]..., in double, as batch norm in training has
// them.
std::tuple<door::Tensor, door::Tensor> batch_norm_statistics(const door::Tensor& input);

}  // namespace fastcv
