// k nearest neighbours by Euclidean distance in two steps: a bf16 matrix product bounds every distance from both sides,
// and only what the bounds cannot exclude is summed exactly.
//
// With q, r centred on the mean c of a few references (which cancels in q - r) and rounded to b(q), b(r):
//   |q - r|^2 - |q|^2 = s + error,  s = |r|^2 - 2 b(q).b(r),
//   |error| <= 2 (|q - b(q)| |r| + |b(q)| |r - b(r)|) + rounding of the sums  =  A(q) |r| + B(q) |r - b(r)| + G |r|^2.
// A reference is dropped when its lower bound exceeds the k-th smallest upper bound so far. The bounds cover the
// rounding of the exact sum too, so the k best by the exact sums' bits always survive. NaN is never dropped.
#include "neighbors/knn.h"

#include "neighbors/tile.h"
#include "neighbors/tile_block.h"
#include "neighbors/topk.h"

namespace fastcv::FASTCV_ISA {
namespace {

constexpr int kW = 16;  // floats, and pairs of bf16, in a vector
constexpr int kMaxPanels = 8;
constexpr int kPanelLanes = kLanes<int32_t>;
constexpr int64_t kMaxK = 32;
constexpr int kCenterSamples = 64;
constexpr int64_t kCheckEvery = 1024;  // references between looks at whether the filter still pays
constexpr double kUnit = 0x1p-24;      // rounding to nearest, relative
constexpr double kTiny = 1e-30;        // more than flushing to zero can lose

using VecF = Vec<float>;

// Sums are floats, carried as the bits of int32 because a panel's lanes are pairs of bf16.
struct Dot {
  using T = int32_t;
  explicit Dot(double) {}
  Vec<T> step(Vec<T> sum, Vec<T> a, Vec<T> b) const {
    return Vec<T>((Vec<T>::Raw)_mm512_dpbf16_ps((__m512)sum.v, (__m512bh)a.v, (__m512bh)b.v));
  }
  static Vec<T> join(Vec<T> sum, Vec<T> more) { return bitcast<T>(bitcast<float>(sum) + bitcast<float>(more)); }
};

// Of one row while it is converted: lanes of |r|^2 and |r - b(r)|^2.
struct Norms {
  VecF square, error;
};

FASTCV_INLINE VecF centred(const float* row, const float* center, int n) {
  const __mmask16 mask = n >= kW ? 0xffff : n <= 0 ? 0 : static_cast<__mmask16>((1u << n) - 1);
  return VecF((VecF::Raw)_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, row), _mm512_maskz_loadu_ps(mask, center)));
}

// Units [begin, begin + count) of row - center as pairs of bf16; what lies beyond the depth is zero.
void convert(const float* row, const float* center, int64_t depth, int64_t begin, int count, int32_t* to,
             Norms& norms) {
  for (int u = 0; u < count; u += kW) {
    const int64_t d = (begin + u) * 2;
    const int left = static_cast<int>(depth - d < 2 * kW ? depth - d : 2 * kW);
    const VecF low = centred(row + d, center + d, left), high = centred(row + d + kW, center + d + kW, left - kW);
    const __m512i pairs = (__m512i)_mm512_cvtne2ps_pbh((__m512)high.v, (__m512)low.v);
    const auto widen = [](__m256i half) { return VecF((VecF::Raw)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16)); };
    const VecF low_error = low - widen(_mm512_castsi512_si256(pairs));
    const VecF high_error = high - widen(_mm512_extracti64x4_epi64(pairs, 1));
    norms.square = fma(high, high, fma(low, low, norms.square));
    norms.error = fma(high_error, high_error, fma(low_error, low_error, norms.error));
    _mm512_storeu_si512(to + u, pairs);  // rows and blocks are padded to whole vectors
  }
}

struct Plan {
  int panels;
  int64_t chunks, units, blocks, capacity;
  int64_t packed_bytes, rows_bytes, sums_bytes, query_bytes, center_bytes, slot_bytes;

  Plan(const KnnParams& p, int threads) {
    units = (p.depth + 1) / 2;
    blocks = (units + kDepthBlock - 1) / kDepthBlock;
    capacity = 8 * p.k + 256;
    const int64_t all = (p.m + kPanelLanes - 1) / kPanelLanes, fair = (all * p.batch + threads - 1) / threads;
    panels = static_cast<int>(fair < 1 ? 1 : fair < kMaxPanels ? fair : kMaxPanels);
    chunks = (all + panels - 1) / panels;
    const auto round = [](int64_t bytes) { return (bytes + 63) / 64 * 64; };
    const int64_t lanes = int64_t{panels} * kPanelLanes;
    packed_bytes = lanes * units * 4;
    rows_bytes = round(kRowBlock * kRowStride<int32_t> * 4);
    sums_bytes = lanes * kRowBlock * 4;
    query_bytes = round(lanes * (3 * 4 + 8 * (3 + p.k) + 8 * capacity));
    center_bytes = round((p.depth + 2 * kW) * 4);
    KnnParams chunk = p;
    chunk.batch = 1;
    chunk.m = lanes < p.m ? lanes : p.m;
    slot_bytes = packed_bytes + rows_bytes + sums_bytes + query_bytes + center_bytes +
                 round(static_cast<int64_t>(avx512::knn_workspace(chunk, 1)));
  }
};

struct Candidate {
  float low;  // the lower bound, without |q|^2
  int32_t index;
};

// The state of a chunk's queries: vectors of lanes, then lists.
struct Queries {
  float *a, *b, *limit;  // a candidate's lower bound must not exceed the limit
  double* square;        // |q|^2
  double* square_error;  // how far off it may be
  int64_t* count;
  double* upper;          // [query][k]: the smallest upper bounds, sorted
  Candidate* candidates;  // [query][capacity]
  int64_t k, capacity;
  double exact_error;  // relative, of the exact sum
  bool overflow;

  Queries(char* memory, const KnnParams& p, const Plan& plan) : k(p.k), capacity(plan.capacity), overflow(false) {
    const int64_t lanes = int64_t{plan.panels} * kPanelLanes;
    square = reinterpret_cast<double*>(memory);
    square_error = square + lanes;
    count = reinterpret_cast<int64_t*>(square_error + lanes);
    upper = reinterpret_cast<double*>(count + lanes);
    a = reinterpret_cast<float*>(upper + lanes * k);
    b = a + lanes;
    limit = b + lanes;
    candidates = reinterpret_cast<Candidate*>(limit + lanes);
    exact_error = (kDepthBlock + p.depth / kDepthBlock + 16) * kUnit;
  }

  void start(int64_t q, bool used, const Norms& norms, const Plan& plan) {
    const double n2 = reduce_add(norms.square), e2 = reduce_add(norms.error);
    const double sum_error = (plan.units / 8 + 32) * kUnit;
    const double norm = __builtin_sqrt(n2) * 1.0001, error = __builtin_sqrt(e2) * 1.0001 + 2 * kUnit * norm;
    const double rounded = norm + error, product_error = (2 * kDepthBlock + plan.blocks + 32) * kUnit;
    a[q] = static_cast<float>(2.02 * (error + product_error * rounded));
    b[q] = static_cast<float>(2.02 * rounded * (1 + product_error));
    square[q] = n2;
    square_error[q] = n2 * sum_error + kTiny;
    count[q] = 0;
    limit[q] = used ? __builtin_inff() : -__builtin_inff();
    for (int64_t i = 0; i < k; ++i) upper[q * k + i] = __builtin_inf();
  }

  // A pair whose lower bound is `low`, `width` below the upper one (both without |q|^2).
  void insert(int64_t q, float low, double width, int64_t index) {
    Candidate* mine = candidates + q * capacity;
    if (count[q] == capacity) {
      int64_t kept = 0;
      for (int64_t i = 0; i < capacity; ++i)
        if (!(mine[i].low > limit[q])) mine[kept++] = mine[i];
      count[q] = kept;
      if (kept > capacity / 2) {
        overflow = true;
        limit[q] = -__builtin_inff();
        return;
      }
    }
    mine[count[q]++] = {low, static_cast<int32_t>(index)};
    const double high = (low + width + square[q] + square_error[q]) * (1 + exact_error);
    double* best = upper + q * k;
    if (!(high < best[k - 1])) return;
    int64_t i = k - 1;
    for (; i > 0 && best[i - 1] > high; --i) best[i] = best[i - 1];
    best[i] = high;
    const double tau = best[k - 1] < 0 ? 0 : best[k - 1];
    const double bound = tau / (1 - exact_error) - square[q] + square_error[q];
    limit[q] = static_cast<float>(bound + 1e-6 * (tau + square[q]) + kTiny);
  }
};

// (q - r)^2 for 16 references of one query, each summed as the tiles of tile.h sum it.
VecF exact_sums(const float* query, const float* const* references, int64_t depth) {
  VecF total(0.0f);
  for (int64_t begin = 0; begin < depth; begin += kDepthBlock) {
    const int64_t end = depth - begin < kDepthBlock ? depth : begin + kDepthBlock;
    VecF sum(0.0f);
    for (int64_t d = begin; d < end; d += kW) {
      const int n = static_cast<int>(end - d < kW ? end - d : kW);
      VecF v[kW];
      for (int i = 0; i < kW; ++i) v[i] = n == kW ? load(references[i] + d) : load_n(references[i] + d, n);
      transpose<kW>(v);
      for (int i = 0; i < n; ++i) {
        const VecF difference = v[i] - VecF(query[d + i]);
        sum = fma(difference, difference, sum);
      }
    }
    total = begin == 0 ? sum : total + sum;
  }
  return total;
}

// The k best of the surviving candidates by their exact sums.
void rank(const KnnParams& p, const Queries& queries, int64_t q, const float* query, const float* y, int64_t row) {
  Neighbor best[kMaxK];
  int64_t found = 0;
  const Candidate* mine = queries.candidates + q * queries.capacity;
  const float* references[kW];
  int64_t index[kW];
  int n = 0;
  const auto flush = [&] {
    for (int i = n; i < kW; ++i) references[i] = references[0];
    float sums[kW];
    store(sums, exact_sums(query, references, p.depth));
    for (int i = 0; i < n; ++i) {
      // A few NaN may have come so far; there are numbers enough before them, or the chunk would have overflowed.
      const int64_t key = sums[i] != sums[i] ? INT32_MAX : bitcast<int32_t>(VecF(sums[i]))[0];
      if (found == p.k && best[found - 1].key <= key) continue;
      int64_t at = found < p.k ? found++ : found - 1;
      for (; at > 0 && best[at - 1].key > key; --at) best[at] = best[at - 1];
      best[at] = {key, index[i]};
    }
    n = 0;
  };
  for (int64_t i = 0; i < queries.count[q]; ++i) {
    if (mine[i].low > queries.limit[q]) continue;
    index[n] = mine[i].index;
    references[n] = y + index[n] * p.depth;
    if (++n == kW) flush();
  }
  if (n > 0) flush();
  for (int64_t i = 0; i < p.k_out; ++i) {
    float distance = __builtin_inff();
    if (i < p.k) {
      const int32_t bits = static_cast<int32_t>(best[i].key);
      std::memcpy(&distance, &bits, 4);
    }
    static_cast<float*>(p.distances)[row * p.k_out + i] = p.squared ? distance : __builtin_sqrtf(distance);
    p.indices[row * p.k_out + i] = i < p.k ? best[i].index : -1;
  }
}

// One block of references against the chunk: sums hold the dot products.
void offer(Queries& queries, const float* sums, int panels, int64_t row0, int nr, const float (*of_row)[4]) {
  for (int v = 0; v < panels * kPanelVectors; ++v) {
    const VecF a = load(queries.a + v * kW), b = load(queries.b + v * kW);
    __m512 limit = (__m512)load(queries.limit + v * kW).v;
    const float* from = sums + (v / kPanelVectors * kRowBlock * kPanelLanes + v % kPanelVectors * kW);
    for (int r = 0; r < nr; ++r) {
      const float* row = of_row[r];
      const VecF error = fma(a, VecF(row[1]), b * VecF(row[2]));
      const VecF low = fma(VecF(-2.0f), load(from + r * kPanelLanes), VecF(row[0])) - error;
      uint32_t bits = _mm512_cmp_ps_mask((__m512)low.v, limit, _CMP_NGT_UQ);
      if (bits == 0) [[likely]]
        continue;
      float lows[kW], errors[kW];
      store(lows, low);
      store(errors, error);
      for (; bits != 0; bits &= bits - 1) {
        const int lane = __builtin_ctz(bits);
        queries.insert(v * kW + lane, lows[lane], 2.0 * errors[lane] + row[3], row0 + r);
      }
      limit = (__m512)load(queries.limit + v * kW).v;
    }
  }
}

void run_chunk(const KnnParams& p, const Plan& plan, int64_t b, int64_t q0, char* memory) {
  const int64_t left = p.m - q0, lanes = int64_t{plan.panels} * kPanelLanes, count = left < lanes ? left : lanes;
  const int panels = static_cast<int>((count + kPanelLanes - 1) / kPanelLanes);
  const float* x = static_cast<const float*>(p.x) + b * p.x_batch + q0 * p.depth;
  const float* y = static_cast<const float*>(p.y) + b * p.y_batch;
  int32_t* packed = reinterpret_cast<int32_t*>(memory);
  int32_t* rows = reinterpret_cast<int32_t*>(memory += plan.packed_bytes);
  int32_t* sums = reinterpret_cast<int32_t*>(memory += plan.rows_bytes);
  Queries queries(memory += plan.sums_bytes, p, plan);
  float* center = reinterpret_cast<float*>(memory += plan.query_bytes);
  char* rest = memory + plan.center_bytes;
  const DistanceKernel<int32_t> kernel{Metric::l2, 2, 2, nullptr, nullptr, 4};

  for (int64_t d = 0; d < p.depth; ++d) center[d] = 0;
  for (int i = 0; i < kCenterSamples; ++i)
    for (int64_t d = 0; d < p.depth; ++d)
      center[d] += y[p.n * i / kCenterSamples * p.depth + d] * (1.0f / kCenterSamples);

  for (int64_t lane = 0; lane < panels * kPanelLanes; lane += kW) {
    Norms norms[kW];
    for (Norms& n : norms) n = {VecF(0.0f), VecF(0.0f)};
    int32_t* panel = packed + lane / kPanelLanes * plan.units * kPanelLanes + lane % kPanelLanes;
    for (int64_t unit = 0; unit < plan.units; unit += kW) {
      Vec<int32_t> v[kW];
      const int n = static_cast<int>(plan.units - unit < kW ? plan.units - unit : kW);
      for (int i = 0; i < kW; ++i) {
        int32_t pairs[kW] = {};
        if (lane + i < count) convert(x + (lane + i) * p.depth, center, p.depth, unit, n, pairs, norms[i]);
        v[i] = detail::load_raw(pairs);
      }
      transpose<kW>(v);
      for (int i = 0; i < n; ++i) detail::store_raw(panel + (unit + i) * kPanelLanes, v[i]);
    }
    for (int i = 0; i < kW; ++i) queries.start(lane + i, lane + i < count, norms[i], plan);
  }

  const float square_error = static_cast<float>((plan.units / 8 + 64) * kUnit);
  Norms norms[kRowBlock];
  float of_row[kRowBlock][4];  // |r|^2 at least, |r|, |r - b(r)|, how far |r|^2 may lie above
  for (int64_t row = 0; row < p.n; row += kRowBlock) {
    if (row % kCheckEvery == 0 && queries.overflow) break;
    const int nr = static_cast<int>(p.n - row < kRowBlock ? p.n - row : kRowBlock);
    for (int r = 0; r < nr; ++r) norms[r] = {VecF(0.0f), VecF(0.0f)};
    for (int64_t unit = 0; unit < plan.units; unit += kDepthBlock) {
      const int n = static_cast<int>(plan.units - unit < kDepthBlock ? plan.units - unit : kDepthBlock);
      for (int r = 0; r < nr; ++r)
        convert(y + (row + r) * p.depth, center, p.depth, unit, n, rows + r * kRowStride<int32_t>, norms[r]);
      for (int r = nr; r % kRowTile != 0; ++r) std::memset(rows + r * kRowStride<int32_t>, 0, n * 4);
      for (int panel = 0; panel < panels; ++panel)
        block<Dot>(kernel, packed + (panel * plan.units + unit) * kPanelLanes, rows, n, nr,
                   sums + panel * kRowBlock * kPanelLanes, unit == 0);
    }
    for (int r = 0; r < nr; ++r) {
      const float square = reduce_add(norms[r].square);
      const float norm = __builtin_sqrtf(square) * 1.0001f;
      of_row[r][0] = square - square * square_error - static_cast<float>(kTiny);
      of_row[r][1] = norm;
      of_row[r][2] = __builtin_sqrtf(reduce_add(norms[r].error)) * 1.0001f + 2e-7f * norm;
      of_row[r][3] = 2 * (square * square_error + static_cast<float>(kTiny));
    }
    offer(queries, reinterpret_cast<const float*>(sums), panels, row, nr, of_row);
  }
  if (queries.overflow) {
    KnnParams chunk = p;
    chunk.batch = 1;
    chunk.m = count;
    chunk.x = x;
    chunk.y = y;
    chunk.distances = static_cast<float*>(p.distances) + (b * p.m + q0) * p.k_out;
    chunk.indices = p.indices + (b * p.m + q0) * p.k_out;
    avx512::knn(chunk, Exec{nullptr, 1, rest});
    return;
  }
  for (int64_t q = 0; q < count; ++q) rank(p, queries, q, x + q * p.depth, y, b * p.m + q0 + q);
}

}  // namespace

// The bounds: below them the exact tiles are as fast, because converting and ranking cost more than they save.
const char* knn_filter_why_not(const KnnParams& p) {
  if (p.p != 2 || p.dtype != DType::f32) return "needs p = 2 and float32";
  if (p.k < 1 || p.k > kMaxK) return "needs k <= 32";
  if (p.depth < 64 || p.n < 2048 || p.n > INT32_MAX || p.batch * p.m < 64)
    return "needs 64 coordinates, 2048 points and 64 queries to be worth it";
  return nullptr;
}

void knn_filter(const KnnParams& p, const Exec& exec) {
  const Plan plan(p, exec.threads);
  parallel_slots(exec, p.batch * plan.chunks, 1, [&](int slot, int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task)
      run_chunk(p, plan, task / plan.chunks, task % plan.chunks * plan.panels * kPanelLanes,
                static_cast<char*>(exec.workspace) + slot * plan.slot_bytes);
  });
}

size_t knn_filter_workspace(const KnnParams& p, int threads) { return threads * Plan(p, threads).slot_bytes; }

}  // namespace fastcv::FASTCV_ISA
