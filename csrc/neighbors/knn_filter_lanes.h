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

constexpr int kMostGroup = 8;

struct Pair {
  int32_t lane, reference;
  float low;  // the least that |q - r|^2 - |q|^2 can be
};

template <class P>
struct FilterPlan {
  using T = typename P::T;
  int threads, panels;
  int group;       // blocks of references at a time
  bool one_panel;  // at a time: its sums are looked at before the next one's are made
  int64_t units, chunks, lanes, capacity, most, lists;
  int64_t packed_bytes, rows_bytes, sums_bytes, state_bytes, pairs_bytes, best_bytes, center_bytes, rest_bytes;

  FilterPlan(const KnnParams& p, int allowed, size_t (*tiles)(const KnnParams&, int)) {
    constexpr int64_t kCache = 384 << 10;  // for packed queries and the rows that they came from
    constexpr int64_t kMemory = 8 << 20;   // for them where many coordinates need more than the cache
    constexpr int64_t step = P::kUnitSize * P::kUnitStep;
    units = (p.depth + step - 1) / step * P::kUnitStep;
    threads = threads_for(p.batch * p.m * p.n, units, allowed);
    const int64_t size = p.dtype == DType::f64 ? 8 : p.dtype == DType::f32 ? 4 : 2;
    const int64_t panel_bytes = kLanes<T> * (units * static_cast<int64_t>(sizeof(T)) + p.depth * size + 1);
    const int64_t all = (p.m + kLanes<T> - 1) / kLanes<T>, fair = (all * p.batch + threads - 1) / threads;
    int64_t take = kCache / panel_bytes;
    const int64_t least = kMemory / panel_bytes < 8 ? kMemory / panel_bytes : 8;
    take = take < least ? least : take > 64 ? 64 : take;
    if (take > fair) take = fair;
    panels = static_cast<int>(take < 1 ? 1 : take);
    chunks = (all + panels - 1) / panels;
    lanes = int64_t{panels} * kLanes<T>;
    capacity = (8 + 2 * p.k) * lanes + kLanes<T>;
    most = lanes * (64 + 8 * p.k + p.n / 8);
    lists = p.k <= 2 ? 0 : p.k;
    // For k <= 2 many references are looked at together: what the first bounds would let pass, the last exclude. Where
    // packed queries outgrow the cache, more references use each part of them that comes in.
    const int64_t blocks = (p.n + kRowBlock - 1) / kRowBlock, most_group = units > kDepthBlock ? 4
                                                                           : p.k > 2           ? 1
                                                                                               : kMostGroup;
    group = static_cast<int>(blocks < most_group ? blocks : most_group);
    one_panel = units <= kDepthBlock;
    const auto round = [](int64_t bytes) { return (bytes + 63) / 64 * 64; };
    packed_bytes = round(lanes * units * sizeof(T));
    rows_bytes = round(group * kRowBlock * kRowStride<T> * sizeof(T));
    sums_bytes = round((one_panel ? kLanes<T> : lanes) * group * kRowBlock * sizeof(float));
    state_bytes = round(lanes * (6 + lists) * sizeof(float));
    pairs_bytes = round(capacity * sizeof(Pair));
    best_bytes = round(lanes * p.k * sizeof(Neighbor));
    center_bytes = round(p.depth * (size == 8 ? 8 : 4));
    KnnParams chunk = p;
    chunk.batch = 1;
    chunk.m = lanes < p.m ? lanes : p.m;
    rest_bytes = round(static_cast<int64_t>(tiles(chunk, 1)));
  }
  size_t bytes() const { return static_cast<size_t>(threads * slot_bytes()); }
  int64_t slot_bytes() const {
    return packed_bytes + rows_bytes + sums_bytes + state_bytes + pairs_bytes + best_bytes + center_bytes + rest_bytes;
  }
};

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
  void* rest;
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
    rest = memory;
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
        const Neighbor mine{sum_key(found[i]), pairs[base + i].reference};
        Neighbor* to = best + pairs[base + i].lane * p.k;
        const auto before = [](const Neighbor& l, const Neighbor& r) {
          return l.key != r.key ? l.key < r.key : l.index < r.index;
        };
        int64_t at = p.k;
        for (; at > 0 && before(mine, to[at - 1]); --at)
          if (at < p.k) to[at] = to[at - 1];
        if (at < p.k) to[at] = mine;
      }
    }
    waiting = 0;
  }

  // False where too many pairs are left for this to pay: duplicates, NaN, no spread.
  bool search() {
    find_center(y, p.n, p.depth, center);
    pack_queries();
    const int panels = static_cast<int>((count + kLanes<T> - 1) / kLanes<T>);
    [[maybe_unused]] const typename P::Session session;
    alignas(64) float coordinates[kDepthBlock * P::kUnitSize];
    Norms norms[kMostGroup * kRowBlock];
    float rho[kMostGroup * kRowBlock];
    const int64_t together = plan.group * kRowBlock;
    for (int64_t row0 = 0; row0 < p.n; row0 += together) {
      if (seen + waiting > plan.most) return false;
      const int nr = static_cast<int>(p.n - row0 < together ? p.n - row0 : together);
      for (int r = 0; r < nr; ++r) norms[r] = Norms();
      RowBound all{0, 0, 0};
      for (int64_t unit = 0; unit < plan.units; unit += kDepthBlock) {
        const bool last = unit + kDepthBlock >= plan.units;
        const int units = static_cast<int>(last ? plan.units - unit : kDepthBlock);
        const int padded = (units + kW - 1) / kW * kW;
        for (int r = 0; r < nr; ++r) {
          read_centred(y + (row0 + r) * p.depth, center, p.depth, unit * P::kUnitSize, padded * P::kUnitSize,
                       coordinates);
          P::store_row(coordinates, units, rows + r * kRowStride<T>, norms[r]);
          if (!last) continue;
          const RowBound bound = row_bound(bounds, norms[r]);
          rho[r] = bound.rho;
          all.rho = all.rho < bound.rho ? bound.rho : all.rho;
          all.norm = all.norm < bound.norm ? bound.norm : all.norm;
          all.error = all.error < bound.error ? bound.error : all.error;
        }
        for (int r = nr; r % P::kRows != 0; ++r) std::memset(rows + r * kRowStride<T>, 0, units * sizeof(T));
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
    if (p.k > 2 || p.n > together) drop_pairs();  // else the limits were the last ones from the start
    sum_pairs();
    return true;
  }

  void emit() {
    const Root<A> root(2, p.squared);
    for (int64_t q = 0; q < count; ++q) {
      S* distances = static_cast<S*>(p.distances) + (row + q) * p.k_out;
      int64_t* indices = p.indices + (row + q) * p.k_out;
      for (int64_t i = 0; i < p.k_out; ++i) {
        const bool real = i < p.k;
        store_result(distances + i, real ? root(sum_of<A>(best[q * p.k + i].key)) : static_cast<A>(__builtin_inf()));
        indices[i] = real ? best[q * p.k + i].index : -1;
      }
    }
  }

  void run(void (*tiles)(const KnnParams&, const Exec&)) {
    if (search()) return emit();
    KnnParams chunk = p;
    chunk.batch = 1;
    chunk.m = count;
    chunk.x = x;
    chunk.y = y;
    chunk.distances = static_cast<S*>(p.distances) + row * p.k_out;
    chunk.indices = p.indices + row * p.k_out;
    tiles(chunk, Exec{nullptr, 1, rest});
  }
};

template <class P>
void run_filter(const KnnParams& p, const Exec& exec, void (*tiles)(const KnnParams&, const Exec&),
                size_t (*tiles_workspace)(const KnnParams&, int)) {
  const FilterPlan<P> plan(p, exec.threads, tiles_workspace);
  dispatch_float(p.dtype, [&](auto zero) {
    using S = decltype(zero);
    const Exec used{exec.parallel, plan.threads, exec.workspace};
    parallel_slots(used, p.batch * plan.chunks, 1, [&](int slot, int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task)
        FilterChunk<P, S>(p, plan, static_cast<char*>(exec.workspace) + slot * plan.slot_bytes(), task / plan.chunks,
                          task % plan.chunks * plan.lanes)
            .run(tiles);
    });
  });
}

}  // namespace
}  // namespace fastcv::FASTCV_ISA
