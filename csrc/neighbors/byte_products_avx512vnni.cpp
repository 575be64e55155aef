#include "neighbors/byte_products.h"

#include "neighbors/tile.h"

namespace fastcv::FASTCV_ISA {
namespace {

// |row|^2, for a row of the broadcast side less 256 times its sum.
template <bool lane>
int32_t own_term(const uint8_t* row, int64_t depth) {
  const __m512i flip = _mm512_set1_epi8(static_cast<char>(0x80)), one = _mm512_set1_epi8(1);
  __m512i products = _mm512_setzero_si512(), sums = _mm512_setzero_si512();
  for (int64_t d = 0; d < depth; d += 64) {
    const __mmask64 here = depth - d < 64 ? (__mmask64{1} << (depth - d)) - 1 : ~__mmask64{0};
    const __m512i a = _mm512_maskz_loadu_epi8(here, row + d);
    products = _mm512_dpbusd_epi32(products, a, _mm512_xor_si512(a, flip));
    sums = _mm512_dpbusd_epi32(sums, a, one);
  }
  const __m512i shifted = _mm512_slli_epi32(sums, 7);
  return _mm512_reduce_add_epi32(lane ? _mm512_add_epi32(products, shifted) : _mm512_sub_epi32(products, shifted));
}

template <bool lane>
void read(const void* row, int64_t depth, int64_t begin, int count, int32_t* to) {
  const uint8_t* bytes = static_cast<const uint8_t*>(row);
  if ((begin + count) * 4 > depth + 3) to[--count] = own_term<lane>(bytes, depth);
  const __m512i flip = _mm512_set1_epi8(static_cast<char>(lane ? 0x80 : 0));
  for (int i = 0; i < count; i += 16) {
    const int64_t left = depth - (begin + i) * 4;
    const __mmask64 here = left < 64 ? (__mmask64{1} << left) - 1 : ~__mmask64{0};
    const __mmask16 units =
        count - i < 16 ? static_cast<__mmask16>((1u << (count - i)) - 1) : static_cast<__mmask16>(-1);
    const __m512i v = _mm512_maskz_loadu_epi8(here, bytes + (begin + i) * 4);
    _mm512_mask_storeu_epi32(to + i, units, _mm512_xor_si512(v, flip));
  }
}

// kRowTile rows against one panel: sums of a.(b - 128), or with the terms behind `count` the distances.
void tile(const int32_t* panel, const int32_t* rows, int count, int32_t* sums, bool first, bool last) {
  constexpr int w = Vec<int32_t>::width;
  __m512i sum[kRowTile][kPanelVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRowTile; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kPanelVectors; ++v)
      sum[r][v] = first ? _mm512_setzero_si512() : _mm512_loadu_si512(sums + r * kLanes<int32_t> + v * w);
  for (int u = 0; u < count; ++u, panel += kLanes<int32_t>) {
    const __m512i low = _mm512_loadu_si512(panel), high = _mm512_loadu_si512(panel + w);
#pragma GCC unroll 8
    for (int r = 0; r < kRowTile; ++r) {
      const __m512i a = _mm512_set1_epi32(rows[r * kRowStride<int32_t> + u]);
      sum[r][0] = _mm512_dpbusd_epi32(sum[r][0], a, low);
      sum[r][1] = _mm512_dpbusd_epi32(sum[r][1], a, high);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRowTile; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kPanelVectors; ++v) {
      if (last) {
        const __m512i terms = _mm512_add_epi32(_mm512_loadu_si512(panel + v * w),
                                               _mm512_set1_epi32(rows[r * kRowStride<int32_t> + count]));
        sum[r][v] = _mm512_sub_epi32(terms, _mm512_slli_epi32(sum[r][v], 1));
      }
      _mm512_storeu_si512(sums + r * kLanes<int32_t> + v * w, sum[r][v]);
    }
}

void block(const int32_t* panel, const int32_t* rows, int count, int nr, int32_t* sums, bool first, bool last) {
  for (int r = 0; r < nr; r += kRowTile)
    tile(panel, rows + r * kRowStride<int32_t>, count - last, sums + r * kLanes<int32_t>, first, last);
}

constexpr ByteProducts kProducts{&read<false>, &read<true>, &block};

}  // namespace

void cdist_products(const CdistParams& p, const Exec& exec) { avx512::cdist_products(p, kProducts, exec); }
size_t cdist_products_workspace(const CdistParams& p, int threads) {
  return avx512::cdist_products_workspace(p, kProducts, threads);
}
void knn_products(const KnnParams& p, const Exec& exec) { avx512::knn_products(p, kProducts, exec); }
size_t knn_products_workspace(const KnnParams& p, int threads) {
  return avx512::knn_products_workspace(p, kProducts, threads);
}

}  // namespace fastcv::FASTCV_ISA
