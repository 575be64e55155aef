// Which accesses of the threads of a block, or of a cluster of blocks, are ordered: vector clocks, one per warp.
//
// A warp's clock ticks at every barrier it takes part in and at every __syncwarp. A barrier gives each of its warps all
// that the others knew. An access (thread, tick) happens before now if the running thread's warp knows a later tick of
// that thread's warp. Barriers are taken to cover whole warps, as CUDA's do.
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

namespace fastcv::emulator {

inline constexpr int kWarp = 32;
inline constexpr int kMaxThreads = 1024;  // of a block
inline constexpr int kMaxFibers = 4096;   // of a cluster of blocks
inline constexpr int kMaxWarps = kMaxFibers / kWarp;

class Clocks {
 public:
  void reset(int warps) {
    warps_ = warps;
    for (int w = 0; w < warps; ++w) known_[w].fill(0);
  }
  uint32_t now(int thread) const { return known_[thread / kWarp][thread / kWarp]; }
  bool ordered(int earlier, uint32_t tick, int thread) const {
    return earlier == thread || known_[thread / kWarp][earlier / kWarp] > tick;
  }
  void tick(int warp) { ++known_[warp][warp]; }
  // What a warp knows handed over through a barrier in shared memory: `known` gains it, and gives it to who waited.
  using Known = std::array<uint32_t, kMaxWarps>;
  void release(int warp, Known& known) {
    tick(warp);
    for (int i = 0; i < kMaxWarps; ++i) known[i] = std::max(known[i], known_[warp][i]);
  }
  void acquire(int warp, const Known& known) {
    for (int i = 0; i < kMaxWarps; ++i) known_[warp][i] = std::max(known_[warp][i], known[i]);
  }
  // The warps meet: each knows afterwards all that any knew, and that all came here.
  void join(const std::vector<int>& warps) {
    std::array<uint32_t, kMaxWarps> all{};
    for (int w : warps) {
      tick(w);
      for (int i = 0; i < warps_; ++i) all[i] = std::max(all[i], known_[w][i]);
    }
    for (int w : warps) known_[w] = all;
  }

 private:
  int warps_ = 0;
  std::array<std::array<uint32_t, kMaxWarps>, kMaxWarps> known_{};
};

}  // namespace fastcv::emulator
