// The door of local response norm: schemas, checks, outputs. No arithmetic on elements.
#include "norm/local_response_norm.h"
#include "norm/norm_door.h"

namespace fastcv {
namespace {

using namespace norm_door;

Tensor run(const char* op, const VariantTable<LocalResponseNormParams>& table, const Tensor* grad, const Tensor& input,
           int64_t size, double alpha, double beta, double k) {
  check_same_device(op, {grad, &input});
  check(size > 0, op, ": expected a size greater than zero, got ", size);
  const Shape shape = shape_of(op, input);
  const bool channels_last = layout_of(input);
  const auto cut = [&](int64_t reach) { return reach < shape.c ? reach : shape.c; };
  LocalResponseNormParams p{};
  p.dtype = float_dtype(op, input);
  p.n = shape.n, p.c = shape.c, p.s = shape.s;
  p.before = cut(size / 2), p.after = cut((size - 1) / 2);
  p.channels_last = channels_last;
  p.scale = alpha / static_cast<double>(size);
  p.beta = beta;
  p.k = k;
  const Tensor x = as_dense(input, channels_last);
  OptionalTensor g;
  if (grad != nullptr) g = matching(op, "a gradient", *grad, input, channels_last);
  Tensor output = empty(sizes(input), input.scalar_type(), input, channels_last);
  p.x = x.data_ptr();
  p.grad = g.has_value() ? g->data_ptr() : nullptr;
  p.y = output.data_ptr();
  if (input.numel() > 0) run_variant(table, p, input);
  return output;
}

Tensor local_response_norm(const Tensor& input, int64_t size, double alpha, double beta, double k) {
  return run("local_response_norm", local_response_norm_table, nullptr, input, size, alpha, beta, k);
}

Tensor local_response_norm_backward(const Tensor& grad, const Tensor& input, int64_t size, double alpha, double beta,
                                    double k) {
  return run("local_response_norm_backward", local_response_norm_backward_table, &grad, input, size, alpha, beta, k);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastcv, m) {
  m.def("local_response_norm(Tensor input, int size, float alpha, float beta, float k) -> Tensor");
  m.def(
      "local_response_norm_backward(Tensor grad, Tensor input, int size, float alpha, float beta, float k) -> Tensor");
}
FASTCV_IMPL(m) {
  m.impl("local_response_norm", TORCH_BOX(&local_response_norm));
  m.impl("local_response_norm_backward", TORCH_BOX(&local_response_norm_backward));
}

}  // namespace fastcv
