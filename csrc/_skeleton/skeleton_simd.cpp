#include "_skeleton/skeleton.h"
#include "common/dispatch.h"
#include "common/simd.h"

namespace fastcv::FASTCV_ISA {
namespace {

constexpr int64_t kGrain = 1 << 14;  // elements: below this, waking a thread costs more than it saves

template <class S>
void copy(const S* x, S* y, int64_t begin, int64_t end) {
  constexpr int w = Vec<acc_t<S>>::width;
  int64_t i = begin;
  for (; i + w <= end; i += w) store(y + i, load(x + i));
  if (i < end) store_n(y + i, load_n(x + i, static_cast<int>(end - i)), static_cast<int>(end - i));
}

}  // namespace

void skeleton(const SkeletonParams& p, const Exec& exec) {
  dispatch_float(p.dtype, [&](auto zero) {
    using S = decltype(zero);
    parallel_for(exec, p.n, kGrain, [&](int64_t begin, int64_t end) {
      copy(static_cast<const S*>(p.x), static_cast<S*>(p.y), begin, end);
    });
  });
}

}  // namespace fastcv::FASTCV_ISA
