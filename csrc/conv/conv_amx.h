// Convolution on matrix tiles: 16 pixels times 32 channels, times 32 channels times 16 output channels, summed in
// float32. Same packed pairs of weights as the dot products of *_avx512bf16.cpp, same engine (conv_igemm.h); pixels
// come from a window in which those of a tile lie at even distances (conv_flat.h).
//
// bfloat16 is multiplied as it is. float32 and float16 are split into bfloat16 parts that add up to the number (hi + lo
// for float16 exactly, for float32 to 2^-16; hi + mid + lo to 2^-24) and the products of parts that count are summed,
// small ones first. An infinity or NaN is its own hi, its other parts are zero, and where products of two parts would
// make inf * 0 of it a copy of hi stands in that has zeros in its place.
#pragma once
#include "common/amx.h"
#include "conv/conv_flat.h"

namespace fastcv::FASTCV_ISA {

// Nearest bfloat16, as a float; a finite number stays finite.
FASTCV_INLINE __m512i nearest_bf16(__m512i x) {
  const __m512i infinity = _mm512_set1_epi32(0x7f800000);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(x, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(x, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  // Above the largest bfloat16 the number is cut off instead: so is infinity, which stays as it is.
  const __mmask16 beyond = _mm512_cmpeq_epi32_mask(_mm512_and_si512(rounded, infinity), infinity);
  const __m512i nearest = _mm512_mask_blend_epi32(beyond, rounded, x);
  const __mmask16 nan = _mm512_cmp_ps_mask((__m512)x, (__m512)x, _CMP_UNORD_Q);
  return _mm512_and_si512(_mm512_mask_or_epi32(nearest, nan, x, _mm512_set1_epi32(0x400000)),
                          _mm512_set1_epi32(static_cast<int>(0xffff0000u)));
}
// The same for numbers far from the largest; ties away from zero.
FASTCV_INLINE __m512i near_bf16(__m512i x) {
  return _mm512_and_si512(_mm512_add_epi32(x, _mm512_set1_epi32(0x8000)),
                          _mm512_set1_epi32(static_cast<int>(0xffff0000u)));
}

// How many parts a number is cut into, and which products are summed.
template <int Parts>
struct TileProduct {
  using X = bf16;
  using W = uint32_t;  // two channels of one output channel
  using Acc = float;
  static constexpr int kPair = 2;
  static constexpr bool kTiles = true, kRounds = false;
  using Session = TileSession;
  // The last of several stored parts is hi with zeros for infinities and NaN; it is read only if there are any.
  static constexpr int kParts = Parts, kStored = Parts == 1 ? 1 : Parts + 1;
  static constexpr int kProducts = Parts * (Parts + 1) / 2;
  struct PartPair {
    int x, w;
  };
  // From one product to the next mostly one factor changes, and only that one is loaded. Of three parts all small
  // products come before the first of the large ones (kFirst): while sums are small they round little. Of two parts
  // what is left out is more than what rounding adds.
  static constexpr int kFirst = Parts == 3 ? 5 : kProducts;
  static constexpr PartPair product(int i) {
    constexpr PartPair two[] = {{1, 0}, {0, 0}, {0, 1}};
    constexpr PartPair three[] = {{2, 0}, {1, 0}, {1, 1}, {0, 1}, {0, 2}, {0, 0}};
    return Parts == 1 ? PartPair{0, 0} : Parts == 2 ? two[i] : three[i];
  }
  // What is read for part `part` of one factor where the other's is `other`: only hi * hi may see what is not finite.
  static constexpr int stored(int part, int other, bool any_special) {
    return part == 0 && other != 0 && any_special ? Parts : part;
  }

  struct Split {
    __m512i part[kStored];  // as float32
    bool special;
  };
  // With infinities, NaN or numbers that bfloat16 rounds to infinity.
  [[gnu::noinline]] static Split split_special(__m512i x) {
    Split s;
    const __m512i infinity = _mm512_set1_epi32(0x7f800000);
    const __mmask16 special = _mm512_cmpeq_epi32_mask(_mm512_and_si512(x, infinity), infinity);
    s.part[0] = nearest_bf16(x);
    s.special = special != 0;
    __m512 rest = _mm512_maskz_sub_ps(static_cast<__mmask16>(~special), (__m512)x, (__m512)s.part[0]);
    for (int i = 1; i < Parts; ++i) {
      s.part[i] = near_bf16((__m512i)rest);
      rest = _mm512_sub_ps(rest, (__m512)s.part[i]);
    }
    s.part[kStored - 1] = _mm512_maskz_mov_epi32(static_cast<__mmask16>(~special), s.part[0]);
    return s;
  }
  FASTCV_INLINE Split split(Vec<Acc> v) {
    Split s;
    const __m512i x = (__m512i)v.v;
    if constexpr (Parts == 1) {
      s.part[0] = nearest_bf16(x);
    } else {
      s.part[0] = near_bf16(x);
      __m512 rest = _mm512_sub_ps((__m512)x, (__m512)s.part[0]);
      // Infinity or NaN where x or its first part is; of a NaN full of ones near_bf16 makes a zero.
      if (_mm512_fpclass_ps_mask(rest, 0x99) != 0) [[unlikely]]
        return split_special(x);
#pragma GCC unroll 2
      for (int i = 1; i < Parts; ++i) {
        s.part[i] = near_bf16((__m512i)rest);
        rest = _mm512_sub_ps(rest, (__m512)s.part[i]);
      }
      s.part[Parts] = s.part[0];
    }
    s.special = false;
    return s;
  }
  // The first `stored` parts of 16 numbers, `pitch` elements apart; returns whether one is not finite.
  FASTCV_INLINE bool put(X* out, int64_t pitch, int64_t stored, Vec<Acc> v) {
    const Split s = split(v);
    const auto put_part = [&](int i) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i * pitch),
                          _mm512_cvtepi32_epi16(_mm512_srli_epi32(s.part[i], 16)));
    };
#pragma GCC unroll 4
    for (int i = 0; i < Parts; ++i) put_part(i);
    if (stored > Parts) put_part(kStored - 1);
    return s.special;
  }
  // n numbers, and zeros up to a multiple of 32.
  FASTCV_INLINE void copy(X* out, const X* from, int64_t n) {
    for (int64_t k = 0; k < n; k += kTileChannels) {
      const int64_t left = n - k;
      const __mmask32 mask = left >= 32 ? 0xffffffffu : (1u << left) - 1;
      _mm512_storeu_si512(out + k, _mm512_maskz_loadu_epi16(mask, from + k));
    }
  }
  // Of `left` tiles those that are multiplied at once with `vectors` vectors of output channels.
  FASTCV_INLINE int64_t tiles_at_once(int64_t left, int vectors) {
    return vectors == 2 ? least(2, left) : left >= 4 ? 4 : least(2, left);
  }
  // So many tiles of pixels by 16 * vectors output channels into sums[count * rows][32].
  static void multiply(const TileSum& s, bool special, const PixelTile* tiles, int64_t count, int vectors, float* sums);
  // 32 numbers that are bfloat16 already.
  FASTCV_INLINE void store_part(X* out, __m512i low, __m512i high) {
#if defined(__AVX512BF16__)
    _mm512_storeu_si512(out, (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low));
#else
    __m256i* to = reinterpret_cast<__m256i*>(out);
    _mm256_storeu_si256(to, _mm512_cvtepi32_epi16(_mm512_srli_epi32(low, 16)));
    _mm256_storeu_si256(to + 1, _mm512_cvtepi32_epi16(_mm512_srli_epi32(high, 16)));
#endif
  }
  // The first `stored` parts of 32 numbers; returns whether one is not finite.
  FASTCV_INLINE bool put(X* out, int64_t pitch, int64_t stored, Vec<Acc> low, Vec<Acc> high) {
    const Split a = split(low), b = split(high);
#pragma GCC unroll 4
    for (int i = 0; i < Parts; ++i) store_part(out + i * pitch, a.part[i], b.part[i]);
    if (stored > Parts) store_part(out + (kStored - 1) * pitch, a.part[kStored - 1], b.part[kStored - 1]);
    return a.special || b.special;
  }
  // The parts of 32 numbers, if all are finite; `poison` becomes NaN where one is not, or has an infinite part.
  FASTCV_INLINE void put_finite(X* out, int64_t pitch, Vec<Acc> low, Vec<Acc> high, __m512& poison)
    requires(Parts > 1)
  {
    __m512 a = low.v, b = high.v;
#pragma GCC unroll 4
    for (int i = 0; i < Parts; ++i) {
      // What is left for the last of three has no more than 8 bits.
      const __m512 part_a = i == 2 ? a : (__m512)near_bf16((__m512i)a),
                   part_b = i == 2 ? b : (__m512)near_bf16((__m512i)b);
      store_part(out + i * pitch, (__m512i)part_a, (__m512i)part_b);
      a = _mm512_sub_ps(a, part_a), b = _mm512_sub_ps(b, part_b);
      if (i == 0) poison = _mm512_fmadd_ps(a, _mm512_setzero_ps(), _mm512_fmadd_ps(b, _mm512_setzero_ps(), poison));
    }
  }
  // The same of two channels of 16 output channels, as pack_pair stores them.
  FASTCV_INLINE void pack_pair_finite(W* out, int64_t pitch, Vec<Acc> even, Vec<Acc> odd, __m512& poison)
    requires(Parts > 1)
  {
    __m512 a = even.v, b = odd.v;
#pragma GCC unroll 4
    for (int i = 0; i < Parts; ++i) {
      const __m512 part_a = i == 2 ? a : (__m512)near_bf16((__m512i)a),
                   part_b = i == 2 ? b : (__m512)near_bf16((__m512i)b);
      _mm512_storeu_si512(out + i * pitch, _mm512_or_si512(_mm512_srli_epi32((__m512i)part_a, 16), (__m512i)part_b));
      a = _mm512_sub_ps(a, part_a), b = _mm512_sub_ps(b, part_b);
      if (i == 0) poison = _mm512_fmadd_ps(a, _mm512_setzero_ps(), _mm512_fmadd_ps(b, _mm512_setzero_ps(), poison));
    }
  }
  // Two channels of 16 output channels: parts `pitch` apart, the last stored one to `clean`.
  FASTCV_INLINE bool pack_pair(W* out, int64_t pitch, W* clean, Vec<Acc> even, Vec<Acc> odd) {
    const Split a = split(even), b = split(odd);
#pragma GCC unroll 4
    for (int i = 0; i < kStored; ++i)
      _mm512_storeu_si512(i == Parts ? clean : out + i * pitch,
                          _mm512_or_si512(_mm512_srli_epi32(a.part[i], 16), b.part[i]));
    return a.special || b.special;
  }
};

constexpr int kPixelTile = 4, kWeightTile = 6;  // registers 0 to 3 hold the sums, two pixels, two weights

// The tiles of a session that multiplies TileSum::rows pixels at a time.
static inline TileConfig tiles_of_rows(int64_t rows) {
  TileConfig config = whole_tiles();
  for (int t = 0; t < kWeightTile; ++t) config.rows[t] = static_cast<uint8_t>(rows);
  return config;
}

// M tiles of pixels by N vectors of output channels into sums[M * rows][32]. Special: of the parts that are multiplied
// with smaller ones, those are read that have zeros for infinities and NaN.
// `meanwhile` is called after each product.
template <class P, bool Special, int M, int N, class F>
[[gnu::noinline]] static void multiply_tiles(const TileSum& s, const PixelTile* tiles, float* sums, F&& meanwhile) {
  static_assert(M * N <= 4 && N <= 2);
  constexpr int kA = kPixelTile, kB = kWeightTile;
  constexpr bool kHeld = M <= 2;
  constexpr int64_t kTileBytes = 16 * 64 * N, kPitch = 64 * N;
  Tiles::fence();
  const auto each = [](auto&& f) {
    f(std::integral_constant<int, 0>{});
    if constexpr (M > 1) f(std::integral_constant<int, 1>{});
    if constexpr (M > 2) f(std::integral_constant<int, 2>{}), f(std::integral_constant<int, 3>{});
  };
  each([&](auto m) {
    if (s.add) {
      Tiles::load<m * N>(sums + m * s.rows * 32, 128);
      if constexpr (N == 2) Tiles::load<m * N + 1>(sums + m * s.rows * 32 + 16, 128);
    } else {
      Tiles::zero<m * N>();
      if constexpr (N == 2) Tiles::zero<m * N + 1>();
    }
  });
  const char* x[M];
  int64_t pitch[M];
  for (int m = 0; m < M; ++m) x[m] = static_cast<const char*>(tiles[m].at), pitch[m] = tiles[m].pitch;
  const auto product = [&](auto index, auto first, const TileStep& step) {
    constexpr auto of = [](int i) {
      const auto parts = P::product(i);
      return typename P::PartPair{P::stored(parts.x, parts.w, Special), P::stored(parts.w, parts.x, Special)};
    };
    constexpr auto now = of(index);
    constexpr auto before = index == first ? typename P::PartPair{-1, -1} : of(index == first ? 0 : index - 1);
    if constexpr (now.w != before.w) {
      const char* weights = now.w == P::kParts ? reinterpret_cast<const char*>(s.clean) + step.row * kPitch
                                               : reinterpret_cast<const char*>(s.weights) +
                                                     step.row * P::kParts * kPitch + now.w * kTileBytes;
      Tiles::load<kB>(weights, kPitch);
      if constexpr (N == 2) Tiles::load<kB + 1>(weights + 64, kPitch);
    }
    each([&](auto m) {
      constexpr int a = kA + m % 2;
      if constexpr (now.x != before.x || !kHeld) Tiles::load<a>(x[m] + step.pixel + now.x * s.x_part, pitch[m]);
      Tiles::multiply_add_bf16<m * N, a, kB>();
      if constexpr (N == 2) Tiles::multiply_add_bf16<m * N + 1, a, kB + 1>();
    });
  };
  const auto products = [&]<int... i>(auto first, std::integer_sequence<int, i...>) {
    for (int64_t at = 0; at < s.count; ++at) {
      const auto beside = [&](int64_t n) {
        if (first == 0 && s.ahead != nullptr)
          for (int64_t line = s.ahead_lines * n / P::kFirst; line < s.ahead_lines * (n + 1) / P::kFirst; ++line)
            _mm_prefetch(s.ahead + (at * s.ahead_lines + line) * 64, _MM_HINT_T1);
        meanwhile(at, first + n);
      };
      ((product(std::integral_constant<int, first + i>{}, first, s.steps[at]), beside(i)), ...);
    }
  };
  products(std::integral_constant<int, 0>{}, std::make_integer_sequence<int, P::kFirst>{});
  if constexpr (P::kFirst < P::kProducts)
    products(std::integral_constant<int, P::kFirst>{}, std::make_integer_sequence<int, P::kProducts - P::kFirst>{});
  each([&](auto m) {
    Tiles::store<m * N>(sums + m * s.rows * 32, 128);
    if constexpr (N == 2) Tiles::store<m * N + 1>(sums + m * s.rows * 32 + 16, 128);
  });
}

template <int Parts>
inline void TileProduct<Parts>::multiply(const TileSum& s, bool special, const PixelTile* tiles, int64_t count,
                                         int vectors, float* sums) {
  using P = TileProduct;
  const auto none = [](int64_t, int) {};
  const auto run = [&]<bool Special>(std::bool_constant<Special>) {
    if (vectors == 2 && count == 2) multiply_tiles<P, Special, 2, 2>(s, tiles, sums, none);
    else if (vectors == 2) multiply_tiles<P, Special, 1, 2>(s, tiles, sums, none);
    else if (count == 4) multiply_tiles<P, Special, 4, 1>(s, tiles, sums, none);
    else if (count == 2) multiply_tiles<P, Special, 2, 1>(s, tiles, sums, none);
    else multiply_tiles<P, Special, 1, 1>(s, tiles, sums, none);
  };
  if constexpr (Parts > 1)
    if (special) return run(std::true_type{});
  run(std::false_type{});
}

}  // namespace fastcv::FASTCV_ISA
