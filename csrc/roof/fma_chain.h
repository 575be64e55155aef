// fma_chain: y[i] = x[i] after `steps` times v = v * 0.5 + 0.5: the multiply-add roof of a machine, as an op to time.
//
// Contract: input and output are dense, of n >= 0 elements, and do not overlap; steps >= 0; f32 f64.
// A call does 2 * n * steps floating-point operations on registers alone. Enough chains run side by side to hide the
// latency of a multiply-add (kChains vectors of the widest set), if n is a multiple of kBlock.
#pragma once
#include "common/parallel.h"
#include "common/types.h"
#include "common/variant.h"

namespace fastcv {

struct FmaChainParams {
  const void* x;
  void* y;
  int64_t n;
  int64_t steps;
  DType dtype;
};

constexpr int kFmaChains = 12;

extern const VariantTable<FmaChainParams> fma_chain_table;

void fma_chain_ref(const FmaChainParams&, const Exec&);
namespace portable {
void fma_chain(const FmaChainParams&, const Exec&);
}
namespace avx2 {
void fma_chain(const FmaChainParams&, const Exec&);
}
namespace avx512 {
void fma_chain(const FmaChainParams&, const Exec&);
}

}  // namespace fastcv
