// nearest on a product of filter.h: queries lie across the lanes, blocks of references are broadcast. For ISA files
// only; they say which product, and which tiles take the chunks that have too many candidates.
#pragma once
#include "common/dispatch.h"
#include "neighbors/filter.h"
#include "neighbors/nearest.h"
#include "neighbors/root.h"
#include "neighbors/topk.h"

namespace fastcv::FASTCV_ISA {
namespace {

struct Pair {
  int32_t lane, reference;
  float low;  // the least that |q - r|^2 - |q|^2 can be
};

template <class P>
struct NearestPlan {
  using T = typename P::T;
  int panels;
  int64_t units, chunks, lanes, capacity, most;
  int64_t packed_bytes, rows_bytes, sums_bytes, state_bytes, pairs_bytes, best_bytes, center_bytes, rest_bytes;

  NearestPlan(const KnnParams& p, int threads, size_t (*tiles)(const KnnParams&, int)) {
    constexpr int64_t kCache = 384 << 10;  // for packed queries and the rows that they came from
    units = (p.depth + P::kUnitSize - 1) / P::kUnitSize;
    const int64_t size = p.dtype == DType::f64 ? 8 : p.dtype == DType::f32 ? 4 : 2;
    const int64_t panel_bytes = kLanes<T> * (units * static_cast<int64_t>(sizeof(T)) + p.depth * size + 1);
    const int64_t all = (p.m + kLanes<T> - 1) / kLanes<T>, fair = (all * p.batch + threads - 1) / threads;
    int64_t take = kCache / panel_bytes;
    take = take < 4 ? 4 : take > 64 ? 64 : take;
    if (take > fair) take = fair;
    panels = static_cast<int>(take < 1 ? 1 : take);
    chunks = (all + panels - 1) / panels;
    lanes = int64_t{panels} * kLanes<T>;
    capacity = 8 * lanes + kLanes<T>;
    most = lanes * (64 + p.n / 8);
    const auto round = [](int64_t bytes) { return (bytes + 63) / 64 * 64; };
    packed_bytes = round(lanes * units * sizeof(T));
    rows_bytes = round(kRowBlock * kRowStride<T> * sizeof(T));
    sums_bytes = round(lanes * kRowBlock * sizeof(float));
    state_bytes = round(lanes * 5 * sizeof(float));
    pairs_bytes = round(capacity * sizeof(Pair));
    best_bytes = round(lanes * 2 * sizeof(Neighbor));
    center_bytes = round(p.depth * (size == 8 ? 8 : 4));
    KnnParams chunk = p;
    chunk.batch = 1;
    chunk.m = lanes < p.m ? lanes : p.m;
    rest_bytes = round(static_cast<int64_t>(tiles(chunk, 1)));
  }
  int64_t slot_bytes() const {
    return packed_bytes + rows_bytes + sums_bytes + state_bytes + pairs_bytes + best_bytes + center_bytes + rest_bytes;
  }
};

template <class P, class S>
struct NearestChunk {
  using T = typename P::T;
  using A = acc_t<S>;
  const KnnParams& p;
  const NearestPlan<P>& plan;
  const Bounds bounds;
  const S *x, *y;
  int64_t count, row;  // queries of this chunk, and where their results go
  T *packed, *rows;
  float *sums, *a, *b, *square, *first, *second;  // first, second: of upper bounds, without |q|^2
  Pair* pairs;
  Neighbor* best;  // [lane][2]
  A* center;
  void* rest;
  int64_t waiting = 0, seen = 0;

  NearestChunk(const KnnParams& params, const NearestPlan<P>& plan_, char* memory, int64_t item, int64_t q0)
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
    second = first + plan.lanes;
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
        const int n = static_cast<int>(p.depth - d < kDepthBlock ? (p.depth - d + kW - 1) / kW * kW : kDepthBlock);
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
      for (int i = 0; i < kW; ++i) first[lane + i] = second[lane + i] = __builtin_inff();
    }
    for (int64_t q = 0; q < count; ++q) best[2 * q] = best[2 * q + 1] = {INT64_MAX, INT64_MAX};
  }

  // Of |q - r|^2 - |q|^2 for a pair to matter, from the k-th upper bound.
  FASTCV_INLINE VecF limit(VecF upper, VecF square, VecF direct) {
    const VecF sum = upper + square;
    return fma(max(sum, VecF(0.0f)), direct, upper) + (abs(upper) + square) * VecF(8 * kUnit) + VecF(kTiny);
  }

  // The sums of one panel with a block of references whose bounds are given.
  template <bool two>
  void select(float* s, int64_t lane0, int64_t row0, int nr, const float* rho, float norm, float error, float largest) {
    constexpr int n = kPanelVectors;
    const VecF infinite(__builtin_inff()), direct(2.2f * bounds.direct);
    VecF width[n], least[n], next[n];
    for (int v = 0; v < n; ++v) {
      width[v] = fma(load(a + lane0 + v * kW), VecF(norm),
                     fma(load(b + lane0 + v * kW), VecF(error), VecF(largest * bounds.rows + kTiny)));
      least[v] = next[v] = infinite;
    }
    for (int r = 0; r < nr; ++r) {
      const VecF of_row(rho[r]);
#pragma GCC unroll 2
      for (int v = 0; v < n; ++v) {
        float* at = s + r * kLanes<T> + v * kW;
        const VecF sum = fma(VecF(-2.0f), load(at), of_row);
        store(at, sum);
        if constexpr (two) {
          const VecF number = min(sum, infinite);
          next[v] = min(max(number, least[v]), next[v]);
          least[v] = min(number, least[v]);
        } else {
          least[v] = min(sum, least[v]);
        }
      }
    }
    VecF most[n];
    for (int v = 0; v < n; ++v) {
      const VecF upper = load(first + lane0 + v * kW), mine = least[v] + width[v];
      VecF last = min(mine, upper);
      store(first + lane0 + v * kW, last);
      if constexpr (two) {
        last = min(max(mine, upper), min(next[v] + width[v], load(second + lane0 + v * kW)));
        store(second + lane0 + v * kW, last);
      }
      most[v] = limit(last, load(square + lane0 + v * kW), direct) + width[v];
    }
    const uint32_t used = lane0 + kLanes<T> <= count ? ~0u : (1u << (count - lane0)) - 1;
    for (int r = 0; r < nr; ++r) {
      const float* from = s + r * kLanes<T>;
      uint32_t bits = 0;
#pragma GCC unroll 2
      for (int v = 0; v < n; ++v) bits |= not_greater_bits(load(from + v * kW), most[v]) << (v * kW);
      if ((bits &= used) == 0) [[likely]]
        continue;
      float widths[kLanes<T>];
      for (int v = 0; v < n; ++v) store(widths + v * kW, width[v]);
      for (; bits != 0; bits &= bits - 1) {
        const int lane = __builtin_ctz(bits);
        pairs[waiting++] = {static_cast<int32_t>(lane0 + lane), static_cast<int32_t>(row0 + r),
                            from[lane] - widths[lane]};
      }
      if (waiting > 8 * plan.lanes) flush();
    }
  }

  // Sums the pairs that still matter directly, and keeps the best.
  void flush() {
    constexpr int w = Vec<A>::width;
    seen += waiting;
    const float* upper = p.k == 1 ? first : second;
    const S *queries[w], *references[w];
    const Pair* taken[w];
    int n = 0;
    const auto sum_up = [&] {
      for (int i = n; i < w; ++i) {
        queries[i] = queries[0];
        references[i] = references[0];
      }
      A found[w];
      store(found, direct_sums(queries, references, p.depth));
      for (int i = 0; i < n; ++i) {
        const Neighbor mine{sum_key(found[i]), taken[i]->reference};
        Neighbor* to = best + 2 * taken[i]->lane;
        const auto before = [](const Neighbor& l, const Neighbor& r) {
          return l.key != r.key ? l.key < r.key : l.index < r.index;
        };
        if (before(mine, to[0])) {
          to[1] = to[0];
          to[0] = mine;
        } else if (before(mine, to[1])) {
          to[1] = mine;
        }
      }
      n = 0;
    };
    for (int64_t base = 0; base < waiting; ++base) {
      const Pair& pair = pairs[base];
      const float bound = upper[pair.lane], whole = bound + square[pair.lane];
      const float most = bound + 2.2f * bounds.direct * (whole > 0 ? whole : 0) +
                         (__builtin_fabsf(bound) + square[pair.lane]) * (8 * kUnit) + kTiny;
      if (pair.low > most) continue;
      taken[n] = &pair;
      queries[n] = x + pair.lane * p.depth;
      references[n] = y + pair.reference * p.depth;
      if (++n == w) sum_up();
    }
    if (n > 0) sum_up();
    waiting = 0;
  }

  // False where too many pairs are left for this to pay: duplicates, NaN, no spread.
  bool search() {
    find_center(y, p.n, p.depth, center);
    pack_queries();
    const int panels = static_cast<int>((count + kLanes<T> - 1) / kLanes<T>);
    const DistanceKernel<T> kernel{Metric::l2, 2, P::kUnitSize, nullptr, nullptr, sizeof(S)};
    alignas(64) float coordinates[kDepthBlock * P::kUnitSize];
    Norms norms[kRowBlock];
    float rho[kRowBlock];
    for (int64_t row0 = 0; row0 < p.n; row0 += kRowBlock) {
      if (seen + waiting > plan.most) return false;
      const int nr = static_cast<int>(p.n - row0 < kRowBlock ? p.n - row0 : kRowBlock);
      for (int r = 0; r < nr; ++r) norms[r] = Norms();
      float norm = 0, error = 0, largest = 0;
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
          norm = norm < bound.norm ? bound.norm : norm;
          error = error < bound.error ? bound.error : error;
          largest = largest < bound.rho ? bound.rho : largest;
        }
        for (int r = nr; r % kRowTile != 0; ++r) std::memset(rows + r * kRowStride<T>, 0, units * sizeof(T));
        for (int panel = 0; panel < panels; ++panel) {
          T* to = reinterpret_cast<T*>(sums) + panel * kRowBlock * kLanes<T>;
          block<P>(kernel, packed + (panel * plan.units + unit) * kLanes<T>, rows, units, nr, to, unit == 0);
          if (!last) continue;
          float* s = sums + panel * kRowBlock * kLanes<T>;
          if (p.k == 1) select<false>(s, panel * kLanes<T>, row0, nr, rho, norm, error, largest);
          else select<true>(s, panel * kLanes<T>, row0, nr, rho, norm, error, largest);
        }
      }
    }
    flush();
    return true;
  }

  void emit() {
    const Root<A> root(2, p.squared);
    for (int64_t q = 0; q < count; ++q) {
      S* distances = static_cast<S*>(p.distances) + (row + q) * p.k_out;
      int64_t* indices = p.indices + (row + q) * p.k_out;
      for (int64_t i = 0; i < p.k_out; ++i) {
        const bool real = i < p.k;
        store_result(distances + i, real ? root(key_sum<A>(best[2 * q + i].key)) : static_cast<A>(__builtin_inf()));
        indices[i] = real ? best[2 * q + i].index : -1;
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
void run_nearest(const KnnParams& p, const Exec& exec, void (*tiles)(const KnnParams&, const Exec&),
                 size_t (*tiles_workspace)(const KnnParams&, int)) {
  const NearestPlan<P> plan(p, exec.threads, tiles_workspace);
  dispatch_float(p.dtype, [&](auto zero) {
    using S = decltype(zero);
    parallel_slots(exec, p.batch * plan.chunks, 1, [&](int slot, int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task)
        NearestChunk<P, S>(p, plan, static_cast<char*>(exec.workspace) + slot * plan.slot_bytes(), task / plan.chunks,
                           task % plan.chunks * plan.lanes)
            .run(tiles);
    });
  });
}

}  // namespace
}  // namespace fastcv::FASTCV_ISA
