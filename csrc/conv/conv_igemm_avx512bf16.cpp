// bfloat16 with the dot-product instruction: pairs of channels multiplied and summed in float32 in one step.
#include "conv/conv.h"
#include "conv/conv_igemm.h"

namespace fastcv::FASTCV_ISA {
namespace {

struct DotProduct {
  using X = bf16;
  using W = uint32_t;  // two channels of one output channel
  using Acc = float;
  static constexpr int kPair = 2;
  static constexpr int kStored = 1;
  static constexpr bool kTiles = false, kRounds = true;
  using Session = int;
  using Packed = __m512i;
  FASTCV_INLINE Packed load_weights(const W* w) { return _mm512_loadu_si512(w); }
  FASTCV_INLINE Packed spread(const X* x) {
    int32_t pair;
    std::memcpy(&pair, x, sizeof pair);
    return _mm512_set1_epi32(pair);
  }
  FASTCV_INLINE Vec<Acc> multiply_add(Packed x, Packed w, Vec<Acc> sum) {
    return Vec<Acc>((Vec<Acc>::Raw)_mm512_dpbf16_ps((__m512)sum.v, (__m512bh)x, (__m512bh)w));
  }
  // Weights of two channels that came from bf16: their low halves are zero.
  FASTCV_INLINE void pack_pair(W* out, Vec<Acc> even, Vec<Acc> odd) {
    _mm512_storeu_si512(out, _mm512_or_si512(_mm512_srli_epi32((__m512i)even.v, 16), (__m512i)odd.v));
  }
};

using Engine = Igemm<DotProduct, bf16>;

}  // namespace

void conv_igemm_bf16(const ConvParams& p, const Exec& exec) { Engine(p, exec.threads).run(exec); }
size_t conv_igemm_bf16_workspace(const ConvParams& p, int threads) { return Engine(p, threads).workspace(); }
size_t conv_igemm_bf16_kept(const ConvParams& p) { return Engine(p, 1).kept(); }

}  // namespace fastcv::FASTCV_ISA
