// Which inputs a window sees, and which windows see an input. Internal linkage: this header is compiled into objects
// of several instruction sets.
#pragma once
#include "pool/pool.h"

namespace fastcv {
namespace {

#if defined(__CUDACC__)
#define FASTCV_POOL_INLINE [[maybe_unused]] static __host__ __device__ __forceinline__
#else
#define FASTCV_POOL_INLINE [[gnu::always_inline, maybe_unused]] static inline
#endif

// n / d for n >= 0; strides of one and two are the usual ones, and a division costs as much as ten elements.
FASTCV_POOL_INLINE int64_t quotient(int64_t n, int64_t d) { return d == 1 ? n : d == 2 ? n >> 1 : n / d; }

// The inputs begin, begin + dilation, ... < end; `tap` numbers the first of them in the kernel; `size` is what the
// axis contributes to the divisor of an average.
struct Window {
  int64_t begin, end, size, tap;
};
FASTCV_POOL_INLINE Window window(const PoolParams& p, const PoolAxis& a, int64_t o) {
  if (p.adaptive) {
    const int64_t begin = o * a.in / a.out, end = ((o + 1) * a.in + a.out - 1) / a.out;
    return {begin, end, end - begin, 0};
  }
  const int64_t start = o * a.stride - a.padding;
  int64_t stop = start + (a.kernel - 1) * a.dilation + 1;
  if (stop > a.in + a.padding) stop = a.in + a.padding;
  const int64_t tap = start < 0 ? quotient(-start + a.dilation - 1, a.dilation) : 0;
  const int64_t begin = start + tap * a.dilation, end = stop < a.in ? stop : a.in;
  return {begin, end, p.count_include_pad ? stop - start : end - begin, tap};
}

// The windows first .. last span input i (last < first: none). Under dilation some of them may step over it.
struct Cover {
  int64_t first, last;
};
FASTCV_POOL_INLINE Cover cover(const PoolParams& p, const PoolAxis& a, int64_t i) {
  if (p.adaptive) return {i * a.out / a.in, ((i + 1) * a.out + a.in - 1) / a.in - 1};
  const int64_t before = i + a.padding - (a.kernel - 1) * a.dilation;  // the start of the last window ending at i
  const int64_t first = before <= 0 ? 0 : quotient(before + a.stride - 1, a.stride);
  const int64_t last = quotient(i + a.padding, a.stride);
  return {first, last < a.out ? last : a.out - 1};
}

// Windows of two by two that touch and cover the whole map: output row r, counted through all planes, sees the input
// rows 2r and 2r + 1.
FASTCV_POOL_INLINE bool quarters(const PoolParams& p) {
  const auto halves = [](const PoolAxis& a) {
    return a.kernel == 2 && a.stride == 2 && a.dilation == 1 && a.padding == 0 && a.in == 2 * a.out;
  };
  return !p.adaptive && halves(p.h) && halves(p.w);
}

// The number of the tap by which window o of a (not adaptive) axis sees input i, or -1.
FASTCV_POOL_INLINE int64_t tap_of(const PoolAxis& a, int64_t o, int64_t i) {
  const int64_t distance = i + a.padding - o * a.stride;
  if (a.dilation == 1) return distance;
  return distance % a.dilation == 0 ? distance / a.dilation : -1;
}

// A code names an element of a window by row and column; this is how `where` spells it.
// Offsets: tap row * kernel width + tap column. Indices: relative to the window's (unclipped) corner.
struct Code {
  int64_t row, column;
};
FASTCV_POOL_INLINE Code code_of(const PoolParams& p) {
  if (p.where_is_offset) return {p.w.kernel, 1};
  return {p.h.dilation * p.w.in, p.w.dilation};
}

// Window rows that may be alive at once: the slots of a ring of rows.
FASTCV_POOL_INLINE int64_t input_ring(const PoolParams& p) { return (p.h.kernel - 1) * p.h.dilation + 1; }
FASTCV_POOL_INLINE int64_t output_ring(const PoolParams& p) { return (p.h.kernel - 1) * p.h.dilation / p.h.stride + 1; }

// Elements from one scratch row to the next: room for either map's row, padding, and vectors that run over the end.
FASTCV_POOL_INLINE int64_t row_pitch(const PoolParams& p) {
  const int64_t widest = p.w.in > p.w.out ? p.w.in : p.w.out;
  const int64_t span = p.adaptive ? 0 : (p.w.kernel - 1) * p.w.dilation + 2 * p.w.padding;
  return (widest + span) / 16 * 16 + 64;
}

// Scratch of one thread: rows of at most 8 bytes an element.
FASTCV_POOL_INLINE size_t slot_bytes(const PoolParams& p) {
  const int64_t ring = p.where == nullptr || p.adaptive ? 0 : input_ring(p);
  const int64_t taps = p.adaptive ? 0 : p.w.kernel;
  return static_cast<size_t>(8 * ((6 + 2 * ring) * row_pitch(p) + 4 * ring + taps + 128)) / 64 * 64;
}

// A block of planes that are pooled as channels (pool_planes_simd.cpp): whole registers of them, within half a
// second-level cache; what each operand of it is, and where it lies in scratch memory.
struct PlaneBlock {
  struct Operand {
    int64_t map, bytes, at;  // elements of a plane, bytes of an element
  };
  Operand x, y, where;
  int64_t planes, size;  // bytes in all
};
FASTCV_POOL_INLINE PlaneBlock plane_block(const PoolParams& p, bool backward) {
  const int64_t bytes = p.dtype == DType::f64 ? 8 : p.dtype == DType::f32 ? 4 : 2;
  const int64_t in = p.h.in * p.w.in, out = p.h.out * p.w.out;
  PlaneBlock b{
      {backward ? out : in, bytes, 0}, {backward ? in : out, bytes, 0}, {out, p.where_is_offset ? 1 : 8, 0}, 64, 0};
  if (p.where == nullptr) b.where.map = 0;
  PlaneBlock::Operand* const operands[] = {&b.x, &b.y, &b.where};
  int64_t plane = 0;
  for (const PlaneBlock::Operand* o : operands) plane += o->map * o->bytes;
  if (plane * b.planes > (1 << 19)) b.planes = 16;
  for (PlaneBlock::Operand* o : operands) o->at = b.size, b.size += (o->map * o->bytes * b.planes + 63) / 64 * 64;
  return b;
}

}  // namespace
}  // namespace fastcv
