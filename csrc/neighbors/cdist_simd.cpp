// cdist on the register tiles of tile.h: one side lies across the lanes, the other is broadcast.
#include "neighbors/cdist.h"

#include "common/dispatch.h"
#include "neighbors/root.h"
#include "neighbors/tile.h"

namespace fastcv::FASTCV_ISA {
namespace {

constexpr int kMaxPanels = 8;
constexpr int64_t kPackedBytes = 4 << 20;  // of one chunk of lanes: stays in the outer caches while the rows pass by

// How the pairs are cut into tasks. Cutting changes no result.
template <class T>
struct Plan {
  bool swapped;  // lanes over x1, because x2 is too short to fill them
  int64_t lanes, rows;
  int panels;                // per chunk
  int64_t chunks, segments;  // of lanes, of rows
  int64_t units, scratch;    // scratch in elements of T, per thread
  int threads;

  Plan(const CdistParams& p, const DistanceKernel<T>& kernel, int allowed) {
    swapped = p.n < kLanes<T> && p.m > p.n;
    lanes = swapped ? p.m : p.n;
    rows = swapped ? p.n : p.m;
    units = kernel.units(p.depth);
    threads = threads_for(p.batch * p.m * p.n, units, allowed);
    const int64_t all = (lanes + kLanes<T> - 1) / kLanes<T>;
    const int64_t fit = kPackedBytes / (kLanes<T> * static_cast<int64_t>(sizeof(T)) * (units < 1 ? 1 : units));
    const int64_t fair = (all * p.batch + threads - 1) / threads;
    int64_t take = fit < kMaxPanels ? fit : kMaxPanels;
    if (fair < take) take = fair;
    panels = static_cast<int>(take < 1 ? 1 : take);
    chunks = (all + panels - 1) / panels;
    segments = 1;
    if (chunks * p.batch < threads)
      segments = (threads + chunks * p.batch - 1) / (chunks * p.batch < 1 ? 1 : chunks * p.batch);
    const int64_t blocks = (rows + kRowTile - 1) / kRowTile;
    if (segments > blocks) segments = blocks < 1 ? 1 : blocks;
    scratch = SweepScratch<T>::elements(panels, units);
  }
};

template <class T, class S>
void store_results(const Root<T>& root, const T* sums, int64_t count, S* to, int64_t stride) {
  for (int64_t i = 0; i < count; ++i) store_result(to + i * stride, root(sums[i]));
}
// Roots of integers in vectors of doubles, rounded once.
void store_roots(const int32_t* sums, int64_t count, float* to) {
  constexpr int w = Vec<double>::width;
  typedef int32_t Ints __attribute__((vector_size(kVectorBytes / 2)));
  typedef float Floats __attribute__((vector_size(kVectorBytes / 2)));
  int64_t i = 0;
  for (; i + w <= count; i += w) {
    Ints s;
    std::memcpy(&s, sums + i, sizeof s);
    const Vec<double> root = sqrt(Vec<double>(__builtin_convertvector(s, Vec<double>::Raw)));
    const Floats rounded = __builtin_convertvector(root.v, Floats);
    std::memcpy(to + i, &rounded, sizeof rounded);
  }
  for (; i < count; ++i) to[i] = static_cast<float>(__builtin_sqrt(sums[i]));
}
// Full rows of vectors, for the common case: p with a cheap root, float sums, lanes along the output's rows.
template <class T, class S>
void store_vectors(const Root<T>& root, const T* sums, int64_t count, S* to) {
  constexpr int w = Vec<T>::width;
  int64_t i = 0;
  for (; i + w <= count; i += w) {
    const Vec<T> s = detail::load_raw(sums + i);
    store(to + i, root.kind == RootKind::square ? sqrt(s) : s);
  }
  store_results(root, sums + i, count - i, to + i, 1);
}

template <class T>
void run(const CdistParams& p, const DistanceKernel<T>& kernel, const Exec& exec) {
  const Plan<T> plan(p, kernel, exec.threads);
  const Exec used{exec.parallel, plan.threads, exec.workspace};
  const Root<T> root(p.p);
  const int64_t x1_bytes = p.x1_batch * kernel.source_bytes, x2_bytes = p.x2_batch * kernel.source_bytes;
  const auto store_block = [&](int64_t b, int64_t lane0, int64_t lanes, int64_t row0, int nr, const T* sums) {
    const auto store_as = [&](auto zero) {
      using S = decltype(zero);
      S* out = static_cast<S*>(p.out) + b * p.m * p.n;
      for (int r = 0; r < nr; ++r) {
        const T* from = sums + r * kLanes<T>;
        if (plan.swapped) {
          store_results(root, from, lanes, out + lane0 * p.n + row0 + r, p.n);
          continue;
        }
        if constexpr (std::is_same_v<T, acc_t<S>>) {
          if (root.kind != RootKind::general) {
            store_vectors(root, from, lanes, out + (row0 + r) * p.n + lane0);
            continue;
          }
        }
        if constexpr (std::is_same_v<T, int32_t> && std::is_same_v<S, float>) {
          store_roots(from, lanes, out + (row0 + r) * p.n + lane0);
          continue;
        }
        store_results(root, from, lanes, out + (row0 + r) * p.n + lane0, 1);
      }
    };
    dispatch_float(p.out_dtype, store_as);
  };
  parallel_slots(used, p.batch * plan.chunks * plan.segments, 1, [&](int slot, int64_t begin, int64_t end) {
    const SweepScratch<T> scratch(static_cast<T*>(exec.workspace) + slot * plan.scratch, plan.panels, plan.units);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t segment = task % plan.segments, chunk = task / plan.segments % plan.chunks;
      const int64_t b = task / plan.segments / plan.chunks;
      const char* x1 = static_cast<const char*>(p.x1) + b * x1_bytes;
      const char* x2 = static_cast<const char*>(p.x2) + b * x2_bytes;
      const char *lane_side = plan.swapped ? x1 : x2, *row_side = plan.swapped ? x2 : x1;
      const int64_t lane0 = chunk * plan.panels * kLanes<T>;
      const int64_t left = plan.lanes - lane0;
      const int64_t lanes = left < plan.panels * kLanes<T> ? left : plan.panels * kLanes<T>;
      const int panels = static_cast<int>((lanes + kLanes<T> - 1) / kLanes<T>);
      pack_panels(kernel, lane_side + lane0 * p.depth * kernel.source_bytes, lanes, p.depth, scratch.packed);
      sweep(kernel, scratch, panels, row_side, plan.rows * segment / plan.segments,
            plan.rows * (segment + 1) / plan.segments, p.depth, [&](int64_t row0, int nr) {
              for (int panel = 0; panel < panels; ++panel) {
                const int64_t first = panel * kLanes<T>;
                store_block(b, lane0 + first, lanes - first < kLanes<T> ? lanes - first : kLanes<T>, row0, nr,
                            scratch.sums + panel * kRowBlock * kLanes<T>);
              }
            });
    }
  });
}

template <class T>
size_t workspace(const CdistParams& p, const DistanceKernel<T>& kernel, int threads) {
  const Plan<T> plan(p, kernel, threads);
  return sizeof(T) * plan.threads * plan.scratch;
}

}  // namespace

void cdist(const CdistParams& p, const Exec& exec) {
  if (p.batch * p.m * p.n == 0) return;
  with_kernel(p.dtype, p.p, p.depth, [&](const auto& kernel) { run(p, kernel, exec); });
}

size_t cdist_workspace(const CdistParams& p, int threads) {
  size_t bytes = 0;
  with_kernel(p.dtype, p.p, p.depth, [&](const auto& kernel) { bytes = workspace(p, kernel, threads); });
  return bytes;
}

void cdist_products(const CdistParams& p, const ByteProducts& products, const Exec& exec) {
  run(p, product_kernel(products), exec);
}
size_t cdist_products_workspace(const CdistParams& p, const ByteProducts& products, int threads) {
  return workspace(p, product_kernel(products), threads);
}

}  // namespace fastcv::FASTCV_ISA
