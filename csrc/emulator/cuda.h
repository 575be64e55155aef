// The words of CUDA C++ that fastcv's kernels use, as C++ for the emulator. Seen instead of <cuda_runtime.h>.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <source_location>
#include <type_traits>

#include "emulator/emulator.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

using dim3 = fastcv::emulator::Dim3;
struct CUstream_st;
using cudaStream_t = CUstream_st*;
constexpr int cudaSuccess = 0, cudaErrorInvalidValue = 1;

#define threadIdx (::fastcv::emulator::self().thread)
#define blockIdx (::fastcv::emulator::self().block)
#define blockDim (::fastcv::emulator::self().block_dim)
#define gridDim (::fastcv::emulator::self().grid_dim)

namespace fastcv::emulator {

// A pointer into shared memory, every access through which is checked.
template <class T>
class Shared {
 public:
  class Element {
   public:
    Element(T* at, Where where) : at_(at), where_(where) {}
    operator T() const {
      touch(reinterpret_cast<const std::byte*>(at_), sizeof(T), Access::read, where_);
      return *at_;
    }
    Element& operator=(T value) {
      touch(reinterpret_cast<const std::byte*>(at_), sizeof(T), Access::write, where_);
      *at_ = value;
      return *this;
    }
    Element& operator=(const Element& other) { return *this = static_cast<T>(other); }
    Element(const Element&) = default;
    Element& operator+=(T value) { return *this = static_cast<T>(*this) + value; }

   private:
    T* at_;
    Where where_;
  };
  // An index that remembers the line it stands in.
  struct Index {
    template <class I>
    Index(I i, Where where = Where::current()) : i(static_cast<int64_t>(i)), where(where) {}
    int64_t i;
    Where where;
  };

  Shared() = default;
  explicit Shared(T* at) : at_(at) {}
  Element operator[](Index index) const { return Element(at_ + index.i, index.where); }
  Shared operator+(int64_t n) const { return Shared(at_ + n); }
  Shared& operator+=(int64_t n) { return at_ += n, *this; }
  T* unchecked() const { return at_; }

 private:
  T* at_ = nullptr;
};

// A collective in which each lane brings a value and takes that of the lane that `source` names.
template <class T, class Source>
T exchange(uint32_t mask, T value, Source source, const char* what, Where where) {
  struct Mine {
    T in, out;
    int from;
  } mine{value, value, source(lane())};
  meet(
      mask, &mine,
      [](void** all, uint32_t) {
        for (int i = 0; i < 32; ++i) {
          if (all[i] == nullptr) continue;
          auto* me = static_cast<Mine*>(all[i]);
          auto* other = me->from < 0 || me->from > 31 ? nullptr : static_cast<Mine*>(all[me->from]);
          if (other != nullptr) me->out = other->in;
        }
      },
      false, what, where);
  return mine.out;
}

template <class T, class Combine>
T read_modify_write(T* at, Combine combine) {
  const T before = *at;
  *at = combine(before);
  return before;
}

}  // namespace fastcv::emulator

inline void __syncthreads(std::source_location where = std::source_location::current()) {
  fastcv::emulator::barrier(0, 0, where);
}
inline void __syncwarp(uint32_t mask = 0xffffffffu, std::source_location where = std::source_location::current()) {
  fastcv::emulator::meet(mask, nullptr, nullptr, true, "__syncwarp", where);
}
template <class T>
T __shfl_sync(uint32_t mask, T value, int from, int width = 32,
              std::source_location where = std::source_location::current()) {
  return fastcv::emulator::exchange(
      mask, value, [=](int lane) { return lane / width * width + from % width; }, "__shfl_sync", where);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int flip, int width = 32,
                  std::source_location where = std::source_location::current()) {
  return fastcv::emulator::exchange(
      mask, value, [=](int lane) { return (lane ^ flip) / width == lane / width ? lane ^ flip : lane; },
      "__shfl_xor_sync", where);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T value, unsigned step, int width = 32,
                   std::source_location where = std::source_location::current()) {
  return fastcv::emulator::exchange(
      mask, value,
      [=](int lane) { return lane % width + static_cast<int>(step) < width ? lane + static_cast<int>(step) : lane; },
      "__shfl_down_sync", where);
}
template <class T>
T __shfl_up_sync(uint32_t mask, T value, unsigned step, int width = 32,
                 std::source_location where = std::source_location::current()) {
  return fastcv::emulator::exchange(
      mask, value,
      [=](int lane) { return lane % width >= static_cast<int>(step) ? lane - static_cast<int>(step) : lane; },
      "__shfl_up_sync", where);
}
inline uint32_t __ballot_sync(uint32_t mask, int yes, std::source_location where = std::source_location::current()) {
  struct Mine {
    bool yes;
    uint32_t votes;
  } mine{yes != 0, 0};
  fastcv::emulator::meet(
      mask, &mine,
      [](void** all, uint32_t) {
        uint32_t votes = 0;
        for (int i = 0; i < 32; ++i)
          if (all[i] != nullptr && static_cast<Mine*>(all[i])->yes) votes |= 1u << i;
        for (int i = 0; i < 32; ++i)
          if (all[i] != nullptr) static_cast<Mine*>(all[i])->votes = votes;
      },
      false, "__ballot_sync", where);
  return mine.votes;
}
inline int __any_sync(uint32_t mask, int yes, std::source_location where = std::source_location::current()) {
  return __ballot_sync(mask, yes, where) != 0;
}
inline int __all_sync(uint32_t mask, int yes, std::source_location where = std::source_location::current()) {
  return __ballot_sync(mask, yes, where) == mask;
}

// Fibers change over only where they wait, so a plain read-modify-write is atomic.
template <class T>
T atomicAdd(T* at, std::type_identity_t<T> value) {
  return fastcv::emulator::read_modify_write(at, [=](T before) { return static_cast<T>(before + value); });
}
template <class T>
T atomicMax(T* at, std::type_identity_t<T> value) {
  return fastcv::emulator::read_modify_write(at, [=](T before) { return std::max(before, value); });
}
template <class T>
T atomicMin(T* at, std::type_identity_t<T> value) {
  return fastcv::emulator::read_modify_write(at, [=](T before) { return std::min(before, value); });
}
template <class T>
T atomicExch(T* at, std::type_identity_t<T> value) {
  return fastcv::emulator::read_modify_write(at, [=](T) { return value; });
}
inline void __threadfence() {}

template <class T>
T __ldg(const T* at) {
  return *at;
}
inline uint64_t __umul64hi(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
}
// Of the four bytes of each word: |a - b|, its sum, and the sum of products.
inline uint32_t __vabsdiffu4(uint32_t a, uint32_t b) {
  uint32_t result = 0;
  for (int i = 0; i < 32; i += 8) {
    const int d = static_cast<int>(a >> i & 255) - static_cast<int>(b >> i & 255);
    result |= static_cast<uint32_t>(d < 0 ? -d : d) << i;
  }
  return result;
}
inline uint32_t __dp4a(uint32_t a, uint32_t b, uint32_t sum) {
  for (int i = 0; i < 32; i += 8) sum += (a >> i & 255) * (b >> i & 255);
  return sum;
}
inline uint32_t __vsadu4(uint32_t a, uint32_t b) { return __dp4a(__vabsdiffu4(a, b), 0x01010101u, 0); }
inline int __popc(uint32_t x) { return std::popcount(x); }
inline int __ffs(uint32_t x) { return x == 0 ? 0 : std::countr_zero(x) + 1; }
inline int __clz(uint32_t x) { return std::countl_zero(x); }
inline int64_t __double_as_longlong(double x) { return std::bit_cast<int64_t>(x); }
inline double __longlong_as_double(int64_t x) { return std::bit_cast<double>(x); }
inline uint32_t __float_as_uint(float x) { return std::bit_cast<uint32_t>(x); }
inline float __uint_as_float(uint32_t x) { return std::bit_cast<float>(x); }
using std::abs, std::exp, std::exp2, std::fabs, std::floor, std::fma, std::fmax, std::fmin, std::isnan, std::log,
    std::pow,
    std::sqrt;  // CUDA's overloads for float are global
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
using std::max;
using std::min;
