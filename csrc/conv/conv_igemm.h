// Convolution as a product of gathered pixels and packed weights, without forming the matrix of patches ("implicit
// GEMM"): any layout, dtype, geometry and groups; forward, and transposed by phases (conv_plan.h).
//
//   conv_igemm_plan.h             what the layer asks for, and the chunks of cells that the output is cut into
//   conv_igemm_weights.h          weights packed into panels, once per call or once for many
//   conv_igemm_window.h           the copied inputs of a chunk; conv_flat.h for matrix tiles
//   conv_igemm_register_tiles.h   a phase's products in vector registers (conv_tile.h) ...
//   conv_igemm_matrix_tiles.h     ... or on matrix tiles (conv_amx.h)
//   conv_igemm_sums.h             sums that tiles cannot store to y: through the epilogue, block by block
//
// This file drives them. Threads share out the chunks; a chunk's sums run over taps, then channels, in one order that
// depends on the layer alone. Memory is the caller's: workspace() bytes for the call, kept() for packed weights.
#pragma once
#include "conv/conv_igemm_matrix_tiles.h"
#include "conv/conv_igemm_plan.h"
#include "conv/conv_igemm_register_tiles.h"
#include "conv/conv_igemm_sums.h"
#include "conv/conv_igemm_weights.h"

namespace fastcv::FASTCV_ISA {

// P: what is multiplied (conv_tile.h). S: storage of x, w, bias, residual and y.
template <class P, class S>
class Igemm {
  using Plan = IgemmPlan<P, S>;
  using Sums = IgemmSums<P, S>;
  using Products = std::conditional_t<P::kTiles, MatrixTiles<P, S>, RegisterTiles<P, S>>;

 public:
  Igemm(const ConvParams& params, int threads)
      : plan(params, threads), weights(plan), slots(static_cast<size_t>(threads)), sums_at(Products::scratch(plan)) {
    slot_bytes = sums_at + Sums::bytes(plan);
    if (slot_bytes < weights.scratch()) slot_bytes = weights.scratch();
  }
  size_t workspace() const { return weights.shared() + slots * slot_bytes; }
  size_t kept() const { return weights.kept(); }

  void run(const Exec& exec) {
    constexpr int64_t kGrain = 1 << 16;  // multiply-adds: below this, waking a thread costs more than it saves
    const ConvParams& p = plan.p;
    char* const base = static_cast<char*>(exec.workspace);
    char* const slot_base = base + weights.shared();
    weights.place(base);
    // Panels that a single chunk multiplies are packed by its thread, into its cache.
    const bool packs_own = P::kPair == 1 && p.packing == Packing::none && plan.items == plan.groups * plan.kparts;
    if (p.packing != Packing::ready) {
      weights.prepare();
      if (!packs_own) weights.pack(exec, kGrain, slot_base, slot_bytes);
    }
    if (p.packing == Packing::fill) return;
    weights.load_rest();
    const int64_t item_cost = plan.rows * plan.cols * plan.kdim * (plan.folded ? p.k : plan.kg) / plan.kparts;
    const int64_t grain = most(1, kGrain / most(1, item_cost));
    parallel_slots(exec, plan.items, grain, [&](int slot, int64_t begin, int64_t end) {
      [[maybe_unused]] const typename P::Session session{};
      char* scratch = slot_base + slot * slot_bytes;
      const Sums sums(plan, scratch + sums_at);
      Products products(plan, weights, sums, scratch);
      for (int64_t i = begin; i < end; ++i) {
        const IgemmChunk chunk = plan.chunk(i);
        if constexpr (P::kPair == 1)
          for (int64_t panel = chunk.first_panel; packs_own && panel < chunk.last_panel; ++panel)
            weights.pack_panel(chunk.group, panel);
        run_chunk(products, sums, chunk);
      }
    });
  }

 private:
  void run_chunk(Products& products, const Sums& sums, const IgemmChunk& c) const {
    const Dim* d = plan.d;
    if (!plan.merged) products.read(c, {});
    IgemmPhase f;
    int64_t row = 0, merged_phase = -1;
    for (int64_t fd = 0; fd < d[0].phases; ++fd) {
      f.td = d[0].taps(fd);
      f.od = c.cell[0] * d[0].out_step + fd;
      if (f.od >= d[0].out) break;
      int64_t rows_before = 0;
      for (f.fw = 0; f.fw < d[2].phases; ++f.fw) {
        f.tw = d[2].taps(f.fw);
        if (plan.merged && merged_phase != f.fw) products.read(c, f.tw), merged_phase = f.fw;
        int64_t taps_before = 0;
        for (f.fh = 0; f.fh < d[1].phases; ++f.fh) {
          f.th = d[1].taps(f.fh);
          f.row = row + f.td.count * (taps_before * plan.rows_w + f.th.count * rows_before);
          products.run(c, f);
          taps_before += f.th.count;
        }
        rows_before += plan.row_length(f.tw.count);
      }
      if (plan.many_phases)
        for (int64_t panel = c.first_panel; panel < c.last_panel; ++panel)
          if (!plan.direct(panel)) sums.finish(c, f.od, panel);
      row += f.td.count * d[1].kernel * plan.rows_w;
    }
  }

  const Plan plan;
  IgemmWeights<P, S> weights;
  size_t slots, sums_at, slot_bytes;
};

}  // namespace fastcv::FASTCV_ISA
