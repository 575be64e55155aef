// The register tiles of every metric, and the packing of lanes; see tile.h.
#include "neighbors/tile.h"

#include "neighbors/pow_abs.h"
#include "neighbors/tile_block.h"

namespace fastcv::FASTCV_ISA {
namespace {

template <class T_>
struct L1 {
  using T = T_;
  explicit L1(double) {}
  Vec<T> step(Vec<T> sum, Vec<T> a, Vec<T> b) const { return sum + abs(a - b); }
  static Vec<T> join(Vec<T> sum, Vec<T> more) { return sum + more; }
};
template <class T_>
struct L2 {
  using T = T_;
  explicit L2(double) {}
  Vec<T> step(Vec<T> sum, Vec<T> a, Vec<T> b) const {
    const Vec<T> d = a - b;
    return fma(d, d, sum);
  }
  static Vec<T> join(Vec<T> sum, Vec<T> more) { return sum + more; }
};
template <class T_>
struct Linf {
  using T = T_;
  explicit Linf(double) {}
  Vec<T> step(Vec<T> sum, Vec<T> a, Vec<T> b) const { return max(abs(a - b), sum); }
  static Vec<T> join(Vec<T> sum, Vec<T> more) { return max(more, sum); }
};
template <class T_>
struct L0 {
  using T = T_;
  explicit L0(double) {}
  Vec<T> step(Vec<T> sum, Vec<T> a, Vec<T> b) const {
    const Vec<T> d = a - b;
    return sum + select<T>(d == d, select<T>(d == Vec<T>(T(0)), Vec<T>(T(0)), Vec<T>(T(1))), d);
  }
  static Vec<T> join(Vec<T> sum, Vec<T> more) { return sum + more; }
};
template <class T_>
struct Lp {
  using T = T_;
  PowAbs<T> power;
  explicit Lp(double p) : power(p) {}
  Vec<T> step(Vec<T> sum, Vec<T> a, Vec<T> b) const { return sum + power(a - b); }
  static Vec<T> join(Vec<T> sum, Vec<T> more) { return sum + more; }
};
// 8 bytes a lane.
struct U8L1 {
  using T = int64_t;
  explicit U8L1(double) {}
  Vec<T> step(Vec<T> sum, Vec<T> a, Vec<T> b) const {
#if defined(__AVX512BW__)
    return sum + Vec<T>((Vec<T>::Raw)_mm512_sad_epu8((__m512i)a.v, (__m512i)b.v));
#elif defined(__AVX2__)
    return sum + Vec<T>((Vec<T>::Raw)_mm256_sad_epu8((__m256i)a.v, (__m256i)b.v));
#else
    for (int i = 0; i < Vec<T>::width; ++i) {
      uint8_t x[8], y[8];
      const T xi = a.v[i], yi = b.v[i];
      std::memcpy(x, &xi, 8);
      std::memcpy(y, &yi, 8);
      int total = 0;
      for (int j = 0; j < 8; ++j) total += x[j] > y[j] ? x[j] - y[j] : y[j] - x[j];
      sum.v[i] += total;
    }
    return sum;
#endif
  }
  static Vec<T> join(Vec<T> sum, Vec<T> more) { return sum + more; }
};
// 2 bytes a lane, as int16.
struct U8L2 {
  using T = int32_t;
  explicit U8L2(double) {}
  Vec<T> step(Vec<T> sum, Vec<T> a, Vec<T> b) const {
#if defined(__AVX512BW__)
    const __m512i d = _mm512_sub_epi16((__m512i)a.v, (__m512i)b.v);
    return sum + Vec<T>((Vec<T>::Raw)_mm512_madd_epi16(d, d));
#elif defined(__AVX2__)
    const __m256i d = _mm256_sub_epi16((__m256i)a.v, (__m256i)b.v);
    return sum + Vec<T>((Vec<T>::Raw)_mm256_madd_epi16(d, d));
#else
    for (int i = 0; i < Vec<T>::width; ++i) {
      const int low = (a.v[i] & 0xffff) - (b.v[i] & 0xffff), high = (a.v[i] >> 16) - (b.v[i] >> 16);
      sum.v[i] += low * low + high * high;
    }
    return sum;
#endif
  }
  static Vec<T> join(Vec<T> sum, Vec<T> more) { return sum + more; }
};

// ---- reading rows ------------------------------------------------------------------------------------------------

template <class S, class T>
void read_widened(const void* row, int64_t, int64_t begin, int count, T* to) {
  const S* from = static_cast<const S*>(row) + begin;
  if constexpr (std::is_same_v<T, acc_t<S>>) {
    constexpr int w = Vec<T>::width;
    int i = 0;
    for (; i + w <= count; i += w) detail::store_raw(to + i, load(from + i));
    for (; i < count; ++i) to[i] = load_one(from + i);
  } else {
    for (int i = 0; i < count; ++i) to[i] = static_cast<T>(from[i]);
  }
}

void read_bytes(const void* row, int64_t depth, int64_t begin, int count, int64_t* to) {
  const int64_t whole = (depth - begin * 8) / 8;
  const int full = whole < count ? static_cast<int>(whole) : count;
  std::memcpy(to, static_cast<const char*>(row) + begin * 8, full * 8);
  if (full < count) {
    to[full] = 0;
    std::memcpy(to + full, static_cast<const char*>(row) + (begin + full) * 8, depth - (begin + full) * 8);
  }
}

void read_pairs(const void* row, int64_t depth, int64_t begin, int count, int32_t* to) {
  const uint8_t* from = static_cast<const uint8_t*>(row) + begin * 2;
  const bool odd = (begin + count) * 2 > depth;
  const int full = odd ? count - 1 : count;
  for (int i = 0; i < full; ++i) to[i] = from[2 * i] | from[2 * i + 1] << 16;
  if (odd) to[full] = from[2 * full];
}

// ---- packing lanes -----------------------------------------------------------------------------------------------

#if defined(__AVX512F__)
constexpr int kFewCoordinates = 8;

// Of up to eight coordinates: whole vectors of float rows lie in as many vectors as there are coordinates, and each
// coordinate is picked out of these. Returns how many rows that were.
int64_t pack_few(const float* rows, int64_t count, int depth, float* to) {
  constexpr int w = Vec<float>::width;
  __m512i place[kFewCoordinates];
  __mmask16 from[kFewCoordinates][kFewCoordinates];  // which lanes of a coordinate stand in which vector
  for (int d = 0; d < depth; ++d) {
    place[d] = (__m512i)(iota<int32_t>() * Vec<int32_t>(depth) + Vec<int32_t>(d)).v;
    for (int j = 0; j < depth; ++j)
      from[d][j] = _mm512_cmpeq_epi32_mask(_mm512_srai_epi32(place[d], 4), _mm512_set1_epi32(j));
  }
  for (int64_t lane = 0; lane + w <= count; lane += w, rows += w * depth) {
    float* panel = to + lane / kLanes<float> * depth * kLanes<float> + lane % kLanes<float>;
    for (int d = 0; d < depth; ++d) {
      __m512 picked = _mm512_setzero_ps();
      for (int j = 0; j < depth; ++j)
        picked = _mm512_mask_permutexvar_ps(picked, from[d][j], place[d], _mm512_loadu_ps(rows + j * w));
      _mm512_storeu_ps(panel + d * kLanes<float>, picked);
    }
  }
  return count / w * w;
}
#endif

template <class T>
void pack(const DistanceKernel<T>& kernel, const void* rows, int64_t count, int64_t depth, T* to) {
  constexpr int w = Vec<T>::width;
  alignas(64) T block[w * kRowStride<T>];
  const int64_t units = kernel.units(depth);
  auto read = kernel.read;
  if constexpr (std::is_same_v<T, int32_t>)
    if (kernel.products != nullptr) read = kernel.products->read_lane;
  int64_t lane = 0;
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>)
    if (depth <= kFewCoordinates && read == &read_widened<float, float>)
      lane = pack_few(static_cast<const float*>(rows), count, static_cast<int>(depth), to);
#endif
  for (; lane < count; lane += w) {
    const int here = static_cast<int>(count - lane < w ? count - lane : w);
    T* panel = to + lane / kLanes<T> * units * kLanes<T> + lane % kLanes<T>;
    for (int64_t unit = 0; unit < units; unit += kDepthBlock) {
      const int n = static_cast<int>(units - unit < kDepthBlock ? units - unit : kDepthBlock);
      for (int i = 0; i < w; ++i) {
        T* row = block + i * kRowStride<T>;
        if (i >= here) std::memset(row, 0, n * sizeof(T));
        else read(static_cast<const char*>(rows) + (lane + i) * depth * kernel.source_bytes, depth, unit, n, row);
      }
      int u = 0;
      for (; u + w <= n; u += w) {
        Vec<T> v[w];
        for (int i = 0; i < w; ++i) v[i] = detail::load_raw(block + i * kRowStride<T> + u);
        transpose<w>(v);
        for (int i = 0; i < w; ++i) detail::store_raw(panel + (unit + u + i) * kLanes<T>, v[i]);
      }
      for (; u < n; ++u)
        for (int i = 0; i < w; ++i) panel[(unit + u) * kLanes<T> + i] = block[i * kRowStride<T> + u];
    }
  }
  // The lanes of vectors that no row reached.
  for (lane = (count + w - 1) / w * w; lane % kLanes<T> != 0; lane += w)
    for (int64_t unit = 0; unit < units; ++unit)
      detail::store_raw(to + lane / kLanes<T> * units * kLanes<T> + unit * kLanes<T> + lane % kLanes<T>, Vec<T>(T(0)));
}

template <class T>
void fill_float_kernel(Metric metric, DistanceKernel<T>& kernel) {
  switch (metric) {
    case Metric::l1:
      kernel.block = &block<L1<T>>;
      return;
    case Metric::l2:
      kernel.block = &block<L2<T>>;
      return;
    case Metric::linf:
      kernel.block = &block<Linf<T>>;
      return;
    case Metric::l0:
      kernel.block = &block<L0<T>>;
      return;
    case Metric::lp:
      kernel.block = &block<Lp<T>>;
      return;
    default:
      __builtin_trap();
  }
}

}  // namespace

void distance_kernel(DType storage, Metric metric, double p, DistanceKernel<float>& kernel) {
  kernel = {metric, p, 1, nullptr, nullptr, storage == DType::f32 ? 4 : storage == DType::u8 ? 1 : 2};
  kernel.read = storage == DType::f32    ? &read_widened<float, float>
                : storage == DType::bf16 ? &read_widened<bf16, float>
                : storage == DType::f16  ? &read_widened<f16, float>
                                         : &read_widened<uint8_t, float>;
  fill_float_kernel(metric, kernel);
}
void distance_kernel(DType storage, Metric metric, double p, DistanceKernel<double>& kernel) {
  kernel = {metric, p, 1, nullptr, nullptr, storage == DType::f64 ? 8 : 1};
  kernel.read = storage == DType::f64 ? &read_widened<double, double> : &read_widened<uint8_t, double>;
  fill_float_kernel(metric, kernel);
}
void distance_kernel(DType, Metric metric, double p, DistanceKernel<int32_t>& kernel) {
  kernel = {metric, p, 2, &read_pairs, &block<U8L2>, 1};
}
void distance_kernel(DType, Metric metric, double p, DistanceKernel<int64_t>& kernel) {
  kernel = {metric, p, 8, &read_bytes, &block<U8L1>, 1};
}

DistanceKernel<int32_t> product_kernel(const ByteProducts& products) {
  const auto block = [](const DistanceKernel<int32_t>& kernel, const int32_t* panel, const int32_t* rows, int count,
                        int nr, int32_t* sums, bool first,
                        bool last) { kernel.products->block(panel, rows, count, nr, sums, first, last); };
  return {Metric::u8_l2, 2, 4, products.read_row, block, 1, &products};
}

void pack_panels(const DistanceKernel<float>& k, const void* rows, int64_t count, int64_t depth, float* to) {
  pack(k, rows, count, depth, to);
}
void pack_panels(const DistanceKernel<double>& k, const void* rows, int64_t count, int64_t depth, double* to) {
  pack(k, rows, count, depth, to);
}
void pack_panels(const DistanceKernel<int32_t>& k, const void* rows, int64_t count, int64_t depth, int32_t* to) {
  pack(k, rows, count, depth, to);
}
void pack_panels(const DistanceKernel<int64_t>& k, const void* rows, int64_t count, int64_t depth, int64_t* to) {
  pack(k, rows, count, depth, to);
}

}  // namespace fastcv::FASTCV_ISA
