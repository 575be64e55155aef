// Every instruction that CUDA C++ has no word for, with two bodies: inline PTX for nvcc, a model for the emulator.
// Nothing else in csrc holds inline PTX but ptx_*.cuh, which have what only sm_90a knows.
//
//   store_pack(to, pack)           a pack registers -> global in one access, which the compiler may not take apart
//   copy_async(to, from, valid)    16 bytes global -> shared, zeros where !valid; lands before its group is waited for
//   copy_async_part(to, from, bytes)   the same of 0, 8 or 16 bytes, and zeros
//   commit_async(), wait_async<n>()   closes a group; waits until at most n groups of this thread are on their way
//   load_matrix_x4(tile row)       ldmatrix: four 8x8 tiles of 16-bit elements, one 32-bit register each per lane
//   load_matrix_x4_transposed(..)  the same of the tiles' transposes
//   store_matrix_x4(tile row, f)   stmatrix (sm_90 on): the four tiles back, as load_matrix_x4 gave them
//   multiply_add(d, a, b)          mma.sync m16n8k16: D (16x8, float) += A (16x16) B (16x8), bf16 or f16
//   multiply_add_tf32(d, a, b)     mma.sync m16n8k8: D (16x8, float) += A (16x8) B (8x8), tf32
//   multiply_add_u8(d, a, b)       mma.sync m16n8k32: D (16x8, modulo 2^32) += A (16x32) B (32x8), unsigned bytes
//   to_tf32(x)                     float to tf32 (8 bits of exponent, 10 of mantissa), halves away from zero
//   trap(what)                     ends the kernel with an error
// Fragment layouts are those of the PTX manual ("Matrix Fragments for mma.m16n8k16", "... mma.m16n8k8", "...
// mma.m16n8k32").
#pragma once
#include "common/numbers.cuh"

namespace fastcv::FASTCV_GPU {

// Two 16-bit elements in a register, the lower index in the lower half.
struct Fragment4 {
  uint32_t at[4];
};

#if FASTCV_EMULATOR

[[noreturn]] inline void trap(const char* what, Where where = Where::current()) { emulator::fail(what, where); }

template <class P, class T>
void store_pack(T* to, const P& pack) {
  *reinterpret_cast<P*>(to) = pack;
}

template <class T>
void copy_async(Shared<T> to, const T* from, bool valid, Where where = Where::current()) {
  emulator::copy_later(reinterpret_cast<std::byte*>(to.unchecked()), from, 16, valid, where);
}
template <class T>
void copy_async_part(Shared<T> to, const T* from, int bytes, Where where = Where::current()) {
  for (int half = 0; half < 2; ++half)
    emulator::copy_later(reinterpret_cast<std::byte*>(to.unchecked()) + 8 * half,
                         reinterpret_cast<const std::byte*>(from) + 8 * half, 8, bytes > 8 * half, where);
}
inline void commit_async() { emulator::commit_copies(); }
template <int pending>
void wait_async() {
  emulator::wait_copies(pending);
}

// Lane l brings the address of row l % 8 of tile l / 8; register i of lane l gets elements 2 (l % 4), +1 of row l / 4
// of tile i, or of its transpose.
template <bool transposed, class T>
Fragment4 load_matrix(Shared<T> row, Where where) {
  static_assert(sizeof(T) == 2);
  struct Mine {
    const T* row;
    Fragment4 out;
  } mine{row.unchecked(), {}};
  emulator::touch(reinterpret_cast<const std::byte*>(mine.row), 16, emulator::Access::read, where);
  emulator::meet(
      0xffffffffu, &mine,
      [](void** all, uint32_t) {
        for (int l = 0; l < 32; ++l)
          for (int i = 0; i < 4; ++i)
            for (int half = 0; half < 2; ++half) {
              const int r = transposed ? 2 * (l % 4) + half : l / 4, c = transposed ? l / 4 : 2 * (l % 4) + half;
              uint16_t bits;
              std::memcpy(&bits, static_cast<Mine*>(all[8 * i + r])->row + c, 2);
              static_cast<Mine*>(all[l])->out.at[i] |= uint32_t{bits} << 16 * half;
            }
      },
      false, "ldmatrix", where);
  return mine.out;
}
template <class T>
Fragment4 load_matrix_x4(Shared<T> row, Where where = Where::current()) {
  return load_matrix<false>(row, where);
}
template <class T>
Fragment4 load_matrix_x4_transposed(Shared<T> row, Where where = Where::current()) {
  return load_matrix<true>(row, where);
}
// Lane l brings the address of row l % 8 of tile l / 8, and the elements that load_matrix_x4 would give it.
template <class T>
void store_matrix_x4(Shared<T> row, const Fragment4& f, Where where = Where::current()) {
  static_assert(sizeof(T) == 2);
  struct Mine {
    T* row;
    const Fragment4* in;
  } mine{row.unchecked(), &f};
  emulator::touch(reinterpret_cast<const std::byte*>(mine.row), 16, emulator::Access::write, where);
  emulator::meet(
      0xffffffffu, &mine,
      [](void** all, uint32_t) {
        for (int l = 0; l < 32; ++l)
          for (int i = 0; i < 4; ++i)
            std::memcpy(static_cast<Mine*>(all[8 * i + l / 4])->row + 2 * (l % 4),
                        &static_cast<Mine*>(all[l])->in->at[i], 4);
      },
      false, "stmatrix", where);
}

inline uint32_t to_tf32(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if (x != x) return 0x7fffffffu;
  return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & 0xffffe000u;
}

// D += A B of a warp, d being one lane's share. Number()(bits, h): the number in part h of a register, of `halves`.
// Sums the products in Number's type, double for floats, and rounds once: hardware's order is not documented.
template <int halves, class Number, class D>
void multiply_add_model(D (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Where where) {
  struct Mine {
    D* d;
    const uint32_t *a, *b;
  } mine{d, a, b};
  emulator::meet(
      0xffffffffu, &mine,
      [](void** all, uint32_t) {
        using Sum = decltype(Number()(0, 0));
        [[maybe_unused]] const double loss = emulator::product_loss();
        constexpr int depth = 8 * halves;
        Sum x[16][depth], y[8][depth];
        for (int l = 0; l < 32; ++l)
          for (int h = 0; h < halves; ++h) {
            const int k = l % 4 * halves + h;
            for (int i = 0; i < 4; ++i)
              x[l / 4 + i % 2 * 8][k + i / 2 * depth / 2] = Number()(static_cast<Mine*>(all[l])->a[i], h);
            for (int i = 0; i < 2; ++i) y[l / 4][k + i * depth / 2] = Number()(static_cast<Mine*>(all[l])->b[i], h);
          }
        for (int l = 0; l < 32; ++l)
          for (int i = 0; i < 4; ++i) {
            const int row = l / 4 + 8 * (i / 2), col = 2 * (l % 4) + i % 2;
            Sum sum = static_cast<Mine*>(all[l])->d[i];
            [[maybe_unused]] double largest = static_cast<double>(sum < 0 ? -sum : sum);
            for (int k = 0; k < depth; ++k) {
              const Sum product = x[row][k] * y[col][k];
              sum += product;
              if constexpr (std::is_floating_point_v<Sum>) largest = std::max(largest, std::abs(product));
            }
            if constexpr (std::is_floating_point_v<Sum>)
              if (loss != 0) sum += (row + col) % 2 == 0 ? loss * largest : -loss * largest;
            static_cast<Mine*>(all[l])->d[i] = static_cast<D>(sum);
          }
      },
      false, "mma.sync", where);
}

// The hardware does not look at the low 13 bits of an operand.
inline void multiply_add_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                              Where where = Where::current()) {
  struct Number {
    double operator()(uint32_t bits, int) const { return std::bit_cast<float>(bits & 0xffffe000u); }
  };
  multiply_add_model<1, Number>(d, a, b, where);
}

template <class S>
void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Where where = Where::current()) {
  static_assert(sizeof(S) == 2);
  struct Number {
    double operator()(uint32_t bits, int half) const { return widen(S{static_cast<uint16_t>(bits >> 16 * half)}); }
  };
  multiply_add_model<2, Number>(d, a, b, where);
}

inline void multiply_add_u8(uint32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                            Where where = Where::current()) {
  struct Number {
    uint32_t operator()(uint32_t bits, int byte) const { return bits >> 8 * byte & 255; }
  };
  multiply_add_model<4, Number>(d, a, b, where);
}

#else

__device__ __forceinline__ void trap(const char*) { __trap(); }

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// An assignment becomes an access for each element wherever these are computed one by one.
template <class P, class T>
__device__ __forceinline__ void store_pack(T* to, const P& pack) {
  uint32_t words[sizeof(P) < 4 ? 1 : sizeof(P) / 4];
  memcpy(words, &pack, sizeof(P));
  if constexpr (sizeof(P) == sizeof(pack.at[0])) {
    *reinterpret_cast<P*>(to) = pack;
  } else if constexpr (sizeof(P) == 16) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(words[0]), "r"(words[1]), "r"(words[2]),
                 "r"(words[3])
                 : "memory");
  } else if constexpr (sizeof(P) == 8) {
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(to), "r"(words[0]), "r"(words[1]) : "memory");
  } else if constexpr (sizeof(P) == 4) {
    asm volatile("st.global.b32 [%0], %1;" ::"l"(to), "r"(words[0]) : "memory");
  } else {
    *reinterpret_cast<P*>(to) = pack;
  }
}

template <class T>
__device__ __forceinline__ void copy_async(T* to, const T* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid ? 16 : 0)
               : "memory");
}
template <class T>
__device__ __forceinline__ void copy_async_part(T* to, const T* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void commit_async() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int pending>
__device__ __forceinline__ void wait_async() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

template <class T>
__device__ __forceinline__ Fragment4 load_matrix_x4(const T* row) {
  Fragment4 f;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(f.at[0]), "=r"(f.at[1]), "=r"(f.at[2]), "=r"(f.at[3])
               : "r"(shared_address(row))
               : "memory");
  return f;
}

template <class T>
__device__ __forceinline__ Fragment4 load_matrix_x4_transposed(const T* row) {
  Fragment4 f;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(f.at[0]), "=r"(f.at[1]), "=r"(f.at[2]), "=r"(f.at[3])
               : "r"(shared_address(row))
               : "memory");
  return f;
}

template <class T>
__device__ __forceinline__ void store_matrix_x4(T* row, const Fragment4& f) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)),
               "r"(f.at[0]), "r"(f.at[1]), "r"(f.at[2]), "r"(f.at[3])
               : "memory");
#else
  trap("needs sm_90");
#endif
}

__device__ __forceinline__ uint32_t to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}
__device__ __forceinline__ void multiply_add_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Without .satfinite a sum that leaves its 32 bits wraps around.
__device__ __forceinline__ void multiply_add_u8(uint32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <class S>
__device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
__device__ __forceinline__ void multiply_add<bf16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ __forceinline__ void multiply_add<f16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#endif

}  // namespace fastcv::FASTCV_GPU
