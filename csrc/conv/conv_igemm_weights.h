// Weights as an implicit GEMM multiplies them: panels [group][panel][phase, tap, channel][up to 4 vectors of output
// channels], packed once per call or once for many (Packing), and the bias in whole vectors.
//
// A row holds P::kPair channels of a tap; rows of a phase are consecutive. Where a weight is cut into parts
// (P::kStored) those of 32 channels stand one after the other.
#pragma once
#include "common/parallel.h"
#include "conv/conv_igemm_plan.h"

namespace fastcv::FASTCV_ISA {

template <class P, class S>
class IgemmWeights {
  using Plan = IgemmPlan<P, S>;
  using W = typename P::W;
  using Acc = typename P::Acc;
  static constexpr int kLanes = Plan::kLanes;
  static constexpr int64_t kBlock = 32;  // channels whose pairs are made at once, in the first-level cache

 public:
  explicit IgemmWeights(const Plan& layer) : plan(layer), p(plan.p) {
    special_at = aligned_bytes(units() * kLanes * plan.packed_rows() * static_cast<int64_t>(sizeof(W)));
    packed_bytes = special_at + (P::kStored > 1 ? aligned_bytes(units()) : 0);
    bias_at = p.packing == Packing::none ? packed_bytes : 0;
    tap_rows_at = bias_at + aligned_bytes(units() * kLanes * static_cast<int64_t>(sizeof(Acc)));
  }

  size_t kept() const { return packed_bytes; }
  // Bytes of the workspace: for all threads, and for each while it packs.
  size_t shared() const { return tap_rows_at + aligned_bytes(2 * taps() * 8); }
  size_t scratch() const {
    if (P::kPair == 1) return 0;
    const int64_t rows = plan.merged ? plan.kdim : taps() * kBlock;
    return aligned_bytes(rows * kLanes * static_cast<int64_t>(sizeof(Acc)));
  }

  void place(char* workspace) {
    char* kept = p.packing == Packing::none ? workspace : static_cast<char*>(p.packed);
    packed = reinterpret_cast<W*>(kept);
    special_weights = kept + special_at;
    biases = reinterpret_cast<Acc*>(workspace + bias_at);
    tap_rows = reinterpret_cast<int64_t*>(workspace + tap_rows_at);
  }

  // Packing is prepared once; then all is packed by all threads, or a panel by whoever needs it.
  void prepare() { tabulate_tap_rows(); }

  // `grain`: multiply-adds worth a thread.
  void pack(const Exec& exec, int64_t grain, char* slots, size_t slot_bytes) {
    parallel_slots(exec, units(), most(1, grain / (plan.kdim * kLanes)), [&](int slot, int64_t begin, int64_t end) {
      for (int64_t u = begin; u < end; ++u)
        pack_vector(u / plan.vectors, u % plan.vectors, reinterpret_cast<Acc*>(slots + slot * slot_bytes));
    });
  }

  void pack_panel(int64_t group, int64_t panel)
    requires(P::kPair == 1)
  {
    for (int v = 0; v < plan.panel_vectors(panel); ++v) pack_vector(group, panel * plan.panel_width + v, nullptr);
  }

  // What is not packed, and what is known of the packed weights.
  void load_rest() {
    for (int64_t u = 0; u < units(); ++u) load_bias(u / plan.vectors, u % plan.vectors);
    special_seen = false;
    if constexpr (P::kStored > 1)
      for (int64_t u = 0; u < units(); ++u) special_seen |= special_weights[u] != 0;
  }

  // A panel's weights from `row` on, a row being that of Plan::kdim.
  W* panel(int64_t group, int64_t panel, int64_t row) const {
    const int64_t before = (group * plan.vectors + panel * plan.panel_width) * plan.packed_rows();
    return packed + (before + Plan::packed_row(row) * plan.panel_vectors(panel)) * kLanes;
  }
  // The same of the weights' last stored parts.
  W* clean(int64_t group, int64_t panel, int64_t row) const {
    const int64_t before = (group * plan.vectors + panel * plan.panel_width) * plan.packed_rows();
    const int64_t parts = plan.kdim / P::kPair * (P::kStored - 1);
    return packed + (before + (parts + row / P::kPair) * plan.panel_vectors(panel)) * kLanes;
  }
  const Acc* bias(int64_t group, int64_t panel) const {
    return biases + (group * plan.vectors + panel * plan.panel_width) * kLanes;
  }

  // Is a weight that was cut into parts not finite?
  bool any_special() const { return special_seen; }

 private:
  int64_t units() const { return plan.groups * plan.vectors; }  // vectors of output channels
  int64_t* block_rows() const { return tap_rows + taps(); }
  int64_t taps() const { return p.kernel[0] * p.kernel[1] * p.kernel[2]; }

  // The row of a panel at which each tap starts; phase by phase, so that a phase's weights are consecutive.
  void tabulate_tap_rows() {
    const Dim* d = plan.d;
    const auto before = [](const Dim& dim, int64_t phase) {  // taps of earlier phases
      int64_t count = 0;
      if (dim.transposed)
        for (int64_t r = 0; r < dim.kernel; ++r) count += dim.phase_of(r) < phase;
      return count;
    };
    const auto rows_before = [&](int64_t phase) {
      int64_t count = 0;
      if (d[2].transposed)
        for (int64_t r = 0; r < least(d[2].tap_step, d[2].kernel); ++r)
          if (d[2].phase_of(r) < phase) count += plan.row_length(ceil_div(d[2].kernel - r, d[2].tap_step));
      return count;
    };
    const int64_t tap_length = plan.merged || plan.folded ? plan.cg : round_up(plan.cg, Plan::kRound);
    int64_t* row = tap_rows;
    for (int64_t tap = 0; tap < taps(); ++tap) block_rows()[tap] = tap * kBlock;
    for (int64_t rd = 0; rd < d[0].kernel; ++rd) {
      const int64_t fd = d[0].phase_of(rd), jd = rd / d[0].tap_step, before_d = before(d[0], fd);
      const int64_t nd = d[0].taps(fd).count;
      for (int64_t rh = 0; rh < d[1].kernel; ++rh) {
        const int64_t fh = d[1].phase_of(rh), jh = rh / d[1].tap_step, before_h = before(d[1], fh);
        const int64_t nh = d[1].taps(fh).count;
        for (int64_t rw = 0; rw < d[2].kernel; ++rw) {
          const int64_t fw = d[2].phase_of(rw), jw = rw / d[2].tap_step;
          const int64_t length = plan.row_length(d[2].taps(fw).count);
          *row++ = before_d * d[1].kernel * plan.rows_w + nd * (before_h * plan.rows_w + nh * rows_before(fw)) +
                   (jd * nh + jh) * length + jw * tap_length;
        }
      }
    }
  }

  // One vector of output channels of one group.
  void pack_vector(int64_t group, int64_t vector, Acc* staging) {
    const int64_t k0 = vector * kLanes, at = vector / plan.panel_width;
    const int nk = static_cast<int>(least(kLanes, plan.kg - k0));
    const int64_t pitch = plan.panel_vectors(at) * kLanes;
    W* out = panel(group, at, 0) + vector % plan.panel_width * kLanes;
    if constexpr (P::kPair == 1) {
      if (plan.folded) pack_folded(k0, nk, out, pitch);
      else pack_rows(group, k0, nk, 0, plan.cg, tap_rows, out, pitch);
    } else {
      [[maybe_unused]] bool special = false;
      const auto pack_pairs = [&](int64_t row, int64_t rows, const Acc* from) {
        for (int64_t i = 0; i < rows; i += P::kPair, from += P::kPair * kLanes) {
          const Vec<Acc> even = load(from), odd = load(from + kLanes);
          W* to = out + Plan::packed_row(row + i) * pitch;
          if constexpr (P::kTiles) {
            W* last = clean(group, at, row + i) + vector % plan.panel_width * kLanes;
            special |= P::pack_pair(to, 16 * pitch, last, even, odd);
          } else {
            P::pack_pair(to, even, odd);
          }
        }
      };
      const auto clear = [&](int64_t rows) {
        std::memset(static_cast<void*>(staging), 0, static_cast<size_t>(rows * kLanes) * sizeof(Acc));
      };
      if (plan.merged) {
        clear(plan.kdim);
        pack_rows(group, k0, nk, 0, plan.cg, tap_rows, staging, kLanes);
        pack_pairs(0, plan.kdim, staging);
      } else if (std::is_same_v<S, typename P::X> && !p.transposed && plan.cg % P::kPair == 0 &&
                 (taps() == 1 || p.weight_channels_last)) {
        copy_pairs(group, k0, nk, out, pitch);
      } else {
        for (int64_t c = 0; c < plan.cg; c += kBlock) {
          const int64_t n = least(kBlock, plan.cg - c);
          if (n < kBlock) clear(taps() * kBlock);
          pack_rows(group, k0, nk, c, n, block_rows(), staging, kLanes);
          for (int64_t tap = 0; tap < taps(); ++tap)
            pack_pairs(tap_rows[tap] + c, round_up(n, Plan::kRound), staging + tap * kBlock * kLanes);
        }
      }
      if constexpr (P::kStored > 1) special_weights[group * plan.vectors + vector] = special;
    }
  }

  // Pairs of channels that are neighbours in memory and stay as they are.
  void copy_pairs(int64_t group, int64_t k0, int nk, W* out, int64_t pitch) const {
    const int64_t taps = this->taps(), cg = plan.cg;
    const S* w = static_cast<const S*>(p.w) + (group * plan.kg + k0) * cg * taps;
    for (int64_t tap = 0; tap < taps; ++tap, w += cg)
      for (int64_t c = 0; c < cg; c += kBlock) {
        const int64_t n = least(kBlock, cg - c);
        Vec<Acc> square[kLanes];
        for (int i = 0; i < kLanes; ++i) {
          const Acc* from = reinterpret_cast<const Acc*>(w + i * cg * taps + c);
          square[i] = i >= nk       ? Vec<Acc>(Acc(0))
                      : n == kBlock ? load(from)
                                    : load_n(from, static_cast<int>(n / P::kPair));
        }
        transpose_square(square);
        W* to = out + Plan::packed_row(tap_rows[tap] + c) * pitch;
        for (int64_t i = 0; i < round_up(n, Plan::kRound) / P::kPair; ++i)
          store(reinterpret_cast<Acc*>(to + i * pitch), square[i]);
      }
  }

  // Rows (tap, channel) of one vector of output channels, n channels from c0 on: rows[tap] + channel - c0 of `out`,
  // `pitch` apart.
  void pack_rows(int64_t group, int64_t k0, int nk, int64_t c0, int64_t n, const int64_t* rows, Acc* out,
                 int64_t pitch) {
    const int64_t taps = this->taps(), cg = plan.cg, kg = plan.kg, columns = p.transposed ? kg : cg;
    const int64_t row_step = columns * taps, column_step = p.weight_channels_last ? 1 : taps;
    const int64_t tap_step = p.weight_channels_last ? columns : 1;
    const int64_t k_step = p.transposed ? column_step : row_step, c_step = p.transposed ? row_step : column_step;
    const S* w =
        static_cast<const S*>(p.w) + group * (p.transposed ? cg * row_step : kg * row_step) + k0 * k_step + c0 * c_step;
    if (k_step == 1) {
      for (int64_t tap = 0; tap < taps; ++tap)
        for (int64_t c = 0; c < n; ++c)
          store(out + (rows[tap] + c) * pitch, load_n(w + c * c_step + tap * tap_step, nk));
    } else if (p.transposed) {
      for (int64_t c = 0; c < n; ++c) transpose_run(w + c * c_step, k_step, nk, taps, taps, c, 0, rows, out, pitch);
    } else if (p.weight_channels_last) {
      for (int64_t tap = 0; tap < taps; ++tap)
        transpose_run(w + tap * tap_step, k_step, nk, n, 1, 0, tap, rows, out, pitch);
    } else {
      transpose_run(w, k_step, nk, n * taps, taps, 0, 0, rows, out, pitch);
    }
  }

  void pack_folded(int64_t k0, int nk, Acc* out, int64_t pitch) {
    const int64_t taps = this->taps(), cg = plan.cg, group_out = p.k / p.groups;
    for (int64_t tap = 0; tap < taps; ++tap)
      for (int64_t c = 0; c < cg; ++c)
        for (int i = 0; i < kLanes; ++i) {
          const int64_t k = k0 + i, row = p.transposed ? k / group_out * cg + c : k;
          const int64_t columns = p.transposed ? group_out : cg, column = p.transposed ? k % group_out : c;
          const int64_t at =
              p.weight_channels_last ? (row * taps + tap) * columns + column : (row * columns + column) * taps + tap;
          out[(tap_rows[tap] + c) * pitch + i] = i < nk ? load_one(static_cast<const S*>(p.w) + at) : Acc(0);
        }
  }

  // A run of `length` weights that are consecutive in each of nk output channels; they walk through `taps` taps, then
  // on to the next channel, from (channel, tap).
  void transpose_run(const S* w, int64_t k_step, int nk, int64_t length, int64_t taps, int64_t channel, int64_t tap,
                     const int64_t* rows, Acc* out, int64_t pitch) {
    const int64_t first_tap = tap;
    for (int64_t q = 0; q < length; q += kLanes) {
      const int m = static_cast<int>(least(kLanes, length - q));
      Vec<Acc> square[kLanes];
      load_square(square, w + q, k_step, nk, m);
      for (int i = 0; i < m; ++i) {
        store(out + (rows[tap] + channel) * pitch, square[i]);
        if (++tap == first_tap + taps) tap = first_tap, ++channel;
      }
    }
  }

  void load_bias(int64_t group, int64_t vector) {
    const int64_t k0 = vector * kLanes;
    const int nk = static_cast<int>(least(kLanes, plan.kg - k0));
    const Vec<Acc> b =
        p.bias == nullptr ? Vec<Acc>(Acc(0)) : load_n(static_cast<const S*>(p.bias) + group * plan.kg + k0, nk);
    store(biases + (group * plan.vectors + vector) * kLanes, b);
  }

  const Plan& plan;
  const ConvParams& p;
  size_t special_at, packed_bytes, bias_at, tap_rows_at;
  W* packed;
  Acc* biases;
  int64_t* tap_rows;
  char* special_weights;  // [groups][vectors]
  bool special_seen;
};

}  // namespace fastcv::FASTCV_ISA
