"""Convolution and batch norm in training as one step: the convolution's kernel takes the statistics of what it writes.

On a GPU, igemm_sm80 adds them up from the sums that its tiles still hold, so that no pass over the output is spent on them; other kernels,
and the CPU's, leave them to a pass of batch norm's (csrc/conv/conv_torch.cpp). Statistics are of the values as they are stored, in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _ext
from ._batch_norm import evaluate, leave_statistics, measured_with_grad, update
from ._common import autocast_lower, differentiable, needs_grad
from .conv import _NO_END, End, Geometry, _conv_backward, _empty, _in_channels, _in_rows, _output_channels_last, _precision, conv_sizes

_raw = _ext.op("conv_statistics")


@_ext.fake("conv_statistics")
def _(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    precision: int,
) -> tuple[Tensor, Tensor, Tensor]:
    sizes = conv_sizes(input, weight, stride, padding, dilation)
    y = _empty(input, sizes, _output_channels_last(input, weight))
    return y, input.new_empty(sizes[1], dtype=torch.float64), input.new_empty(sizes[1], dtype=torch.float64)


@_ext.vmap("conv_statistics")
def _(
    info: Any, in_dims: Any, x: Tensor, w: Tensor, b: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int, precision: int
):
    """Each mapped call has statistics of its own: all become groups of one convolution."""
    size = info.batch_size
    x, w, b = _in_channels(x, in_dims[0], size), _in_rows(w, in_dims[1], size), _in_rows(b, in_dims[2], size)
    y, mean, var = _raw(x, w, b, stride, padding, dilation, groups * size, precision)
    return (y.unflatten(1, (size, -1)), mean.unflatten(0, (size, -1)), var.unflatten(0, (size, -1))), (1, 0, 0)


def _forward(x: Tensor, w: Tensor, b: Tensor | None, _: None, how: tuple[Any, int, End]) -> tuple[Tensor, Tensor, Tensor]:
    geometry, precision, _ = how
    return _raw(x, w, b, *geometry, precision)


def _save(ctx: Any, args: tuple[Any, ...], outputs: tuple[Tensor, Tensor, Tensor]) -> None:
    x, w, _, _, ctx.how = args
    ctx.mark_non_differentiable(*outputs[1:])  # batch norm's formula has their part in the gradient
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, w)


def _backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Any, ...]:
    return (None,) * 5 if grad is None else _conv_backward(ctx, grad)


_with_grad = differentiable("ConvStatistics", _forward, _save, _backward)


def _measured(x: Tensor, w: Tensor, b: Tensor | None, geometry: Geometry) -> tuple[Tensor, Tensor, Tensor]:
    precision = _precision(x)
    if needs_grad(x, w, b):
        return _with_grad(x, w, b, None, (geometry, precision, _NO_END))
    return _raw(x, w, b, *geometry, precision)


def convolve_measured(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """The convolution of a batch, which carries its channels' statistics to the batch norm in training that reads it."""
    if torch._C._is_any_autocast_enabled():
        input, weight, bias = autocast_lower(input, weight, bias)
    y, mean, var = _measured(input, weight, bias, geometry)
    leave_statistics(y, mean, var)
    return y


def conv_batch_norm_act(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    momentum: float,
    eps: float,
    residual: Tensor | None = None,
    slope: float = 1.0,
    cap: float = 0.0,
) -> Tensor:
    """batch_norm_act(conv(input, weight, bias, ...), running_mean, running_var, scale, shift, training=True, ...) in two kernels.

    input: [N, C, ...] of 1 to 3 spatial dimensions, weight: [K, C/groups, ...], both of float32, float64, bfloat16 or float16; the
    vectors [K] of that dtype, or float32. slope, cap: the activation min(v if v > 0 else slope * v, cap), cap 0 for none
    (csrc/norm/norm.h). Differentiable any number of times; running statistics move as in batch_norm. Where the convolution's
    kernel makes no statistics the result is that of the two functions, bit for bit. Raises ValueError for one value per
    channel, RuntimeError for shapes, dtypes and devices that do not go together. Source: csrc/conv/conv_statistics.cuh.
    """
    y, mean, var = _measured(input, weight, bias, (stride, padding, dilation, groups))
    count = y.numel() // max(y.shape[1], 1)
    if count == 1:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {y.shape} (a last batch of one? use drop_last)"
        )
    normalise = measured_with_grad if needs_grad(y, scale, shift, residual) else evaluate
    z = normalise(y, residual, mean, var, scale, shift, eps, slope, cap)
    if running_mean is not None and count:
        update(running_mean, running_var, mean, var, count, momentum)
    return z
