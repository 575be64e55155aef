// knn on the register tiles of tile.h: queries lie across the lanes, references are broadcast in ascending order, and
// each tile's sums are compared with the lanes' thresholds, the k-th best so far, before anything is stored.
#include "neighbors/knn.h"

#include "common/dispatch.h"
#include "neighbors/root.h"
#include "neighbors/tile.h"
#include "neighbors/topk.h"

namespace fastcv::FASTCV_ISA {
namespace {

constexpr int kMaxPanels = 8;
constexpr int64_t kPackedBytes = 4 << 20;      // of one chunk of queries
constexpr int64_t kCandidateBytes = 16 << 20;  // of one chunk of queries
constexpr int64_t kMaxSorted = 32;             // up to this k the candidates are kept sorted by insertion

// The bits of a sum >= 0 order as it does; all NaN become one key above infinity's.
template <class T>
FASTCV_INLINE Vec<KeyOf<T>> key_of(Vec<T> sum) {
  if constexpr (std::is_integral_v<T>) return sum;
  else return min(bitcast<KeyOf<T>>(sum) & Vec<KeyOf<T>>(kNoKey<T>), Vec<KeyOf<T>>(kNanKey<T>));
}

// One bit per lane where a < b.
template <class K>
FASTCV_INLINE uint32_t less_bits(Vec<K> a, Vec<K> b) {
#if defined(__AVX512F__)
  if constexpr (sizeof(K) == 4) return _mm512_cmplt_epi32_mask((__m512i)a.v, (__m512i)b.v);
  else return _mm512_cmplt_epi64_mask((__m512i)a.v, (__m512i)b.v);
#elif defined(__AVX2__)
  if constexpr (sizeof(K) == 4)
    return _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32((__m256i)b.v, (__m256i)a.v)));
  else return _mm256_movemask_pd(_mm256_castsi256_pd(_mm256_cmpgt_epi64((__m256i)b.v, (__m256i)a.v)));
#else
  uint32_t bits = 0;
  for (int i = 0; i < Vec<K>::width; ++i) bits |= static_cast<uint32_t>(a.v[i] < b.v[i]) << i;
  return bits;
#endif
}

// How the work is cut into tasks, and the scratch of a thread. Cutting changes no result.
template <class T>
struct Plan {
  int threads;
  int panels;                // of queries, per chunk
  int64_t chunks, segments;  // of queries per batch item, of references
  int64_t units, capacity;   // capacity: candidates per query
  int64_t sweep_bytes, limit_bytes, count_bytes, slot_bytes, merge_bytes;

  Plan(const KnnParams& p, const DistanceKernel<T>& kernel, int allowed) {
    units = kernel.units(p.depth);
    threads = threads_for(p.batch * p.m * p.n, units, allowed);
    capacity = p.k <= kMaxSorted ? p.k : 2 * p.k + 16;
    if (capacity > p.n) capacity = p.n;
    if (capacity < 1) capacity = 1;
    const int64_t all = (p.m + kLanes<T> - 1) / kLanes<T>;
    const int64_t lane_bytes = (units < 1 ? 1 : units) * static_cast<int64_t>(sizeof(T));
    const int64_t candidate_bytes = capacity * static_cast<int64_t>(sizeof(Neighbor));
    const auto least = [](int64_t a, int64_t b) { return a < b ? a : b; };
    const int64_t take =
        least(least(kMaxPanels, (all * p.batch + threads - 1) / threads),
              least(kPackedBytes / (kLanes<T> * lane_bytes), kCandidateBytes / (kLanes<T> * candidate_bytes)));
    panels = static_cast<int>(take < 1 ? 1 : take);
    chunks = (all + panels - 1) / panels;
    const int64_t tasks = chunks * p.batch;
    segments = tasks >= threads ? 1 : least((threads + tasks - 1) / tasks, (p.n + kRowBlock - 1) / kRowBlock);
    if (segments < 1) segments = 1;
    const auto round = [](int64_t bytes) { return (bytes + 63) / 64 * 64; };
    sweep_bytes = round(SweepScratch<T>::elements(panels, units) * sizeof(T));
    limit_bytes = round(2 * panels * kLanes<T> * sizeof(KeyOf<T>));
    count_bytes = round(panels * kLanes<T> * sizeof(int64_t));
    slot_bytes = sweep_bytes + limit_bytes + count_bytes + round(panels * kLanes<T> * candidate_bytes);
    merge_bytes = segments == 1 ? 0 : p.batch * p.m * segments * (p.k + 1) * static_cast<int64_t>(sizeof(Neighbor));
  }
};

// The candidates of the queries of one chunk.
template <class T>
struct Candidates {
  using K = KeyOf<T>;
  K* limit;    // a sum must have a smaller key to get in; padding lanes admit nothing
  K* nearest;  // k = 1: the index beside it
  int64_t* count;
  Neighbor* all;  // [query][capacity]
  int64_t k, capacity;

  void start(int64_t queries, int64_t lanes) {
    std::memset(nearest, 0, lanes * sizeof(K));
    std::memset(count, 0, lanes * sizeof(int64_t));
    for (int64_t q = 0; q < lanes; q += Vec<K>::width) detail::store_raw(limit + q, Vec<K>(kNoKey<T>));
    for (int64_t q = queries; q < lanes; ++q) limit[q] = 0;
  }
  void insert(int64_t q, K key, int64_t index) {
    Neighbor* mine = all + q * capacity;
    int64_t& n = count[q];
    if (k > kMaxSorted) {
      mine[n++] = {key, index};
      if (n == capacity && n > k) {
        limit[q] = static_cast<K>(keep_smallest(mine, n, k));
        n = k;
      }
      return;
    }
    int64_t i = n < k ? n++ : k - 1;
    for (; i > 0 && mine[i - 1].key > key; --i) mine[i] = mine[i - 1];
    mine[i] = {key, index};
    if (n == k) limit[q] = static_cast<K>(mine[k - 1].key);
  }
  // The k best of query q, nearest first.
  Neighbor* finish(int64_t q) {
    Neighbor* mine = all + q * capacity;
    if (k > kMaxSorted) {
      if (count[q] > k) keep_smallest(mine, count[q], k);
      count[q] = count[q] < k ? count[q] : k;
      sort_neighbors(mine, count[q]);
    }
    return mine;
  }
};

template <class T>
void offer(Candidates<T>& candidates, const T* sums, int panels, int64_t row0, int nr) {
  constexpr int w = Vec<T>::width;
  using K = KeyOf<T>;
  for (int v = 0; v < panels * kPanelVectors; ++v) {
    const T* from = sums + v / kPanelVectors * kRowBlock * kLanes<T> + v % kPanelVectors * w;
    Vec<K> limit = detail::load_raw(candidates.limit + v * w);
    for (int r = 0; r < nr; ++r) {
      const Vec<K> key = key_of(detail::load_raw(from + r * kLanes<T>));
      uint32_t bits = less_bits(key, limit);
      if (bits == 0) [[likely]]
        continue;
      K keys[w];
      detail::store_raw(keys, key);
      for (; bits != 0; bits &= bits - 1) {
        const int lane = __builtin_ctz(bits);
        candidates.insert(v * w + lane, keys[lane], row0 + r);
      }
      limit = detail::load_raw(candidates.limit + v * w);
    }
  }
}

// k = 1: the best key and its index stay in registers.
template <class T>
void offer_nearest(Candidates<T>& candidates, const T* sums, int panels, int64_t row0, int nr) {
  constexpr int w = Vec<T>::width;
  using K = KeyOf<T>;
  for (int v = 0; v < panels * kPanelVectors; ++v) {
    const T* from = sums + v / kPanelVectors * kRowBlock * kLanes<T> + v % kPanelVectors * w;
    Vec<K> best = detail::load_raw(candidates.limit + v * w), index = detail::load_raw(candidates.nearest + v * w);
    for (int r = 0; r < nr; ++r) {
      const Vec<K> key = key_of(detail::load_raw(from + r * kLanes<T>));
      const Mask<K> closer = key < best;
      best = select<K>(closer, key, best);
      index = select<K>(closer, Vec<K>(static_cast<K>(row0 + r)), index);
    }
    detail::store_raw(candidates.limit + v * w, best);
    detail::store_raw(candidates.nearest + v * w, index);
  }
}

template <class T>
void emit(const KnnParams& p, const Root<T>& root, const Neighbor* best, int64_t query) {
  dispatch_float(p.out_dtype, [&](auto zero) {
    using S = decltype(zero);
    S* distances = static_cast<S*>(p.distances) + query * p.k_out;
    int64_t* indices = p.indices + query * p.k_out;
    for (int64_t i = 0; i < p.k; ++i) {
      store_result(distances + i, root(sum_of<T>(best[i].key)));
      indices[i] = best[i].index;
    }
    for (int64_t i = p.k; i < p.k_out; ++i) {
      store_result(distances + i, __builtin_inf());
      indices[i] = -1;
    }
  });
}

// k = 1, in vectors. Returns false where the types are others.
template <class T>
bool emit_nearest(const KnnParams& p, const Root<T>& root, const Candidates<T>& best, int64_t query, int64_t queries) {
  if constexpr (std::is_integral_v<T>) {
    return false;
  } else {
    if (p.k_out != 1 || root.kind == RootKind::general || p.out_dtype != (sizeof(T) == 8 ? DType::f64 : DType::f32))
      return false;
    constexpr int w = Vec<T>::width;
    T* distances = static_cast<T*>(p.distances) + query;
    for (int64_t q = 0; q < queries; q += w) {
      const Vec<T> sum = bitcast<T>(detail::load_raw(best.limit + q));
      const Vec<T> result = root.kind == RootKind::square ? sqrt(sum) : sum;
      if (q + w <= queries) detail::store_raw(distances + q, result);
      else detail::store_raw_n(distances + q, result, static_cast<int>(queries - q));
    }
    int64_t q = 0;
    if constexpr (sizeof(T) == 4) {
      typedef int32_t Half __attribute__((vector_size(kVectorBytes / 2)));
      constexpr int n = Vec<int64_t>::width;
      for (; q + n <= queries; q += n) {
        Half narrow;
        std::memcpy(&narrow, best.nearest + q, sizeof narrow);
        detail::store_raw(p.indices + query + q, Vec<int64_t>(__builtin_convertvector(narrow, Vec<int64_t>::Raw)));
      }
    }
    for (; q < queries; ++q) p.indices[query + q] = best.nearest[q];
    return true;
  }
}

template <class T>
void run(const KnnParams& p, const DistanceKernel<T>& kernel, const Exec& exec) {
  using K = KeyOf<T>;
  const Plan<T> plan(p, kernel, exec.threads);
  const Exec used{exec.parallel, plan.threads, exec.workspace};
  const Root<T> root(p.p, p.squared);
  const bool nearest = p.k == 1 && p.n < INT32_MAX;
  char* memory = static_cast<char*>(exec.workspace);
  // [query][segment][k], the number of each in the key of one more.
  Neighbor* merge = reinterpret_cast<Neighbor*>(memory + plan.threads * plan.slot_bytes);
  parallel_slots(used, p.batch * plan.chunks * plan.segments, 1, [&](int slot, int64_t begin, int64_t end) {
    char* mine = memory + slot * plan.slot_bytes;
    const SweepScratch<T> scratch(reinterpret_cast<T*>(mine), plan.panels, plan.units);
    mine += plan.sweep_bytes;
    Candidates<T> candidates{reinterpret_cast<K*>(mine),
                             reinterpret_cast<K*>(mine) + plan.panels * kLanes<T>,
                             reinterpret_cast<int64_t*>(mine + plan.limit_bytes),
                             reinterpret_cast<Neighbor*>(mine + plan.limit_bytes + plan.count_bytes),
                             p.k,
                             plan.capacity};
    for (int64_t task = begin; task < end; ++task) {
      const int64_t segment = task % plan.segments, chunk = task / plan.segments % plan.chunks;
      const int64_t b = task / plan.segments / plan.chunks;
      const int64_t q0 = chunk * plan.panels * kLanes<T>, left = p.m - q0;
      const int64_t queries = left < plan.panels * kLanes<T> ? left : plan.panels * kLanes<T>;
      const int panels = static_cast<int>((queries + kLanes<T> - 1) / kLanes<T>);
      candidates.start(queries, panels * kLanes<T>);
      pack_panels(kernel, static_cast<const char*>(p.x) + (b * p.x_batch + q0 * p.depth) * kernel.source_bytes, queries,
                  p.depth, scratch.packed);
      sweep(kernel, scratch, panels, static_cast<const char*>(p.y) + b * p.y_batch * kernel.source_bytes,
            p.n * segment / plan.segments, p.n * (segment + 1) / plan.segments, p.depth, [&](int64_t row0, int nr) {
              if (nearest) offer_nearest(candidates, scratch.sums, panels, row0, nr);
              else offer(candidates, scratch.sums, panels, row0, nr);
            });
      if (nearest && plan.segments == 1 && emit_nearest(p, root, candidates, b * p.m + q0, queries)) continue;
      for (int64_t q = 0; q < queries; ++q) {
        const Neighbor one{candidates.limit[q], candidates.nearest[q]};
        const Neighbor* best = nearest ? &one : candidates.finish(q);
        const int64_t query = b * p.m + q0 + q;
        if (plan.segments == 1) {
          emit(p, root, best, query);
          continue;
        }
        Neighbor* to = merge + (query * plan.segments + segment) * (p.k + 1);
        to[0].key = nearest ? 1 : candidates.count[q];
        std::memcpy(to + 1, best, to[0].key * sizeof(Neighbor));
      }
    }
  });
  if (plan.segments == 1) return;
  parallel_for(exec, p.batch * p.m, 64, [&](int64_t begin, int64_t end) {
    for (int64_t query = begin; query < end; ++query) {
      Neighbor* from = merge + query * plan.segments * (p.k + 1);
      int64_t total = 0;
      for (int64_t s = 0; s < plan.segments; ++s) {
        const Neighbor* part = from + s * (p.k + 1);
        const int64_t count = part[0].key;
        std::memmove(from + total, part + 1, count * sizeof(Neighbor));
        total += count;
      }
      sort_neighbors(from, total);
      emit(p, root, from, query);
    }
  });
}

template <class T>
size_t workspace(const KnnParams& p, const DistanceKernel<T>& kernel, int threads) {
  if (p.batch * p.m == 0) return 0;
  const Plan<T> plan(p, kernel, threads);
  return plan.threads * plan.slot_bytes + plan.merge_bytes;
}

}  // namespace

void knn(const KnnParams& p, const Exec& exec) {
  if (p.batch * p.m == 0) return;
  with_kernel(p.dtype, p.p, p.depth, [&](const auto& kernel) { run(p, kernel, exec); });
}

size_t knn_workspace(const KnnParams& p, int threads) {
  size_t bytes = 0;
  with_kernel(p.dtype, p.p, p.depth, [&](const auto& kernel) { bytes = workspace(p, kernel, threads); });
  return bytes;
}

void knn_products(const KnnParams& p, const ByteProducts& products, const Exec& exec) {
  if (p.batch * p.m > 0) run(p, product_kernel(products), exec);
}
size_t knn_products_workspace(const KnnParams& p, const ByteProducts& products, int threads) {
  return workspace(p, product_kernel(products), threads);
}

}  // namespace fastcv::FASTCV_ISA
