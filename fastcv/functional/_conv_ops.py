"""The raw ops of csrc/conv, and what PyTorch must know of each besides its kernel: its output's sizes and strides, its batching rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _ext
from ._common import is_channels_last

conv_raw = _ext.op("conv")
dgrad_raw = _ext.op("conv_dgrad")
wgrad_raw = _ext.op("conv_wgrad")
bias_grad_raw = _ext.op("conv_bias_grad")
activation_raw = _ext.op("conv_activation")
sequence_raw = _ext.op("conv_sequence")

SLOPE = 0.01  # of leaky_relu below zero: torch's default


# ---- shapes and layouts, as csrc/conv/conv_torch.cpp has them ---------------------------------------------------------


def _asks_channels_last(t: Tensor) -> bool:
    return is_channels_last(t.unsqueeze(2) if t.dim() == 3 else t)


def output_channels_last(x: Tensor, w: Tensor) -> bool:
    if x.dim() == 5 and x.dtype in (torch.float64, torch.float16):
        return False
    return (x.dim() > 3 and _asks_channels_last(x)) or _asks_channels_last(w)


def empty_output(like: Tensor, sizes: Sequence[int], channels_last: bool) -> Tensor:
    if channels_last:
        return like.new_empty([sizes[0], *sizes[2:], sizes[1]]).movedim(-1, 1)
    return like.new_empty(sizes)


def conv_sizes(input: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """The output's sizes; padding as nd ints, or as the nd before and the nd after."""
    nd = len(stride)
    after = padding[-nd:]
    spatial = [
        (input.shape[2 + i] + padding[i] + after[i] - dilation[i] * (weight.shape[2 + i] - 1) - 1) // stride[i] + 1 for i in range(nd)
    ]
    return [input.shape[0], weight.shape[0] if input.shape[1] != 0 else 0, *spatial]


@_ext.fake("conv")
def _(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    residual: Tensor | None,
    activation: int,
    precision: int,
    packed: Tensor | None = None,
    slope: float = SLOPE,
) -> Tensor:
    return empty_output(input, conv_sizes(input, weight, stride, padding, dilation), output_channels_last(input, weight))


def step_numbers(
    input: int, residual: int, weight: int, bias: int, packed: int, geometry: Any, activation: int, precision: int
) -> list[int]:
    """One step in the plan of conv_sequence, as csrc/conv/conv_sequence_torch.cpp reads it; tensors by number, -1 for none."""
    stride, padding, dilation, groups = geometry
    lists = [n for values in (stride, padding, dilation) for n in (len(values), *values)]
    return [input, residual, weight, bias, packed, groups, activation, precision, *lists]


@_ext.fake("conv_sequence")
def _(tensors: list[Tensor], plan: list[int], slopes: list[float], outputs: list[int]) -> list[Tensor]:
    tensors, rest = [*tensors], iter(plan)
    for _ in slopes:
        x, _, w, *_ = [next(rest) for _ in range(8)]
        geometry = [[next(rest) for _ in range(next(rest))] for _ in range(3)]
        x, w = tensors[x], tensors[w]
        tensors.append(empty_output(x, conv_sizes(x, w, *geometry), output_channels_last(x, w)))
    return [tensors[i] for i in outputs]


@_ext.fake("conv_dgrad")
def _(
    grad_output: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    input_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    precision: int,
    packed: Tensor | None = None,
    residual: Tensor | None = None,
    activation: int = 0,
    slope: float = SLOPE,
) -> Tensor:
    sizes = [grad_output.shape[0], weight.shape[1] * groups, *input_size]
    return empty_output(grad_output, sizes, output_channels_last(grad_output, weight))


@_ext.fake("conv_pack")
def _(input: Tensor, *_: Any) -> Tensor:
    return input.new_empty([torch.library.get_ctx().new_dynamic_size()], dtype=torch.uint8)


@_ext.fake("conv_dgrad_pack")
def _(grad_output: Tensor, *_: Any) -> Tensor:
    return grad_output.new_empty([torch.library.get_ctx().new_dynamic_size()], dtype=torch.uint8)


@_ext.fake("conv_wgrad")
def _(
    input: Tensor,
    grad_output: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    precision: int,
) -> Tensor:
    sizes = [grad_output.shape[1], input.shape[1] // groups, *kernel_size]
    return empty_output(input, sizes, is_channels_last(input) or is_channels_last(grad_output))


@_ext.fake("conv_bias_grad")
def _(grad_output: Tensor) -> Tensor:
    return grad_output.new_empty([grad_output.shape[1]])


@_ext.fake("conv_activation")
def _(input: Tensor, grad: Tensor | None, activation: int, order: int, slope: float = SLOPE) -> Tensor:
    return empty_output(input, input.shape, is_channels_last(input))


# ---- batching: mapped images join the batch, mapped weights become groups ---------------------------------------------


def in_batch(t: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """[N, ...] and a mapped dimension as [size * N, ...]."""
    if t is None:
        return None
    t = t.movedim(dim, 0) if dim is not None else t.expand(size, *t.shape)
    return t.flatten(0, 1)


def in_channels(t: Tensor, dim: int | None, size: int) -> Tensor:
    """[N, C, ...] and a mapped dimension as [N, size * C, ...]."""
    t = t.movedim(dim, 1) if dim is not None else t.unsqueeze(1).expand(-1, size, *t.shape[1:])
    return t.flatten(1, 2)


def in_rows(t: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """[K, ...] and a mapped dimension as [size * K, ...]."""
    return in_batch(t, dim, size)


@_ext.vmap("conv")
def _(info: Any, in_dims: Any, x: Tensor, w: Tensor, b: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int, *rest: Any):
    size, residual = info.batch_size, rest[0]
    end = (*rest[1:3], None, *rest[4:])  # packed weights are a shortcut
    if in_dims[1] is None and in_dims[2] is None:
        residual = in_batch(residual, in_dims[7], size)
        y = conv_raw(in_batch(x, in_dims[0], size), w, b, stride, padding, dilation, groups, residual, *end)
        return y.unflatten(0, (size, -1)), 0
    x, w, b = in_channels(x, in_dims[0], size), in_rows(w, in_dims[1], size), in_rows(b, in_dims[2], size)
    residual = None if residual is None else in_channels(residual, in_dims[7], size)
    y = conv_raw(x, w, b, stride, padding, dilation, groups * size, residual, *end)
    return y.unflatten(1, (size, -1)), 1


@_ext.vmap("conv_dgrad")
def _(
    info: Any, in_dims: Any, g: Tensor, w: Tensor, b: Tensor | None, input_size: Any, stride: Any, padding: Any, dilation: Any, *rest: Any
):
    size, (groups, precision, _, residual), residual_dim = info.batch_size, (*rest, None, None)[:4], (*in_dims, None, None)[10]
    if in_dims[1] is None and in_dims[2] is None:
        end = (precision, None, in_batch(residual, residual_dim, size), *rest[4:])
        y = dgrad_raw(in_batch(g, in_dims[0], size), w, b, input_size, stride, padding, dilation, groups, *end)
        return y.unflatten(0, (size, -1)), 0
    g, w, b = in_channels(g, in_dims[0], size), in_rows(w, in_dims[1], size), in_rows(b, in_dims[2], size)
    end = (precision, None, None if residual is None else in_channels(residual, residual_dim, size), *rest[4:])
    y = dgrad_raw(g, w, b, input_size, stride, padding, dilation, groups * size, *end)
    return y.unflatten(1, (size, -1)), 1


@_ext.vmap("conv_wgrad")
def _(info: Any, in_dims: Any, x: Tensor, g: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any, groups: int, precision: int):
    size = info.batch_size
    x, g = in_channels(x, in_dims[0], size), in_channels(g, in_dims[1], size)
    dw = wgrad_raw(x, g, kernel, stride, padding, dilation, groups * size, precision)
    return dw.unflatten(0, (size, -1)), 0


@_ext.vmap("conv_bias_grad")
def _(info: Any, in_dims: tuple[int], g: Tensor) -> tuple[Tensor, int]:
    return bias_grad_raw(in_channels(g, in_dims[0], info.batch_size)).unflatten(0, (info.batch_size, -1)), 0


@_ext.vmap("conv_activation")
def _(info: Any, in_dims: Any, x: Tensor, g: Tensor | None, *how: Any) -> tuple[Tensor, int]:
    size = info.batch_size
    y = activation_raw(in_batch(x, in_dims[0], size), in_batch(g, in_dims[1], size), *how)
    return y.unflatten(0, (size, -1)), 0
