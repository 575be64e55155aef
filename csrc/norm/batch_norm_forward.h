// Batch norm up to the point where it writes: statistics of every channel, and the affine maps that follow from them.
// What is written, and how the writing is cut, is its user's: batch_norm_driver.cpp writes the map,
// pool/batch_norm_max_pool2d_driver.cpp pools it.
#pragma once
#include "norm/batch_norm.h"
#include "norm/norm_driver.h"

namespace fastcv {
namespace {

// NCHW: units of work of one channel. Small planes are taken many at a time, large ones in parts.
struct Segment {
  int64_t plane, planes, start, len;  // planes [plane, plane + planes), elements [start, start + len) of each
};
[[maybe_unused]] Segment segment(int64_t i, int64_t n, int64_t s) {
  if (s > kNormSegment) {
    const int64_t parts = ceil_div(s, kNormSegment), start = i % parts * kNormSegment;
    return {i / parts, 1, start, min64(kNormSegment, s - start)};
  }
  const int64_t planes = kNormSegment / s;
  return {i * planes, min64(planes, n - i * planes), 0, s};
}

// A thread per channel keeps the channel in its cache between the two passes; with too few channels work is cut finer.
[[maybe_unused]] bool channel_per_task(const Exec& exec, int64_t c, int64_t segments) {
  return segments <= 1 || c >= 2 * exec.threads;
}

// Its scratch memory: batch_norm_workspace bytes.
struct BatchNormForward {
  const BatchNormParams& p;
  const NormKernels& kernels;
  const int64_t bytes = element_bytes(p.dtype);
  Carver carve;
  double *hi, *scale, *shift;  // y = act((x - hi[c]) * scale[c] + shift[c])
  const double count = static_cast<double>(p.n * p.s);

  BatchNormForward(const BatchNormParams& params, const NormKernels& kernels, void* workspace)
      : p(params), kernels(kernels), carve{static_cast<char*>(workspace)} {
    hi = carve.take<double>(p.c);
    scale = carve.take<double>(p.c);
    shift = carve.take<double>(p.c);
  }

  Affine affine(int64_t c) const { return {hi[c], scale[c], shift[c]}; }

  // Row-major tensors: channel(slot, c) right behind the statistics of channel c, while it is in the thread's cache, or
  // all() behind those of all channels; with `together` always the latter.
  template <class Channel, class All>
  void planes(const Exec& exec, bool together, Channel&& channel, All&& all) {
    if (!p.training) {
      set_given_statistics();
      return all();
    }
    const int64_t segments = norm_segments(p.n, p.s), image = p.c * p.s;
    const auto moments = [&](int64_t c, int64_t i) {
      const Segment g = segment(i, p.n, p.s);
      return kernels.run_moments(at(p.x, g.plane * image + c * p.s + g.start, bytes), {g.planes, image, g.len});
    };
    const auto merged = [&](auto&& part) {
      Moments total = {0, 0};
      double before = 0;
      for (int64_t i = 0; i < segments; ++i) {
        const Segment g = segment(i, p.n, p.s);
        const double n = static_cast<double>(g.planes * g.len);
        merge(before, total, n, part(i));
        before += n;
      }
      return total;
    };
    if (channel_per_task(exec, p.c, segments)) {
      parallel_slots(exec, p.c, grain_of(p.n * p.s), [&](int slot, int64_t begin, int64_t end) {
        for (int64_t c = begin; c < end; ++c) {
          set_statistics(c, merged([&](int64_t i) { return moments(c, i); }));
          if (!together) channel(slot, c);
        }
      });
      if (!together) return;
    } else {
      Moments* parts = carve.take<Moments>(p.c * segments);
      parallel_for(exec, p.c * segments, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) parts[i] = moments(i / segments, i % segments);
      });
      for (int64_t c = 0; c < p.c; ++c) set_statistics(c, merged([&](int64_t i) { return parts[c * segments + i]; }));
    }
    all();
  }

  // Channels_last tensors: all() behind the statistics.
  template <class All>
  void rows(const Exec& exec, All&& all) {
    const int64_t R = p.n * p.s, C = p.c;
    if (p.training) {
      double* mean = carve.take<double>(C);
      double* m2 = carve.take<double>(C);
      rows_moments(exec, kernels, p.x, bytes, R, C, carve.take<double>(2 * norm_supers(R, C) * C), mean, m2);
      for (int64_t c = 0; c < C; ++c) set_statistics(c, {mean[c], m2[c]});
    } else {
      set_given_statistics();
    }
    all();
  }

 private:
  void set_affine(int64_t c, double mean, double var) {
    const Affine a = affine_of(p.dtype, mean, inverse_std(var, p.eps), read(p.weight, c, 1), read(p.bias, c, 0));
    hi[c] = a.hi;
    scale[c] = a.scale;
    shift[c] = a.shift;
  }
  void set_statistics(int64_t c, Moments m) {
    p.save_mean[c] = m.mean;
    p.save_var[c] = m.m2 / count;
    set_affine(c, m.mean, m.m2 / count);
  }
  void set_given_statistics() {
    for (int64_t c = 0; c < p.c; ++c) set_affine(c, read(p.mean, c, 0), read(p.var, c, 0));
  }
};

}  // namespace
}  // namespace fastcv
