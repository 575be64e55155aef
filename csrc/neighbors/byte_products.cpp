#include "neighbors/byte_products.h"

namespace fastcv {
namespace {

const char* why_not(DType dtype, double p, int64_t depth) {
  if (p != 2 || dtype != DType::u8) return "needs p = 2 and uint8";
  return depth > kMaxProductsDepth ? "needs at most 33024 coordinates for sums in int32" : nullptr;
}

}  // namespace

const char* products_why_not(const CdistParams& p) { return why_not(p.dtype, p.p, p.depth); }
const char* products_why_not(const KnnParams& p) { return why_not(p.dtype, p.p, p.depth); }

}  // namespace fastcv
