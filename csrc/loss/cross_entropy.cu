// Cross-entropy and its gradient on CUDA, in one pass over the scores: warp keeps a row in registers, staged in shared
// memory, cluster in that of several blocks, column a sample's scores in one thread; online reads them twice. Before
// them, where a mean divides gradients, the targets are counted; after them the losses of the samples are added up in a
// fixed order.
#include "loss/cross_entropy.cuh"

#include "common/divide.cuh"
#include "loss/cluster_slices.h"

namespace fastcv::FASTCV_GPU {
namespace {

template <class S, int lanes, int held, int n>
__global__ void __launch_bounds__(kThreads)
    warp_kernel(const CrossEntropyParams p, double* losses, const SampleCount sample_count, int access) {
  using T = acc_t<S>;
  FASTCV_SHARED(double, sums, kThreads / kWarp);
  const T scale = p.grad == nullptr ? T(1) : mean_scale<T>(p, sample_count, sums);
  for (int64_t r = global_thread() / lanes; r < p.outer; r += global_threads() / lanes) {
    const int64_t at = r * p.classes;
    Lanes<S, lanes, held, n> keeper{static_cast<const S*>(p.x) + at, static_cast<S*>(p.grad) + at,
                                    static_cast<int>(p.classes), access};
    one_sample<S>(p, keeper, r, at, scale, losses);
  }
}

template <class S, int held>
__global__ void __launch_bounds__(kThreads)
    column_kernel(const CrossEntropyParams p, const Divider inner, double* losses, const SampleCount sample_count) {
  using T = acc_t<S>;
  FASTCV_SHARED(double, sums, kThreads / kWarp);
  const T scale = p.grad == nullptr ? T(1) : mean_scale<T>(p, sample_count, sums);
  for (int64_t r = global_thread(); r < p.outer * p.inner; r += global_threads()) {
    int64_t i = r;
    const int64_t o = inner.split(i), at = o * p.classes * p.inner + i;
    Column<S, held> keeper{static_cast<const S*>(p.x) + at, static_cast<S*>(p.grad) + at, p.classes, p.inner};
    one_sample<S>(p, keeper, r, at, scale, losses);
  }
}

// run<S>(losses or null, sample_count), between counting and adding up.
template <class Run>
int with_sums(const CrossEntropyParams& p, void* workspace, CUstream_st* stream, Run&& run) {
  const int64_t samples = p.outer * p.inner;
  double* counts = static_cast<double*>(workspace);
  const SampleCount sample_count(counts, samples);
  double* losses = p.loss == nullptr || p.reduction == Reduction::none ? nullptr : counts + 2 * sample_count.chunks;
  return by_dtype(p.dtype, [&]<class S>() {
    int error = p.grad == nullptr ? 0 : count_targets<S>(p, counts, stream);
    if (error == 0 && samples > 0) error = run.template operator()<S>(losses, sample_count);
    return error != 0 ? error : sum_losses<S>(p, losses, counts, stream);
  });
}

}  // namespace

int cross_entropy_warp(const CrossEntropyParams& p, void* workspace, CUstream_st* stream) {
  return with_sums(p, workspace, stream, [&]<class S>(double* losses, const SampleCount& sample_count) {
    const auto go = [&](auto kernel, int lanes, int access) {
      return launch(kernel, grid_for(p.outer, kThreads / lanes), kThreads, 0, stream, p, losses, sample_count, access);
    };
    constexpr int n = kPack<S>;
    const int access = access_bytes({p.x, p.grad});
    if (p.classes <= 16) return go(warp_kernel<S, 4, 4, 1>, 4, 0);
    if (p.classes % n != 0) return go(warp_kernel<S, kWarp, 8, 1>, kWarp, 0);
    return p.classes <= 256 ? go(warp_kernel<S, kWarp, 8, n>, kWarp, access)
                            : go(warp_kernel<S, kWarp, 32, n>, kWarp, access);
  });
}

int cross_entropy_staged(const CrossEntropyParams& p, void* workspace, CUstream_st* stream) {
  return with_sums(p, workspace, stream, [&]<class S>(double* losses, const SampleCount& sample_count) {
    return cross_entropy_blocks<S, S, true>(p, losses, sample_count, stream);
  });
}

int cross_entropy_online(const CrossEntropyParams& p, void* workspace, CUstream_st* stream) {
  return with_sums(p, workspace, stream, [&]<class S>(double* losses, const SampleCount& sample_count) {
    return cross_entropy_blocks<S, S, false>(p, losses, sample_count, stream);
  });
}

// Where the device has no clusters, or none with that much shared memory, the rows are read twice.
int cross_entropy_cluster(const CrossEntropyParams& p, void* workspace, CUstream_st* stream) {
  if (!has_clusters()) return cross_entropy_online(p, workspace, stream);
  return with_sums(p, workspace, stream, [&]<class S>(double* losses, const SampleCount& sample_count) {
    constexpr int n = kPack<S>;
    const ClusterSlices slices(p.classes, sizeof(S));
    const bool packs = p.classes % n == 0;
    const auto blocks = static_cast<unsigned>(slices.blocks);
    const size_t bytes = static_cast<size_t>(slices.length) * sizeof(S);
    const auto go = [&](auto kernel, int access) {
      return launch_clusters(kernel, grid_for(p.outer, 1) * blocks, blocks, kRowThreads, bytes, stream, p, blocks,
                             slices.length, losses, sample_count, access);
    };
    return packs ? go(cross_entropy_cluster_kernel<S, n>, access_bytes({p.x, p.grad}))
                 : go(cross_entropy_cluster_kernel<S, 1>, 0);
  });
}

int cross_entropy_column(const CrossEntropyParams& p, void* workspace, CUstream_st* stream) {
  return with_sums(p, workspace, stream, [&]<class S>(double* losses, const SampleCount& sample_count) {
    const auto go = [&](auto kernel) {
      return launch(kernel, grid_for(p.outer * p.inner, kThreads), kThreads, 0, stream, p, Divider(p.inner), losses,
                    sample_count);
    };
    return p.classes <= 32 ? go(column_kernel<S, 32>) : go(column_kernel<S, 0>);
  });
}

}  // namespace fastcv::FASTCV_GPU
