// Transposed convolution of few output channels by sub-pixels: the outputs of all phases of a cell as the channels of
// one ordinary convolution of stride 1.
//
//   cells:  z[n, (k, fh, fw), ch, cw] = bias[k] + sum over (c, th, tw) of x[n, c, ch + th, cw + tw] * v[(k, fh, fw), c,
//   th, tw] y[n, k, ch * sh + fh, cw * sw + fw] = act(residual + z[n, (k, fh, fw), ch, cw])
//
// v holds the weights of the phase (fh, fw) where the offset (th, tw) is one of its taps, and zeros elsewhere. Phases
// by themselves fill a vector with k outputs, here with k * sh * sw: three channels at stride 2 take 16 offsets for a
// 7x7 kernel's 49 taps. Through the zeros a NaN or infinity of x reaches the other phases of the cells that read it.
// z goes by the implicit GEMM into scratch memory, a few images at a time, and from there to y.
#include "conv/conv.h"
#include "conv/conv_plan.h"
#include "conv/conv_store.h"

namespace fastcv::FASTCV_ISA {
namespace {

class Subpixel {
  using V = Vec<float>;
  static constexpr int64_t kRound = 8 << 20;  // bytes of z at a time: it is read again from the cache

 public:
  Subpixel(const ConvParams& params, int threads) : p(params), q(params), exec_threads(threads) {
    for (int i = 1; i < 3; ++i) {
      const Dim d = make_dim(p, i);
      low[i - 1] = -floor_div((d.kernel - 1) * d.dilation - d.pad, d.stride);
      q.out[i] = d.cells;
      q.kernel[i] = floor_div(d.pad + d.stride - 1, d.stride) - low[i - 1] + 1;
      q.stride[i] = q.dilation[i] = 1;
      q.pad[i] = -low[i - 1];
    }
    phases = p.stride[1] * p.stride[2];
    q.k = p.k * phases;
    q.transposed = q.weight_channels_last = false;
    q.residual = nullptr;
    q.activation = Activation::none;
    q.statistics = nullptr;
    image = q.k * q.out[1] * q.out[2];
    rounds = most(1, ceil_div(p.n * image * 4, kRound));
    const auto aligned = [](int64_t bytes) { return static_cast<size_t>(round_up(bytes, 64)); };
    bias_at = aligned(q.k * p.c * q.kernel[1] * q.kernel[2] * 4);
    cells_at = bias_at + aligned(q.k * 4);
    product_at = cells_at + aligned((p.n + rounds - 1) / rounds * image * 4);
  }

  size_t workspace() const {
    size_t product = 0;
    for (const int64_t n : {p.n / rounds, ceil_div(p.n, rounds)}) {
      ConvParams part = q;
      part.n = n;
      const size_t bytes = conv_igemm_workspace(part, exec_threads);
      if (bytes > product) product = bytes;
    }
    return product_at + product;
  }
  size_t kept() const { return conv_igemm_kept(q); }

  void run(const Exec& exec) const {
    char* const base = static_cast<char*>(exec.workspace);
    ConvParams part = q;
    part.w = base;
    if (p.packing != Packing::ready) arrange_weights(reinterpret_cast<float*>(base));
    if (p.bias != nullptr) {
      float* bias = reinterpret_cast<float*>(base + bias_at);
      for (int64_t i = 0; i < q.k; ++i) bias[i] = static_cast<const float*>(p.bias)[channel_of(i)];
      part.bias = bias;
    }
    part.y = base + cells_at;
    Exec inner = exec;
    inner.workspace = base + product_at;
    if (p.packing == Packing::fill) return conv_igemm(part, inner);
    for (int64_t round = 0; round < rounds; ++round) {
      const int64_t first = p.n * round / rounds;
      part.n = p.n * (round + 1) / rounds - first;
      part.x = static_cast<const float*>(p.x) + first * p.c * p.in[1] * p.in[2];
      conv_igemm(part, inner);
      if (p.channels_last) interleave_pixels(exec, static_cast<const float*>(part.y), first, part.n);
      else interleave_planes(exec, static_cast<const float*>(part.y), first, part.n);
    }
  }

 private:
  // The channels of z: (fh, fw, k) in channels_last, where they are neighbours in y; else (k, fh, fw).
  int64_t channel_of(int64_t i) const { return p.channels_last ? i % p.k : i / phases; }
  int64_t phase_of(int64_t i) const { return p.channels_last ? i / p.k : i % phases; }

  // The kernel index of a dim that leads from the phase to the input at this offset, or -1.
  int64_t tap(int dim, int64_t phase, int64_t offset) const {
    const int64_t reach = phase + p.pad[dim] - offset * p.stride[dim], r = reach / p.dilation[dim];
    return reach >= 0 && reach % p.dilation[dim] == 0 && r < p.kernel[dim] ? r : -1;
  }

  // [z's channel][c][th][tw]
  void arrange_weights(float* out) const {
    const float* w = static_cast<const float*>(p.w);
    const int64_t taps = p.kernel[1] * p.kernel[2];
    const int64_t tap_step = p.weight_channels_last ? p.k : 1, k_step = p.weight_channels_last ? 1 : taps;
    for (int64_t i = 0; i < q.k; ++i) {
      const int64_t fh = phase_of(i) / p.stride[2], fw = phase_of(i) % p.stride[2];
      for (int64_t c = 0; c < p.c; ++c)
        for (int64_t th = 0; th < q.kernel[1]; ++th) {
          const int64_t rh = tap(1, fh, low[0] + th);
          for (int64_t tw = 0; tw < q.kernel[2]; ++tw) {
            const int64_t rw = tap(2, fw, low[1] + tw);
            const bool any = rh >= 0 && rw >= 0;
            *out++ = any ? w[c * p.k * taps + channel_of(i) * k_step + (rh * p.kernel[2] + rw) * tap_step] : 0.0f;
          }
        }
    }
  }

  // z [n][ch][cw][fh, fw, k] to lines of y, [n][ch, fh][cw, fw, k].
  void interleave_pixels(const Exec& exec, const float* z, int64_t first, int64_t n) const {
    const int64_t run = p.stride[2] * p.k, line = p.out[2] * p.k;
    for_lines(exec, n * p.out[1], [&](int64_t i) {
      const int64_t row = i % p.out[1];
      const float* from =
          z + ((i / p.out[1] * q.out[1] + row / p.stride[1]) * q.out[2]) * q.k + row % p.stride[1] * run;
      const int64_t to = (first * p.out[1] + i) * line;
      for (int64_t cell = 0; cell < q.out[2]; ++cell, from += q.k)
        store_line(to + cell * run, from, least(run, line - cell * run));
    });
  }

  // z [n][k, fh, fw][ch][cw] to lines of y, [n][k][ch, fh][cw, fw].
  void interleave_planes(const Exec& exec, const float* z, int64_t first, int64_t n) const {
    constexpr int64_t kCells = 64;
    const int64_t sw = p.stride[2], plane = q.out[1] * q.out[2];
    for_lines(exec, n * p.k * p.out[1], [&](int64_t i) {
      const int64_t row = i % p.out[1];
      const float* from = z + (i / p.out[1] * phases + row % p.stride[1] * sw) * plane + row / p.stride[1] * q.out[2];
      const int64_t to = (first * p.k * p.out[1] + i) * p.out[2];
      float columns[kCells * kMostSubpixelStride];
      for (int64_t cell = 0; cell < q.out[2]; cell += kCells) {
        const int64_t cells = least(kCells, q.out[2] - cell);
        for (int64_t fw = 0; fw < sw; ++fw)
          for (int64_t j = 0; j < cells; ++j) columns[j * sw + fw] = from[fw * plane + cell + j];
        store_line(to + cell * sw, columns, least(cells * sw, p.out[2] - cell * sw));
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
  void for_lines(const Exec& exec, int64_t lines, F&& f) const {
    parallel_for(exec, lines, most(1, (1 << 14) / most(1, p.out[2])), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) f(i);
    });
  }

  const ConvParams& p;
  ConvParams q;  // the convolution that z is
  int exec_threads;
  int64_t low[2];  // the least offset
  int64_t phases, image, rounds;
  size_t bias_at, cells_at, product_at;
};

}  // namespace

void conv_subpixel(const ConvParams& p, const Exec& exec) { Subpixel(p, exec.threads).run(exec); }
size_t conv_subpixel_workspace(const ConvParams& p, int threads) { return Subpixel(p, threads).workspace(); }
size_t conv_subpixel_kept(const ConvParams& p) { return Subpixel(p, 1).kept(); }

}  // namespace fastcv::FASTCV_ISA
