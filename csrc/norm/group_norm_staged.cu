// Group norm on CUDA for groups that fit shared memory: a block reads a group once, keeps it there while its mean and
// variance are added up in double, and writes it normalised. Each thread takes back the packs that it brought.
//
// Bytes, of each tensor once: 1 read + 1 write. Prediction for an H200: 85 % of its copy bandwidth (4.3 TB/s) on
// tensors beyond its L2 (60 MB): two blocks and more of an SM have 32 KB and more in flight.
#include "norm/group_norm.h"

#include "common/reduce.cuh"
#include "norm/norm.cuh"

namespace fastcv::FASTCV_GPU {
namespace {

struct Sizes {
  int64_t sets, length;  // groups of all images, and elements of one
  int channels;          // of a group
  Divider s, groups;
  int access;
};
template <class T>
struct alignas(2 * sizeof(T)) Coefficients {
  T scale, bias;
};

template <class S>
__global__ void __launch_bounds__(kThreads, 2) staged_kernel(const GroupNormParams p, const Sizes g) {
  using T = acc_t<S>;
  constexpr int n = kPack<S>, kUnroll = 4;
  constexpr int64_t kStep = kThreads * n;
  FASTCV_DYNAMIC_SHARED(S, stage);
  FASTCV_SHARED(Coefficients<T>, table, kThreads);
  FASTCV_SHARED(double, scratch, kThreads / kWarp);
  const double count = static_cast<double>(g.length);
  for (int64_t set = blockIdx.x; set < g.sets; set += gridDim.x) {
    const S* x = static_cast<const S*>(p.x) + set * g.length;
    const double first = widen(x[0]);  // so that a large mean costs no digits
    double a = 0, b = 0;
    for (int64_t at = threadIdx.x * n; at < g.length; at += kUnroll * kStep) {
      Pack<S, n> packs[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u)
        if (at + u * kStep < g.length)
          packs[u] = load_elements(x + at + u * kStep, g.length - at - u * kStep, g.access);
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int64_t here = at + u * kStep;
        if (here >= g.length) continue;
        store_shared(stage + here, packs[u]);
#pragma unroll
        for (int i = 0; i < n; ++i) {
          if (here + i >= g.length) continue;
          const double d = static_cast<double>(widen(packs[u].at[i])) - first;
          a += d;
          b += d * d;
        }
      }
    }
    const double shift = reduce_block(a, scratch, Sum()) / count;
    const double v = reduce_block(b, scratch, Sum()) / count - shift * shift;
    const double mean = first + shift, var = v < 0 ? 0 : v;
    if (threadIdx.x == 0) p.mean[set] = mean, p.var[set] = var;
    if (static_cast<int>(threadIdx.x) < g.channels) {
      int64_t group = set;
      g.groups.split(group);
      const int64_t channel = group * g.channels + threadIdx.x;
      table[threadIdx.x] = Coefficients<T>{static_cast<T>(get(p.weight, channel, 1) / sqrt(var + p.eps)),
                                           static_cast<T>(get(p.bias, channel, 0))};
    }
    T high, low;
    split(mean, high, low);
    __syncthreads();
    for (int64_t at = threadIdx.x * n; at < g.length; at += kStep) {
      const auto pack = load_shared<Pack<S, n>>(stage + at);
      int64_t place = at, channel = g.s.split(place), left = p.s - place;
      Coefficients<T> c = table[channel];
      Pack<S, n> made;
#pragma unroll
      for (int i = 0; i < n; ++i) {
        if (i >= left) {  // the next channel begins here
          channel = channel + 1 < g.channels ? channel + 1 : channel;
          left += p.s;
          c = table[channel];
        }
        made.at[i] = narrow<S>(((static_cast<T>(widen(pack.at[i])) - high) - low) * c.scale + c.bias);
      }
      store_elements(static_cast<S*>(p.y) + set * g.length + at, g.length - at, g.access, made);
    }
  }
}

}  // namespace

int group_norm_staged(const GroupNormParams& p, void*, CUstream_st* stream) {
  return by_dtype(p.dtype, [&]<class S>() {
    const int64_t channels = p.c / p.groups, length = channels * p.s;
    const Sizes g{p.n * p.groups,
                  length,
                  static_cast<int>(channels),
                  Divider(p.s),
                  Divider(p.groups),
                  access_bytes({p.x, p.y}, {length}, sizeof(S))};
    const size_t bytes = static_cast<size_t>(packs<S>(length)) * 16;
    return launch(staged_kernel<S>, grid_for(g.sets, 1), kThreads, bytes, stream, p, g);
  });
}

}  // namespace fastcv::FASTCV_GPU
