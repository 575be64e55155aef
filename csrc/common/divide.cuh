// Division by a number that is fixed for a launch: a multiplication where both fit into 32 bits (M = ceil(2^64 / d),
// n / d = high half of n M: Lemire, Kaser, Kurz, "Faster remainder by direct computation", 2019).
#pragma once
#include "common/gpu.cuh"

namespace fastcv::FASTCV_GPU {

class Divider {
 public:
  explicit Divider(int64_t d)
      : d_(d), magic_(d > 1 && d <= UINT32_MAX ? UINT64_MAX / static_cast<uint64_t>(d) + 1 : 0) {}
  __device__ __forceinline__ int64_t divide(int64_t n) const {  // n >= 0
    if (d_ == 1) return n;
    return magic_ != 0 && n <= UINT32_MAX ? static_cast<int64_t>(__umul64hi(magic_, static_cast<uint64_t>(n))) : n / d_;
  }
  // The quotient; n becomes the remainder.
  __device__ __forceinline__ int64_t split(int64_t& n) const {
    const int64_t q = divide(n);
    n -= q * d_;
    return q;
  }

 private:
  int64_t d_;
  uint64_t magic_;
};

}  // namespace fastcv::FASTCV_GPU
