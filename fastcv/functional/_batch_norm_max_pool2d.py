"""Batch norm, activation and max pooling in one pass over the input; same stem as csrc/pool/batch_norm_max_pool2d.*."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _ext
from . import _batch_norm, norm, pool
from ._common import differentiable, empty_as, is_channels_last, needs_grad

__all__ = ["batch_norm_max_pool2d"]

Ints = pool.Ints
Vector = Tensor | None
Geometry = tuple[Ints, Ints, Ints, Ints, bool]  # kernel_size, stride, padding, dilation, ceil_mode
MOST_OFFSETS = 256  # window elements that a byte can number

_train = _ext.op("batch_norm_max_pool2d_train")
_evaluate = _ext.op("batch_norm_max_pool2d_eval")


# Fake kernels ------------------------------------------------------------------------------------------------------------------


def _outputs(input: Tensor, geometry: Geometry, offsets: bool) -> tuple[Tensor, Tensor]:
    if input.dim() != 4:
        raise RuntimeError(f"fastcv batch_norm_max_pool2d: expected a 4-D input, got {list(input.shape)}")
    sizes, last = pool._pooled("batch_norm_max_pool2d", input, *geometry), _batch_norm.in_channels_last(input)
    where = empty_as(input, sizes, torch.uint8, last) if offsets else input.new_empty(0, dtype=torch.uint8)
    return empty_as(input, sizes, channels_last=last), where


@_ext.fake("batch_norm_max_pool2d_train")
def _(input: Tensor, weight: Vector, bias: Vector, eps: float, slope: float, cap: float, *how: Any) -> tuple[Tensor, ...]:
    statistics = [input.new_empty(input.shape[1], dtype=torch.float64) for _ in range(2)]
    return *_outputs(input, how[:-1], how[-1]), *statistics


@_ext.fake("batch_norm_max_pool2d_eval")
def _(
    input: Tensor, mean: Tensor, var: Tensor, weight: Vector, bias: Vector, eps: float, slope: float, cap: float, *how: Any
) -> tuple[Tensor, Tensor]:
    return _outputs(input, how[:-1], how[-1])


# Batching: a mapped dimension becomes part of the channels, which are independent of each other ----------------------------------


def _unfolded(y: Tensor, where: Tensor, size: int) -> tuple[tuple[Tensor, Tensor], tuple[int, int | None]]:
    return (_batch_norm.unfold(y, size), _batch_norm.unfold(where, size)), (1, 1 if where.dim() > 1 else None)


@_ext.vmap("batch_norm_max_pool2d_train")
def _(info: Any, in_dims: Any, input: Tensor, weight: Vector, bias: Vector, *rest: Any) -> Any:
    size = info.batch_size
    vectors = [_batch_norm.fold_vector(t, d, size) for t, d in zip((weight, bias), in_dims[1:3], strict=True)]
    y, where, mean, var = _train(_batch_norm.fold(input, in_dims[0], size), *vectors, *rest)
    maps, dims = _unfolded(y, where, size)
    return (*maps, _batch_norm.unfold_vector(mean, size), _batch_norm.unfold_vector(var, size)), (*dims, 0, 0)


@_ext.vmap("batch_norm_max_pool2d_eval")
def _(info: Any, in_dims: Any, input: Tensor, *rest: Any) -> Any:
    size = info.batch_size
    vectors = [_batch_norm.fold_vector(t, d, size) for t, d in zip(rest[:4], in_dims[1:5], strict=True)]
    return _unfolded(*_evaluate(_batch_norm.fold(input, in_dims[0], size), *vectors, *rest[4:]), size)


# Autograd: max pooling's gradient, then batch norm's, which recomputes the activation's gate from the input --------------------------


def _save(ctx: Any, input: Tensor, where: Tensor, vectors: tuple[Vector, ...], scalars: tuple[float, ...], geometry: Geometry) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(input, where, *vectors)
    ctx.how = (scalars, geometry)


def _gradients(ctx: Any, grad: Tensor, training: bool, weight_at: int) -> tuple[Vector, ...]:
    """Of input, weight and bias."""
    input, where, *vectors = ctx.saved_tensors
    scalars, geometry = ctx.how
    grad = pool.grad_of_max_pool2d(grad, where, input.shape[-2:], geometry, is_channels_last(input))
    need = ctx.needs_input_grad
    need = (need[0], False, *need[weight_at : weight_at + 2])
    dx, _, dweight, dbias = _batch_norm.gradients(grad, (input, None, *vectors), scalars, training, need)
    return dx, dweight, dbias


def _train_forward(input: Tensor, weight: Vector, bias: Vector, scalars: tuple[float, ...], geometry: Geometry) -> tuple[Tensor, ...]:
    return _train(input, weight, bias, *scalars, *geometry, True)


def _save_train(ctx: Any, args: tuple[Any, ...], outputs: Any) -> None:
    input, weight, bias, scalars, geometry = args
    _, where, mean, var = outputs
    ctx.mark_non_differentiable(where, mean, var)
    _save(ctx, input, where, (mean, var, weight, bias), scalars, geometry)


def _backward_train(ctx: Any, grad: Vector, *_: Vector) -> tuple[Any, ...]:
    return (*((None,) * 3 if grad is None else _gradients(ctx, grad, True, 1)), None, None)


def _eval_forward(
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Vector,
    bias: Vector,
    scalars: tuple[float, ...],
    geometry: Geometry,
    measured: bool,
) -> tuple[Tensor, Tensor]:
    """measured: mean and var are this very input's, and their gradients part of the input's."""
    return _evaluate(input, mean, var, weight, bias, *scalars, *geometry, True)


def _save_eval(ctx: Any, args: tuple[Any, ...], outputs: Any) -> None:
    input, mean, var, weight, bias, scalars, geometry, ctx.measured = args
    ctx.mark_non_differentiable(outputs[1])
    _save(ctx, input, outputs[1], (mean, var, weight, bias), scalars, geometry)


def _backward_eval(ctx: Any, grad: Vector, *_: Vector) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 8
    dx, dweight, dbias = _gradients(ctx, grad, ctx.measured, 3)
    return dx, None, None, dweight, dbias, None, None, None


_train_with_grad = differentiable("BatchNormMaxPool2dTrain", _train_forward, _save_train, _backward_train)
_evaluate_with_grad = differentiable("BatchNormMaxPool2dEval", _eval_forward, _save_eval, _backward_eval)


# Public ------------------------------------------------------------------------------------------------------------------------


def batch_norm_max_pool2d(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str | None = None,
    negative_slope: float = 0.01,
    *,
    kernel_size: int | Ints,
    stride: int | Ints | None = None,
    padding: int | Ints = 0,
    dilation: int | Ints = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """``max_pool2d(batch_norm_act(input, ..., activation=...), kernel_size, ...)``, without writing the map in between.

    The same bits as those two calls, gradients included, for less memory and fewer passes over it: the stem of a residual network.
    input: [N, C, H, W] of any strides, float32, float64, bfloat16 or float16; the result [N, C, OH, OW] has its dtype and layout. The
    arguments up to negative_slope are those of :func:`batch_norm_act`, the rest :func:`max_pool2d`'s (no indices). For the backward pass
    the input and a byte per output are kept; windows of more than 256 elements take the two functions.
    Differentiable twice and more. Raises what the two raise, RuntimeError for an input of another number of dimensions.
    Source: csrc/pool/batch_norm_max_pool2d.h.
    """
    name = "batch_norm_max_pool2d"
    pool._check_input(input, name)
    pool._check_flag(ceil_mode, name, "ceil_mode")
    if input.dim() != 4:
        raise RuntimeError(f"fastcv {name}: expected a 4-D input, got {list(input.shape)}")
    kernel = pool._pair(kernel_size, name, "kernel_size")
    steps = pool._stride(stride, kernel, name), pool._pair(padding, name, "padding"), pool._pair(dilation, name, "dilation")
    geometry = (kernel, *steps, ceil_mode)
    scalars = (eps, *norm._slope_and_cap(name, activation, negative_slope))
    statistics = (running_mean, running_var)
    if kernel[0] * kernel[1] > MOST_OFFSETS:
        y = norm.batch_norm_act(input, *statistics, weight, bias, training, momentum, eps, None, activation, negative_slope)
        return pool.max_pool2d(y, *geometry)
    running_mean, running_var, weight, bias = norm._checked(name, input, *statistics, weight, bias, training, momentum, eps)
    grad = needs_grad(input, weight, bias)
    plainly = not (torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active())
    left = _batch_norm.statistics_left(input) if training and plainly else None
    if training and left is None:
        if grad:
            output, _, mean, var = _train_with_grad(input, weight, bias, scalars, geometry)
        else:
            output, _, mean, var = _train(input, weight, bias, *scalars, *geometry, False)
    else:
        mean, var = left or (running_mean, running_var)
        if grad:
            output, _ = _evaluate_with_grad(input, mean, var, weight, bias, scalars, geometry, training)
        else:
            output, _ = _evaluate(input, mean, var, weight, bias, *scalars, *geometry, False)
    if training and running_mean is not None and input.numel() > 0:
        _batch_norm.update(running_mean, running_var, mean, var, input.numel() // input.shape[1], momentum)
    return output
