// Max and average pooling, forward and backward: a thread makes one output element, or in channels_last maps one
// 16-byte pack of channels. Neighbouring threads read neighbouring addresses; what windows share comes from the caches.
// The backward passes gather, so there are no atomics, and sums run over the windows in row-major order.
#include "pool/pool.h"

#include "common/divide.cuh"
#include "common/packs.cuh"
#include "pool/pool_geometry.h"

namespace fastcv::FASTCV_GPU {
namespace {

constexpr int kThreads = 256;

// Where the elements of a map lie.
template <bool nhwc>
struct Map {
  int64_t c, h, w;
  __device__ __forceinline__ int64_t at(int64_t n, int64_t ch, int64_t row, int64_t column) const {
    return nhwc ? ((n * h + row) * w + column) * c + ch : ((n * c + ch) * h + row) * w + column;
  }
};

// What a thread makes: `width` channels from c at (h, w) of image n. Row-major maps run along w, channels_last ones
// along c.
struct Spot {
  int64_t n, c, h, w;
};
template <int width, bool nhwc>
struct Spots {
  Divider c, h, w;
  int64_t total;
  Spots(const PoolParams& p, int64_t height, int64_t columns)
      : c(p.c / width), h(height), w(columns), total(p.n * (p.c / width) * height * columns) {}
  __device__ __forceinline__ Spot operator[](int64_t i) const {
    Spot s;
    if (nhwc) {
      s.w = c.split(i);
      s.c = i * width;
      s.h = w.split(s.w);  // s.w keeps the column
      s.n = h.split(s.h);
    } else {
      s.h = w.split(i);
      s.w = i;
      s.c = h.split(s.h);
      s.n = c.split(s.c);
    }
    return s;
  }
};

// Stores a thread's values in one access.
template <class S, int width>
__device__ __forceinline__ void store_narrow(const PoolParams& p, int64_t at, const acc_t<S> (&values)[width]) {
  Pack<S, width> result;
#pragma unroll
  for (int k = 0; k < width; ++k) result.at[k] = narrow<S>(values[k]);
  store_pack(static_cast<S*>(p.y) + at, result);
}

template <class S, int width, bool nhwc>
__global__ void __launch_bounds__(kThreads) max_pool2d_kernel(const PoolParams p, const Spots<width, nhwc> spots) {
  using T = acc_t<S>;
  const S* x = static_cast<const S*>(p.x);
  const Map<nhwc> in{p.c, p.h.in, p.w.in}, out{p.c, p.h.out, p.w.out};
  const int64_t step_h = p.adaptive ? 1 : p.h.dilation, step_w = p.adaptive ? 1 : p.w.dilation;
  for (int64_t i = global_thread(); i < spots.total; i += global_threads()) {
    const Spot s = spots[i];
    const Window v = window(p, p.h, s.h), u = window(p, p.w, s.w);
    T best[width];
    int64_t named[width];  // tap number or place in the map, as `where` spells it
    const int64_t first = p.where_is_offset ? v.tap * p.w.kernel + u.tap : v.begin * p.w.in + u.begin;
    for (int k = 0; k < width; ++k) best[k] = -INFINITY, named[k] = first;
    for (int64_t h = v.begin, a = v.tap; h < v.end; h += step_h, ++a) {
      for (int64_t w = u.begin, b = u.tap; w < u.end; w += step_w, ++b) {
        const auto pack = load_pack<Pack<S, width>>(x + in.at(s.n, s.c, h, w));
        const int64_t name = p.where_is_offset ? a * p.w.kernel + b : h * p.w.in + w;
#pragma unroll
        for (int k = 0; k < width; ++k) {
          const T value = widen(pack.at[k]);
          if (value > best[k] || value != value) best[k] = value, named[k] = name;
        }
      }
    }
    const int64_t to = out.at(s.n, s.c, s.h, s.w);
    store_narrow<S>(p, to, best);
    if (p.where == nullptr) continue;
    if (p.where_is_offset) {
      Pack<uint8_t, width> offsets;
      for (int k = 0; k < width; ++k) offsets.at[k] = static_cast<uint8_t>(named[k]);
      store_pack(static_cast<uint8_t*>(p.where) + to, offsets);
    } else {
      for (int k = 0; k < width; ++k) static_cast<int64_t*>(p.where)[to + k] = named[k];
    }
  }
}

template <class S, int width, bool nhwc>
__global__ void __launch_bounds__(kThreads)
    max_pool2d_backward_kernel(const PoolParams p, const Spots<width, nhwc> spots) {
  using T = acc_t<S>;
  const S* g = static_cast<const S*>(p.x);
  const Map<nhwc> in{p.c, p.h.in, p.w.in}, out{p.c, p.h.out, p.w.out};
  for (int64_t i = global_thread(); i < spots.total; i += global_threads()) {
    const Spot s = spots[i];
    const Cover v = cover(p, p.h, s.h), u = cover(p, p.w, s.w);
    T sum[width] = {};
    for (int64_t oh = v.first; oh <= v.last; ++oh) {
      const int64_t a = tap_of(p.h, oh, s.h);
      for (int64_t ow = u.first; ow <= u.last; ++ow) {
        const int64_t b = tap_of(p.w, ow, s.w);
        if (a < 0 || b < 0) continue;
        const int64_t from = out.at(s.n, s.c, oh, ow);
        const auto pack = load_pack<Pack<S, width>>(g + from);
        if (p.where_is_offset) {
          const auto offsets = load_pack<Pack<uint8_t, width>>(static_cast<const uint8_t*>(p.where) + from);
#pragma unroll
          for (int k = 0; k < width; ++k)
            if (offsets.at[k] == a * p.w.kernel + b) sum[k] += widen(pack.at[k]);
        } else {
#pragma unroll
          for (int k = 0; k < width; ++k)
            if (static_cast<const int64_t*>(p.where)[from + k] == s.h * p.w.in + s.w) sum[k] += widen(pack.at[k]);
        }
      }
    }
    store_narrow<S>(p, in.at(s.n, s.c, s.h, s.w), sum);
  }
}

template <class T>
__device__ __forceinline__ T divisor_of(const PoolParams& p, int64_t rows, int64_t columns) {
  return static_cast<T>(p.divisor != 0 ? p.divisor : rows * columns);
}

template <class S, int width, bool nhwc>
__global__ void __launch_bounds__(kThreads) avg_pool2d_kernel(const PoolParams p, const Spots<width, nhwc> spots) {
  using T = acc_t<S>;
  const S* x = static_cast<const S*>(p.x);
  const Map<nhwc> in{p.c, p.h.in, p.w.in}, out{p.c, p.h.out, p.w.out};
  for (int64_t i = global_thread(); i < spots.total; i += global_threads()) {
    const Spot s = spots[i];
    const Window v = window(p, p.h, s.h), u = window(p, p.w, s.w);
    T sum[width] = {};
    for (int64_t h = v.begin; h < v.end; ++h)
      for (int64_t w = u.begin; w < u.end; ++w) {
        const auto pack = load_pack<Pack<S, width>>(x + in.at(s.n, s.c, h, w));
#pragma unroll
        for (int k = 0; k < width; ++k) sum[k] += widen(pack.at[k]);
      }
    const T divisor = divisor_of<T>(p, v.size, u.size);
    for (int k = 0; k < width; ++k) sum[k] /= divisor;
    store_narrow<S>(p, out.at(s.n, s.c, s.h, s.w), sum);
  }
}

template <class S, int width, bool nhwc>
__global__ void __launch_bounds__(kThreads)
    avg_pool2d_backward_kernel(const PoolParams p, const Spots<width, nhwc> spots) {
  using T = acc_t<S>;
  const S* g = static_cast<const S*>(p.x);
  const Map<nhwc> in{p.c, p.h.in, p.w.in}, out{p.c, p.h.out, p.w.out};
  for (int64_t i = global_thread(); i < spots.total; i += global_threads()) {
    const Spot s = spots[i];
    const Cover v = cover(p, p.h, s.h), u = cover(p, p.w, s.w);
    T sum[width] = {};
    for (int64_t oh = v.first; oh <= v.last; ++oh) {
      const int64_t rows = window(p, p.h, oh).size;
      for (int64_t ow = u.first; ow <= u.last; ++ow) {
        const T divisor = divisor_of<T>(p, rows, window(p, p.w, ow).size);
        const auto pack = load_pack<Pack<S, width>>(g + out.at(s.n, s.c, oh, ow));
#pragma unroll
        for (int k = 0; k < width; ++k) sum[k] += widen(pack.at[k]) / divisor;
      }
    }
    store_narrow<S>(p, in.at(s.n, s.c, s.h, s.w), sum);
  }
}

// 16-byte packs need channels that come in whole packs, and tensors that start on one.
bool packs_fit(const PoolParams& p, int width) {
  const auto aligned = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
  return p.c % width == 0 && aligned(p.x) && aligned(p.y) && aligned(p.where);
}

// kernel.template operator()<S, width, nhwc>(threads' spots over maps of this height and width).
template <class Run>
int by_layout(const PoolParams& p, int64_t height, int64_t columns, Run&& run) {
  return by_dtype(p.dtype, [&]<class S>() {
    constexpr int width = 16 / sizeof(S);
    if (!p.channels_last) return run.template operator()<S, 1, false>(Spots<1, false>(p, height, columns));
    if (packs_fit(p, width)) return run.template operator()<S, width, true>(Spots<width, true>(p, height, columns));
    return run.template operator()<S, 1, true>(Spots<1, true>(p, height, columns));
  });
}

}  // namespace

int max_pool2d(const PoolParams& p, void*, CUstream_st* stream) {
  return by_layout(p, p.h.out, p.w.out, [&]<class S, int width, bool nhwc>(const Spots<width, nhwc>& spots) {
    return launch(max_pool2d_kernel<S, width, nhwc>, grid_for(spots.total, kThreads), kThreads, 0, stream, p, spots);
  });
}
int max_pool2d_backward(const PoolParams& p, void*, CUstream_st* stream) {
  return by_layout(p, p.h.in, p.w.in, [&]<class S, int width, bool nhwc>(const Spots<width, nhwc>& spots) {
    return launch(max_pool2d_backward_kernel<S, width, nhwc>, grid_for(spots.total, kThreads), kThreads, 0, stream, p,
                  spots);
  });
}
int avg_pool2d(const PoolParams& p, void*, CUstream_st* stream) {
  return by_layout(p, p.h.out, p.w.out, [&]<class S, int width, bool nhwc>(const Spots<width, nhwc>& spots) {
    return launch(avg_pool2d_kernel<S, width, nhwc>, grid_for(spots.total, kThreads), kThreads, 0, stream, p, spots);
  });
}
int avg_pool2d_backward(const PoolParams& p, void*, CUstream_st* stream) {
  return by_layout(p, p.h.in, p.w.in, [&]<class S, int width, bool nhwc>(const Spots<width, nhwc>& spots) {
    return launch(avg_pool2d_backward_kernel<S, width, nhwc>, grid_for(spots.total, kThreads), kThreads, 0, stream, p,
                  spots);
  });
}

}  // namespace fastcv::FASTCV_GPU
