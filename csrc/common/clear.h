// Zeros for large results that are then written in few places. For files compiled per instruction set.
#pragma once
#include "common/simd.h"

namespace fastcv::FASTCV_ISA {

// Results above this many bytes pass the caches: ordinary stores would first read every line that they overwrite.
inline constexpr int64_t kPastCaches = 1 << 23;

// Clears `bytes` at p, a part of a result of `total` bytes.
static inline void clear(void* p, int64_t bytes, int64_t total) {
#if defined(__AVX2__)
  if (total > kPastCaches && bytes >= 128) {
    constexpr int64_t kLine = 64;
    char* to = static_cast<char*>(p);
    const int64_t head = static_cast<int64_t>(-reinterpret_cast<uintptr_t>(to) % kLine);
    std::memset(to, 0, static_cast<size_t>(head));
    const int64_t end = head + (bytes - head) / kLine * kLine;
    for (int64_t i = head; i < end; i += kLine) {
      _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i), _mm256_setzero_si256());
      _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i + 32), _mm256_setzero_si256());
    }
    _mm_sfence();
    std::memset(to + end, 0, static_cast<size_t>(bytes - end));
    return;
  }
#endif
  (void)total;
  std::memset(p, 0, static_cast<size_t>(bytes));
}

}  // namespace fastcv::FASTCV_ISA
