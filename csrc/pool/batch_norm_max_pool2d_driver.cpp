// Batch norm and max pooling in one pass over x: units of rows that fit a cache are normalised into scratch memory by
// batch norm's own inner loops and pooled from there by max pooling's own kernels, so that every element is normalised
// (nearly) once and its bits are those of the two ops. A channel of a row-major tensor is pooled right behind its
// statistics, from the cache.
#include "pool/batch_norm_max_pool2d.h"

#include "norm/batch_norm_forward.h"
#include "pool/pool_bands.h"

namespace fastcv {
namespace {

// Scratch of a unit: a plane's rows stay in the first-level cache, an image's in the second. Of planes little more is
// slower: while a unit is pooled the memory it came from rests.
constexpr int64_t kPlaneBytes = 8 << 10, kImageBytes = 512 << 10;

PoolBands bands_of(const PoolParams& p) {
  return pool_bands(p, (p.channels_last ? kImageBytes : kPlaneBytes) / element_bytes(p.dtype), INT64_MAX);
}
size_t aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }
size_t norm_bytes(const BatchNormMaxPool2dParams& p) { return aligned(batch_norm_workspace(p.norm)); }
size_t unit_bytes(const PoolParams& p, const PoolBands& bands) {
  return aligned(static_cast<size_t>(bands.inputs * element_bytes(p.dtype)));
}

using PoolKernel = void (*)(const PoolParams&, const Exec&);

struct Run {
  const BatchNormMaxPool2dParams& p;
  const BatchNormForward& forward;
  const NormKernels& kernels;
  const PoolKernel pool;
  const PoolBands bands;
  char* const slots;
  const int64_t bytes = element_bytes(p.dtype);

  void unit(int slot, const PoolUnit& u) const {
    char* values = slots + slot * (unit_bytes(p.pool, bands) + pool_workspace(p.pool, 1));
    normalise(u, values);
    PoolParams q = p.pool;
    q.x = values;
    if (q.channels_last) q.n = u.maps;
    else q.n = 1, q.c = u.maps;
    q.h = {u.height, u.rows, q.h.kernel, q.h.stride, unit_padding(p.pool, u), q.h.dilation};
    const int64_t out = (u.map * p.pool.h.out + u.row) * q.w.out * (q.channels_last ? q.c : 1);
    q.y = at(q.y, out, bytes);
    q.where = at(q.where, out, 1);
    pool(q, {nullptr, 1, values + unit_bytes(p.pool, bands)});
  }

 private:
  void normalise(const PoolUnit& u, char* values) const {
    const int64_t columns = p.pool.w.in, c = p.norm.c;
    if (p.pool.channels_last) {
      const int64_t from = (u.map * p.pool.h.in + u.top) * columns * c, rows = u.maps * u.height * columns;
      kernels.row_apply(at(p.norm.x, from, bytes), nullptr, values, {rows, c},
                        {forward.hi, forward.scale, forward.shift}, p.norm.act);
      return;
    }
    const int64_t len = u.height * columns;
    for (int64_t i = 0; i < u.maps; ++i) {
      const int64_t from = ((u.map + i) * p.pool.h.in + u.top) * columns;
      kernels.run_apply(at(p.norm.x, from, bytes), nullptr, values + i * len * bytes, {1, 0, len},
                        forward.affine((u.map + i) % c), p.norm.act);
    }
  }
};

void drive(const BatchNormMaxPool2dParams& p, const Exec& exec, const NormKernels& kernels, PoolKernel pool) {
  if (p.norm.n == 0) {
    for (int64_t c = 0; c < p.norm.c && p.norm.training; ++c) p.norm.save_mean[c] = p.norm.save_var[c] = 0;
    return;
  }
  BatchNormForward forward(p.norm, kernels, exec.workspace);
  const PoolBands bands = bands_of(p.pool);
  const Run run{p, forward, kernels, pool, bands, static_cast<char*>(exec.workspace) + norm_bytes(p)};
  const auto all = [&] {
    parallel_slots(exec, bands.units(), grain_of(bands.inputs), [&](int slot, int64_t begin, int64_t end) {
      // Backwards behind statistics, whose last rows are still in the cache.
      for (int64_t i = begin; i < end; ++i)
        run.unit(slot, pool_unit(p.pool, bands, p.norm.training ? begin + end - 1 - i : i));
    });
  };
  if (p.norm.channels_last) return forward.rows(exec, all);
  // Planes of which several make a unit are not pooled one by one.
  forward.planes(
      exec, bands.maps > 1,
      [&](int slot, int64_t c) {
        for (int64_t n = p.norm.n - 1; n >= 0; --n)
          for (int64_t band = 0; band < bands.bands; ++band)
            run.unit(slot, pool_unit(p.pool, bands, (n * p.norm.c + c) * bands.bands + band));
      },
      all);
}

}  // namespace

size_t batch_norm_max_pool2d_workspace(const BatchNormMaxPool2dParams& p, int threads) {
  return norm_bytes(p) + threads * (unit_bytes(p.pool, bands_of(p.pool)) + pool_workspace(p.pool, 1));
}

#define FASTCV_DRIVER(isa)                                                               \
  namespace isa {                                                                        \
  void batch_norm_max_pool2d(const BatchNormMaxPool2dParams& p, const Exec& exec) {      \
    NormKernels kernels{};                                                               \
    set_run_kernels(p.dtype, kernels);                                                   \
    set_row_kernels(p.dtype, kernels);                                                   \
    drive(p, exec, kernels, p.pool.channels_last ? &max_pool2d_nhwc : &max_pool2d_nchw); \
  }                                                                                      \
  }
FASTCV_DRIVER(portable)
#if defined(__x86_64__)
FASTCV_DRIVER(avx2)
FASTCV_DRIVER(avx512)
#endif
#undef FASTCV_DRIVER

}  // namespace fastcv
