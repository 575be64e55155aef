// Scatter and gather by index. NCHW: a plane at a time; NHWC: a block of channels of one image at a time, so that the
// writes of a block touch whole cache lines. Elements of a plane go in order: the result depends on the data alone.
#include "pool/max_unpool2d.h"

#include <cstring>

#include "common/clear.h"
#include "common/dispatch.h"
#include "common/simd.h"

namespace fastcv::FASTCV_ISA {
namespace {

constexpr int64_t kGrain = 1 << 14;
constexpr int64_t kBlock = 16;  // channels

// Channels of one image that go together: all of them where the images keep the threads busy, because then a pixel's
// neighbours are still in the cache. Channels never meet, so the cut does not show in the result.
[[gnu::always_inline]] inline int64_t block_of(const MaxUnpool2dParams& p, const Exec& exec) {
  return p.accumulate || p.n < exec.threads || p.c < kBlock ? kBlock : p.c;
}

// Channels begin .. begin + count - 1 of one image; element (i, k) of a map lies at base + i * step + k.
struct Part {
  int64_t small_base, big_base, step, count;
};
[[gnu::always_inline]] inline Part part_of(const MaxUnpool2dParams& p, int64_t block, int64_t item) {
  if (!p.channels_last) return {item * p.small, item * p.big, 1, 1};
  const int64_t blocks = (p.c + block - 1) / block, image = item / blocks, c = item % blocks * block;
  return {image * p.small * p.c + c, image * p.big * p.c + c, p.c, p.c - c < block ? p.c - c : block};
}
[[gnu::always_inline]] inline int64_t parts(const MaxUnpool2dParams& p, int64_t block) {
  return p.n * (p.channels_last ? (p.c + block - 1) / block : p.c);
}
[[gnu::always_inline]] inline int64_t grain(const MaxUnpool2dParams& p, int64_t block) {
  const int64_t elements = (p.small + p.big) * (p.channels_last ? block : 1);
  return elements >= kGrain ? 1 : kGrain / (elements > 0 ? elements : 1);
}

[[gnu::always_inline]] inline void report(const MaxUnpool2dParams& p, int64_t position) {
  int64_t seen = __atomic_load_n(p.bad, __ATOMIC_RELAXED);
  while (position < seen &&
         !__atomic_compare_exchange_n(p.bad, &seen, position, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
}

// The map is zero already.
template <class S>
void place(const MaxUnpool2dParams& p, const Part& part) {
  const S* x = static_cast<const S*>(p.x) + part.small_base;
  const int64_t* index = p.index + part.small_base;
  S* y = static_cast<S*>(p.y) + part.big_base;
  const auto put = [&](int64_t at, int64_t step, int64_t k) __attribute__((always_inline)) {
    const int64_t to = index[at];
    if (static_cast<uint64_t>(to) < static_cast<uint64_t>(p.big)) [[likely]]
      y[to * step + k] = x[at];
    else report(p, part.small_base + at);
  };
  if (!p.channels_last) {
    for (int64_t i = 0; i < p.small; ++i) put(i, 1, 0);
  } else {
    for (int64_t i = 0; i < p.small; ++i)
      for (int64_t k = 0; k < part.count; ++k) put(i * part.step + k, part.step, k);
  }
}

// sums: big * count accumulators; y itself where it is wide enough.
template <class S>
void add(const MaxUnpool2dParams& p, const Part& part, acc_t<S>* scratch) {
  using T = acc_t<S>;
  const S* x = static_cast<const S*>(p.x) + part.small_base;
  const int64_t* index = p.index + part.small_base;
  S* y = static_cast<S*>(p.y) + part.big_base;
  T* sums;
  int64_t step;
  if constexpr (std::is_same_v<S, T>) sums = y, step = part.step;
  else sums = scratch, step = part.count;
  // Runs without a gap: all of them are one where no other channels lie between.
  const bool whole = step == part.count && part.step == part.count;
  const int64_t runs = whole ? 1 : p.big, length = whole ? p.big * part.count : part.count;
  for (int64_t i = 0; i < runs; ++i) std::memset(sums + i * step, 0, static_cast<size_t>(length) * sizeof(T));
  for (int64_t i = 0; i < p.small; ++i) {
    for (int64_t k = 0; k < part.count; ++k) {
      const int64_t at = i * part.step + k, to = index[at];
      if (static_cast<uint64_t>(to) < static_cast<uint64_t>(p.big)) sums[to * step + k] += load_one(x + at);
      else report(p, part.small_base + at);
    }
  }
  if constexpr (!std::is_same_v<S, T>) {
    constexpr int w = Vec<T>::width;
    for (int64_t i = 0; i < runs; ++i) {
      const T* from = sums + i * step;
      S* to = y + i * part.step;
      int64_t k = 0;
      for (; k + w <= length; k += w) store(to + k, load(from + k));
      for (; k < length; ++k) store_one(to + k, from[k]);
    }
  }
}

template <class S>
void take(const MaxUnpool2dParams& p, const Part& part) {
  const S* x = static_cast<const S*>(p.x) + part.big_base;
  const int64_t* index = p.index + part.small_base;
  S* y = static_cast<S*>(p.y) + part.small_base;
  for (int64_t i = 0; i < p.small; ++i) {
    for (int64_t k = 0; k < part.count; ++k) {
      const int64_t at = i * part.step + k, from = index[at];
      const bool inside = static_cast<uint64_t>(from) < static_cast<uint64_t>(p.big);
      y[at] = inside ? x[from * part.step + k] : S{};
      if (!inside) report(p, part.small_base + at);
    }
  }
}

}  // namespace

void max_unpool2d(const MaxUnpool2dParams& p, const Exec& exec) {
  dispatch_float(p.dtype, [&](auto zero) {
    using S = decltype(zero);
    const int64_t block = block_of(p, exec);
    if (!p.accumulate) {
      constexpr int64_t size = sizeof(S);
      const int64_t count = p.n * p.c * p.big;
      parallel_for(exec, count, kGrain, [&](int64_t begin, int64_t end) {
        clear(static_cast<S*>(p.y) + begin, (end - begin) * size, count * size);
      });
    }
    parallel_slots(exec, parts(p, block), grain(p, block), [&](int slot, int64_t begin, int64_t end) {
      char* scratch = static_cast<char*>(exec.workspace) + slot * max_unpool2d_workspace(p, 1);
      for (int64_t item = begin; item < end; ++item) {
        if (p.accumulate) add<S>(p, part_of(p, block, item), reinterpret_cast<acc_t<S>*>(scratch));
        else place<S>(p, part_of(p, block, item));
      }
    });
  });
}

void max_unpool2d_backward(const MaxUnpool2dParams& p, const Exec& exec) {
  dispatch_float(p.dtype, [&](auto zero) {
    using S = decltype(zero);
    const int64_t block = block_of(p, exec);
    parallel_for(exec, parts(p, block), grain(p, block), [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; ++item) take<S>(p, part_of(p, block, item));
    });
  });
}

}  // namespace fastcv::FASTCV_ISA
