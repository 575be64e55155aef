// The doors of the probes: schemas, checks, outputs. No arithmetic on elements.
#include "roof/probes.h"

#include "common/door.h"

namespace fastcv {
namespace {

using namespace door;

constexpr int64_t kMostSteps = 1 << 24;

Tensor of_floats(const char* op, const Tensor& input) {
  check(input.scalar_type() == ScalarType::Float, op, ": expected float32, got ", dtype_name(input.scalar_type()));
  return as_dense(input);
}

Tensor step_chain(const Tensor& input, int64_t steps) {
  const Tensor x = of_floats("step_chain", input);
  check(steps >= 0 && steps <= kMostSteps, "step_chain: expected 0 to ", kMostSteps, " steps, got ", steps);
  Tensor y = empty(sizes(input), ScalarType::Float, input);
  const StepChainParams p{static_cast<const float*>(x.data_ptr()), static_cast<float*>(y.data_ptr()), x.numel(), steps};
  if (p.n > 0) run_variant(step_chain_table, p, y);
  return y;
}

Tensor cache_read(const Tensor& input, int64_t readers, int64_t steps) {
  const Tensor x = of_floats("cache_read", input);
  check(steps >= 0 && steps <= kMostSteps, "cache_read: expected 0 to ", kMostSteps, " steps, got ", steps);
  check(readers >= 0 && readers < 65536, "cache_read: expected less than 65536 readers, got ", readers);
  Tensor y = empty({readers}, ScalarType::Float, input);
  const CacheReadParams p{static_cast<const float*>(x.data_ptr()), static_cast<float*>(y.data_ptr()), x.numel(),
                          readers, steps};
  if (readers > 0) run_variant(cache_read_table, p, y);
  return y;
}

Tensor tile_product(const Tensor& a, const Tensor& b) {
  check(sizes(a) == Ints{kTileRows, kTileDepth} && sizes(b) == Ints{kTileColumns, kTileDepth},
        "tile_product: expected [64, 64] and [128, 64], got ", show(a), " and ", show(b));
  check_same_device("tile_product", {&a, &b});
  const DType dtype = dtype_of(a, "tile_product");
  check((dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16) && a.scalar_type() == b.scalar_type(),
        "tile_product: expected two tensors in float32, bfloat16 or float16, got ", dtype_name(a.scalar_type()),
        " and ", dtype_name(b.scalar_type()));
  const Tensor dense_a = as_dense(a), dense_b = as_dense(b);
  Tensor d = empty({kTileRows, kTileColumns}, ScalarType::Float, a);
  run_variant(tile_product_table,
              TileProductParams{dense_a.data_ptr(), dense_b.data_ptr(), static_cast<float*>(d.data_ptr()), dtype}, d);
  return d;
}

// Values that the instruction takes: corners of a byte, steps up to 8, at most 256 pixels.
void copy_values(const char* name, const Ints& from, int64_t count, int64_t least, int64_t most, int64_t* to) {
  check(static_cast<int64_t>(from.size()) == count, "tma_tile: expected ", count, " values of ", name, ", got ",
        show(from));
  for (int64_t i = 0; i < count; ++i) {
    check(from[i] >= least && from[i] <= most, "tma_tile: ", name, " must be ", least, " to ", most, ", got ",
          show(from));
    to[i] = from[i];
  }
}

Tensor tma_tile(const Tensor& input, Ints at, Ints offset, Ints lower, Ints upper, Ints step, int64_t pixels,
                bool im2col, bool corrected) {
  check(input.dim() == 4 && input.numel() > 0, "tma_tile: expected [n, h, w, c], got ", show(input));
  TmaTileParams p{};
  p.dtype = dtype_of(input, "tma_tile");
  check(p.dtype == DType::bf16 || p.dtype == DType::f16, "tma_tile: expected bfloat16 or float16, got ",
        dtype_name(input.scalar_type()));
  const Tensor x = as_dense(input);
  int64_t* const dims[] = {&p.n, &p.h, &p.w, &p.c};
  for (int i = 0; i < 4; ++i) *dims[i] = input.size(i);
  check(p.c % 8 == 0, "tma_tile: expected a multiple of 8 channels, got ", p.c);
  copy_values("at", at, 4, -128, 1 << 20, p.at);
  copy_values("offset", offset, 2, 0, 255, p.offset);
  copy_values("lower", lower, 2, -128, 127, p.lower);
  copy_values("upper", upper, 2, -128, 127, p.upper);
  copy_values("step", step, 2, 1, 8, p.step);
  for (int i = 0; im2col && i < 2; ++i) {
    const int64_t size = i == 0 ? p.w : p.h, last = size - 1 + p.upper[i];
    check(p.lower[i] <= last, "tma_tile: a window from ", p.lower[i], " to ", last, " is empty");
    check(p.at[1 + i] >= p.lower[i] && p.at[1 + i] <= last && (p.at[1 + i] - p.lower[i]) % p.step[i] == 0,
          "tma_tile: ", p.at[1 + i], " is no position of a window from ", p.lower[i], " to ", last, " in steps of ",
          p.step[i]);
  }
  check(p.at[0] >= 0 && p.at[3] >= 0, "tma_tile: expected a channel and an image, got ", show(at));
  check(pixels >= 8 && pixels <= 256 && pixels % 8 == 0, "tma_tile: expected 8, 16 ... 256 pixels, got ", pixels);
  p.pixels = pixels;
  p.im2col = im2col;
  p.corrected = corrected;
  Tensor y = empty({pixels, kTileDepth}, input.scalar_type(), input);
  p.x = x.data_ptr();
  p.y = y.data_ptr();
  run_variant(tma_tile_table, p, y);
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastcv, m) {
  m.def("step_chain(Tensor input, int steps) -> Tensor");
  m.def("cache_read(Tensor input, int readers, int steps) -> Tensor");
  m.def("tile_product(Tensor a, Tensor b) -> Tensor");
  m.def(
      "tma_tile(Tensor input, int[] at, int[] offset, int[] lower, int[] upper, int[] step, int pixels, bool im2col, "
      "bool corrected) -> Tensor");
}
FASTCV_IMPL(m) {
  m.impl("step_chain", TORCH_BOX(&step_chain));
  m.impl("cache_read", TORCH_BOX(&cache_read));
  m.impl("tile_product", TORCH_BOX(&tile_product));
  m.impl("tma_tile", TORCH_BOX(&tma_tile));
}

}  // namespace fastcv
