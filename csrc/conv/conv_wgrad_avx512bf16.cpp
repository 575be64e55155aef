// Weight gradient of bfloat16 with the dot-product instruction: pairs of pixels multiplied and summed in float32 in one
// step.
#include "conv/conv_wgrad_pairs.h"

namespace fastcv::FASTCV_ISA {
namespace {

struct DotSteps : PairSteps {
  static constexpr int kRows = kVectorRows;
  static constexpr bool kTiles = false;
  using Session = int;
  FASTCV_INLINE Vec<E> spread(const E* a) {
    int32_t pair;
    std::memcpy(&pair, a, sizeof pair);
    return Vec<E>((Vec<E>::Raw)_mm512_set1_epi32(pair));
  }
  FASTCV_INLINE Vec<T> multiply_add(Vec<E> a, Vec<E> b, Vec<T> sum) {
    return Vec<T>((Vec<T>::Raw)_mm512_dpbf16_ps((__m512)sum.v, (__m512bh)a.v, (__m512bh)b.v));
  }
};

}  // namespace

size_t conv_wgrad_bf16_workspace(const ConvWgradParams& p, int threads) { return workspace<DotSteps>(p, threads); }
void conv_wgrad_bf16(const ConvWgradParams& p, const Exec& exec) { run<DotSteps>(p, exec); }

}  // namespace fastcv::FASTCV_ISA
