// Input gradient with a stride, and transposed convolution, on Hopper's tensor cores: each phase of the output
// (conv_phases.h) is a convolution of stride 1 with some of the taps, made by the pipeline of conv_pipeline_sm90.cuh
// and written between the outputs of other phases; four phases to a launch, those with most taps first. No zeros are
// multiplied: all phases together have as many products as the convolution itself. Phases without taps are bias and
// residual.
#include "conv/conv.h"

#include "conv/conv_chunks.cuh"
#include "conv/conv_pipeline_sm90.cuh"
#include "conv/conv_store.cuh"

namespace fastcv::FASTCV_GPU {
namespace {

constexpr int kThreads = 256, kTogether = 4;

template <class S>
using Shape = Sm90Shape<S, 1, 2, 1, 128, 1>;

// Phases of one launch; those that are missing have no units.
struct Phases {
  Sm90Problem g[kTogether];
  TensorMap images[kTogether], weights[kTogether];
  FASTCV_HOST_DEVICE int64_t units() const {
    int64_t sum = 0;
    for (const Sm90Problem& each : g) sum += each.units;
    return sum;
  }
  __device__ __forceinline__ Sm90Call at(int64_t& unit) const {
    int i = 0;
    while (unit >= g[i].units) unit -= g[i++].units;
    return {g[i], images[i], weights[i]};
  }
};

template <class S>
__global__ void __launch_bounds__(kPipelineThreads, 1) igemm_phases_kernel(const __grid_constant__ Phases phases) {
  run_pipeline<Shape<S>>(phases);
}

// Weights [c][k][taps] in either layout to [phase][k][taps of the phase][padded]; a phase to a blockIdx.y.
template <class S>
__global__ void __launch_bounds__(kThreads)
    pack_phases_kernel(const ConvParams p, const PhasePlan phases, int64_t padded, S* to) {
  const S* from = static_cast<const S*>(p.w);
  const PhasePlan::Dim &dim_h = phases.dims[0], &dim_w = phases.dims[1];
  const int64_t ph = blockIdx.y / dim_w.phases, pw = blockIdx.y % dim_w.phases;
  const PhaseConv &h = dim_h.of[ph], &w = dim_w.of[pw];
  const int64_t taps = h.count * w.count, all = p.kernel[1] * p.kernel[2], size = p.k * taps * padded;
  to += p.k * padded * (dim_h.before[ph] * dim_w.taps + h.count * dim_w.before[pw]);
  for (int64_t i = global_thread(); i < size; i += global_threads()) {
    const int64_t c = i % padded, tap = i / padded % taps, k = i / padded / taps;
    const int64_t r = h.first + (h.count - 1 - tap / w.count) * h.step;
    const int64_t s = w.first + (w.count - 1 - tap % w.count) * w.step, at = r * p.kernel[2] + s;
    to[i] = c < p.c ? from[p.weight_channels_last ? (c * all + at) * p.k + k : (c * p.k + k) * all + at] : S{};
  }
}

// The phases without taps; a phase to a blockIdx.y, a row of its outputs to a block.
template <class S>
__global__ void __launch_bounds__(kThreads)
    fill_phases_kernel(const ConvParams p, const PhasePlan phases, const Steps y, bool all, bool packs) {
  constexpr int chunk = 16 / sizeof(S);
  const int64_t ph = blockIdx.y / phases.dims[1].phases, pw = blockIdx.y % phases.dims[1].phases;
  const PhaseConv &h = phases.dims[0].of[ph], &w = phases.dims[1].of[pw];
  if (!all && h.count > 0 && w.count > 0) return;
  const int cells = static_cast<int>(w.cells), width = packs ? chunk : 1, columns = static_cast<int>(p.k) / width;
  for (int64_t job = blockIdx.x; job < p.n * h.cells; job += gridDim.x) {
    const int64_t row = job / h.cells * y.n + (job % h.cells * p.stride[1] + ph) * y.at[1];
    for (int64_t i = threadIdx.x; i < int64_t{cells} * columns; i += kThreads) {
      const int64_t cell = p.channels_last ? i / columns : i % cells;
      const int64_t k = (p.channels_last ? i % columns : i / cells) * width;
      const int64_t to = row + k * y.c + (cell * p.stride[2] + pw) * y.at[2];
      if (packs) store_channels<S, chunk>(p, {}, k, to);
      else static_cast<S*>(p.y)[to] = finished<S>(p, 0, k, to);
    }
  }
}

struct Phase {
  int64_t h, w, taps;
};

// A phase as a convolution of stride 1, whose first output is y's [h][w].
template <class S>
ConvParams phase_params(const ConvParams& p, const PhasePlan& phases, const Phase& phase, const Steps& y) {
  const PhaseConv* of[2] = {&phases.dims[0].of[phase.h], &phases.dims[1].of[phase.w]};
  ConvParams q = p;
  q.transposed = false;
  for (int i = 0; i < 2; ++i) {
    q.out[i + 1] = of[i]->cells;
    q.kernel[i + 1] = of[i]->count;
    q.pad[i + 1] = of[i]->pad;
    q.dilation[i + 1] = of[i]->dilation;
    q.stride[i + 1] = 1;
  }
  const int64_t first = phase.h * y.at[1] + phase.w * y.at[2];
  q.y = static_cast<S*>(p.y) + first;
  if (p.residual != nullptr) q.residual = static_cast<const S*>(p.residual) + first;
  return q;
}

template <class S>
int run(const ConvParams& p, void* workspace, CUstream_st* stream) {
  IgemmPlan plan(p);
  plan.convert_w = false;
  const PhasePlan phases(p);
  const Steps y(p.k, p.out, p.channels_last);
  Steps apart = y;  // outputs of one phase
  apart.at[1] *= p.stride[1];
  apart.at[2] *= p.stride[2];
  const auto all = static_cast<unsigned>(phases.dims[0].phases * phases.dims[1].phases);
  const bool nothing = p.c * p.in[1] * p.in[2] == 0;  // to read
  bool fills = nothing;
  for (const auto& dim : phases.dims)
    for (int64_t i = 0; i < dim.phases; ++i) fills = fills || dim.of[i].count == 0;
  if (fills) {
    const bool packs = p.channels_last && p.k % plan.chunk == 0 && aligned_to(p.y, 16) && aligned_to(p.residual, 16);
    const dim3 grid(grid_for(p.n * phases.dims[0].of[0].cells, 1), all);
    const int error = launch(fill_phases_kernel<S>, grid, kThreads, 0, stream, p, phases, y, nothing, packs);
    if (error != 0 || nothing) return error;
  }
  const void *x, *w;
  if (const int error = chunked_operands<S>(p, plan, workspace, x, w, stream); error != 0) return error;
  S* weights = reinterpret_cast<S*>(static_cast<char*>(workspace) + plan.x_bytes);
  const dim3 grid(grid_for(p.k * plan.taps * plan.padded / all, kThreads), all);
  if (const int error = launch(pack_phases_kernel<S>, grid, kThreads, 0, stream, p, phases, plan.padded, weights);
      error != 0)
    return error;

  Phase todo[kMostPhases * kMostPhases];
  int count = 0;
  for (int64_t ph = 0; ph < phases.dims[0].phases; ++ph)
    for (int64_t pw = 0; pw < phases.dims[1].phases; ++pw)
      if (const int64_t taps = phases.dims[0].of[ph].count * phases.dims[1].of[pw].count; taps > 0)
        todo[count++] = {ph, pw, taps};
  std::sort(todo, todo + count, [](const Phase& a, const Phase& b) { return a.taps > b.taps; });
  for (int begin = 0; begin < count; begin += kTogether) {
    const auto problem = [&](int i) {
      const bool missing = begin + i >= count;
      const ConvParams q = phase_params<S>(p, phases, todo[missing ? begin : begin + i], y);
      Sm90Problem g = Sm90Problem::of<Shape<S>>(q, IgemmPlan(q), apart);
      if (missing) g.units = 0;
      return g;
    };
    Phases together{.g = {problem(0), problem(1), problem(2), problem(3)}, .images = {}, .weights = {}};
    static_assert(kTogether == 4);
    for (int i = 0; i < std::min(kTogether, count - begin); ++i) {
      const auto& [ph, pw, taps] = todo[begin + i];
      const int64_t before =
          phases.dims[0].before[ph] * phases.dims[1].taps + phases.dims[0].of[ph].count * phases.dims[1].before[pw];
      const Sm90Problem& g = together.g[i];
      if (!sm90_maps<Shape<S>>(g.p, IgemmPlan(g.p), g, x, weights + p.k * plan.padded * before, together.images[i],
                               together.weights[i]))
        return cudaErrorInvalidValue;
    }
    const auto blocks = static_cast<unsigned>(std::min(together.units(), kSm90Multiprocessors));
    const int error =
        launch_clusters(igemm_phases_kernel<S>, blocks, 1, kPipelineThreads, Shape<S>::shared_bytes, stream, together);
    if (error != 0) return error;
  }
  return cudaSuccess;
}

}  // namespace

int conv_igemm_phases_sm90(const ConvParams& p, void* workspace, CUstream_st* stream) {
  return p.dtype == DType::bf16 ? run<bf16>(p, workspace, stream) : run<f16>(p, workspace, stream);
}

}  // namespace fastcv::FASTCV_GPU
