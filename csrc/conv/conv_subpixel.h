// Sub-pixel convolution: blocks of neighbouring outputs as the channels of one convolution with fewer pixels.
//
//   z[n, (k, fh, fw), ch, cw] = bias[k] + sum over (c, th, tw) of x[n, c, ...] * v[(k, fh, fw), c, th, tw]
//   y[n, k, ch * bh + fh, cw * bw + fw] = act(residual + z[n, (k, fh, fw), ch, cw])
//
// For so few output channels k that a vector of them has idle lanes. A cell of bh * bw outputs reads the inputs that
// any of them reads, at offsets th, tw; v holds the weights of each output where the offset is one of its taps, and
// zeros elsewhere. Three channels at stride 2, transposed, so take 16 products of full vectors for 49 taps of four
// phases. Through the zeros a NaN or infinity of x reaches all outputs of the cells that read it.
// z goes by an implicit GEMM into scratch memory, a few images at a time, and from there to y.
#pragma once
#include "conv/conv.h"
#include "conv/conv_plan.h"
#include "conv/conv_store.h"

namespace fastcv::FASTCV_ISA {

// Product: run, workspace and kept of an implicit GEMM.
template <class Product>
class Subpixel {
  using V = Vec<float>;
  static constexpr int64_t kRound = 8 << 20;  // bytes of z at a time: it is read again from the cache

 public:
  Subpixel(const ConvParams& params, int threads, int lanes) : p(params), q(params), exec_threads(threads) {
    const SubpixelCut cut = subpixel_cut(p, lanes);
    for (int i = 1; i < 3; ++i) {
      block[i - 1] = cut.block[i - 1];
      low[i - 1] = p.transposed ? -floor_div((p.kernel[i] - 1) * p.dilation[i] - p.pad[i], p.stride[i]) : -p.pad[i];
      q.out[i] = ceil_div(p.out[i], block[i - 1]);
      q.kernel[i] = cut.offsets[i - 1];
      q.stride[i] = p.transposed ? block[i - 1] / p.stride[i] : block[i - 1] * p.stride[i];
      q.dilation[i] = 1;
      q.pad[i] = -low[i - 1];
    }
    outputs = block[0] * block[1];
    q.k = p.k * outputs;
    q.transposed = q.weight_channels_last = false;
    q.residual = nullptr;
    q.activation = Activation::none;
    image = q.k * q.out[1] * q.out[2];
    rounds = most(1, ceil_div(p.n * image * 4, kRound));
    const auto aligned = [](int64_t bytes) { return static_cast<size_t>(round_up(bytes, 64)); };
    bias_at = aligned(q.k * p.c * q.kernel[1] * q.kernel[2] * 4);
    cells_at = bias_at + aligned(q.k * 4);
    product_at = cells_at + aligned(ceil_div(p.n, rounds) * image * 4);
  }

  size_t workspace() const {
    size_t product = 0;
    for (const int64_t n : {p.n / rounds, ceil_div(p.n, rounds)}) {
      ConvParams part = q;
      part.n = n;
      const size_t bytes = Product::workspace(part, exec_threads);
      if (bytes > product) product = bytes;
    }
    return product_at + product;
  }
  size_t kept() const { return Product::kept(q); }

  void run(const Exec& exec) const {
    char* const base = static_cast<char*>(exec.workspace);
    ConvParams part = q;
    part.w = base;
    if (p.packing != Packing::ready) arrange_weights(exec, reinterpret_cast<float*>(base));
    if (p.bias != nullptr) {
      float* bias = reinterpret_cast<float*>(base + bias_at);
      for (int64_t i = 0; i < q.k; ++i) bias[i] = static_cast<const float*>(p.bias)[channel_of(i)];
      part.bias = bias;
    }
    part.y = base + cells_at;
    Exec inner = exec;
    inner.workspace = base + product_at;
    if (p.packing == Packing::fill) return Product::run(part, inner);
    for (int64_t round = 0; round < rounds; ++round) {
      const int64_t first = p.n * round / rounds;
      part.n = p.n * (round + 1) / rounds - first;
      part.x = static_cast<const float*>(p.x) + first * p.c * p.in[1] * p.in[2];
      Product::run(part, inner);
      if (p.channels_last) interleave_pixels(exec, static_cast<const float*>(part.y), first, part.n);
      else interleave_planes(exec, static_cast<const float*>(part.y), first, part.n);
    }
  }

 private:
  // The channels of z: (fh, fw, k) in channels_last, where they are neighbours in y; else (k, fh, fw).
  int64_t channel_of(int64_t i) const { return p.channels_last ? i % p.k : i / outputs; }
  int64_t output_of(int64_t i) const { return p.channels_last ? i / p.k : i % outputs; }

  // The kernel index of a dim that leads from an output of the cell to the input at this offset, or -1.
  int64_t tap(int dim, int64_t output, int64_t offset) const {
    const int64_t reach =
        p.transposed ? output + p.pad[dim] - offset * p.stride[dim] : offset + p.pad[dim] - output * p.stride[dim];
    const int64_t r = reach / p.dilation[dim];
    return reach >= 0 && reach % p.dilation[dim] == 0 && r < p.kernel[dim] ? r : -1;
  }

  // [z's channel][c][th][tw]
  void arrange_weights(const Exec& exec, float* v) const {
    const float* w = static_cast<const float*>(p.w);
    const int64_t taps = p.kernel[1] * p.kernel[2], size = p.c * q.kernel[1] * q.kernel[2];
    // w is [row][column][tap] or [row][tap][column]; rows are k, transposed c.
    const int64_t columns = p.transposed ? p.k : p.c, column_step = p.weight_channels_last ? 1 : taps;
    const int64_t tap_step = p.weight_channels_last ? columns : 1;
    const int64_t c_step = p.transposed ? columns * taps : column_step;
    const int64_t k_step = p.transposed ? column_step : columns * taps;
    parallel_for(exec, q.k, most(1, (1 << 14) / most(1, size)), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t fh = output_of(i) / block[1], fw = output_of(i) % block[1];
        float* out = v + i * size;
        for (int64_t c = 0; c < p.c; ++c)
          for (int64_t th = 0; th < q.kernel[1]; ++th) {
            const int64_t rh = tap(1, fh, low[0] + th);
            for (int64_t tw = 0; tw < q.kernel[2]; ++tw) {
              const int64_t rw = tap(2, fw, low[1] + tw);
              const bool any = rh >= 0 && rw >= 0;
              *out++ = any ? w[c * c_step + channel_of(i) * k_step + (rh * p.kernel[2] + rw) * tap_step] : 0.0f;
            }
          }
      }
    });
  }

  // z [n][ch][cw][fh, fw, k] to lines of y, [n][ch, fh][cw, fw, k].
  void interleave_pixels(const Exec& exec, const float* z, int64_t first, int64_t n) const {
    const int64_t run = block[1] * p.k, line = p.out[2] * p.k;
    for_lines(exec, n * p.out[1], line, [&](int64_t i) {
      const int64_t row = i % p.out[1];
      const float* from = z + (i / p.out[1] * q.out[1] + row / block[0]) * q.out[2] * q.k + row % block[0] * run;
      const int64_t to = (first * p.out[1] + i) * line;
      for (int64_t cell = 0; cell < q.out[2]; ++cell, from += q.k)
        store_line(to + cell * run, from, least(run, line - cell * run));
    });
  }

  // z [n][k, fh, fw][ch][cw] to lines of y, [n][k][ch, fh][cw, fw].
  void interleave_planes(const Exec& exec, const float* z, int64_t first, int64_t n) const {
    constexpr int64_t kCells = 64;
    const int64_t width = block[1], plane = q.out[1] * q.out[2];
    for_lines(exec, n * p.k * p.out[1], p.out[2], [&](int64_t i) {
      const int64_t row = i % p.out[1];
      const float* from = z + (i / p.out[1] * outputs + row % block[0] * width) * plane + row / block[0] * q.out[2];
      const int64_t to = (first * p.k * p.out[1] + i) * p.out[2];
      float line[kCells * kMostSubpixels];
      for (int64_t cell = 0; cell < q.out[2]; cell += kCells) {
        const int64_t cells = least(kCells, q.out[2] - cell);
        for (int64_t fw = 0; fw < width; ++fw)
          for (int64_t j = 0; j < cells; ++j) line[j * width + fw] = from[fw * plane + cell + j];
        store_line(to + cell * width, line, least(cells * width, p.out[2] - cell * width));
      }
    });
  }

  void store_line(int64_t at, const float* from, int64_t n) const {
    for (int64_t i = 0; i < n; i += V::width) {
      const int m = static_cast<int>(least(V::width, n - i));
      store_final<float>(p, at + i, m == V::width ? load(from + i) : load_n(from + i, m), m);
    }
  }

  template <class F>
  void for_lines(const Exec& exec, int64_t lines, int64_t length, F&& f) const {
    parallel_for(exec, lines, most(1, (1 << 14) / most(1, length)), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) f(i);
    });
  }

  const ConvParams& p;
  ConvParams q;  // the convolution that z is
  int exec_threads;
  int64_t block[2], low[2];  // outputs of a cell; its least offset
  int64_t outputs, image, rounds;
  size_t bias_at, cells_at, product_at;
};

}  // namespace fastcv::FASTCV_ISA
