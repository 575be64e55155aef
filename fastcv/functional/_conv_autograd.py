"""Convolutions that can be differentiated any number of times; each runs its raw op alone where no gradient is asked for.

Three raw ops carry everything, and each one's gradients are the other two (the bias has its own sum):
    conv(x, w):   dx = dgrad(dy, w)    dw = wgrad(x, dy)
    dgrad(dy, w): ddy = conv(dx, w)    dw = wgrad(dx, dy)      (dgrad is also the forward of the transposed convolution)
    wgrad(x, dy): dx = dgrad(dy, dw)   ddy = conv(x, dw)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ._common import differentiable, needs_grad
from ._conv_ops import activation_raw, bias_grad_raw, conv_raw, dgrad_raw, wgrad_raw

Geometry = tuple[Sequence[int], Sequence[int], Sequence[int], int]  # stride, padding, dilation, groups
LEAKY_RELU = 6  # csrc/conv/conv.h: enum Activation


def _crop(t: Tensor, like: Tensor) -> Tensor:
    """The first elements of t's spatial dimensions, as many as ``like`` has.

    A transposed convolution's output padding can make room for one more position than its input has.
    """
    for i in range(2, t.dim()):
        if t.shape[i] != like.shape[i]:
            t = t.narrow(i, 0, like.shape[i])
    return t


def _activation_save(ctx: Any, args: tuple[Any, ...], output: Tensor) -> None:
    x, g, ctx.activation, ctx.order, ctx.slope = args
    ctx.has_grad = g is not None
    ctx.save_for_backward(*([x, g] if ctx.has_grad else [x]))


def _activation_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x = ctx.saved_tensors[0]
    dx = dg = None
    if ctx.needs_input_grad[0]:
        both = activation_op(grad, ctx.saved_tensors[1], 0, 0, ctx.slope) if ctx.has_grad else grad  # grad * g
        dx = activation_op(x, both, ctx.activation, ctx.order + 1, ctx.slope)
    if ctx.needs_input_grad[1]:
        dg = activation_op(x, grad, ctx.activation, ctx.order, ctx.slope)
    return dx, dg, None, None, None


_activation_with_grad = differentiable("ConvActivation", activation_raw, _activation_save, _activation_backward)


def activation_op(x: Tensor, g: Tensor | None, activation: int, order: int, slope: float) -> Tensor:
    """g * (the order-th derivative of the activation at x); without g, that derivative."""
    call = _activation_with_grad if needs_grad(x, g) else activation_raw
    return call(x, g, activation, order, slope)


# What follows a sum: the activation's code and the slope of leaky_relu below zero; None for nothing.
End = tuple[int, float] | None
# What the formulas below take as one argument: geometry, precision and the activation's code. The slope and a size stay on their
# own: torch.compile makes symbols of floats and sizes, and finds none within a tuple.
How = tuple[Geometry, int, int]


def _by_output(activation: int, slope: float) -> bool:
    """True where the derivative at x is that at the activation's value, so that x need not be kept."""
    return activation <= 2 or (activation == LEAKY_RELU and slope >= 0)


def _conv_forward(x: Tensor, w: Tensor, b: Tensor | None, residual: Tensor | None, how: How, slope: float) -> Tensor:
    (stride, padding, dilation, groups), precision, activation = how
    return conv_raw(x, w, b, stride, padding, dilation, groups, residual, activation, precision, None, slope)


def _conv_save(ctx: Any, args: tuple[Any, ...], output: Tensor) -> None:
    x, w, _, _, ctx.how, ctx.slope = args
    if ctx.how[2]:
        ctx.save_for_backward(x, w, output)
    else:
        ctx.save_for_backward(x, w)


def conv_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, w, *y = ctx.saved_tensors
    geometry, precision, activation = ctx.how
    dx = dw = db = None
    if y:
        grad = activation_op(*y, grad, activation, 1, ctx.slope)
    if ctx.needs_input_grad[0]:
        dx = dgrad_op(grad, w, None, x.shape[2:], geometry, precision)
    if ctx.needs_input_grad[1]:
        dw = wgrad_op(x, grad, w.shape[2:], geometry, precision)
    if ctx.needs_input_grad[2]:
        db = bias_grad_op(grad)
    return dx, dw, db, grad if ctx.needs_input_grad[3] else None, None, None


_conv_with_grad = differentiable("Conv", _conv_forward, _conv_save, conv_backward)


def conv_op(
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    residual: Tensor | None,
    geometry: Any,
    precision: int,
    packs: Any = None,
    end: End = None,
) -> Tensor:
    """The convolution of a batch and what follows it; packs: may know the weights as a kernel arranges them."""
    activation, slope = (0, 0.0) if end is None else end
    if needs_grad(x, w, b, residual):
        if _by_output(activation, slope):
            return _conv_with_grad(x, w, b, residual, (geometry, precision, activation), slope)
        return activation_op(_conv_with_grad(x, w, b, residual, (geometry, precision, 0), 0.0), None, activation, 0, slope)
    packed = None if packs is None else packs.of_conv(x, w, geometry, precision)
    stride, padding, dilation, groups = geometry
    return conv_raw(x, w, b, stride, padding, dilation, groups, residual, activation, precision, packed, slope)


def _dgrad(
    g: Tensor,
    w: Tensor,
    b: Tensor | None,
    size: Any,
    geometry: Geometry,
    precision: int,
    packed: Tensor | None,
    residual: Tensor | None,
    activation: int,
    slope: float,
) -> Tensor:
    stride, padding, dilation, groups = geometry
    if activation == 0 and residual is None and packed is None:  # to hand the defaults over costs half a microsecond
        return dgrad_raw(g, w, b, size, stride, padding, dilation, groups, precision)
    return dgrad_raw(g, w, b, size, stride, padding, dilation, groups, precision, packed, residual, activation, slope)


def _dgrad_forward(g: Tensor, w: Tensor, b: Tensor | None, residual: Tensor | None, size: Any, how: How, slope: float) -> Tensor:
    geometry, precision, activation = how
    return _dgrad(g, w, b, size, geometry, precision, None, residual, activation, slope)


def _dgrad_save(ctx: Any, args: tuple[Any, ...], output: Tensor) -> None:
    g, w, _, _, _, ctx.how, ctx.slope = args
    if ctx.how[2]:
        ctx.save_for_backward(g, w, output)
    else:
        ctx.save_for_backward(g, w)


def _dgrad_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    g, w, *y = ctx.saved_tensors
    geometry, precision, activation = ctx.how
    dg = dw = db = None
    if y:
        grad = activation_op(*y, grad, activation, 1, ctx.slope)
    if ctx.needs_input_grad[0]:
        dg = _crop(conv_op(grad, w, None, None, geometry, precision), g)
    if ctx.needs_input_grad[1]:
        dw = wgrad_op(grad, g, w.shape[2:], geometry, precision)
    if ctx.needs_input_grad[2]:
        db = bias_grad_op(grad)
    return dg, dw, db, grad if ctx.needs_input_grad[3] else None, None, None, None


_dgrad_with_grad = differentiable("ConvDgrad", _dgrad_forward, _dgrad_save, _dgrad_backward)


def dgrad_op(
    g: Tensor,
    w: Tensor,
    b: Tensor | None,
    size: Any,
    geometry: Any,
    precision: int,
    packs: Any = None,
    residual: Tensor | None = None,
    end: End = None,
) -> Tensor:
    """The input gradient of a convolution, or its transpose, with a spatial output size, and what follows it."""
    activation, slope = (0, 0.0) if end is None else end
    if needs_grad(g, w, b, residual):
        if _by_output(activation, slope):
            return _dgrad_with_grad(g, w, b, residual, size, (geometry, precision, activation), slope)
        return activation_op(_dgrad_with_grad(g, w, b, residual, size, (geometry, precision, 0), 0.0), None, activation, 0, slope)
    packed = None if packs is None else packs.of_dgrad(g, w, size, geometry, precision)
    return _dgrad(g, w, b, size, geometry, precision, packed, residual, activation, slope)


def _wgrad_forward(x: Tensor, g: Tensor, kernel: Any, geometry: Any, precision: int) -> Tensor:
    return wgrad_raw(x, g, kernel, *geometry, precision)


def _wgrad_save(ctx: Any, args: tuple[Any, ...], output: Tensor) -> None:
    x, g, _, ctx.geometry, ctx.precision = args
    ctx.save_for_backward(x, g)


def _wgrad_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, g = ctx.saved_tensors
    dx = dg = None
    if ctx.needs_input_grad[0]:
        dx = dgrad_op(g, grad, None, x.shape[2:], ctx.geometry, ctx.precision)
    if ctx.needs_input_grad[1]:
        dg = _crop(conv_op(x, grad, None, None, ctx.geometry, ctx.precision), g)
    return dx, dg, None, None, None


_wgrad_with_grad = differentiable("ConvWgrad", _wgrad_forward, _wgrad_save, _wgrad_backward)


def wgrad_op(x: Tensor, g: Tensor, kernel: Any, geometry: Any, precision: int) -> Tensor:
    """The weight gradient, of a kernel of these sizes."""
    call = _wgrad_with_grad if needs_grad(x, g) else _wgrad_forward
    return call(x, g, kernel, geometry, precision)


def _bias_grad_save(ctx: Any, args: tuple[Any, ...], output: Tensor) -> None:
    ctx.sizes = args[0].shape


def _bias_grad_backward(ctx: Any, grad: Tensor) -> Tensor:
    return grad.view(1, -1, *[1] * (len(ctx.sizes) - 2)).expand(ctx.sizes)


_bias_grad_with_grad = differentiable("ConvBiasGrad", bias_grad_raw, _bias_grad_save, _bias_grad_backward)


def bias_grad_op(g: Tensor) -> Tensor:
    """The bias gradient: g summed for each channel."""
    return _bias_grad_with_grad(g) if needs_grad(g) else bias_grad_raw(g)
