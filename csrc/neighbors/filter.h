// Squared distances from both sides by a matrix product: |q - r|^2 - |q|^2 = |r|^2 - 2 q.r, with what rounding can have
// changed. For ISA files only.
//
// Rows are centred on c, the mean of a few references (which cancels in q - r), and rounded to the product's type. With
// A = q - c and R = r - c before rounding, and b(A), b(R) after it:
//   s = rho - 2 b(A).b(R),  rho = |b'(R)|^2,  b' the float that b rounds,
//   |(|A - R|^2 - |A|^2) - s| <= 2 (|A - b(A)| |R| + |b(A)| |R - b(R)|) + rounding of the sums
//                             <= a(q) |R| + b(q) |R - b(R)| + g rho + tiny.
#pragma once
#include "neighbors/tile.h"
#include "neighbors/tile_block.h"

namespace fastcv::FASTCV_ISA {
namespace {

constexpr float kUnit = 0x1p-24f;   // rounding to float, relative
constexpr float kTiny = 1e-30f;     // more than flushing to zero can lose in a sum of products
constexpr float kLost = 0x1p-126f;  // what it can lose in one square
constexpr float kHuge = 1e37f;      // squares up to here leave room for products and sums
constexpr int kCenterSamples = 64;

using VecF = Vec<float>;
inline constexpr int kW = VecF::width;

// Of rows while they are converted: |b'(R)|^2 and |b'(R) - b(R)|^2.
struct Norms {
  VecF square{0.0f}, error{0.0f};
};

// ---- products ----------------------------------------------------------------------------------------------------

// Floats: nothing is rounded.
struct FloatProduct {
  using T = float;
  struct Session {};                      // what a thread holds while it multiplies
  static constexpr int kUnitSize = 1;     // coordinates in a unit
  static constexpr int kUnitStep = 1;     // of zeros, units are padded to whole steps
  static constexpr int kRows = kRowTile;  // and references to whole tiles
  // Where a row of a block begins that has this many units.
  static constexpr int row_at(int r, int) { return r * kRowStride<T>; }

  explicit FloatProduct(double) {}
  VecF step(VecF sum, VecF a, VecF b) const { return fma(a, b, sum); }
  static VecF join(VecF sum, VecF more) { return sum + more; }
  // sums[r][lane] = (first ? nothing : sums[r][lane]) + the dot products over `units` units.
  static void multiply(const float* panel, const float* rows, int units, int nr, float* sums, bool first) {
    block<FloatProduct>({Metric::l2, 2, kUnitSize, nullptr, nullptr, 0}, panel, rows, units, nr, sums, first, false);
  }

  // The most that one sum goes through.
  static constexpr int64_t roundings(int64_t units) {
    return (units < kDepthBlock ? units : kDepthBlock) + (units + kDepthBlock - 1) / kDepthBlock;
  }
  static void store_row(const float* from, int units, float* to, Norms& norms) {
    for (int u = 0; u < units; u += kW) {  // rows and blocks are padded to whole vectors
      const VecF v = load(from + u);
      norms.square = fma(v, v, norms.square);
      detail::store_raw(to + u, v);
    }
  }
  // v: kW coordinates of kW rows, transposed. Writes `units` units, kStride apart.
  template <int kStride>
  static void store_lanes(const VecF* v, int units, float* to, Norms& norms) {
    for (int u = 0; u < units; ++u) {
      norms.square = fma(v[u], v[u], norms.square);
      detail::store_raw(to + u * kStride, v[u]);
    }
  }
};

#if defined(__AVX512BF16__) || defined(FASTCV_TILE_MODEL)
// 32 floats rounded to the nearest bf16, those of `low` first. Denormals become zeros.
FASTCV_INLINE __m512i round_to_bf16(VecF low, VecF high) {
#if defined(__AVX512BF16__)
  return (__m512i)_mm512_cvtne2ps_pbh((__m512)high.v, (__m512)low.v);
#else
  const auto narrow = [](VecF v) {
    const __m512i bits = (__m512i)v.v, one = _mm512_set1_epi32(1);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512 size = _mm512_abs_ps((__m512)bits);
    const __mmask16 there = _mm512_cmp_ps_mask(size, _mm512_set1_ps(0x1p-126f), _CMP_NLT_UQ);
    const __mmask16 nan = _mm512_cmp_ps_mask(size, size, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(
        _mm512_maskz_srli_epi32(there, _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000)), 16));
  };
  return _mm512_inserti64x4(_mm512_castsi256_si512(narrow(low)), narrow(high), 1);
#endif
}

// Pairs of bf16. Sums are floats, carried as the bits of int32 because a panel's lanes are pairs. One vector of a row
// is kStep from the next.
template <int kStep>
struct Bf16Pairs {
  using T = int32_t;
  static constexpr int kUnitSize = 2;

  static void add(VecF low, VecF high, VecF low_rounded, VecF high_rounded, Norms& norms) {
    const VecF low_error = low - low_rounded, high_error = high - high_rounded;
    norms.square = fma(high, high, fma(low, low, norms.square));
    norms.error = fma(high_error, high_error, fma(low_error, low_error, norms.error));
  }
  static void store_row(const float* from, int units, int32_t* to, Norms& norms) {
    for (int u = 0; u < units; u += kW) {
      const VecF low = load(from + 2 * u), high = load(from + 2 * u + kW);
      const __m512i pairs = round_to_bf16(low, high);
      const auto widen = [](__m256i half) {
        return VecF((VecF::Raw)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
      };
      add(low, high, widen(_mm512_castsi512_si256(pairs)), widen(_mm512_extracti64x4_epi64(pairs, 1)), norms);
      _mm512_storeu_si512(to + u / kW * kStep, pairs);
    }
  }
  template <int kStride>
  static void store_lanes(const VecF* v, int units, int32_t* to, Norms& norms) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    for (int u = 0; u < units; ++u) {
      const VecF low = v[2 * u], high = v[2 * u + 1];
      const __m512i pairs = _mm512_permutexvar_epi16(order, round_to_bf16(low, high));
      add(low, high, VecF((VecF::Raw)_mm512_slli_epi32(pairs, 16)),
          VecF((VecF::Raw)_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000)))), norms);
      _mm512_storeu_si512(to + u * kStride, pairs);
    }
  }
};
#endif

#if defined(__AVX512BF16__)
struct Bf16Product : Bf16Pairs<kW> {
  struct Session {};
  static constexpr int kUnitStep = 1, kRows = kRowTile;
  static constexpr int row_at(int r, int) { return r * kRowStride<T>; }

  explicit Bf16Product(double) {}
  Vec<T> step(Vec<T> sum, Vec<T> a, Vec<T> b) const {
    // _mm512_dpbf16_ps on the bits of int32 makes GCC copy every accumulator.
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum.v) : "v"(a.v), "v"(b.v));
    return sum;
  }
  static Vec<T> join(Vec<T> sum, Vec<T> more) { return bitcast<T>(bitcast<float>(sum) + bitcast<float>(more)); }
  static void multiply(const T* panel, const T* rows, int units, int nr, T* sums, bool first) {
    block<Bf16Product>({Metric::l2, 2, kUnitSize, nullptr, nullptr, 0}, panel, rows, units, nr, sums, first, false);
  }

  static constexpr int64_t roundings(int64_t units) {
    return 2 * (units < kDepthBlock ? units : kDepthBlock) + (units + kDepthBlock - 1) / kDepthBlock;
  }
};
#endif

// ---- rows ----------------------------------------------------------------------------------------------------------

// Coordinates [begin, begin + count) of row - center as floats; zero beyond the depth.
template <class S>
void read_centred(const S* row, const acc_t<S>* center, int64_t depth, int64_t begin, int count, float* to) {
  const int64_t left = depth - begin;
  const int n = static_cast<int>(left < 0 ? 0 : left < count ? left : count);
  int i = 0;
  if constexpr (std::is_same_v<S, double>) {
    for (; i < n; ++i) to[i] = static_cast<float>(row[begin + i] - center[begin + i]);
  } else {
    for (; i + kW <= n; i += kW) store(to + i, load(row + begin + i) - load(center + begin + i));
    for (; i < n; ++i) to[i] = load_one(row + begin + i) - center[begin + i];
  }
  for (; i < count; ++i) to[i] = 0;
}

// Asks for coordinates [begin, begin + count) of a row that is read soon: a CPU does not foresee where the short pieces
// of rows that a block is made of go on.
template <class S>
FASTCV_INLINE void ask_for(const S* row, int64_t depth, int64_t begin, int64_t count) {
  const int64_t end = begin + count < depth ? begin + count : depth;
  for (int64_t d = begin; d < end; d += 64 / static_cast<int64_t>(sizeof(S))) __builtin_prefetch(row + d, 0, 2);
}

// The mean of a few rows of y, roughly: any point serves.
template <class S>
void find_center(const S* y, int64_t n, int64_t depth, acc_t<S>* center) {
  using A = acc_t<S>;
  constexpr int w = Vec<A>::width;
  const int samples = static_cast<int>(n < kCenterSamples ? n : kCenterSamples);
  const A share = static_cast<A>(1.0 / samples);
  for (int64_t d = 0; d < depth; d += w) {
    const int count = static_cast<int>(depth - d < w ? depth - d : w);
    Vec<A> sum(A(0));
    for (int i = 0; i < samples; ++i) {
      const S* from = y + n * i / samples * depth + d;
      sum = fma(count == w ? load(from) : load_n(from, count), Vec<A>(share), sum);
    }
    if (count == w) store(center + d, sum);
    else store_n(center + d, sum, count);
  }
}

// ---- bounds --------------------------------------------------------------------------------------------------------

// What depends on the depth alone.
struct Bounds {
  float product;  // of b(A).b(R), relative to |b(A)| |b(R)|
  float lanes;    // of a square summed lane by lane
  float rows;     // of rho
  float lost;     // of a square by flushing to zero, absolute
  float direct;   // of the direct sums that decide, relative

  template <class P>
  static Bounds of(int64_t depth, float direct_unit) {
    const int64_t units = (depth + P::kUnitSize - 1) / P::kUnitSize;
    const int64_t direct_block = depth < kDepthBlock ? depth : kDepthBlock;
    return {static_cast<float>(P::roundings(units) + 8) * kUnit, static_cast<float>(depth + 16) * kUnit,
            static_cast<float>(2 * depth / kW + 24) * kUnit, static_cast<float>(depth) * kLost,
            static_cast<float>(direct_block + depth / kDepthBlock + 16) * direct_unit};
  }
};

// Of some queries, one lane each: the error's factors, and an upper bound of |A|^2. A lane whose square nears the end
// of the range gets NaN, which excludes nothing.
FASTCV_INLINE void query_bounds(const Bounds& bounds, const Norms& norms, float* a, float* b, float* square) {
  const VecF wide(1 + bounds.lanes), lost(bounds.lost);
  const VecF n2 = fma(norms.square, wide, lost), norm = sqrt(n2) * wide;
  const VecF error = fma(sqrt(fma(norms.error, wide, lost)), wide, norm * VecF(2 * kUnit));
  const VecF rounded = norm + error;
  const VecF factor = VecF(2.02f) * fma(rounded, VecF(bounds.product), error);
  store(a, select<float>(n2 < VecF(kHuge), factor, VecF(__builtin_nanf(""))));
  store(b, VecF(2.02f * (1 + bounds.product)) * rounded);
  store(square, n2 * VecF(1.0001f));
}

// Of one reference.
struct RowBound {
  float rho, norm, error;  // NaN, 0, 0 where the square nears the end of the range: never excluded
};
FASTCV_INLINE RowBound row_bound(const Bounds& bounds, const Norms& norms) {
  const float rho = reduce_add(norms.square);
  if (!(rho < kHuge)) return {__builtin_nanf(""), 0, 0};
  const float norm = __builtin_sqrtf(rho * (1 + bounds.rows) + bounds.lost) * (1 + 4 * kUnit);
  const float error = __builtin_sqrtf(reduce_add(norms.error) * (1 + bounds.rows) + bounds.lost) * (1 + 4 * kUnit);
  return {rho, norm, error + 2 * kUnit * norm};
}

// One bit per lane where a > b is false; NaN is never greater.
FASTCV_INLINE uint32_t not_greater_bits(VecF a, VecF b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)a.v, (__m512)b.v, _CMP_NGT_UQ);
#elif defined(__AVX2__)
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a.v, (__m256)b.v, _CMP_NGT_UQ));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kW; ++i) bits |= static_cast<uint32_t>(!(a.v[i] > b.v[i])) << i;
  return bits;
#endif
}

// ---- the sums that decide ------------------------------------------------------------------------------------------

// |q - r|^2 of as many pairs as a vector has lanes, each summed as the tiles of tile.h sum it.
template <class S>
Vec<acc_t<S>> direct_sums(const S* const* queries, const S* const* references, int64_t depth) {
  using T = acc_t<S>;
  constexpr int w = Vec<T>::width;
  Vec<T> total(T(0));
  for (int64_t begin = 0; begin < depth; begin += kDepthBlock) {
    const int64_t end = depth - begin < kDepthBlock ? depth : begin + kDepthBlock;
    Vec<T> sum(T(0));
    for (int64_t d = begin; d < end; d += w) {
      const int n = static_cast<int>(end - d < w ? end - d : w);
      Vec<T> v[w];
      if (n == w) {
#pragma GCC unroll 16
        for (int i = 0; i < w; ++i) v[i] = load(queries[i] + d) - load(references[i] + d);
      } else {
        for (int i = 0; i < w; ++i) v[i] = load_n(queries[i] + d, n) - load_n(references[i] + d, n);
      }
      transpose<w>(v);
      if (n == w) {
#pragma GCC unroll 16
        for (int i = 0; i < w; ++i) sum = fma(v[i], v[i], sum);
      } else {
        for (int i = 0; i < n; ++i) sum = fma(v[i], v[i], sum);
      }
    }
    total = begin == 0 ? sum : total + sum;
  }
  return total;
}

// A sum >= 0 as an integer of the same order, all NaN above infinity: the keys of the tiles.
template <class T>
FASTCV_INLINE int64_t sum_key(T sum) {
  if (sum != sum) return kNanKey<T>;
  KeyOf<T> bits;
  std::memcpy(&bits, &sum, sizeof bits);
  return bits;
}

}  // namespace
}  // namespace fastcv::FASTCV_ISA
