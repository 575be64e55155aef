// What the doors of this family share: the windows of a call, checked, and outputs in the input's layout.
#pragma once
#include "common/door.h"
#include "pool/pool.h"

namespace fastcv::pool_door {

using namespace door;

constexpr int64_t kSizeLimit = int64_t{1} << 31;  // of window arguments: products of two fit into 64 bits

// The arguments that shape the windows of one call.
struct Geometry {
  Ints kernel, stride, padding, dilation{1, 1};
  bool ceil_mode = false;
};

inline void check_pairs(const char* op, const Geometry& g) {
  const auto pair = [&](const char* name, const Ints& values, int64_t least) {
    check(values.size() == 2, op, ": ", name, " must be a single int or two, got ", show(values));
    for (const int64_t v : values)
      check(v >= least && v < kSizeLimit, op, ": ", name, " must be ",
            least == 0 ? "non-negative" : "greater than zero", ", got ", show(values));
  };
  pair("kernel_size", g.kernel, 1);
  pair("stride", g.stride, 1);
  pair("padding", g.padding, 0);
  pair("dilation", g.dilation, 1);
  for (int d = 0; d < 2; ++d)
    check(g.padding[d] <= g.kernel[d] / 2, op, ": padding should be at most half of the kernel size, got padding ",
          show(g.padding), " and kernel_size ", show(g.kernel));
}

inline PoolAxis axis_of(const Geometry& g, int d, int64_t in) {
  const int64_t k = g.kernel[d], s = g.stride[d], p = g.padding[d], dilation = g.dilation[d];
  const int64_t room = in + 2 * p - dilation * (k - 1) - 1 + (g.ceil_mode ? s - 1 : 0);
  int64_t out = room < 0 ? 0 : room / s + 1;
  if (g.ceil_mode && (out - 1) * s >= in + p) --out;  // the last window must start inside the map or its left padding
  return {in, out, k, s, p, dilation};
}

// The map's sizes: [N, C, H, W] or [C, H, W].
inline void read_map(const char* op, const Tensor& t, PoolParams& p, bool channels_may_be_empty) {
  check(t.dim() == 3 || t.dim() == 4, op, ": expected a 3-D or 4-D input (batch mode), got ", show(t));
  const Ints size = sizes(t);
  const size_t first = size.size() - 3;
  check((size[first] > 0 || channels_may_be_empty) && size[first + 1] > 0 && size[first + 2] > 0, op,
        ": expected non-zero sizes but for the batch, got ", show(size));
  p.dtype = dtype_of(t, op);
  check(p.dtype <= DType::f16, op, ": expected a floating dtype, got ", dtype_name(t.scalar_type()));
  p.n = first == 0 ? 1 : size[0];
  p.c = size[first];
}

inline void set_windows(const char* op, PoolParams& p, const Geometry& g, int64_t h, int64_t w) {
  check_pairs(op, g);
  p.h = axis_of(g, 0, h);
  p.w = axis_of(g, 1, w);
  check(p.h.out > 0 && p.w.out > 0, op, ": the output size is too small: input ", show({p.c, h, w}),
        " with kernel_size ", show(g.kernel), ", padding ", show(g.padding), " and dilation ", show(g.dilation),
        " gives ", show({p.c, p.h.out, p.w.out}));
}

inline void set_adaptive_windows(const char* op, PoolParams& p, const Ints& output_size, int64_t h, int64_t w) {
  check(output_size.size() == 2, op, ": output_size must be 2 values, got ", show(output_size));
  for (const int64_t v : output_size)
    check(v >= 0 && v < kSizeLimit, op, ": elements of output_size must be non-negative, got ", show(output_size));
  const int64_t oh = output_size[0], ow = output_size[1];
  if (oh > 0 && ow > 0 && h % oh == 0 && w % ow == 0) {  // equal windows side by side: plain pooling
    p.h = {h, oh, h / oh, h / oh, 0, 1};
    p.w = {w, ow, w / ow, w / ow, 0, 1};
    return;
  }
  p.adaptive = true;
  p.h = {h, oh, 0, 0, 0, 0};
  p.w = {w, ow, 0, 0, 0, 0};
}

// A tensor like `like` (batched or not) with maps of these sizes.
inline Tensor new_map(const Tensor& like, const PoolParams& p, int64_t h, int64_t w, ScalarType dtype) {
  check(static_cast<double>(p.n) * static_cast<double>(p.c) * static_cast<double>(h) * static_cast<double>(w) < 0x1p60,
        "pooling: a map of ", show({p.n, p.c, h, w}), " is too large");
  const Ints size = like.dim() == 4 ? Ints{p.n, p.c, h, w} : Ints{p.c, h, w};
  return empty(size, dtype, like, p.channels_last);
}

}  // namespace fastcv::pool_door
