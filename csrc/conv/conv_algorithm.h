// Direct or Winograd: what conv.cpp and conv_wgrad.cpp choose among, each by a cost and an accuracy of its own.
#pragma once
#include <algorithm>
#include <cstdint>

namespace fastcv {

enum class Algorithm { direct, winograd4, winograd4x2, winograd2 };

// How an image of `out` outputs (depth, height, width) is cut: tiles, and products of each per pair of channels.
struct WinogradCut {
  double tiles, points;
};
inline WinogradCut winograd_cut(Algorithm algorithm, const int64_t (&out)[3], const int64_t (&dilation)[3]) {
  const int64_t m[2] = {algorithm == Algorithm::winograd2 ? 2 : 4, algorithm == Algorithm::winograd4 ? 4 : 2};
  double tiles = 1;
  for (int i = 0; i < 2; ++i) {
    const int64_t cells = (out[1 + i] + dilation[1 + i] - 1) / dilation[1 + i];
    tiles *= static_cast<double>(dilation[1 + i] * ((cells + m[i] - 1) / m[i]));
  }
  return {tiles, static_cast<double>((m[0] + 2) * (m[1] + 2))};
}

// Outputs times taps of a layer of stride 1 that meet the image. backwards: taps lead from an output to earlier inputs.
template <class Params>
double products(const Params& p, bool backwards) {
  double product = 1;
  for (int dim = 1; dim < 3; ++dim) {
    int64_t sum = 0;
    for (int64_t tap = 0; tap < p.kernel[dim]; ++tap) {
      const int64_t reach = tap * p.dilation[dim] - p.pad[dim], shift = backwards ? -reach : reach;
      const int64_t first = std::max<int64_t>(0, -shift), last = std::min(p.out[dim], p.in[dim] - shift);
      sum += std::max<int64_t>(0, last - first);
    }
    product *= static_cast<double>(sum);
  }
  return product;
}

// The cheapest that is accurate, for c input and k output channels of a group.
template <class Params>
Algorithm cheapest(const Params& p, int64_t c, int64_t k, double (*cost)(const Params&, Algorithm),
                   bool (*accurate)(const Params&, Algorithm)) {
  Algorithm found = Algorithm::direct;
  if (c < 16 || k < 16) return found;  // less than a vector of channels
  double least = cost(p, found);
  for (const Algorithm a : {Algorithm::winograd4, Algorithm::winograd4x2, Algorithm::winograd2}) {
    const double this_cost = accurate(p, a) ? cost(p, a) : least;
    if (this_cost < least) least = this_cost, found = a;
  }
  return found;
}

}  // namespace fastcv
