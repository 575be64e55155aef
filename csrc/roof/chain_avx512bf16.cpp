// step_chain with the dot product of bfloat16 pairs: each adds two products of 1 and 1/2 to 16 sums. Sixteen vectors of
// sums hide the latency of any implementation so far (four to six cycles, at most two a cycle).
#include "roof/probes.h"

#include "common/simd.h"

namespace fastcv::FASTCV_ISA {
namespace {
constexpr int kVectors = 16, kWidth = 16;
}

void chain_dots_bf16(const StepChainParams& p, const Exec& exec) {
  constexpr int64_t block = kVectors * kWidth;
  parallel_for(exec, p.n / block, 1, [&](int64_t begin, int64_t end) {
    const __m512bh ones = (__m512bh)_mm512_set1_epi32(0x3f803f80), halves = (__m512bh)_mm512_set1_epi32(0x3f003f00);
    for (int64_t i = begin * block; i < end * block; i += block) {
      __m512 v[kVectors];
      for (int j = 0; j < kVectors; ++j) v[j] = _mm512_loadu_ps(p.x + i + j * kWidth);
      for (int64_t s = 0; s < p.steps; ++s)
        for (int j = 0; j < kVectors; ++j) v[j] = _mm512_dpbf16_ps(v[j], ones, halves);
      for (int j = 0; j < kVectors; ++j) _mm512_storeu_ps(p.y + i + j * kWidth, v[j]);
    }
  });
}

}  // namespace fastcv::FASTCV_ISA
