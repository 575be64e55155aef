"""Convolutions before a batch norm in training, whose kernel takes the statistics of what it writes.

On a GPU, implicit products on tensor cores add them up from the sums that their tiles still hold, so that no pass over the output is spent
on them; other kernels, and the CPU's, leave them to a pass of batch norm's (csrc/conv/conv_torch.cpp). Statistics are of the values as
they are stored, in float64.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _ext
from ._batch_norm import leave_statistics
from ._common import autocast_lower, differentiable, needs_grad
from ._conv_arguments import precision_of
from ._conv_autograd import Geometry, How, conv_backward
from ._conv_ops import conv_sizes, empty_output, in_channels, in_rows, output_channels_last

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
    y = empty_output(input, sizes, output_channels_last(input, weight))
    return y, input.new_empty(sizes[1], dtype=torch.float64), input.new_empty(sizes[1], dtype=torch.float64)


@_ext.vmap("conv_statistics")
def _(
    info: Any, in_dims: Any, x: Tensor, w: Tensor, b: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int, precision: int
):
    """Each mapped call has statistics of its own: all become groups of one convolution."""
    size = info.batch_size
    x, w, b = in_channels(x, in_dims[0], size), in_rows(w, in_dims[1], size), in_rows(b, in_dims[2], size)
    y, mean, var = _raw(x, w, b, stride, padding, dilation, groups * size, precision)
    return (y.unflatten(1, (size, -1)), mean.unflatten(0, (size, -1)), var.unflatten(0, (size, -1))), (1, 0, 0)


def _forward(x: Tensor, w: Tensor, b: Tensor | None, _: None, how: How, _slope: float) -> tuple[Tensor, Tensor, Tensor]:
    geometry, precision, _activation = how
    return _raw(x, w, b, *geometry, precision)


def _save(ctx: Any, args: tuple[Any, ...], outputs: tuple[Tensor, Tensor, Tensor]) -> None:
    x, w, _, _, ctx.how, _ = args
    ctx.mark_non_differentiable(*outputs[1:])  # batch norm's formula has their part in the gradient
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, w)


def _backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Any, ...]:
    return (None,) * 6 if grad is None else conv_backward(ctx, grad)


_with_grad = differentiable("ConvStatistics", _forward, _save, _backward)


def _measured(x: Tensor, w: Tensor, b: Tensor | None, geometry: Geometry) -> tuple[Tensor, Tensor, Tensor]:
    precision = precision_of(x)
    if needs_grad(x, w, b):
        return _with_grad(x, w, b, None, (geometry, precision, 0), 0.0)
    return _raw(x, w, b, *geometry, precision)


def convolve_measured(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """The convolution of a batch, which carries its channels' statistics to the batch norm in training that reads it."""
    if torch._C._is_any_autocast_enabled():
        input, weight, bias = autocast_lower(input, weight, bias)
    y, mean, var = _measured(input, weight, bias, geometry)
    leave_statistics(y, mean, var)
    return y
