// Activations and their derivatives, element by element.
#include "conv/conv_activation.h"

#include "common/numbers.cuh"
#include "conv/conv_gelu.h"
#include "conv/conv_sigmoid.h"

namespace fastcv::FASTCV_GPU {
namespace {

constexpr int kThreads = 256;

// The derivatives of the logistic function that silu's takes, this order's and the one before it, and gelu's.
struct Polynomials {
  double sigmoid[kActivationOrders + 2], before[kActivationOrders + 2], gelu[kActivationOrders + 2] = {};
  explicit Polynomials(int order) {
    sigmoid_derivative(order, sigmoid);
    sigmoid_derivative(order > 0 ? order - 1 : 0, before);
    if (order > 0) gelu_derivative(order, gelu);
  }
};

// The n-th derivative of the logistic function at x, s being its value at -|x|, which is small and exact.
template <class T>
__device__ __forceinline__ T sigmoid(const double (&c)[kActivationOrders + 2], int n, T x, T s) {
  T value = 0;
  for (int k = n + 1; k >= 0; --k) value = value * s + static_cast<T>(c[k]);
  return x <= 0 || n % 2 == 1 ? value : n == 0 ? 1 - value : -value;
}

template <class S>
__global__ void __launch_bounds__(kThreads) activation_kernel(const ConvActivationParams p, const Polynomials c) {
  using T = acc_t<S>;
  const int order = p.order;
  for (int64_t i = global_thread(); i < p.size; i += global_threads()) {
    const T x = widen(static_cast<const S*>(p.x)[i]);
    T f = order == 0 ? x : T(1);
    bool zero = order > 1;  // by definition, whatever the gradient is
    switch (p.activation) {
      case Activation::none:
        break;
      case Activation::relu:
        zero = zero || x <= 0;
        break;
      case Activation::relu6:
        zero = zero || x <= 0 || (order == 1 && x >= 6);
        if (order == 0 && x >= 6) f = 6;
        break;
      case Activation::silu: {
        const T s = 1 / (1 + exp(abs(x)));
        zero = false;
        f = x * sigmoid(c.sigmoid, order, x, s);
        if (order > 0) f += static_cast<T>(order) * sigmoid(c.before, order - 1, x, s);
        break;
      }
      case Activation::hardswish:
        zero = order > 2 || x <= -3 || (order == 2 && !(x < 3));
        f = order == 0 ? (x >= 3 ? x : x * (x + 3) / 6) : order == 2 ? T(1) / 3 : x < 3 ? x / 3 + T(0.5) : T(1);
        break;
      case Activation::gelu: {
        const T distribution = erfc(x * T(-0.70710678118654752440)) / 2;
        zero = false;
        f = 0;
        for (int k = order; k >= 0; --k) f = f * x + static_cast<T>(c.gelu[k]);
        f = order == 0 ? x * distribution : f * static_cast<T>(kNormalDensity) * exp(x * x * T(-0.5));
        if (order == 1) f += distribution;
        break;
      }
      case Activation::leaky_relu:
        f *= x > 0 ? T(1) : static_cast<T>(p.slope);
        break;
    }
    const T grad = p.grad == nullptr ? T(1) : static_cast<T>(widen(static_cast<const S*>(p.grad)[i]));
    static_cast<S*>(p.y)[i] = narrow<S>(zero ? T(0) : p.grad == nullptr ? f : grad * f);
  }
}

}  // namespace

int conv_activation(const ConvActivationParams& p, void*, CUstream_st* stream) {
  return by_dtype(p.dtype, [&]<class S>() {
    return launch(activation_kernel<S>, grid_for(p.size, kThreads), kThreads, 0, stream, p, Polynomials(p.order));
  });
}

}  // namespace fastcv::FASTCV_GPU
