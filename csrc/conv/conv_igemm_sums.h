// The sums of a chunk on their way to y, where tiles cannot store them there: a block of pixels of one panel at a time,
// the chunk's whole plane of one panel where pixels are taken by bands, or of all where a plane has several phases.
// From here they go through the epilogue (conv_store.h), transposed for a row-major y.
#pragma once
#include "conv/conv_igemm_plan.h"
#include "conv/conv_store.h"

namespace fastcv::FASTCV_ISA {

template <class P, class S>
class IgemmSums {
  using Plan = IgemmPlan<P, S>;
  using Acc = typename P::Acc;
  static constexpr int kLanes = Plan::kLanes;

 public:
  static size_t bytes(const Plan& plan) {
    return aligned_bytes(panel_elements(plan) * (plan.many_phases ? plan.panels : 1) *
                         static_cast<int64_t>(sizeof(Acc)));
  }

  IgemmSums(const Plan& layer, char* scratch)
      : plan(layer), p(plan.p), sums(reinterpret_cast<Acc*>(scratch)), panel_step(panel_elements(plan)) {}

  // Where a panel's sums go, pixel by pixel.
  Acc* of(int64_t panel) const { return sums + (plan.many_phases ? panel * panel_step : 0); }

  // All sums of a plane of the chunk's outputs to y.
  void finish(const IgemmChunk& c, int64_t od, int64_t panel) const {
    const Dim* d = plan.d;
    const int64_t lines = least(c.cells[1] * d[1].out_step, d[1].out - c.cell[1] * d[1].out_step);
    const int64_t pitch = plan.panel_vectors(panel) * kLanes, first = plan.first_output(c, od);
    if (c.columns == d[2].out) return finish_run(c, panel, of(panel), first, lines * c.columns);
    for (int64_t i = 0; i < lines; ++i)
      finish_run(c, panel, of(panel) + i * c.columns * pitch, first + i * d[2].out, c.columns);
  }

  // Sums of single pixels, [32] each and without their bias, to a channels_last y: to pixel first + place of it, or, if
  // the place is negative, nowhere.
  void finish_rows(const IgemmChunk& c, int64_t panel, const Acc* from, const Acc* bias, const int64_t* places,
                   int64_t rows, int64_t first) const {
    const int64_t k0 = panel * plan.panel_width * kLanes, nk = least(plan.panel_vectors(panel) * kLanes, plan.kg - k0);
    const int64_t at = first * p.k + c.group * plan.kg + k0;
    const auto finish = [&](auto&& store_row) {
      for (int64_t r = 0; r < rows; ++r)
        if (places[r] >= 0) store_row(at + places[r] * p.k, from + r * 2 * kLanes);
    };
    if (nk < 2 * kLanes || (p.activation != Activation::none && p.activation != Activation::relu)) {
      finish([&](int64_t to, const Acc* row) {
        for (int64_t k = 0; k < nk; k += kLanes)
          store_final<S>(p, to + k, load(row + k) + load(bias + k), static_cast<int>(least(kLanes, nk - k)));
      });
      return;
    }
    const Vec<Acc> low = load(bias), high = load(bias + kLanes), zero(Acc(0));
    S* y = static_cast<S*>(p.y);
    const S* residual = static_cast<const S*>(p.residual);
    const bool relu = p.activation == Activation::relu;
    const auto end = [&](int64_t to, Vec<Acc> a, Vec<Acc> b) {
      if (relu) a = select<Acc>(a <= zero, zero, a), b = select<Acc>(b <= zero, zero, b);
      store_two(y + to, a, b);
    };
    if (residual == nullptr) {
      finish([&](int64_t to, const Acc* row) { end(to, load(row) + low, load(row + kLanes) + high); });
    } else {
      finish([&](int64_t to, const Acc* row) {
        end(to, load(row) + low + load(residual + to), load(row + kLanes) + high + load(residual + to + kLanes));
      });
    }
  }

  // Lets the lines that finish_rows will read and write come while their sums are multiplied.
  void fetch_rows(const IgemmChunk& c, int64_t panel, const int64_t* places, int64_t rows, int64_t first) const {
    constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(S)), kRow = 2 * kLanes;
    const int64_t at = first * p.k + c.group * plan.kg + panel * plan.panel_width * kLanes;
    const S *y = static_cast<const S*>(p.y) + at, *residual = static_cast<const S*>(p.residual);
    for (int64_t r = 0; r < rows; ++r) {
      if (places[r] < 0) continue;
      for (int64_t k = 0; k < kRow; k += kLine) {
        __builtin_prefetch(y + places[r] * p.k + k, 1);
        if (residual != nullptr) __builtin_prefetch(residual + at + places[r] * p.k + k);
      }
    }
  }

  // Sums of consecutive pixels of y, of which `pixel` is the first (counted through all images).
  void finish_run(const IgemmChunk& c, int64_t panel, const Acc* from, int64_t pixel, int64_t pixels) const {
    const int64_t k0 = panel * plan.panel_width * kLanes, pitch = plan.panel_vectors(panel) * kLanes;
    const int64_t nk = least(pitch, plan.kg - k0), channel = c.group * plan.kg + k0;
    if (p.channels_last) {
      store_pixels(from, pitch, pixel * p.k + channel, nk, pixels);
    } else {
      const int64_t plane = p.out[0] * p.out[1] * p.out[2];
      store_planes(from, pitch, (c.n * p.k + channel) * plane + pixel - c.n * plane, plane, nk, pixels);
    }
  }

 private:
  FASTCV_INLINE void store_two(S* to, Vec<Acc> low, Vec<Acc> high) {
#if defined(__AVX512BF16__)
    if constexpr (std::is_same_v<S, bf16>) {
      _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh((__m512)high.v, (__m512)low.v));
      return;
    }
#endif
    store(to, low);
    store(to + kLanes, high);
  }

  // Of one panel.
  static int64_t panel_elements(const Plan& plan) {
    return (plan.many_phases || plan.banded ? plan.most_outputs() : Plan::kBlock) * plan.panel_width * kLanes;
  }

  void store_pixels(const Acc* from, int64_t pitch, int64_t at, int64_t nk, int64_t pixels) const {
    for (int64_t i = 0; i < pixels; ++i, from += pitch, at += p.k)
      for (int64_t k = 0; k < nk; k += kLanes)
        store_final<S>(p, at + k, load(from + k), static_cast<int>(least(kLanes, nk - k)));
  }

  void store_planes(const Acc* from, int64_t pitch, int64_t at, int64_t plane, int64_t nk, int64_t pixels) const {
    for (int64_t k = 0; k < nk; k += kLanes)
      for (int64_t i = 0; i < pixels; i += kLanes) {
        const int n = static_cast<int>(least(kLanes, pixels - i));
        const int m = static_cast<int>(least(kLanes, nk - k));
        Vec<Acc> square[kLanes];
        load_square(square, from + i * pitch + k, pitch, n, kLanes);
        store_final_square<S>(p, at + k * plane + i, plane, square, m, n);
      }
  }

  const Plan& plan;
  const ConvParams& p;
  Acc* sums;
  int64_t panel_step;
};

}  // namespace fastcv::FASTCV_ISA
