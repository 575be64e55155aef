"""Convolutions: torch's functions of 1 to 3 dimensions, their transposes and the fused form; same stem as csrc/conv.

_conv_arguments.py takes torch's arguments, _conv_autograd.py the gradients, _conv_ops.py the raw ops. Every function takes one way
through convolve or transposed, whose last arguments fastcv.optimizer uses: `packs`, which may know the weights as a kernel arranges
them, and what may follow the sums in the same kernel: + residual, an activation, of which leaky_relu has a slope.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ._common import autocast_lower, plain_sizes
from ._conv_arguments import as_ints, as_pads, check, precision_of
from ._conv_autograd import Geometry, conv_op, dgrad_op
from ._conv_ops import SLOPE

__all__ = ["conv1d", "conv2d", "conv2d_fused", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"]

Ints = int | Sequence[int]

# csrc/conv/conv.h: enum Activation.
ACTIVATIONS: dict[str | None, int] = {None: 0, "relu": 1, "relu6": 2, "silu": 3, "hardswish": 4, "gelu": 5, "leaky_relu": 6}


def convolve(
    nd: int,
    name: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    packs: Any = None,
    residual: Tensor | None = None,
    activation: str | None = None,
    slope: float = SLOPE,
) -> Tensor:
    """The convolution ``name`` of ``nd`` dimensions, and what follows it."""
    batched = check(name, nd, input, weight, bias, groups)
    geometry = geometry_of(nd, weight, stride, padding, dilation, groups)
    if batched:
        return convolve_batch(input, weight, bias, geometry, packs, residual, activation, slope)
    residual = None if residual is None else residual.unsqueeze(0)
    return convolve_batch(input.unsqueeze(0), weight, bias, geometry, packs, residual, activation, slope).squeeze(0)


def geometry_of(nd: int, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int) -> Geometry:
    """The last four arguments of a convolution of ``nd`` dimensions as convolve_batch takes them."""
    stride, dilation = as_ints(stride, nd, "stride"), as_ints(dilation, nd, "dilation")
    return stride, as_pads(padding, nd, weight, stride, dilation), dilation, groups


def convolve_batch(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    packs: Any,
    residual: Tensor | None,
    activation: str | None,
    slope: float,
) -> Tensor:
    """``convolve`` after the checks: a batch, and tensors of the dimensions that go with it."""
    if torch._C._is_any_autocast_enabled():
        input, weight, bias, residual = autocast_lower(input, weight, bias, residual)
    end = None if activation is None else (ACTIVATIONS[activation], slope)
    return conv_op(input, weight, bias, residual, geometry, precision_of(input), packs, end)


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: str | Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
) -> Tensor:
    """torch.nn.functional.conv1d: input [N, C, L] or [C, L], weight [K, C/groups, R] -> [N, K, L'] or [K, L'].

    float32, float64, bfloat16, float16; padding may be 'same' or 'valid'. Differentiable any number of times. Raises
    RuntimeError for shapes, dtypes, devices or values that do not go together, TypeError for arguments of the wrong type.
    Source: csrc/conv.
    """
    return convolve(1, "conv1d", input, weight, bias, stride, padding, dilation, groups)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: str | Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
) -> Tensor:
    """torch.nn.functional.conv2d: input [N, C, H, W] or [C, H, W], weight [K, C/groups, R, S] -> [N, K, H', W'].

    float32, float64, bfloat16, float16, row-major and channels_last; padding may be 'same' or 'valid'. Differentiable
    any number of times. 3x3 kernels of stride 1 may run as Winograd convolution in float32, where a NaN or an infinity
    reaches up to three pixels farther, and on the CPU numbers below the normal range are zeros, because they slow some
    processors down; torch.backends.mkldnn.conv.fp32_precision = "ieee" admits the direct sum only, and keeps them.
    Raises RuntimeError for shapes, dtypes, devices or values that do not go together, TypeError for arguments of the
    wrong type. Source: csrc/conv.
    """
    return convolve(2, "conv2d", input, weight, bias, stride, padding, dilation, groups)


def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: str | Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
) -> Tensor:
    """torch.nn.functional.conv3d: input [N, C, D, H, W] or [C, D, H, W], weight [K, C/groups, T, R, S] -> [N, K, D', H', W'].

    float32, float64, bfloat16, float16, row-major and channels_last_3d; padding may be 'same' or 'valid'. Differentiable
    any number of times. Raises RuntimeError for shapes, dtypes, devices or values that do not go together, TypeError for
    arguments of the wrong type. Source: csrc/conv.
    """
    return convolve(3, "conv3d", input, weight, bias, stride, padding, dilation, groups)


def conv2d_fused(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: str | Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    residual: Tensor | None = None,
    activation: str | None = None,
    negative_slope: float = SLOPE,
) -> Tensor:
    """activation(conv2d(input, weight, bias, ...) + residual) in one pass over the output.

    residual: a tensor of the output's shape and dtype, or None. activation: None, "relu", "relu6", "silu", "hardswish", "gelu" (of
    approximate="none") or "leaky_relu", for which negative_slope is. Shapes as conv2d; float32, float64, bfloat16, float16.
    Differentiable up to eight times; with a gradient silu, hardswish, gelu and slopes below zero are steps of their own. Raises
    ValueError for another activation, TypeError for a slope that is no number, otherwise as conv2d. Source: csrc/conv.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"conv2d_fused: activation must be one of {list(ACTIVATIONS)}, got {activation!r}")
    if type(negative_slope) is not float:
        if not isinstance(negative_slope, (Real, torch.SymFloat)):
            raise TypeError(f"conv2d_fused: negative_slope must be a number, got {negative_slope!r}")
        negative_slope = float(negative_slope)
    how = (residual, activation, negative_slope)
    return convolve(2, "conv2d_fused", input, weight, bias, stride, padding, dilation, groups, None, *how)


def transposed(
    nd: int,
    name: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: int,
    dilation: Any,
    packs: Any = None,
    residual: Tensor | None = None,
    activation: str | None = None,
    slope: float = SLOPE,
) -> Tensor:
    """The transposed convolution ``name`` of ``nd`` dimensions, and what follows it."""
    batched = check(name, nd, input, weight, bias, groups)
    if torch._C._is_any_autocast_enabled():
        input, weight, bias, residual = autocast_lower(input, weight, bias, residual)
    stride, padding = as_ints(stride, nd, "stride"), as_ints(padding, nd, "padding")
    output_padding, dilation = as_ints(output_padding, nd, "output_padding"), as_ints(dilation, nd, "dilation")
    if not batched:
        input, residual = input.unsqueeze(0), None if residual is None else residual.unsqueeze(0)
    if torch._C._get_tracing_state() is None:
        size, kernel = input.shape, weight.shape
    else:
        size, kernel = plain_sizes(input), plain_sizes(weight)
    output, positive = [], kernel[1] != 0
    for i in range(nd):  # indices: a slice of sizes costs as much as the sum
        length = (size[i + 2] - 1) * stride[i] - 2 * padding[i] + dilation[i] * (kernel[i + 2] - 1) + output_padding[i] + 1
        output.append(length)
        if length < 0:
            positive = False
    if any(output_padding):
        for extra, s, d in zip(output_padding, stride, dilation, strict=True):
            if extra < 0 or (extra >= s and extra >= d):
                raise RuntimeError(
                    f"output padding must be non-negative and smaller than either stride or dilation, but got "
                    f"output_padding={[*output_padding]}, stride={[*stride]}, dilation={[*dilation]}"
                )
    if not positive:
        raise RuntimeError(
            f"{name}: input {[*input.shape]} and weight {[*weight.shape]} leave an output of {output}, and no channel or less"
        )
    end = None if activation is None else (ACTIVATIONS[activation], slope)
    y = dgrad_op(input, weight, bias, output, (stride, padding, dilation, groups), precision_of(input), packs, residual, end)
    return y if batched else y.squeeze(0)


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
) -> Tensor:
    """torch.nn.functional.conv_transpose1d: input [N, C, L] or [C, L], weight [C, K/groups, R] -> [N, K, L'] or [K, L'].

    float32, float64, bfloat16, float16. Differentiable any number of times. Raises RuntimeError for shapes, dtypes,
    devices or values that do not go together, TypeError for arguments of the wrong type. Source: csrc/conv.
    """
    return transposed(1, "conv_transpose1d", input, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
) -> Tensor:
    """torch.nn.functional.conv_transpose2d: input [N, C, H, W] or [C, H, W], weight [C, K/groups, R, S] -> [N, K, H', W'].

    float32, float64, bfloat16, float16, row-major and channels_last. Differentiable any number of times. Raises
    RuntimeError for shapes, dtypes, devices or values that do not go together, TypeError for arguments of the wrong type.
    Source: csrc/conv.
    """
    return transposed(2, "conv_transpose2d", input, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
) -> Tensor:
    """torch.nn.functional.conv_transpose3d: input [N, C, D, H, W], weight [C, K/groups, T, R, S] -> [N, K, D', H', W'].

    float32, float64, bfloat16, float16, row-major and channels_last_3d. Differentiable any number of times. Raises
    RuntimeError for shapes, dtypes, devices or values that do not go together, TypeError for arguments of the wrong type.
    Source: csrc/conv.
    """
    return transposed(3, "conv_transpose3d", input, weight, bias, stride, padding, output_padding, groups, dilation)
