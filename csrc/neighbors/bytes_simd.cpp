#include "neighbors/bytes.h"

#include "common/simd.h"

#if defined(__AVX2__)  // without an instruction that sums differences of bytes the floats are faster

namespace fastcv::FASTCV_ISA {
namespace {

constexpr int64_t kFirst = 1 << 10;  // coordinates of either side that are looked at before anything is converted
constexpr int64_t kBlock = 1 << 14;

// Converts n floats, or returns false at the latest after kBlock of them if one is no integer in 0..255.
bool convert(const float* from, int64_t n, uint8_t* to) {
  constexpr int w = Vec<float>::width;
  using Ints = typename Vec<int32_t>::Raw;
  typedef uint8_t Bytes __attribute__((vector_size(w)));
  const auto wrong = [](Vec<float> x, Ints i) {
    const Vec<float> back((typename Vec<float>::Raw) __builtin_convertvector(i, typename Vec<float>::Raw));
    const Vec<int32_t> integers(i);
    return ~(back == x) | (integers < Vec<int32_t>(0)) | (Vec<int32_t>(255) < integers);
  };
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = n - begin < kBlock ? n : begin + kBlock;
    Mask<int32_t> bad = Vec<int32_t>(0) < Vec<int32_t>(0);
    int64_t i = begin;
    for (; i + w <= end; i += w) {
      const Vec<float> x = load(from + i);
      const Ints integers = __builtin_convertvector(x.v, Ints);
      bad = bad | wrong(x, integers);
      const Bytes bytes = __builtin_convertvector(integers, Bytes);
      std::memcpy(to + i, &bytes, w);
    }
    for (; i < end; ++i) {
      if (!(from[i] >= 0 && from[i] <= 255) || from[i] != static_cast<float>(static_cast<int>(from[i]))) return false;
      to[i] = static_cast<uint8_t>(from[i]);
    }
    if (any(bad)) return false;
  }
  return true;
}

struct Side {
  const void* from;
  int64_t n;
  uint8_t* to;
};

bool convert_all(const Side (&sides)[2], const Exec& exec) {
  for (const Side& side : sides)
    if (!convert(static_cast<const float*>(side.from), side.n < kFirst ? side.n : kFirst, side.to)) return false;
  int failed = 0;
  for (const Side& side : sides)
    parallel_for(exec, (side.n + kBlock - 1) / kBlock, 8, [&](int64_t first, int64_t last) {
      const int64_t begin = first * kBlock, end = last * kBlock < side.n ? last * kBlock : side.n;
      if (__atomic_load_n(&failed, __ATOMIC_RELAXED)) return;
      if (!convert(static_cast<const float*>(side.from) + begin, end - begin, side.to + begin))
        __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
    });
  return failed == 0;
}

size_t round_up(size_t bytes) { return (bytes + 63) / 64 * 64; }
size_t larger(size_t a, size_t b) { return a > b ? a : b; }

// What `rows` x depth points per batch item take; one item stands for all where they are shared.
int64_t elements(int64_t batch, int64_t stride, int64_t rows, int64_t depth) {
  return (stride == 0 ? 1 : batch) * rows * depth;
}

}  // namespace

// The workspace: bytes of the one side, bytes of the other, and what the tiles need.

size_t cdist_bytes_workspace(const CdistParams& p, int threads) {
  CdistParams bytes = p;
  bytes.dtype = DType::u8;
  return round_up(elements(p.batch, p.x1_batch, p.m, p.depth)) + round_up(elements(p.batch, p.x2_batch, p.n, p.depth)) +
         larger(cdist_workspace(bytes, threads), cdist_workspace(p, threads));
}

void cdist_bytes(const CdistParams& p, const Exec& exec) {
  const int64_t n1 = elements(p.batch, p.x1_batch, p.m, p.depth), n2 = elements(p.batch, p.x2_batch, p.n, p.depth);
  uint8_t* x1 = static_cast<uint8_t*>(exec.workspace);
  uint8_t* x2 = x1 + round_up(n1);
  const Exec rest{exec.parallel, exec.threads, x2 + round_up(n2)};
  CdistParams bytes = p;
  if (convert_all({{p.x1, n1, x1}, {p.x2, n2, x2}}, exec)) {
    bytes.x1 = x1;
    bytes.x2 = x2;
    bytes.dtype = DType::u8;
  }
  cdist(bytes, rest);
}

size_t knn_bytes_workspace(const KnnParams& p, int threads) {
  KnnParams bytes = p;
  bytes.dtype = DType::u8;
  return round_up(elements(p.batch, p.x_batch, p.m, p.depth)) + round_up(elements(p.batch, p.y_batch, p.n, p.depth)) +
         larger(knn_workspace(bytes, threads), knn_workspace(p, threads));
}

void knn_bytes(const KnnParams& p, const Exec& exec) {
  const int64_t nx = elements(p.batch, p.x_batch, p.m, p.depth), ny = elements(p.batch, p.y_batch, p.n, p.depth);
  uint8_t* x = static_cast<uint8_t*>(exec.workspace);
  uint8_t* y = x + round_up(nx);
  const Exec rest{exec.parallel, exec.threads, y + round_up(ny)};
  KnnParams bytes = p;
  if (convert_all({{p.x, nx, x}, {p.y, ny, y}}, exec)) {
    bytes.x = x;
    bytes.y = y;
    bytes.dtype = DType::u8;
  }
  knn(bytes, rest);
}

}  // namespace fastcv::FASTCV_ISA

#endif
