#include "common/isa.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace fastcv {
namespace {

constexpr const char* kNames[] = {"portable", "avx2", "avx512", "avx512vnni", "avx512bf16", "amx"};

#if defined(__x86_64__)
// Linux hands out the tile registers on request only; the grant covers all threads and asking twice is harmless.
bool request_tiles() {
#if defined(__linux__)
  constexpr long kArchReqXcompPerm = 0x1023, kXtileData = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kXtileData) == 0;
#else
  return false;
#endif
}

uint64_t read_xcr0() {
  uint32_t lo, hi;
  __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
  return static_cast<uint64_t>(hi) << 32 | lo;
}

Isa detect() {
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return Isa::portable;
  const bool osxsave = c & (1u << 27), fma = c & (1u << 12), f16c = c & (1u << 29);
  if (!osxsave) return Isa::portable;
  const uint64_t xcr0 = read_xcr0();
  uint32_t b7 = 0, c7 = 0, d7 = 0, a71 = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) b7 = b, c7 = c, d7 = d;
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d)) a71 = a;
  const bool avx2 = (xcr0 & 0x6) == 0x6 && fma && f16c && (b7 & (1u << 5));
  if (!avx2) return Isa::portable;
  const uint32_t f_dq_bw_vl = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;
  const bool avx512 = (xcr0 & 0xe6) == 0xe6 && (b7 & f_dq_bw_vl) == f_dq_bw_vl;
  if (!avx512) return Isa::avx2;
  if (!(c7 & (1u << 11))) return Isa::avx512;  // VNNI
  if (!(a71 & (1u << 5))) return Isa::avx512vnni;
  const uint32_t amx_bf16_tile = 1u << 22 | 1u << 24;
  const bool amx = (xcr0 & 0x60000) == 0x60000 && (d7 & amx_bf16_tile) == amx_bf16_tile && request_tiles();
  return amx ? Isa::amx : Isa::avx512bf16;
}
#else
Isa detect() { return Isa::portable; }
#endif

Isa capped() {
  const Isa found = detect();
  const char* cap = std::getenv("FASTCV_CPU_ISA");
  if (cap == nullptr || *cap == '\0') return found;
  for (int i = 0; i < 6; ++i)
    if (std::strcmp(cap, kNames[i]) == 0) return static_cast<Isa>(i) < found ? static_cast<Isa>(i) : found;
  throw std::invalid_argument(std::string("FASTCV_CPU_ISA=") + cap +
                              " is none of portable, avx2, avx512, avx512vnni, avx512bf16, amx");
}

}  // namespace

Isa cpu_isa() {
  static const Isa isa = capped();
  return isa;
}

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

}  // namespace fastcv
