#include "roof/fma_chain.h"

#include "common/simd.h"

namespace fastcv::FASTCV_ISA {
namespace {

template <int chains, class T>
void block(const T* x, T* y, int64_t steps) {
  constexpr int w = Vec<T>::width;
  const Vec<T> half(T(0.5));
  Vec<T> v[chains];
  for (int c = 0; c < chains; ++c) v[c] = load(x + c * w);
  for (int64_t s = 0; s < steps; ++s)
    for (int c = 0; c < chains; ++c) v[c] = fma<T>(v[c], half, half);
  for (int c = 0; c < chains; ++c) store(y + c * w, v[c]);
}

template <class T>
void chain(const T* x, T* y, int64_t begin, int64_t end, int64_t steps) {
  constexpr int w = Vec<T>::width;
  int64_t i = begin;
  for (; i + kFmaChains * w <= end; i += kFmaChains * w) block<kFmaChains>(x + i, y + i, steps);
  for (; i + w <= end; i += w) block<1>(x + i, y + i, steps);
  if (i < end) {
    T buffer[w] = {};
    for (int64_t j = i; j < end; ++j) buffer[j - i] = x[j];
    block<1>(buffer, buffer, steps);
    for (int64_t j = i; j < end; ++j) y[j] = buffer[j - i];
  }
}

template <class T>
void run(const FmaChainParams& p, const Exec& exec) {
  constexpr int64_t kBlock = kFmaChains * Vec<T>::width;
  const T* x = static_cast<const T*>(p.x);
  T* y = static_cast<T*>(p.y);
  parallel_for(exec, (p.n + kBlock - 1) / kBlock, 1, [&](int64_t begin, int64_t end) {
    const int64_t last = end * kBlock;
    chain(x, y, begin * kBlock, last < p.n ? last : p.n, p.steps);
  });
}

}  // namespace

void fma_chain(const FmaChainParams& p, const Exec& exec) {
  p.dtype == DType::f32 ? run<float>(p, exec) : run<double>(p, exec);
}

}  // namespace fastcv::FASTCV_ISA
