// What the doors of this family share: the layout of an input, and vectors with one value per channel.
#pragma once
#include <cmath>

#include "common/door.h"
#include "norm/norm.h"

namespace fastcv::norm_door {

using namespace door;

struct Shape {
  int64_t n, c, s;
};
inline Shape shape_of(const char* op, const Tensor& input) {
  check(input.dim() >= 2, op, ": expected an input of at least 2 dimensions, got ", show(input));
  Shape shape{input.size(0), input.size(1), 1};
  for (int64_t d = 2; d < input.dim(); ++d) shape.s *= input.size(d);
  return shape;
}

// torch's rule for batch norm: row-major if it is that, else channels_last if it is that or its strides suggest it.
inline bool layout_of(const Tensor& input) {
  if (input.numel() == 0 || is_dense(input, false)) return false;
  return is_channels_last(input) || (input.dim() >= 4 && input.dim() <= 5 && is_dense(input, true));
}

inline DType float_dtype(const char* op, const Tensor& t) {
  const DType dtype = dtype_of(t, op);
  check(dtype <= DType::f16, op, ": expected a floating dtype, got ", dtype_name(t.scalar_type()));
  return dtype;
}

// A dense vector of `count` floating numbers; `hold` keeps it alive.
inline NormVector vector_of(const char* op, const char* name, const OptionalTensor& t, int64_t count,
                            OptionalTensor& hold) {
  if (!t.has_value()) return {nullptr, DType::f32};
  check(t->numel() == count, op, ": ", name, " should contain ", count, " elements not ", t->numel());
  hold = as_dense(*t);
  return {hold->data_ptr(), float_dtype(op, *t)};
}

// An output vector like `t`, or an empty one where it is not wanted.
inline Tensor vector_like(const OptionalTensor& t, bool wanted, const Tensor& input, NormVector& to) {
  to = {nullptr, DType::f32};
  if (!wanted || !t.has_value()) return empty({0}, t.has_value() ? t->scalar_type() : input.scalar_type(), input);
  Tensor result = empty(sizes(*t), t->scalar_type(), input);
  to = {result.data_ptr(), dtype_of(*t, "norm")};
  return result;
}

// A dense tensor with the sizes, dtype and device of `like`, in its layout.
inline Tensor matching(const char* op, const char* name, const Tensor& t, const Tensor& like, bool channels_last) {
  check(sizes(t) == sizes(like) && t.scalar_type() == like.scalar_type(), op, ": expected ", name, " of shape ",
        show(like), " and dtype ", dtype_name(like.scalar_type()), ", got ", show(t), " and ",
        dtype_name(t.scalar_type()));
  return as_dense(t, channels_last);
}

inline Activation activation_of(const char* op, double slope, double cap) {
  check(std::isfinite(slope) && slope >= 0 && std::isfinite(cap), op,
        ": expected an activation with a finite slope >= 0 and a finite cap, got ", slope, " and ", cap);
  return {slope, cap};
}

inline const Tensor* pointer(const OptionalTensor& t) { return t.has_value() ? &*t : nullptr; }

}  // namespace fastcv::norm_door
