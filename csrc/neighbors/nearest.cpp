#include "neighbors/nearest.h"

namespace fastcv {

const char* nearest_why_not(const KnnParams& p) {
  if (p.p != 2 || p.dtype > DType::f16) return "needs p = 2 and a floating point type";
  if (p.k < 1 || p.k > 2) return "needs k = 1 or 2";
  if (p.depth < 8 || p.depth > 1 << 16 || p.n < 8 || p.n > INT32_MAX || p.m < 8)
    return "needs 8 to 65536 coordinates, 8 points and 8 queries";
  return nullptr;
}

}  // namespace fastcv
