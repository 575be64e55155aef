// The instructions of sm_90a that CUDA C++ has no word for, with two bodies as in ptx.cuh: barriers in shared memory
// (mbarrier), bulk copies of tensor tiles (TMA), matrix products of a warpgroup (wgmma).
//
//   barrier_init(b, arrivals), barriers_ready()   by one thread; then __syncthreads()
//   barrier_arrive(b), barrier_expect(b, bytes)   an arrival; one that announces bytes which copies will bring
//   barrier_wait(b, parity)        until the phase of that parity has ended; the first phase has parity 0
//   sync_threads(id, n)            a barrier of n threads of the block
//   publish_shared()               by every thread that wrote with plain stores what copies or products will read; then
//                                  __syncthreads()
//   TensorMap, TensorTile, encode  a tensor in global memory for the copies below; false where the driver cannot
//   copy_tile_3d, copy_tile_4d, copy_im2col_4d   a tile to shared memory, by one thread; rows of 128 bytes, swizzled;
//                                  zeros outside
//   operand(p)                     descriptor of a tile of such rows, 1024 bytes aligned; + 2 is 16 elements along k
//   multiply_group<S, n>(d, a, b, accumulate)   D (64 x n, float) (+)= A (64 x 16) B (n x 16)', S bf16 or f16, or
//                                  A (64 x 8) B (n x 8)' of float, as tf32: either is 32 bytes of a row; n 64, 128, 256
//   multiply_group<S, n>(d, fragment, b, accumulate)   the same with A in registers, a warp's 16 rows as ldmatrix loads
//                                  them; nobody may write to the fragment until the product has been waited for
//   group_begin(), group_commit(), group_wait<n>()   around products: before the first, after the last, until at most n
//                                  groups are on their way
//   registers_give<n>(), registers_take<n>()   by all warps of a group: how many registers its threads have from here
//   on
// Row r, bytes c of a swizzled tile lie at swizzled(r * 128 + c): the 16-byte chunk's number is xored with r % 8.
#pragma once
#include "common/ptx.cuh"

#if !FASTCV_EMULATOR
#include <cuda.h>
#include <cudaTypedefs.h>
#endif

namespace fastcv::FASTCV_GPU {

// A tensor of bf16, f16 or f32, innermost dimension first. Tiled: boxes of `box` elements, of which the innermost are
// 128 bytes. im2col: `pixels` positions of 128 bytes of channels, in windows from `lower` to size - 1 + `upper` (width,
// height), `step` apart. Copies round f32 to tf32.
struct TensorTile {
  const void* base;
  DType dtype;
  int rank;
  uint64_t size[4], stride[3];  // stride[i]: bytes from one element to the next along dimension i + 1
  bool im2col;
  uint32_t box[4];
  int lower[2], upper[2];
  uint32_t step[2], pixels;
};

#if FASTCV_EMULATOR

using TensorMap = TensorTile;
constexpr bool kHasGroups = true;
inline bool encode(const TensorTile& tile, TensorMap& map, bool = true) { return map = tile, true; }

inline void barrier_init(Shared<uint64_t> b, uint32_t arrivals, Where where = Where::current()) {
  emulator::barrier_init(reinterpret_cast<std::byte*>(b.unchecked()), arrivals, where);
}
inline void barriers_ready() {}
inline void publish_shared() {}
inline void barrier_arrive(Shared<uint64_t> b, Where where = Where::current()) {
  emulator::barrier_arrive(reinterpret_cast<std::byte*>(b.unchecked()), 0, where);
}
inline void barrier_expect(Shared<uint64_t> b, uint32_t bytes, Where where = Where::current()) {
  emulator::barrier_arrive(reinterpret_cast<std::byte*>(b.unchecked()), bytes, where);
}
inline void barrier_wait(Shared<uint64_t> b, uint32_t parity, Where where = Where::current()) {
  emulator::barrier_wait(reinterpret_cast<std::byte*>(b.unchecked()), parity, where);
}
inline void sync_threads(int id, int n, Where where = Where::current()) { emulator::barrier(id, n, where); }

// Where a byte of a tile lies, counted from the start of the block's shared memory.
inline size_t swizzle(size_t offset) { return offset ^ (offset >> 3 & 0x70); }
inline std::byte* swizzled(size_t offset) { return emulator::shared_at(swizzle(offset)); }

// Row and byte of a tile that a copy brings to `start`, in whichever block, from an element or, null, from outside.
inline void put_element(std::byte* start, size_t row, size_t byte, const char* from, DType dtype) {
  const size_t first = emulator::shared_offset(start);
  std::byte* to = start - first + swizzle(first + row * 128 + byte);
  if (dtype == DType::f32) {
    float value = 0;
    if (from != nullptr) std::memcpy(&value, from, 4);
    const uint32_t bits = to_tf32(value);
    std::memcpy(to, &bits, 4);
  } else {
    uint16_t value = 0;
    if (from != nullptr) std::memcpy(&value, from, 2);
    std::memcpy(to, &value, 2);
  }
}
inline int element_bytes(DType dtype) { return dtype == DType::f32 ? 4 : 2; }

template <class T>
void check_tile(Shared<T> to, Where where) {
  if (emulator::shared_offset(reinterpret_cast<const std::byte*>(to.unchecked())) % 1024 != 0)
    emulator::fail("a tile in shared memory that is not aligned to 1024 bytes", where);
}

inline size_t tile_bytes(const TensorMap& map) {
  return size_t{map.box[0]} * map.box[1] * map.box[2] * element_bytes(map.dtype);
}
inline void fill_tile_3d(std::byte* start, const TensorMap& map, int x, int y, int z) {
  const int bytes = element_bytes(map.dtype);
  size_t row = 0;
  for (int k = z; k < z + static_cast<int>(map.box[2]); ++k)
    for (int j = y; j < y + static_cast<int>(map.box[1]); ++j, ++row)
      for (int i = x; i < x + static_cast<int>(map.box[0]); ++i) {
        const bool inside = i >= 0 && j >= 0 && k >= 0 && i < static_cast<int64_t>(map.size[0]) &&
                            j < static_cast<int64_t>(map.size[1]) && k < static_cast<int64_t>(map.size[2]);
        const char* from =
            static_cast<const char*>(map.base) + int64_t{bytes} * i + j * map.stride[0] + k * map.stride[1];
        put_element(start, row, size_t(bytes) * (i - x), inside ? from : nullptr, map.dtype);
      }
}
template <class T>
void copy_tile_3d(Shared<T> to, const TensorMap& map, int x, int y, int z, Shared<uint64_t> b,
                  Where where = Where::current()) {
  check_tile(to, where);
  emulator::copy_bulk(
      reinterpret_cast<std::byte*>(to.unchecked()), tile_bytes(map), reinterpret_cast<std::byte*>(b.unchecked()),
      [=](std::byte* start) { fill_tile_3d(start, map, x, y, z); }, where);
}

template <class T>
void copy_tile_4d(Shared<T> to, const TensorMap& map, int x, int y, int z, int n, Shared<uint64_t> b,
                  Where where = Where::current()) {
  check_tile(to, where);
  emulator::copy_bulk(
      reinterpret_cast<std::byte*>(to.unchecked()),
      size_t{map.box[0]} * map.box[1] * map.box[2] * map.box[3] * element_bytes(map.dtype),
      reinterpret_cast<std::byte*>(b.unchecked()),
      [=](std::byte* start) {
        const int64_t at[4] = {x, y, z, n};
        const size_t elements = size_t{map.box[0]} * map.box[1] * map.box[2] * map.box[3];
        const size_t bytes = element_bytes(map.dtype);
        for (size_t i = 0; i < elements; ++i) {
          size_t rest = i;
          int64_t from = 0;
          bool inside = true;
          for (int d = 0; d < 4; rest /= map.box[d], ++d) {
            const int64_t place = at[d] + static_cast<int64_t>(rest % map.box[d]);
            inside = inside && place >= 0 && place < static_cast<int64_t>(map.size[d]);
            from += place * static_cast<int64_t>(d == 0 ? bytes : map.stride[d - 1]);
          }
          put_element(start, i / map.box[0], i % map.box[0] * bytes,
                      inside ? static_cast<const char*>(map.base) + from : nullptr, map.dtype);
        }
      },
      where);
}

// From the position (w, h, n), moved by the tap's offsets, `pixels` positions on.
template <class T>
void copy_im2col_4d(Shared<T> to, const TensorMap& map, int c, int w, int h, int n, int off_w, int off_h,
                    Shared<uint64_t> b, Where where = Where::current()) {
  check_tile(to, where);
  emulator::copy_bulk(
      reinterpret_cast<std::byte*>(to.unchecked()), size_t{map.pixels} * 128,
      reinterpret_cast<std::byte*>(b.unchecked()),
      [=](std::byte* start) {
        const int64_t size_c = map.size[0], size_w = map.size[1], size_h = map.size[2], size_n = map.size[3];
        const int bytes = element_bytes(map.dtype);
        int64_t at_w = w, at_h = h, at_n = n;
        for (uint32_t p = 0; p < map.pixels; ++p) {
          const int64_t x = at_w + off_w, y = at_h + off_h;
          const bool pixel = x >= 0 && x < size_w && y >= 0 && y < size_h && at_n >= 0 && at_n < size_n;
          for (int i = 0; i < 128 / bytes; ++i) {
            const char* from = static_cast<const char*>(map.base) + int64_t{bytes} * (c + i) + x * map.stride[0] +
                               y * map.stride[1] + at_n * map.stride[2];
            put_element(start, p, size_t(bytes) * i, pixel && c + i < size_c ? from : nullptr, map.dtype);
          }
          at_w += map.step[0];
          if (at_w <= size_w - 1 + map.upper[0]) continue;
          at_w = map.lower[0];
          at_h += map.step[1];
          if (at_h <= size_h - 1 + map.upper[1]) continue;
          at_h = map.lower[1];
          ++at_n;
        }
      },
      where);
}

constexpr uint64_t kOperand = uint64_t{1} << 16 | uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
template <class T>
uint64_t operand(Shared<T> tile, Where where = Where::current()) {
  check_tile(tile, where);
  return kOperand | emulator::shared_offset(reinterpret_cast<const std::byte*>(tile.unchecked())) >> 4;
}

inline void group_begin() {}
inline void group_commit() { emulator::commit_work(); }
template <int pending>
void group_wait(Where where = Where::current()) {
  emulator::wait_work(pending);
  emulator::meet(0xffffffffu, nullptr, nullptr, true, "wgmma.wait_group", where);
}

template <int count>
void registers_give() {}
template <int count>
void registers_take() {}

// Each thread makes its own elements of D when it waits. Sums run in double and are rounded once; of floats the bits
// that tf32 lacks are cut off.
template <class S, int n>
void multiply_group(float (&d)[n / 2], uint64_t a, uint64_t b, bool accumulate, Where where = Where::current()) {
  const int thread = static_cast<int>(threadIdx.x);
  emulator::queue_work([=, d = &d[0]] {
    constexpr int depth = 32 / sizeof(S);
    const auto row = [](uint64_t operand, int r) {  // 32 bytes of it, two chunks
      const size_t start = (operand & 0x3fff) << 4, apart = (operand >> 32 & 0x3fff) << 4;
      return start + r / 8 * apart + r % 8 * 128;
    };
    const auto load = [](size_t row, double (&to)[depth]) {
      for (int chunk = 0; chunk < 2; ++chunk) {
        const std::byte* from = swizzled(row + 16 * chunk);
        for (int i = chunk * depth / 2; i < (chunk + 1) * depth / 2; ++i, from += sizeof(S)) {
          if constexpr (sizeof(S) == 4) {
            uint32_t bits;
            std::memcpy(&bits, from, 4);
            to[i] = __uint_as_float(bits & 0xffffe000u);
          } else {
            S value;
            std::memcpy(&value, from, 2);
            to[i] = widen(value);
          }
        }
      }
    };
    const int lane = thread % 32, first = thread / 32 % 4 * 16;
    if (lane == 0) {
      const auto look = [&](size_t row) {
        emulator::touch(swizzled(row), 16, emulator::Access::read, where);
        emulator::touch(swizzled(row + 16), 16, emulator::Access::read, where);
      };
      for (int r = 0; r < 16; ++r) look(row(a, first + r));
      for (int c = 0; c < n; ++c) look(row(b, c));
    }
    double x[2][depth];
    for (int half = 0; half < 2; ++half) load(row(a, first + lane / 4 + 8 * half), x[half]);
    for (int c = 0; c < n / 4; ++c) {
      double y[depth];
      load(row(b, c / 2 * 8 + lane % 4 * 2 + c % 2), y);
      for (int half = 0; half < 2; ++half) {
        float& to = d[c / 2 * 4 + half * 2 + c % 2];
        double sum = accumulate ? to : 0;
        for (int k = 0; k < depth; ++k) sum += x[half][k] * y[k];
        to = static_cast<float>(sum);
      }
    }
  });
}

// As above, of rows that the warp's lanes bring: lane l has elements 2 (l % 4), + 1 of row l / 4 (at[1]: 8 rows on,
// at[2] and at[3]: 8 elements on). The product is made when it is waited for, and is an error if the fragment has
// changed.
template <class S, int n>
void multiply_group(float (&d)[n / 2], const Fragment4& a, uint64_t b, bool accumulate,
                    Where where = Where::current()) {
  struct Mine {
    const Fragment4* brought;
    double rows[2][16];
  } mine{&a, {}};
  emulator::meet(
      0xffffffffu, &mine,
      [](void** all, uint32_t) {
        for (int l = 0; l < 32; ++l)
          for (int k = 0; k < 16; ++k)
            for (int half = 0; half < 2; ++half) {
              const Fragment4& from = *static_cast<Mine*>(all[l / 4 * 4 + k % 8 / 2])->brought;
              const uint32_t pair = from.at[half + k / 8 * 2];
              static_cast<Mine*>(all[l])->rows[half][k] = widen(S{static_cast<uint16_t>(pair >> k % 2 * 16)});
            }
      },
      false, "wgmma", where);
  emulator::queue_work([=, d = &d[0], now = &a, issued = a] {
    if (std::memcmp(now, &issued, sizeof issued) != 0)
      emulator::fail("registers of a matrix product that were written before it was waited for", where);
    const size_t start = (b & 0x3fff) << 4, apart = (b >> 32 & 0x3fff) << 4;
    const auto column = [=](int c) { return start + c / 8 * apart + c % 8 * 128; };
    const int lane = static_cast<int>(threadIdx.x) % 32;
    for (int c = 0; lane == 0 && c < n; ++c)
      for (int chunk = 0; chunk < 2; ++chunk)
        emulator::touch(swizzled(column(c) + 16 * chunk), 16, emulator::Access::read, where);
    for (int c = 0; c < n / 4; ++c) {
      const size_t at = column(c / 2 * 8 + lane % 4 * 2 + c % 2);
      for (int half = 0; half < 2; ++half) {
        float& to = d[c / 2 * 4 + half * 2 + c % 2];
        double sum = accumulate ? to : 0;
        for (int k = 0; k < 16; ++k) {
          S y;
          std::memcpy(&y, swizzled(at + 2 * k), 2);
          sum += mine.rows[half][k] * static_cast<double>(widen(y));
        }
        to = static_cast<float>(sum);
      }
    }
  });
}

#else

using TensorMap = CUtensorMap;
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDA_ARCH__)
constexpr bool kHasGroups = true;
#else
constexpr bool kHasGroups = false;
#endif

template <class F>
F driver_function(const char* name, unsigned version) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result{};
  const cudaError_t error = cudaGetDriverEntryPointByVersion(name, &found, version, cudaEnableDefault, &result);
  return error == cudaSuccess && result == cudaDriverEntryPointSuccess ? reinterpret_cast<F>(found) : nullptr;
}

// Drivers up to 13.1 set bit 21 of the second word in the descriptor of a tensor below 128 KiB, which its copies do not
// bear; CUTLASS clears it too (cute/atom/copy_traits_sm90_tma.hpp, _im2col.hpp). corrected = false leaves it, to see.
inline void correct_small(const TensorTile& t, TensorMap& map) {
  constexpr uint64_t kSmall = 128 << 10;
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver > 13010) return;
  if (t.stride[t.rank - 2] * t.size[t.rank - 1] < kSmall) reinterpret_cast<uint64_t*>(&map)[1] &= ~(uint64_t{1} << 21);
}

inline bool encode(const TensorTile& t, TensorMap& map, bool corrected = true) {
  static const auto tiled = driver_function<PFN_cuTensorMapEncodeTiled_v12000>("cuTensorMapEncodeTiled", 12000);
  static const auto im2col = driver_function<PFN_cuTensorMapEncodeIm2col_v12000>("cuTensorMapEncodeIm2col", 12000);
  if (tiled == nullptr || im2col == nullptr) return false;
  const CUtensorMapDataType type = t.dtype == DType::f32    ? CU_TENSOR_MAP_DATA_TYPE_TFLOAT32
                                   : t.dtype == DType::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                                            : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const cuuint32_t channels = t.dtype == DType::f32 ? 32 : 64;
  const cuuint32_t step[4] = {1, t.im2col ? t.step[0] : 1, t.im2col ? t.step[1] : 1, 1};
  void* base = const_cast<void*>(t.base);
  const CUresult error = t.im2col ? im2col(&map, type, t.rank, base, t.size, t.stride, t.lower, t.upper, channels,
                                           t.pixels, step, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                           CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE)
                                  : tiled(&map, type, t.rank, base, t.size, t.stride, t.box, step,
                                          CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                          CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (error == CUDA_SUCCESS && corrected) correct_small(t, map);
  return error == CUDA_SUCCESS;
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ __forceinline__ void barrier_init(uint64_t* b, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void barriers_ready() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ void publish_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
__device__ __forceinline__ void barrier_arrive(uint64_t* b) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(b)) : "memory");
}
__device__ __forceinline__ void barrier_expect(uint64_t* b, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b)), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void barrier_wait(uint64_t* b, uint32_t parity) {
  uint32_t ended;
  do {
    asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
                 : "=r"(ended)
                 : "r"(shared_address(b)), "r"(parity)
                 : "memory");
  } while (ended == 0);
}
__device__ __forceinline__ void sync_threads(int id, int n) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(n) : "memory");
}
template <class T>
__device__ __forceinline__ void copy_tile_3d(T* to, const TensorMap& map, int x, int y, int z, uint64_t* b) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], "
      "[%5];" ::"r"(shared_address(to)),
      "l"(&map), "r"(x), "r"(y), "r"(z), "r"(shared_address(b))
      : "memory");
}
template <class T>
__device__ __forceinline__ void copy_tile_4d(T* to, const TensorMap& map, int x, int y, int z, int n, uint64_t* b) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], "
      "[%6];" ::"r"(shared_address(to)),
      "l"(&map), "r"(x), "r"(y), "r"(z), "r"(n), "r"(shared_address(b))
      : "memory");
}
template <class T>
__device__ __forceinline__ void copy_im2col_4d(T* to, const TensorMap& map, int c, int w, int h, int n, int off_w,
                                               int off_h, uint64_t* b) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, "
      "%5}], [%6], {%7, %8};" ::"r"(shared_address(to)),
      "l"(&map), "r"(c), "r"(w), "r"(h), "r"(n), "r"(shared_address(b)), "h"(static_cast<uint16_t>(off_w)),
      "h"(static_cast<uint16_t>(off_h))
      : "memory");
}
template <class T>
__device__ __forceinline__ uint64_t operand(const T* tile) {
  constexpr uint64_t kOperand = uint64_t{1} << 16 | uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
  return kOperand | (shared_address(tile) & 0x3ffff) >> 4;
}
__device__ __forceinline__ void group_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void group_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int pending>
__device__ __forceinline__ void group_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}
template <int count>
__device__ __forceinline__ void registers_give() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count));
}
template <int count>
__device__ __forceinline__ void registers_take() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count));
}
template <class S, int n>
__device__ __forceinline__ void multiply_group(float (&d)[n / 2], const Fragment4& a, uint64_t b, bool accumulate);
template <>
__device__ __forceinline__ void multiply_group<bf16, 64>(float (&d)[32], const Fragment4& a, uint64_t b,
                                                         bool accumulate) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %37, 0;"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, "
      "%13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, {%32, %33, %34, "
      "%35}, %36, p, 1, 1, 0;}"

      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),
        "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),
        "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),
        "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
      : "r"(a.at[0]), "r"(a.at[1]), "r"(a.at[2]), "r"(a.at[3]), "l"(b), "r"(static_cast<int>(accumulate)));
}
template <>
__device__ __forceinline__ void multiply_group<f16, 64>(float (&d)[32], const Fragment4& a, uint64_t b,
                                                        bool accumulate) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %37, 0;"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, "
      "%14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, {%32, %33, %34, "
      "%35}, %36, p, 1, 1, 0;}"

      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),
        "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),
        "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),
        "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
      : "r"(a.at[0]), "r"(a.at[1]), "r"(a.at[2]), "r"(a.at[3]), "l"(b), "r"(static_cast<int>(accumulate)));
}

#else  // what an older target gets to compile; kernels return before they come here

__device__ __forceinline__ void barrier_init(uint64_t*, uint32_t) {}
__device__ __forceinline__ void barriers_ready() {}
__device__ __forceinline__ void publish_shared() {}
__device__ __forceinline__ void barrier_arrive(uint64_t*) {}
__device__ __forceinline__ void barrier_expect(uint64_t*, uint32_t) {}
__device__ __forceinline__ void barrier_wait(uint64_t*, uint32_t) {}
__device__ __forceinline__ void sync_threads(int, int) {}
template <class T>
__device__ __forceinline__ void copy_tile_3d(T*, const TensorMap&, int, int, int, uint64_t*) {}
template <class T>
__device__ __forceinline__ void copy_tile_4d(T*, const TensorMap&, int, int, int, int, uint64_t*) {}
template <class T>
__device__ __forceinline__ void copy_im2col_4d(T*, const TensorMap&, int, int, int, int, int, int, uint64_t*) {}
template <class T>
__device__ __forceinline__ uint64_t operand(const T*) {
  return 0;
}
__device__ __forceinline__ void group_begin() {}
__device__ __forceinline__ void group_commit() {}
template <int pending>
__device__ __forceinline__ void group_wait() {}
template <int count>
__device__ __forceinline__ void registers_give() {}
template <int count>
__device__ __forceinline__ void registers_take() {}
template <class S, int n>
__device__ __forceinline__ void multiply_group(float (&)[n / 2], const Fragment4&, uint64_t, bool) {}

#endif
#endif

}  // namespace fastcv::FASTCV_GPU

#if !FASTCV_EMULATOR
#include "common/ptx_wgmma.cuh"
#endif
