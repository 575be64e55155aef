// Elements that one thread takes together: packs of 16 bytes, in one access where the addresses allow it, in two of
// 8 bytes or element by element where they do not. Which of these it is changes no value and no order.
#pragma once
#include <initializer_list>

#include "common/numbers.cuh"
#include "common/ptx.cuh"

namespace fastcv::FASTCV_GPU {

// Elements of S in a pack.
template <class S>
constexpr int kPack = 16 / static_cast<int>(sizeof(S));
// Packs that hold n elements.
template <class S>
int64_t packs(int64_t n) {
  return (n + kPack<S> - 1) / kPack<S>;
}

// Bytes of an access: 16, 8, or 0 for element by element. Every pack starts a sum of multiples of the steps (in
// elements of `size` bytes) behind one of the pointers; null ones count as aligned.
inline int access_bytes(std::initializer_list<const void*> pointers, std::initializer_list<int64_t> steps = {},
                        int64_t size = 1) {
  uint64_t bits = 0;
  for (const void* p : pointers) bits |= reinterpret_cast<uintptr_t>(p);
  for (const int64_t step : steps) bits |= static_cast<uint64_t>(step * size);
  return bits % 16 == 0 ? 16 : bits % 8 == 0 ? 8 : 0;
}

// The first `count` elements of a pack; the rest are zeros.
template <class S>
__device__ __forceinline__ Pack<S, kPack<S>> load_elements(const S* from, int64_t count, int access) {
  constexpr int n = kPack<S>;
  using Half = Pack<S, n / 2>;
  if (access == 16 && count >= n) return load_pack<Pack<S, n>>(from);
  Pack<S, n> pack;
  if (access == 8 && count >= n) {
    const Half low = load_pack<Half>(from), high = load_pack<Half>(from + n / 2);
#pragma unroll
    for (int i = 0; i < n; ++i) pack.at[i] = i < n / 2 ? low.at[i % (n / 2)] : high.at[i % (n / 2)];
    return pack;
  }
#pragma unroll
  for (int i = 0; i < n; ++i) pack.at[i] = i < count ? from[i] : S{};
  return pack;
}
template <class S>
__device__ __forceinline__ void store_elements(S* to, int64_t count, int access, const Pack<S, kPack<S>>& pack) {
  constexpr int n = kPack<S>;
  if (access == 16 && count >= n) {
    store_pack(to, pack);
    return;
  }
#pragma unroll
  for (int i = 0; i < n; ++i)
    if (i < count) to[i] = pack.at[i];
}

// The same in the type that arithmetic happens in.
template <class S>
__device__ __forceinline__ void load_widened(const S* from, int64_t count, int access, acc_t<S> (&to)[kPack<S>]) {
  const auto pack = load_elements(from, count, access);
#pragma unroll
  for (int i = 0; i < kPack<S>; ++i) to[i] = widen(pack.at[i]);
}
template <class S>
__device__ __forceinline__ void store_narrowed(S* to, int64_t count, int access, const acc_t<S> (&from)[kPack<S>]) {
  Pack<S, kPack<S>> pack;
#pragma unroll
  for (int i = 0; i < kPack<S>; ++i) pack.at[i] = narrow<S>(from[i]);
  store_elements(to, count, access, pack);
}

}  // namespace fastcv::FASTCV_GPU
