// Batch norm, activation and max pooling on CUDA: statistics as batch norm takes them, then one kernel that normalises
// what it reads and writes the pooled map and 8-bit offsets. Elements are rounded to their dtype before they are
// compared, as they would be in the map between the two ops, so that ties fall as they do there.
//
// channels_last: a thread takes a 16-byte pack of channels, whose constants it keeps in registers, and makes strips of
// kStrip outputs down a column; a row of the input that two windows share is read and normalised for both at once. Then
// 3 x 3 windows of stride 2 take 2.25 rows of three elements an output instead of 3.
//
// Row-major: a block brings the input rows of its outputs, a dense run of memory, into shared memory by 16-byte packs,
// normalised once; windows are looked through there. Where one output row's inputs are too many they are read from
// global memory instead.
//
// Bytes, of each tensor once: 1 read (and 1 for statistics) + 1/4 written, and 1/8 (16-bit) for offsets, with stride 2.
// Prediction for an H200 (nothing has run yet), 64 channels of 112 x 112, 256 images, bf16, statistics given: 131 us of
// memory at 4.3 TB/s; an output takes 6.75 elements of some 12 instructions, about 140 us of the arithmetic
// units.
#include "pool/batch_norm_max_pool2d.h"

#include "norm/batch_norm.cuh"
#include "pool/pool_bands.h"

namespace fastcv::FASTCV_GPU {
namespace {

constexpr int kStrip = 4;  // outputs of a strip
// Packs that a thread has in flight, of a row of a strip's window and of a tile: as many as registers are left for.
template <int width>
constexpr int kTaps = width == 8 ? 2 : 3;
constexpr int kAhead = 2;
constexpr int kTileBytes = 16 << 10, kMostTileBytes = 32 << 10;  // of shared memory: wanted, and bearable

// An element as the map between the two ops would hold it.
template <class S>
__device__ __forceinline__ S stored(const BatchNormRule<S>& rule, const typename BatchNormRule<S>::Coefficients& k,
                                    S x) {
  return narrow<S>(rule.bend.activate(rule.normalised(k, widen(x))));
}

// For each of a thread's channels the maximum so far, and its name: the first of equal numbers, the last NaN.
template <class T, int width>
struct Best {
  T value[width];
  int name[width];
  __device__ __forceinline__ void clear(int first) {
#pragma unroll
    for (int k = 0; k < width; ++k) value[k] = -INFINITY, name[k] = first;
  }
  __device__ __forceinline__ void take(int k, T x, int as) {
    if (x > value[k] || x != x) value[k] = x, name[k] = as;
  }
};

template <class S, int width>
__device__ __forceinline__ void store_best(const PoolParams& p, int64_t at, const Best<acc_t<S>, width>& best) {
  Pack<S, width> values;
  Pack<uint8_t, width> offsets;
#pragma unroll
  for (int k = 0; k < width; ++k) {
    values.at[k] = narrow<S>(best.value[k]);
    offsets.at[k] = static_cast<uint8_t>(best.name[k]);
  }
  store_pack(static_cast<S*>(p.y) + at, values);
  if (p.where != nullptr) store_pack(static_cast<uint8_t*>(p.where) + at, offsets);
}

// channels_last -----------------------------------------------------------------------------------------------------

// `lanes` threads of a block take packs of channels side by side, the others the next sites: strips of images' columns.
struct Strips {
  int64_t packs, sites;
  Divider columns, strips;  // sites are [images][strips][columns]
  int lanes;
  unsigned chunks, blocks;  // of lanes packs; of sites
  Strips(const PoolParams& p, int width)
      : packs(p.c / width),
        sites(p.n * ((p.h.out + kStrip - 1) / kStrip) * p.w.out),
        columns(p.w.out),
        strips((p.h.out + kStrip - 1) / kStrip),
        lanes(norm_lanes(packs)),
        chunks(static_cast<unsigned>((packs + lanes - 1) / lanes)) {
    const int64_t tall = kThreads / lanes, needed = (sites + tall - 1) / tall,
                  most = chunks < 8192 ? 16384 / chunks : 2;
    blocks = static_cast<unsigned>(needed < most ? needed : most);
  }
};

template <class S, int width>
__global__ void __launch_bounds__(kThreads, 2)
    strips_kernel(const BatchNormRule<S> rule, const PoolParams p, const Strips g) {
  using T = acc_t<S>;
  constexpr int taps = kTaps<width>;
  using Coefficients = typename BatchNormRule<S>::Coefficients;
  FASTCV_SHARED(Coefficients, table, kNormLanes * width);
  const unsigned chunk = blockIdx.x % g.chunks, block = blockIdx.x / g.chunks;
  const int lane = threadIdx.x & (g.lanes - 1), tall = kThreads / g.lanes;
  const int64_t first_channel = static_cast<int64_t>(chunk) * g.lanes * width;
  if (static_cast<int>(threadIdx.x) < g.lanes * width && first_channel + threadIdx.x < p.c)
    table[threadIdx.x] = rule.coefficients(first_channel + threadIdx.x);
  __syncthreads();
  const int64_t channel = first_channel + lane * width;
  if (channel >= p.c) return;
  Coefficients c[width];
#pragma unroll
  for (int k = 0; k < width; ++k) c[k] = table[lane * width + k];
  const S* x = rule.in[0] + channel;
  const int kernel_w = static_cast<int>(p.w.kernel);
  const int below_name = static_cast<int>(p.h.stride) * kernel_w;  // what a row's names are less in the next window
  const bool sharing = p.h.dilation == 1 && p.h.kernel <= 2 * p.h.stride;  // a row is at most in two windows

  const int64_t step = static_cast<int64_t>(g.blocks) * tall;
  for (int64_t site = static_cast<int64_t>(block) * tall + threadIdx.x / g.lanes; site < g.sites; site += step) {
    int64_t ow = site, strip = g.columns.split(ow);
    const int64_t n = g.strips.split(strip), begin = strip * kStrip;
    const int64_t end = begin + kStrip < p.h.out ? begin + kStrip : p.h.out;
    const Window u = window(p, p.w, ow);
    const int column = static_cast<int>(u.tap);
    const S* image = x + n * p.h.in * p.w.in * p.c;
    Best<T, width> best, next;
    int64_t done = -1;  // input rows before this one are in `next` already
    for (int64_t oh = begin; oh < end; ++oh) {
      const Window v = window(p, p.h, oh), below = window(p, p.h, oh + 1);
      if (done < 0) best.clear(static_cast<int>(v.tap) * kernel_w + column);
      else best = next;
      const bool share = sharing && oh + 1 < end;
      next.clear(static_cast<int>(below.tap) * kernel_w + column);
      int64_t h = v.begin;
      int a = static_cast<int>(v.tap);
      if (done > h) a += static_cast<int>(done - h), h = done;
      for (; h < v.end; h += p.h.dilation, ++a) {
        const bool both = share && h >= below.begin;
        int name = a * kernel_w + column;
        for (int64_t w = u.begin; w < u.end; w += taps * p.w.dilation, name += taps) {
          Pack<S, width> packs[taps];
#pragma unroll
          for (int t = 0; t < taps; ++t)
            if (w + t * p.w.dilation < u.end)
              packs[t] = load_pack<Pack<S, width>>(image + (h * p.w.in + w + t * p.w.dilation) * p.c);
#pragma unroll
          for (int t = 0; t < taps; ++t) {
            if (w + t * p.w.dilation >= u.end) continue;
#pragma unroll
            for (int k = 0; k < width; ++k) {
              const T value = widen(stored(rule, c[k], packs[t].at[k]));
              best.take(k, value, name + t);
              if (both) next.take(k, value, name + t - below_name);
            }
          }
        }
      }
      store_best<S>(p, ((n * p.h.out + oh) * p.w.out + ow) * p.c + channel, best);
      done = share ? v.end : -1;
    }
  }
}

template <class S, int width>
int launch_strips(const BatchNormMaxPool2dParams& p, CUstream_st* stream) {
  const Strips g(p.pool, width);
  return launch(strips_kernel<S, width>, g.blocks * g.chunks, kThreads, 0, stream, BatchNormRule<S>(p.norm), p.pool, g);
}

// Row-major ---------------------------------------------------------------------------------------------------------

struct Tiles {
  PoolBands bands;
  Divider plane, map, row;  // elements of an input map, of an output map, and of its rows
  int access;
  Tiles(const PoolParams& p, const void* x, const PoolBands& bands)
      : bands(bands), plane(p.h.in * p.w.in), map(p.h.out * p.w.out), row(p.w.out), access(access_bytes({x})) {}
};

template <class S, bool staged>
__global__ void __launch_bounds__(kThreads, 3)
    tiles_kernel(const BatchNormRule<S> rule, const PoolParams p, const Tiles g) {
  using T = acc_t<S>;
  using Coefficients = typename BatchNormRule<S>::Coefficients;
  constexpr int n = kPack<S>;
  FASTCV_SHARED(Coefficients, table, kThreads);
  FASTCV_DYNAMIC_SHARED(S, tile);
  const PoolUnit unit = pool_unit(p, g.bands, blockIdx.x);
  if (static_cast<int>(threadIdx.x) < unit.maps) table[threadIdx.x] = rule.coefficients(unit.map + threadIdx.x);
  __syncthreads();
  // The unit's input: a dense run. It is brought in whole packs, with what lies beside it in the first and the last
  // one.
  const int64_t plane = unit.height * p.w.in, begin = (unit.map * p.h.in + unit.top) * p.w.in,
                end = begin + unit.maps * plane;
  const int64_t total = p.n * p.c * p.h.in * p.w.in, start = begin / n * n;
  if constexpr (staged) {
    constexpr int64_t kStep = kThreads * n;
    for (int64_t first = start + threadIdx.x * n; first < end; first += kAhead * kStep) {
      Pack<S, n> packs[kAhead];
#pragma unroll
      for (int u = 0; u < kAhead; ++u)
        if (const int64_t at = first + u * kStep; at < end)
          packs[u] = load_elements(rule.in[0] + at, total - at, g.access);
#pragma unroll
      for (int u = 0; u < kAhead; ++u) {
        const int64_t at = first + u * kStep;
        if (at >= end) continue;
        int64_t inside = at > begin ? at - begin : 0, map = 0;
        if (g.bands.maps > 1) map = g.plane.split(inside);
        int64_t left = plane - inside + (at > begin ? 0 : begin - at);  // of this map, from the pack's first element on
        Coefficients c = table[map];
        Pack<S, n> made;
#pragma unroll
        for (int i = 0; i < n; ++i) {
          if (i >= left) {  // the next map begins here; behind the last one nobody looks
            map = map + 1 < unit.maps ? map + 1 : map;
            left += plane;
            c = table[map];
          }
          made.at[i] = stored(rule, c, packs[u].at[i]);
        }
        store_shared(tile + (at - start), made);
      }
    }
    __syncthreads();
  }
  const int64_t outputs = unit.maps * unit.rows * p.w.out, first = (unit.map * p.h.out + unit.row) * p.w.out;
  for (int64_t i = threadIdx.x; i < outputs; i += kThreads) {
    int64_t ow = i, oh, map = 0;
    if (g.bands.maps > 1) map = g.map.split(ow);
    oh = g.row.split(ow);
    const Window v = window(p, p.h, unit.row + oh), across = window(p, p.w, ow);
    const int kernel_w = static_cast<int>(p.w.kernel), column = static_cast<int>(across.tap);
    const int64_t origin = map * plane - unit.top * p.w.in;
    Best<T, 1> best;
    best.clear(static_cast<int>(v.tap) * kernel_w + column);
    int a = static_cast<int>(v.tap);
    for (int64_t h = v.begin; h < v.end; h += p.h.dilation, ++a) {
      int b = column;
      for (int64_t w = across.begin; w < across.end; w += p.w.dilation, ++b) {
        const int64_t at = origin + h * p.w.in + w;
        S value;
        if constexpr (staged) value = tile[begin - start + at];
        else value = stored(rule, table[map], rule.in[0][begin + at]);
        best.take(0, widen(value), a * kernel_w + b);
      }
    }
    store_best<S>(p, first + i, best);
  }
}

template <class S>
int launch_tiles(const BatchNormMaxPool2dParams& p, CUstream_st* stream) {
  const PoolBands bands = pool_bands(p.pool, kTileBytes / static_cast<int64_t>(sizeof(S)), kThreads);
  const size_t bytes = static_cast<size_t>(bands.inputs + 2 * kPack<S>) * sizeof(S);
  const Tiles g(p.pool, p.norm.x, bands);
  const unsigned blocks = static_cast<unsigned>(bands.units());
  if (bytes > kMostTileBytes)
    return launch(tiles_kernel<S, false>, blocks, kThreads, 0, stream, BatchNormRule<S>(p.norm), p.pool, g);
  return launch(tiles_kernel<S, true>, blocks, kThreads, bytes, stream, BatchNormRule<S>(p.norm), p.pool, g);
}

}  // namespace

int batch_norm_max_pool2d(const BatchNormMaxPool2dParams& p, void* workspace, CUstream_st* stream) {
  if (p.norm.training)
    if (const int error = batch_norm(p.norm, workspace, stream)) return error;
  if (p.norm.n == 0) return cudaSuccess;
  return by_dtype(p.dtype, [&]<class S>() {
    constexpr int width = kPack<S>;
    if (!p.pool.channels_last) return launch_tiles<S>(p, stream);
    const bool packs = p.norm.c % width == 0 && access_bytes({p.norm.x, p.pool.y, p.pool.where}) == 16;
    return packs ? launch_strips<S, width>(p, stream) : launch_strips<S, 1>(p, stream);
  });
}

}  // namespace fastcv::FASTCV_GPU
