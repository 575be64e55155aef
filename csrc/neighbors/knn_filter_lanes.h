// The filter of knn_filter.h on a product of filter.h: queries lie across the lanes, blocks of references are
// broadcast. For ISA files only; they say which product, and which tiles take the chunks that have too many candidates.
#pragma once
#include "common/dispatch.h"
#include "neighbors/filter.h"
#include "neighbors/knn_filter.h"
#include "neighbors/root.h"
#include "neighbors/topk.h"

namespace fastcv::FASTCV_ISA {
namespace {

constexpr int kMostGroup = 8, kAhead = 4;  // blocks; rows

struct Pair {
  int32_t lane, reference;
  float low;  // the least that |q - r|^2 - |q|^2 can be
};

// Tasks are segments of y for chunks of queries. Cutting changes no result.
template <class P>
struct FilterPlan {
  using T = typename P::T;
  int threads, panels;
  int group;       // blocks of references at a time
  bool one_panel;  // at a time: its sums are looked at before the next one's are made
  int64_t units, chunks, segments, lanes, capacity, lists;
  int64_t packed_bytes, rows_bytes, sums_bytes, state_bytes, pairs_bytes, best_bytes, center_bytes, slot_bytes;
  int64_t failed_bytes, merge_bytes, tiles_bytes;

  FilterPlan(const KnnParams& p, int allowed, size_t (*tiles)(const KnnParams&, int)) {
    constexpr int64_t kCache = 384 << 10;  // for packed queries
    constexpr int64_t kMemory = 8 << 20;   // for them where many coordinates need more than the cache
    constexpr int64_t kLeastSegment = 1024, kLeastPacked = 1 << 20;  // references and numbers, for bounds of its own
    constexpr int64_t step = P::kUnitSize * P::kUnitStep;
    units = (p.depth + step - 1) / step * P::kUnitStep;
    threads = threads_for(p.batch * p.m * p.n, units, allowed);
    const auto most = [](int64_t a, int64_t b) { return a > b ? a : b; };
    const auto least = [](int64_t a, int64_t b) { return a < b ? a : b; };
    const auto parts = [](int64_t n, int64_t of) { return (n + of - 1) / of; };
    const int64_t panel_bytes = kLanes<T> * units * static_cast<int64_t>(sizeof(T)), all = parts(p.m, kLanes<T>);
    const int64_t take = least(most(kCache / panel_bytes, least(kMemory / panel_bytes, 32)), 64);
    chunks = parts(all, most(take, 1));
    segments = least(threads / (p.batch * chunks), least(p.n / kLeastSegment, p.n * p.depth / kLeastPacked));
    segments = most(segments, 1);
    // As many for each thread; references are packed once a chunk.
    if (segments == 1) chunks = most(chunks, parts(p.batch * chunks, threads) * threads / p.batch);
    panels = static_cast<int>(parts(all, chunks));
    chunks = parts(all, panels);
    lanes = int64_t{panels} * kLanes<T>;
    capacity = (24 + 4 * p.k) * lanes + kLanes<T>;
    lists = p.k <= 2 ? 0 : p.k;
    // For k <= 2 many references are looked at together: what the first bounds would let pass, the last exclude. Where
    // packed queries outgrow the cache, more references use each part of them that comes in.
    const int64_t blocks = parts(p.n, kRowBlock), most_group = units > kDepthBlock ? 4 : p.k > 2 ? 1 : kMostGroup;
    group = static_cast<int>(least(blocks, most_group));
    one_panel = units <= kDepthBlock;
    const auto round = [](int64_t bytes) { return (bytes + 63) / 64 * 64; };
    packed_bytes = round(lanes * units * sizeof(T));
    rows_bytes = round(P::row_at(group * kRowBlock, kDepthBlock) * sizeof(T));
    sums_bytes = round((one_panel ? kLanes<T> : lanes) * group * kRowBlock * sizeof(float));
    state_bytes = round(lanes * (6 + lists) * sizeof(float));
    pairs_bytes = round(capacity * sizeof(Pair));
    best_bytes = round(lanes * p.k * sizeof(Neighbor));
    center_bytes = round(p.depth * (p.dtype == DType::f64 ? 8 : 4));
    slot_bytes = packed_bytes + rows_bytes + sums_bytes + state_bytes + pairs_bytes + best_bytes + center_bytes;
    failed_bytes = round(p.batch * chunks * segments);
    merge_bytes = segments == 1 ? 0 : p.batch * p.m * segments * p.k * static_cast<int64_t>(sizeof(Neighbor));
    KnnParams chunk = p;
    chunk.batch = 1;
    chunk.m = least(lanes, p.m);
    tiles_bytes = static_cast<int64_t>(tiles(chunk, threads));
    chunk.m = p.m - (chunks - 1) * lanes;
    tiles_bytes = most(tiles_bytes, static_cast<int64_t>(tiles(chunk, threads)));
  }
  // The tiles come when all else is done.
  static size_t bytes(const KnnParams& p, int threads, size_t (*tiles)(const KnnParams&, int)) {
    return p.batch * p.m == 0 ? 0 : FilterPlan(p, threads, tiles).bytes();
  }
  size_t bytes() const {
    const int64_t search = threads * slot_bytes + merge_bytes;
    return static_cast<size_t>(failed_bytes + (search > tiles_bytes ? search : tiles_bytes));
  }
};

inline bool before(const Neighbor& l, const Neighbor& r) { return l.key != r.key ? l.key < r.key : l.index < r.index; }

// Into k that are ascending.
inline void insert(Neighbor* to, int64_t k, const Neighbor& mine) {
  int64_t at = k;
  for (; at > 0 && before(mine, to[at - 1]); --at)
    if (at < k) to[at] = to[at - 1];
  if (at < k) to[at] = mine;
}

template <class S>
void emit(const KnnParams& p, const Neighbor* best, int64_t query) {
  using A = acc_t<S>;
  const Root<A> root(2, p.squared);
  S* distances = static_cast<S*>(p.distances) + query * p.k_out;
  int64_t* indices = p.indices + query * p.k_out;
  for (int64_t i = 0; i < p.k_out; ++i) {
    const bool real = i < p.k;
    store_result(distances + i, real ? root(sum_of<A>(best[i].key)) : static_cast<A>(__builtin_inf()));
    indices[i] = real ? best[i].index : -1;
  }
}

template <class P, class S>
struct FilterChunk {
  using T = typename P::T;
  using A = acc_t<S>;
  const KnnParams& p;
  const FilterPlan<P>& plan;
  const Bounds bounds;
  const S *x, *y;
  int64_t count, row;  // queries of this chunk, and where their results go
  T *packed, *rows;
  float *sums, *a, *b, *square;
  float *first, *last;  // the least and the k-th of a lane's upper bounds, without |q|^2
  float* most_low;      // what drop_pairs compares with
  float* lists;         // [lane][k]: for k > 2 all upper bounds, ascending
  Pair* pairs;
  Neighbor* best;  // [lane][k], ascending
  A* center;
  int64_t waiting = 0, seen = 0;

  FilterChunk(const KnnParams& params, const FilterPlan<P>& plan_, char* memory, int64_t item, int64_t q0)
      : p(params),
        plan(plan_),
        bounds(Bounds::of<P>(params.depth, sizeof(A) == 8 ? 0x1p-53f : kUnit)),
        x(static_cast<const S*>(params.x) + item * params.x_batch + q0 * params.depth),
        y(static_cast<const S*>(params.y) + item * params.y_batch),
        count(params.m - q0 < plan_.lanes ? params.m - q0 : plan_.lanes),
        row(item * params.m + q0) {
    const auto take = [&](int64_t bytes) { return (memory += bytes) - bytes; };
    packed = reinterpret_cast<T*>(take(plan.packed_bytes));
    rows = reinterpret_cast<T*>(take(plan.rows_bytes));
    sums = reinterpret_cast<float*>(take(plan.sums_bytes));
    a = reinterpret_cast<float*>(take(plan.state_bytes));
    b = a + plan.lanes;
    square = b + plan.lanes;
    first = square + plan.lanes;
    last = p.k == 1 ? first : first + plan.lanes;
    most_low = first + 2 * plan.lanes;
    lists = most_low + plan.lanes;
    pairs = reinterpret_cast<Pair*>(take(plan.pairs_bytes));
    best = reinterpret_cast<Neighbor*>(take(plan.best_bytes));
    center = reinterpret_cast<A*>(take(plan.center_bytes));
  }

  void pack_queries() {
    alignas(64) float block[kW * kRowStride<float>];
    for (int64_t lane = 0; lane < plan.lanes && lane - count < kLanes<T>; lane += kW) {
      Norms norms;
      T* panel = packed + lane / kLanes<T> * plan.units * kLanes<T> + lane % kLanes<T>;
      for (int64_t d = 0; d < p.depth; d += kDepthBlock) {
        constexpr int step = P::kUnitSize * P::kUnitStep < kW ? kW : P::kUnitSize * P::kUnitStep;
        const int n =
            static_cast<int>(p.depth - d < kDepthBlock ? (p.depth - d + step - 1) / step * step : kDepthBlock);
        for (int i = 0; i < kW; ++i) {
          float* to = block + i * kRowStride<float>;
          if (lane + i < count) read_centred(x + (lane + i) * p.depth, center, p.depth, d, n, to);
          else std::memset(to, 0, n * sizeof(float));
        }
        for (int at = 0; at < n; at += kW) {
          VecF v[kW];
          for (int i = 0; i < kW; ++i) v[i] = load(block + i * kRowStride<float> + at);
          transpose<kW>(v);
          const int64_t unit = (d + at) / P::kUnitSize, left = plan.units - unit;
          const int units = static_cast<int>(left < kW / P::kUnitSize ? left : kW / P::kUnitSize);
          P::template store_lanes<kLanes<T>>(v, units, panel + unit * kLanes<T>, norms);
        }
      }
      query_bounds(bounds, norms, a + lane, b + lane, square + lane);
      for (int i = 0; i < kW; ++i) first[lane + i] = last[lane + i] = __builtin_inff();
    }
    for (int64_t i = 0; i < plan.lanes * plan.lists; ++i) lists[i] = __builtin_inff();
    for (int64_t i = 0; i < count * p.k; ++i) best[i] = {INT64_MAX, INT64_MAX};
  }

  // What |q - r|^2 - |q|^2 may be at most for a pair to matter, from the k-th upper bound.
  VecF limits(int64_t lane) const {
    const VecF upper = load(last + lane), whole = upper + load(square + lane);
    return fma(max(whole, VecF(0.0f)), VecF(2.2f * bounds.direct), upper) +
           (abs(upper) + load(square + lane)) * VecF(8 * kUnit) + VecF(kTiny);
  }
  // How far the sum of a lane with any of a block of references may be off.
  VecF width(int64_t lane, const RowBound& block) const {
    return fma(load(a + lane), VecF(block.norm),
               fma(load(b + lane), VecF(block.error), VecF(block.rho * bounds.rows + kTiny)));
  }
  uint32_t used(int64_t lane0) const { return lane0 + kLanes<T> <= count ? ~0u : (1u << (count - lane0)) - 1; }

  // k = 1 and 2: the dot products of one panel with a block of references; `block` bounds all of these.
  template <bool two>
  void select(float* s, int64_t lane0, int64_t row0, int nr, const float* rho, const RowBound& block) {
    constexpr int n = kPanelVectors;
    const VecF infinite(__builtin_inff());
    VecF least[n], next[n], most[n], widths[n];
    for (int v = 0; v < n; ++v) least[v] = next[v] = infinite;
    for (int r = 0; r < nr; ++r) {
      const VecF of_row(rho[r]);
#pragma GCC unroll 2
      for (int v = 0; v < n; ++v) {
        float* at = s + r * kLanes<T> + v * kW;
        const VecF sum = fma(VecF(-2.0f), load(at), of_row);
        store(at, sum);
        const VecF number = two ? min(sum, infinite) : sum;  // where NaN
        if constexpr (two) next[v] = min(max(number, least[v]), next[v]);
        least[v] = min(number, least[v]);
      }
    }
    for (int v = 0; v < n; ++v) {
      const int64_t lane = lane0 + v * kW;
      widths[v] = width(lane, block);
      const VecF upper = load(first + lane), mine = min(least[v] + widths[v], infinite);
      if constexpr (two) store(last + lane, min(max(mine, upper), min(next[v] + widths[v], load(last + lane))));
      store(first + lane, min(mine, upper));
      most[v] = limits(lane) + widths[v];
    }
    float each[kLanes<T>];
    for (int v = 0; v < n; ++v) store(each + v * kW, widths[v]);
    const uint32_t lanes = used(lane0);
    for (int r = 0; r < nr; ++r) {
      const float* from = s + r * kLanes<T>;
      uint32_t bits = 0;
#pragma GCC unroll 2
      for (int v = 0; v < n; ++v) bits |= not_greater_bits(load(from + v * kW), most[v]) << (v * kW);
      if ((bits &= lanes) == 0) [[likely]]
        continue;
      for (; bits != 0; bits &= bits - 1) {
        const int lane = __builtin_ctz(bits);
        add_pair(lane0 + lane, row0 + r, from[lane] - each[lane]);
      }
    }
  }

  // k > 2: the limit falls while the references pass.
  void select_many(const float* s, int64_t lane0, int64_t row0, int nr, const float* rho, const RowBound& block) {
    constexpr int n = kPanelVectors;
    VecF most[n];
    float each[kLanes<T>];
    for (int v = 0; v < n; ++v) {
      const VecF mine = width(lane0 + v * kW, block);
      store(each + v * kW, mine);
      most[v] = limits(lane0 + v * kW) + mine;
    }
    const uint32_t lanes = used(lane0);
    for (int r = 0; r < nr; ++r) {
      VecF sum[n];
      uint32_t bits = 0;
#pragma GCC unroll 2
      for (int v = 0; v < n; ++v) {
        sum[v] = fma(VecF(-2.0f), load(s + r * kLanes<T> + v * kW), VecF(rho[r]));
        bits |= not_greater_bits(sum[v], most[v]) << (v * kW);
      }
      if ((bits &= lanes) == 0) [[likely]]
        continue;
      float sums_here[kLanes<T>];
      for (int v = 0; v < n; ++v) store(sums_here + v * kW, sum[v]);
      for (; bits != 0; bits &= bits - 1) {
        const int lane = __builtin_ctz(bits);
        add_pair(lane0 + lane, row0 + r, sums_here[lane] - each[lane]);
        const float upper = sums_here[lane] + each[lane];
        float* mine = lists + (lane0 + lane) * p.k;
        if (!(upper < mine[p.k - 1])) continue;
        int64_t i = p.k - 1;
        for (; i > 0 && mine[i - 1] > upper; --i) mine[i] = mine[i - 1];
        mine[i] = upper;
        last[lane0 + lane] = mine[p.k - 1];
      }
      for (int v = 0; v < n; ++v) most[v] = limits(lane0 + v * kW) + load(each + v * kW);
    }
  }

  void add_pair(int64_t lane, int64_t reference, float low) {
    if (waiting == plan.capacity) {
      drop_pairs();
      if (waiting > plan.capacity / 2) sum_pairs();
    }
    pairs[waiting++] = {static_cast<int32_t>(lane), static_cast<int32_t>(reference), low};
  }

  // Forgets the pairs that no longer matter.
  void drop_pairs() {
    for (int64_t lane = 0; lane < count; lane += kW) store(most_low + lane, limits(lane));
    int64_t kept = 0;
    for (int64_t i = 0; i < waiting; ++i) {
      pairs[kept] = pairs[i];
      kept += !(pairs[i].low > most_low[pairs[i].lane]);
    }
    waiting = kept;
  }

  // Sums the pairs directly and keeps the best.
  void sum_pairs() {
    constexpr int w = Vec<A>::width;
    seen += waiting;
    for (int64_t base = 0; base < waiting; base += w) {
      const int n = static_cast<int>(waiting - base < w ? waiting - base : w);
      const S *queries[w], *references[w];
      for (int i = 0; i < w; ++i) {
        const Pair& pair = pairs[base + (i < n ? i : 0)];
        queries[i] = x + pair.lane * p.depth;
        references[i] = y + pair.reference * p.depth;
      }
      A found[w];
      store(found, direct_sums(queries, references, p.depth));
      for (int i = 0; i < n; ++i) {
        const Pair& pair = pairs[base + i];
        insert(best + pair.lane * p.k, p.k, {sum_key(found[i]), pair.reference});
      }
    }
    waiting = 0;
  }

  // The best among references [from, to). False where too many pairs are left for this to pay: duplicates, NaN, no
  // spread.
  bool search(int64_t from, int64_t to) {
    find_center(y, p.n, p.depth, center);
    pack_queries();
    const int panels = static_cast<int>((count + kLanes<T> - 1) / kLanes<T>);
    [[maybe_unused]] const typename P::Session session;
    alignas(64) float coordinates[kDepthBlock * P::kUnitSize];
    Norms norms[kMostGroup * kRowBlock];
    float rho[kMostGroup * kRowBlock];
    const int64_t together = plan.group * kRowBlock, most_pairs = plan.lanes * (64 + 8 * p.k + (to - from) / 8);
    for (int64_t row0 = from; row0 < to; row0 += together) {
      if (seen + waiting > most_pairs) return false;
      const int nr = static_cast<int>(to - row0 < together ? to - row0 : together);
      for (int r = 0; r < nr; ++r) norms[r] = Norms();
      RowBound all{0, 0, 0};
      for (int64_t unit = 0; unit < plan.units; unit += kDepthBlock) {
        const bool last = unit + kDepthBlock >= plan.units;
        const int units = static_cast<int>(last ? plan.units - unit : kDepthBlock);
        const int padded = (units + kW - 1) / kW * kW;
        constexpr int64_t piece = kDepthBlock * P::kUnitSize;
        for (int r = 0; r < nr; ++r) {
          if (r + kAhead < nr) ask_for(y + (row0 + r + kAhead) * p.depth, p.depth, unit * P::kUnitSize, piece);
          else if (!last)
            ask_for(y + (row0 + r + kAhead - nr) * p.depth, p.depth, (unit + kDepthBlock) * P::kUnitSize, piece);
          read_centred(y + (row0 + r) * p.depth, center, p.depth, unit * P::kUnitSize, padded * P::kUnitSize,
                       coordinates);
          P::store_row(coordinates, units, rows + P::row_at(r, units), norms[r]);
          if (!last) continue;
          const RowBound bound = row_bound(bounds, norms[r]);
          rho[r] = bound.rho;
          all.rho = all.rho < bound.rho ? bound.rho : all.rho;
          all.norm = all.norm < bound.norm ? bound.norm : all.norm;
          all.error = all.error < bound.error ? bound.error : all.error;
        }
        if (nr % P::kRows != 0) {
          Norms none;
          std::memset(coordinates, 0, sizeof coordinates);
          for (int r = nr; r % P::kRows != 0; ++r) P::store_row(coordinates, units, rows + P::row_at(r, units), none);
        }
        for (int panel = 0; panel < panels; ++panel) {
          float* s = plan.one_panel ? sums : sums + panel * together * kLanes<T>;
          P::multiply(packed + (panel * plan.units + unit) * kLanes<T>, rows, units, nr, reinterpret_cast<T*>(s),
                      unit == 0);
          if (!last) continue;
          const int64_t lane0 = panel * kLanes<T>;
          if (p.k == 1) select<false>(s, lane0, row0, nr, rho, all);
          else if (p.k == 2) select<true>(s, lane0, row0, nr, rho, all);
          else select_many(s, lane0, row0, nr, rho, all);
        }
      }
    }
    if (p.k > 2 || to - from > together) drop_pairs();  // else the limits were the last ones from the start
    sum_pairs();
    return true;
  }
};

template <class P>
void run_filter(const KnnParams& p, const Exec& exec, void (*tiles)(const KnnParams&, const Exec&),
                size_t (*tiles_workspace)(const KnnParams&, int)) {
  if (p.batch * p.m == 0) return;
  const FilterPlan<P> plan(p, exec.threads, tiles_workspace);
  dispatch_float(p.dtype, [&](auto zero) {
    using S = decltype(zero);
    char* failed = static_cast<char*>(exec.workspace);  // one of each task
    char* memory = failed + plan.failed_bytes;
    Neighbor* merge = reinterpret_cast<Neighbor*>(memory + plan.threads * plan.slot_bytes);  // [query][segment][k]
    const Exec used{exec.parallel, plan.threads, memory};
    const int64_t tasks = p.batch * plan.chunks * plan.segments;
    parallel_slots(used, tasks, 1, [&](int slot, int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t segment = task % plan.segments, chunk = task / plan.segments;
        FilterChunk<P, S> part(p, plan, memory + slot * plan.slot_bytes, chunk / plan.chunks,
                               chunk % plan.chunks * plan.lanes);
        failed[task] = !part.search(p.n * segment / plan.segments, p.n * (segment + 1) / plan.segments);
        if (failed[task]) continue;
        for (int64_t q = 0; q < part.count; ++q) {
          const Neighbor* best = part.best + q * p.k;
          if (plan.segments == 1) emit<S>(p, best, part.row + q);
          else
            std::memcpy(merge + ((part.row + q) * plan.segments + segment) * p.k, best,
                        static_cast<size_t>(p.k) * sizeof(Neighbor));
        }
      }
    });
    if (plan.segments > 1) {
      parallel_for(used, p.batch * p.m, 64, [&](int64_t begin, int64_t end) {
        for (int64_t query = begin; query < end; ++query) {
          Neighbor* best = merge + query * plan.segments * p.k;
          for (int64_t i = p.k; i < plan.segments * p.k; ++i) insert(best, p.k, best[i]);
          emit<S>(p, best, query);
        }
      });
    }
    for (int64_t task = 0; task < tasks; ++task) {
      if (!failed[task]) continue;
      const int64_t chunk = task / plan.segments, item = chunk / plan.chunks, q0 = chunk % plan.chunks * plan.lanes;
      KnnParams part = p;
      part.batch = 1;
      part.m = p.m - q0 < plan.lanes ? p.m - q0 : plan.lanes;
      part.x = static_cast<const S*>(p.x) + item * p.x_batch + q0 * p.depth;
      part.y = static_cast<const S*>(p.y) + item * p.y_batch;
      part.distances = static_cast<S*>(p.distances) + (item * p.m + q0) * p.k_out;
      part.indices = p.indices + (item * p.m + q0) * p.k_out;
      tiles(part, used);
      task = (chunk + 1) * plan.segments - 1;  // all of the chunk is done
    }
  });
}

}  // namespace
}  // namespace fastcv::FASTCV_ISA
