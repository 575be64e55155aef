// Every tile and cluster of the convolutions on Hopper's tensor cores, and groups of warps that take turns, in so few
// blocks that each makes several tiles, against plain loops on small integers; the statistics of their outputs; and the
// plan that picks among tiles. Prints "<tile> <layer> <seed>: <ok, or what is wrong>", "statistics <tile> <layer>: <ok,
// or what is wrong>" and "plan <pixels> <outputs> <steps>: <tile>"; a tile is pixels x outputs x cluster, or
// "pingpong".
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <tuple>
#include <vector>

#include "conv/conv_igemm_pingpong_sm90.cu"

namespace fastcv::emulated {
namespace {

struct Layer {
  const char* name;
  int64_t n, c, h, w, k, kernel, stride, pad;
};
constexpr Layer kLayers[] = {
    {"one tile", 1, 8, 5, 7, 24, 1, 1, 0},      // far less than any tile
    {"tails", 1, 72, 13, 11, 136, 2, 1, 1},     // of pixels, of channels in and out; an odd number of tiles
    {"many tiles", 5, 8, 17, 16, 72, 1, 1, 0},  // a box, more steps than stages, more tiles than blocks
    {"strided", 1, 16, 23, 25, 132, 2, 2, 1},   // im2col, and output channels that fill no pack
};

// A layer's operands, small integers, and its poisoned output.
struct Operands {
  ConvParams p{};
  int64_t pixels;
  bf16 *x, *w, *bias, *residual, *y;

  explicit Operands(const Layer& l) {
    const auto number = [](int64_t i) { return static_cast<float>(i * 37 % 11 % 5 - 2); };
    p.n = l.n, p.c = l.c, p.k = l.k, p.groups = 1;
    const int64_t in[3] = {1, l.h, l.w};
    for (int i = 0; i < 3; ++i) {
      p.in[i] = in[i];
      p.kernel[i] = i == 0 ? 1 : l.kernel;
      p.stride[i] = i == 0 ? 1 : l.stride;
      p.pad[i] = i == 0 ? 0 : l.pad;
      p.dilation[i] = 1;
      p.out[i] = (p.in[i] + 2 * p.pad[i] - p.kernel[i]) / p.stride[i] + 1;
    }
    p.dtype = DType::bf16;
    p.channels_last = p.weight_channels_last = true;
    pixels = l.n * p.out[1] * p.out[2];
    const auto memory = [](int64_t elements) {
      return static_cast<bf16*>(std::aligned_alloc(256, (elements * 2 + 255) / 256 * 256));
    };
    x = memory(l.n * l.h * l.w * l.c), w = memory(l.k * l.kernel * l.kernel * l.c), bias = memory(l.k);
    residual = memory(pixels * l.k), y = memory(pixels * l.k);
    for (int64_t i = 0; i < l.n * l.h * l.w * l.c; ++i) x[i] = narrow<bf16>(number(i));
    for (int64_t i = 0; i < l.k * l.kernel * l.kernel * l.c; ++i) w[i] = narrow<bf16>(number(i + 3));
    for (int64_t i = 0; i < l.k; ++i) bias[i] = narrow<bf16>(number(i + 5));
    for (int64_t i = 0; i < pixels * l.k; ++i) residual[i] = narrow<bf16>(number(i + 7)), y[i] = {0xffff};
    p.x = x, p.w = w, p.bias = bias, p.y = y;
  }
  Operands(const Operands&) = delete;
  Operands& operator=(const Operands&) = delete;
  ~Operands() {
    for (bf16* each : {x, w, bias, residual, y}) std::free(each);
  }
};

template <class Launch>
std::string check(const Launch& launch, const Layer& l, uint64_t seed) {
  Operands of(l);
  ConvParams& p = of.p;
  p.residual = of.residual;
  p.activation = Activation::relu;
  emulator::seed(seed);
  std::vector<char> workspace(igemm_gpu_workspace(p) + 256);
  const int error = launch(p, workspace.data());
  if (error != 0) return emulator::last_error();
  const auto [x, w, bias, residual, y] = std::tuple(of.x, of.w, of.bias, of.residual, of.y);
  const int64_t oh = p.out[1], ow = p.out[2], pixels = of.pixels;
  int64_t wrong = 0;
  for (int64_t m = 0; m < pixels; ++m)
    for (int64_t k = m % 3; k < l.k; k += 3) {
      float sum = widen(bias[k]) + widen(residual[m * l.k + k]);
      for (int64_t r = 0; r < l.kernel * l.kernel; ++r) {
        const int64_t ih = m / ow % oh * l.stride - l.pad + r / l.kernel, iw = m % ow * l.stride - l.pad + r % l.kernel;
        if (ih < 0 || ih >= l.h || iw < 0 || iw >= l.w) continue;
        const bf16* from = x + ((m / ow / oh * l.h + ih) * l.w + iw) * l.c;
        for (int64_t c = 0; c < l.c; ++c) sum += widen(from[c]) * widen(w[(k * l.kernel * l.kernel + r) * l.c + c]);
      }
      wrong += y[m * l.k + k].bits != narrow<bf16>(sum > 0 ? sum : 0).bits;
    }
  return wrong == 0 ? "ok" : std::to_string(wrong) + " differ";
}

std::vector<double> first_statistics[std::size(kLayers)];  // by the first tile

// Mean and variance of the stored outputs, integers, whose sums are exact; and the same bits in every tile.
template <class Launch>
std::string check_statistics(const Launch& launch, int layer) {
  const Layer& l = kLayers[layer];
  Operands of(l);
  ConvParams& p = of.p;
  std::vector<double> found(2 * l.k);
  ConvStatistics statistics{found.data(), found.data() + l.k};
  p.statistics = &statistics;
  std::vector<char> workspace(igemm_gpu_workspace(p) + 256);
  const int error = launch(p, workspace.data());
  if (error != 0) return emulator::last_error();
  if (!statistics.made) return "none were made";
  for (int64_t k = 0; k < l.k; ++k) {
    double mean = 0, var = 0;
    for (int64_t m = 0; m < of.pixels; ++m) mean += widen(of.y[m * l.k + k]);
    mean /= static_cast<double>(of.pixels);
    for (int64_t m = 0; m < of.pixels; ++m) var += std::pow(widen(of.y[m * l.k + k]) - mean, 2);
    var /= static_cast<double>(of.pixels);
    if (!(std::abs(found[k] - mean) <= 1e-14 * (std::abs(mean) + std::sqrt(var))) ||
        !(std::abs(found[l.k + k] - var) <= 1e-12 * var))
      return "channel " + std::to_string(k) + " has others";
  }
  std::vector<double>& first = first_statistics[layer];
  if (first.empty()) first = found;
  return first == found ? "ok" : "other bits than in another tile";
}

template <class Launch>
void show(const std::string& tile, const Launch& launch) {
  int seed = 1;
  for (const Layer& l : kLayers) {
    std::printf("%s %s %d: %s\n", tile.c_str(), l.name, seed, check(launch, l, static_cast<uint64_t>(seed)).c_str());
    ++seed;
  }
  for (const int i : {1, 2})
    std::printf("statistics %s %s: %s\n", tile.c_str(), kLayers[i].name, check_statistics(launch, i).c_str());
}
template <int subs, int outputs, int cluster>
void show_tile() {
  using Tile = Sm90Shape<bf16, 1, 2, subs, outputs, cluster>;
  show(std::to_string(Tile::pixels) + "x" + std::to_string(outputs) + "x" + std::to_string(cluster),
       [](const ConvParams& p, void* workspace) { return launch_pipeline<Tile>(p, workspace, nullptr, 4); });
}

}  // namespace
}  // namespace fastcv::emulated

int main() {
  using namespace fastcv;
  emulated::show_tile<1, 128, 1>();
  emulated::show_tile<2, 64, 1>();
  emulated::show_tile<2, 128, 1>();
  emulated::show_tile<1, 256, 1>();
  emulated::show_tile<1, 128, 2>();
  emulated::show_tile<2, 64, 2>();
  emulated::show_tile<2, 128, 2>();
  emulated::show_tile<1, 256, 2>();
  emulated::show("pingpong", [](const ConvParams& p, void* workspace) {
    return emulated::launch_sm90<emulated::Shape<bf16>>(emulated::igemm_pingpong_kernel<bf16>, emulated::kThreads, 2, p,
                                                        workspace, nullptr);
  });
  for (const int64_t pixels : {1, 49, 3136, 12544, 50176, 200704, 802816, 3211264})
    for (const int64_t outputs : {8, 64, 128, 256, 512, 2048})
      for (const int64_t steps : {1, 4, 9, 36, 72, 288}) {
        const Sm90Tile tile = sm90_tile(pixels, outputs, steps);
        std::printf("plan %d %d %d: %dx%dx%d\n", static_cast<int>(pixels), static_cast<int>(outputs),
                    static_cast<int>(steps), tile.pixels, tile.outputs, tile.cluster);
      }
}
