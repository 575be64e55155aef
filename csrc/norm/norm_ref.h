// Elements of any dtype as doubles, for the *_ref.cpp files of this family.
#pragma once
#include "common/dispatch.h"
#include "common/scalar.h"
#include "norm/norm.h"

namespace fastcv {
namespace {

[[maybe_unused]] double get(const void* p, DType dtype, int64_t i) {
  double x = 0;
  dispatch_float(dtype, [&](auto zero) { x = widen(static_cast<const decltype(zero)*>(p)[i]); });
  return x;
}
[[maybe_unused]] double get(const NormVector& v, int64_t i, double absent) {
  return v.data == nullptr ? absent : get(v.data, v.dtype, i);
}

[[maybe_unused]] void put(void* p, DType dtype, int64_t i, double x) {
  if (p == nullptr) return;
  dispatch_float(dtype, [&](auto zero) { narrow(x, static_cast<decltype(zero)*>(p) + i); });
}
[[maybe_unused]] void put(const NormVector& v, int64_t i, double x) { put(const_cast<void*>(v.data), v.dtype, i, x); }

[[maybe_unused]] double normalised(double x, double mean, double scale, double bias) {
  return (x - mean) * scale + bias;
}
[[maybe_unused]] double activate(const Activation& a, double v) {
  const double bent = v <= 0 ? (a.slope == 0 ? 0 : a.slope * v) : v;
  return a.cap > 0 && bent > a.cap ? a.cap : bent;
}
[[maybe_unused]] double gate(const Activation& a, double g, double v) {
  if (a.slope == 1 && !(a.cap > 0)) return g;
  if (a.cap > 0 && v >= a.cap) return 0;
  return v <= 0 ? (a.slope == 0 ? 0 : a.slope * g) : g;
}

}  // namespace
}  // namespace fastcv
