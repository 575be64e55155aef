// Vectors, once for every instruction set. A *_simd.cpp file is compiled three times, with FASTCV_ISA = portable, avx2
// or avx512, and everything here lives in that namespace, so the linker can never hand AVX-512 code to an older CPU.
//
//   Vec<T>            T in float, double, int32_t, int64_t: 16 / 32 / 64 bytes wide; + - * / & | and comparisons
//   Mask              a comparison's result: a vector of 0 / -1 integers as wide as the operands
//   acc_t<S>          what arithmetic on storage type S happens in: double for double, float for all others
//   load<S>(p)        width elements of S (float, double, bf16, f16, uint8_t) widened to Vec<acc_t<S>>
//   load_n<S>(p, n)   the first n of them, zeros behind; touches no byte beyond the n-th element
//   store, store_n    back to S, rounding to nearest even
//   zip, transpose    lanes among each other; reduce_add, reduce_max   to one number, always in the same order
//   exp, log          to about one ulp
// Results depend on nothing but the data and the instruction set.
#pragma once
#include "common/simd_lanes.h"
#include "common/simd_math.h"
#include "common/simd_memory.h"
#include "common/simd_vector.h"
