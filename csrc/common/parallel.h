// The seam through which a kernel gets threads and scratch memory: from its caller, never by itself.
#pragma once
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace fastcv {

struct Exec {
  // Calls body(begin, end, context) on disjoint ranges that cover [0, n), on at most `threads` threads.
  void (*parallel)(int64_t n, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context);
  int threads;      // how many threads parallel() may use: for scratch and for cutting work, never for results
  void* workspace;  // as many bytes as the variant's workspace function asked for, 64-byte aligned
};

// f(begin, end) over [0, n). What f computes for an index must not depend on the range it arrives in.
// The lambda's type makes each instance unique, so instances in instruction-set namespaces never merge.
template <class F>
static inline void parallel_for(const Exec& exec, int64_t n, int64_t grain, F&& f) {
  if (n <= 0) return;
  if (exec.threads <= 1 || n <= grain) return f(int64_t{0}, n);
  using Body = std::remove_cvref_t<F>;
  exec.parallel(
      n, grain, [](int64_t begin, int64_t end, void* body) { (*static_cast<Body*>(body))(begin, end); },
      const_cast<void*>(static_cast<const void*>(&f)));
}

// f(slot, begin, end): [0, n) cut into at most exec.threads contiguous parts, `slot` numbering them, so that each
// part can have scratch of its own (slot < exec.threads). A part is at least `grain` long.
template <class F>
static inline void parallel_slots(const Exec& exec, int64_t n, int64_t grain, F&& f) {
  if (n <= 0) return;
  int64_t parts = (n + grain - 1) / (grain < 1 ? 1 : grain);
  if (parts > exec.threads) parts = exec.threads;
  if (parts < 1) parts = 1;
  parallel_for(exec, parts, 1, [&](int64_t first, int64_t last) {
    for (int64_t slot = first; slot < last; ++slot) f(static_cast<int>(slot), n * slot / parts, n * (slot + 1) / parts);
  });
}

}  // namespace fastcv
