#include "neighbors/bytes.h"

namespace fastcv {
namespace {

const char* why_not(DType dtype, double p, int64_t m, int64_t n, int64_t depth) {
  if (p != 1 || dtype != DType::f32) return "needs p = 1 and float32";
  if (depth > kMaxBytesDepth) return "needs at most 65793 coordinates for exact sums";
  if (m < 8 || n < 8 || depth < 32) return "needs 8 points on either side and 32 coordinates to be worth it";
  return nullptr;
}

}  // namespace

const char* bytes_why_not(const CdistParams& p) { return why_not(p.dtype, p.p, p.m, p.n, p.depth); }
const char* bytes_why_not(const KnnParams& p) { return why_not(p.dtype, p.p, p.m, p.n, p.depth); }

}  // namespace fastcv
