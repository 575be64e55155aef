#include "roof/fma_chain.h"

namespace fastcv {
namespace {

template <class T>
void chain(const FmaChainParams& p) {
  const T* x = static_cast<const T*>(p.x);
  T* y = static_cast<T*>(p.y);
  for (int64_t i = 0; i < p.n; ++i) {
    T v = x[i];
    for (int64_t s = 0; s < p.steps; ++s) v = v * T(0.5) + T(0.5);
    y[i] = v;
  }
}

}  // namespace

void fma_chain_ref(const FmaChainParams& p, const Exec&) { p.dtype == DType::f32 ? chain<float>(p) : chain<double>(p); }

}  // namespace fastcv
