// What the planted kernels share: how one is launched and what is said of it; what copies read; operands and sums
// of products.
//
// A kernel takes x, y and whether it is to be right. It leaves a positive number in every y when it found what it
// should.
#pragma once
#include <cstdio>
#include <string>
#include <vector>

#include "common/gpu.cuh"
#include "common/ptx_sm90.cuh"

namespace fastcv::emulated {
namespace {

constexpr int kThreads = 64;

using Kernel = void (*)(const float*, float*, bool);
struct Launch {
  unsigned cluster = 1;  // blocks, all of one cluster
  int threads = kThreads;
};

// Prints "<kernel> <right or planted> <seed>: <the emulator's words, or ok>" for eight orders of the threads.
void show(const char* name, Kernel kernel, bool right, Launch how = {}) {
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    std::vector<float> x(kThreads * 4, 1.0f), y(kThreads, -1.0f);
    emulator::seed(seed);
    const int error =
        launch_clusters(kernel, how.cluster, how.cluster, how.threads, 0, nullptr, x.data(), y.data(), right);
    std::string words = error == 0 ? "ok" : emulator::last_error();
    for (float v : y)
      if (error == 0 && !(v > 0)) words = "wrong output";
    std::printf("%s %s %d: %s\n", name, right ? "right" : "planted", static_cast<int>(seed), words.c_str());
  }
}
void show_both(const char* name, Kernel kernel, Launch how = {}) {
  show(name, kernel, true, how);
  show(name, kernel, false, how);
}

// The operands of products A B: small integers, whose sums are exact in every type and order.
float a_at(int row, int k, int shift = 0) { return static_cast<float>((row * 7 + k * 3 + shift) % 11 - 5); }
float b_at(int k, int column) { return static_cast<float>((column * 5 + k * 2) % 13 - 6); }
float dot(int row, int column, int from, int to) {
  float sum = 0;
  for (int k = from; k < to; ++k) sum += a_at(row, k) * b_at(k, column);
  return sum;
}

// Are a lane's four sums of a 16 x 8 product what expected(row, column) says?
template <class T, class F>
bool warp_sums_are(const T (&d)[4], int lane, F&& expected) {
  bool same = true;
  for (int i = 0; i < 4; ++i) same = same && d[i] == expected(lane / 4 + 8 * (i / 2), lane % 4 * 2 + i % 2);
  return same;
}

// The same of a thread of a warpgroup, whose sums lie in one or more columns of 8.
template <int N, class F>
bool group_sums_are(const float (&d)[N], int thread, F&& expected) {
  bool same = true;
  for (int i = 0; i < N; ++i) {
    const int row = thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + thread % 4 * 2 + i % 2;
    same = same && d[i] == expected(row, column);
  }
  return same;
}

// x as a tensor that TMA copies from: eight rows of 64 bfloat16 elements 0, 1, 0, 1, ...
TensorTile eight_rows(const float* x) {
  TensorTile rows{};
  rows.base = x;
  rows.dtype = DType::bf16;
  rows.size[0] = 64, rows.size[1] = 1, rows.size[2] = 8;
  rows.stride[0] = rows.stride[1] = 128;
  rows.box[0] = 64, rows.box[1] = 1, rows.box[2] = 8;
  return rows;
}

}  // namespace
}  // namespace fastcv::emulated
