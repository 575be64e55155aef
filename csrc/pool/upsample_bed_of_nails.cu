// Bed of nails: a thread writes one element of the result, forward the big map (most of it zeros), backward the small
// one. Values move as bits, so one kernel serves the dtypes of a size.
#include "pool/upsample_bed_of_nails.h"

#include "common/divide.cuh"

namespace fastcv::FASTCV_GPU {
namespace {

constexpr int kThreads = 256;

// The small map as [outer, h, w, inner]: planes are outer in row-major maps, channels inner in channels_last ones.
struct Maps {
  int64_t outer, h, w, inner, scale_h, scale_w;
  explicit Maps(const BedOfNailsParams& p)
      : outer(p.channels_last ? p.n : p.n * p.c),
        h(p.h),
        w(p.w),
        inner(p.channels_last ? p.c : 1),
        scale_h(p.scale_h),
        scale_w(p.scale_w) {}
  __device__ __forceinline__ int64_t nail(int64_t o, int64_t row, int64_t column, int64_t k) const {
    return ((o * h * scale_h + row * scale_h) * w * scale_w + column * scale_w) * inner + k;
  }
};

template <class Bits>
__global__ void __launch_bounds__(kThreads)
    upsample_bed_of_nails_kernel(const Bits* __restrict__ small, Bits* __restrict__ big, const Maps m,
                                 const Divider inner, const Divider big_w, const Divider big_h, const Divider scale_h,
                                 const Divider scale_w) {
  const int64_t total = m.outer * m.h * m.scale_h * m.w * m.scale_w * m.inner;
  for (int64_t i = global_thread(); i < total; i += global_threads()) {
    int64_t k = i, column = inner.split(k), row = big_w.split(column);
    const int64_t o = big_h.split(row), h = scale_h.split(row), w = scale_w.split(column);
    big[i] = row == 0 && column == 0 ? small[((o * m.h + h) * m.w + w) * m.inner + k] : Bits{0};
  }
}

template <class Bits>
__global__ void __launch_bounds__(kThreads)
    upsample_bed_of_nails_backward_kernel(const Bits* __restrict__ big, Bits* __restrict__ small, const Maps m,
                                          const Divider inner, const Divider w, const Divider h) {
  const int64_t total = m.outer * m.h * m.w * m.inner;
  for (int64_t i = global_thread(); i < total; i += global_threads()) {
    int64_t k = i, column = inner.split(k), row = w.split(column);
    const int64_t o = h.split(row);
    small[i] = big[m.nail(o, row, column, k)];
  }
}

template <class F>
int by_size(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32:
      return f.template operator()<uint32_t>();
    case DType::f64:
      return f.template operator()<uint64_t>();
    case DType::bf16:
    case DType::f16:
      return f.template operator()<uint16_t>();
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace

int upsample_bed_of_nails(const BedOfNailsParams& p, void*, CUstream_st* stream) {
  const Maps m(p);
  const int64_t total = p.n * p.c * p.h * p.w * p.scale_h * p.scale_w;
  return by_size(p.dtype, [&]<class Bits>() {
    return launch(upsample_bed_of_nails_kernel<Bits>, grid_for(total, kThreads), kThreads, 0, stream,
                  static_cast<const Bits*>(p.x), static_cast<Bits*>(p.y), m, Divider(m.inner), Divider(m.w * m.scale_w),
                  Divider(m.h * m.scale_h), Divider(m.scale_h), Divider(m.scale_w));
  });
}

int upsample_bed_of_nails_backward(const BedOfNailsParams& p, void*, CUstream_st* stream) {
  const Maps m(p);
  return by_size(p.dtype, [&]<class Bits>() {
    return launch(upsample_bed_of_nails_backward_kernel<Bits>, grid_for(p.n * p.c * p.h * p.w, kThreads), kThreads, 0,
                  stream, static_cast<const Bits*>(p.x), static_cast<Bits*>(p.y), m, Divider(m.inner), Divider(m.w),
                  Divider(m.h));
  });
}

}  // namespace fastcv::FASTCV_GPU
