// Which instruction sets this CPU has, capped by the environment variable FASTCV_CPU_ISA.
#pragma once
#include "common/types.h"

namespace fastcv {

// The best instruction set that the CPU and the operating system allow and the cap admits. Detected once per process.
// Throws std::invalid_argument if FASTCV_CPU_ISA names none of them.
Isa cpu_isa();

// "portable", "avx2", "avx512", "avx512vnni", "avx512bf16" or "amx".
const char* isa_name(Isa isa);

}  // namespace fastcv
