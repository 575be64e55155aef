"""Pooling and its inverses: the names and answers of torch.nn.functional, and sum_pool2d and upsample_bed_of_nails of our own.

Backward passes are ops too: that of average pooling is linear and its own backward is pooling again; that of max pooling gathers
and scatters by the maxima's places. So every function here is differentiable any number of times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _ext
from ._common import autocast_float32, differentiable, empty_as, is_channels_last, needs_grad, plain_sizes

__all__ = [
    "adaptive_avg_pool2d",
    "adaptive_max_pool2d",
    "avg_pool2d",
    "max_pool2d",
    "max_unpool2d",
    "sum_pool2d",
    "upsample_bed_of_nails",
]

Ints = Sequence[int]

# ---- arguments -------------------------------------------------------------------------------------------------------


def _pair(value: Any, function: str, name: str) -> Ints:
    """One or two ints as two. Raises torch's types: TypeError for anything but ints, RuntimeError for another number of them."""
    if type(value) is int or isinstance(value, torch.SymInt):
        return (value, value)
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"{function}(): argument '{name}' must be an int or a tuple of two ints, not {type(value).__name__}")
    for v in value:
        if type(v) is not int and not isinstance(v, torch.SymInt):
            raise TypeError(f"{function}(): argument '{name}' must be a tuple of ints, but found {type(v).__name__} in {value}")
    if len(value) == 1:
        return (value[0], value[0])
    if len(value) != 2:
        raise RuntimeError(f"{function}: {name} must either be a single int, or a tuple of two ints, got {tuple(value)}")
    return tuple(value)


def _check_input(input: Any, function: str) -> None:
    if not isinstance(input, Tensor):
        raise TypeError(f"{function}(): argument 'input' must be Tensor, not {type(input).__name__}")


def _check_flag(value: Any, function: str, name: str) -> None:
    if type(value) is not bool:
        raise TypeError(f"{function}(): argument '{name}' must be bool, not {type(value).__name__}")


def _stride(stride: Any, kernel: Ints, function: str) -> Ints:
    if stride is None or (isinstance(stride, (tuple, list)) and len(stride) == 0):
        return kernel
    return _pair(stride, function, "stride")


def _output_size(input: Tensor, output_size: Any, function: str) -> Ints:
    """torch's rule: one int, or two of which None stands for the input's own size."""
    if type(output_size) is int or isinstance(output_size, torch.SymInt):
        return (output_size, output_size)
    if not isinstance(output_size, (tuple, list)):
        raise TypeError(f"{function}(): argument 'output_size' must be an int or a tuple of two, not {type(output_size).__name__}")
    if input.dim() <= len(output_size):
        raise ValueError(f"{function}: input of {input.dim()} dimensions should have at least {len(output_size) + 1}")
    if len(output_size) != 2:
        raise RuntimeError(f"{function}: output_size must be 2 values, got {tuple(output_size)}")
    return _pair([d if v is None else v for v, d in zip(output_size, plain_sizes(input)[-2:], strict=True)], function, "output_size")


# ---- shapes ----------------------------------------------------------------------------------------------------------


def _map_sizes(function: str, t: Tensor, empty_channels: bool = False) -> tuple[list[Any], Any, Any]:
    """([N, C] or [C], H, W), after the checks that the kernels' door makes."""
    if t.dim() not in (3, 4):
        raise RuntimeError(f"fastcv {function}: expected a 3-D or 4-D input (batch mode), got {list(t.shape)}")
    if t.shape[-1] == 0 or t.shape[-2] == 0 or (t.shape[-3] == 0 and not empty_channels):
        raise RuntimeError(f"fastcv {function}: expected non-zero sizes but for the batch, got {list(t.shape)}")
    if not t.is_floating_point():
        raise RuntimeError(f"fastcv {function}: expected a floating dtype, got {t.dtype}")
    return list(t.shape[:-2]), t.shape[-2], t.shape[-1]


def _windows(size: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> Any:
    """How many windows an axis has, as pool_torch.cpp counts them."""
    if kernel <= 0 or stride <= 0 or padding < 0 or dilation <= 0 or padding > kernel // 2:
        raise RuntimeError(f"fastcv pooling: bad window: kernel {kernel}, stride {stride}, padding {padding}, dilation {dilation}")
    windows = (size + 2 * padding - dilation * (kernel - 1) - 1 + (stride - 1 if ceil_mode else 0)) // stride + 1
    if ceil_mode and (windows - 1) * stride >= size + padding:
        windows -= 1
    if windows < 1:
        raise RuntimeError(f"fastcv pooling: the output size is too small: {size} elements, kernel {kernel}, padding {padding}")
    return windows


def _pooled(function: str, input: Tensor, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool) -> list[Any]:
    lead, h, w = _map_sizes(function, input)
    across = zip((h, w), kernel, stride, padding, dilation, strict=True)
    return [*lead, *(_windows(*axis, ceil_mode) for axis in across)]


@_ext.fake("max_pool2d")
def _(input: Tensor, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool) -> Tensor:
    sizes = _pooled("max_pool2d", input, kernel, stride, padding, dilation, ceil_mode)
    return empty_as(input, sizes, channels_last=is_channels_last(input))


def _fake_max_with(where: torch.dtype) -> Callable[..., tuple[Tensor, Tensor]]:
    def fake(input: Tensor, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool) -> tuple[Tensor, Tensor]:
        sizes = _pooled("max_pool2d", input, kernel, stride, padding, dilation, ceil_mode)
        channels_last = is_channels_last(input)
        return empty_as(input, sizes, channels_last=channels_last), empty_as(input, sizes, where, channels_last)

    return fake


_ext.fake("max_pool2d_with_offsets")(_fake_max_with(torch.uint8))
_ext.fake("max_pool2d_with_indices")(_fake_max_with(torch.int64))


@_ext.fake("avg_pool2d")
def _(
    input: Tensor, kernel: Ints, stride: Ints, padding: Ints, ceil_mode: bool, count_include_pad: bool, divisor_override: int | None
) -> Tensor:
    sizes = _pooled("avg_pool2d", input, kernel, stride, padding, (1, 1), ceil_mode)
    return empty_as(input, sizes, channels_last=is_channels_last(input))


@_ext.fake("adaptive_avg_pool2d")
def _(input: Tensor, output_size: Ints) -> Tensor:
    lead, _h, _w = _map_sizes("adaptive_avg_pool2d", input, empty_channels=True)
    return empty_as(input, [*lead, *output_size], channels_last=is_channels_last(input))


@_ext.fake("adaptive_max_pool2d")
def _(input: Tensor, output_size: Ints) -> Tensor:
    lead, _h, _w = _map_sizes("adaptive_max_pool2d", input)
    return empty_as(input, [*lead, *output_size], channels_last=is_channels_last(input))


@_ext.fake("adaptive_max_pool2d_with_indices")
def _(input: Tensor, output_size: Ints) -> tuple[Tensor, Tensor]:
    lead, _h, _w = _map_sizes("adaptive_max_pool2d", input)
    sizes, channels_last = [*lead, *output_size], is_channels_last(input)
    return empty_as(input, sizes, channels_last=channels_last), empty_as(input, sizes, torch.int64, channels_last)


def _fake_backward(grad: Tensor, size: Ints, channels_last: bool) -> Tensor:
    return empty_as(grad, [*grad.shape[:-2], *size], channels_last=channels_last)


@_ext.fake("max_pool2d_backward")
def _(grad: Tensor, indices: Tensor, input_size: Ints, *geometry: Any) -> Tensor:
    return _fake_backward(grad, input_size, geometry[-1])


@_ext.fake("avg_pool2d_backward")
def _(grad: Tensor, input_size: Ints, *geometry: Any) -> Tensor:
    return _fake_backward(grad, input_size, geometry[-1])


@_ext.fake("adaptive_avg_pool2d_backward")
def _(grad: Tensor, input_size: Ints, channels_last: bool) -> Tensor:
    return _fake_backward(grad, input_size, channels_last)


@_ext.fake("max_unpool2d")
def _(input: Tensor, indices: Tensor, output_size: Ints, accumulate: bool) -> Tensor:
    return empty_as(input, [*input.shape[:-2], *output_size], channels_last=is_channels_last(input))


@_ext.fake("max_unpool2d_backward")
def _(grad: Tensor, indices: Tensor) -> Tensor:
    return empty_as(grad, indices.shape, channels_last=is_channels_last(indices))


@_ext.fake("upsample_bed_of_nails")
def _(input: Tensor, scale: Ints) -> Tensor:
    lead, h, w = _map_sizes("upsample_bed_of_nails", input)
    return empty_as(input, [*lead, h * scale[0], w * scale[1]], channels_last=is_channels_last(input))


@_ext.fake("upsample_bed_of_nails_backward")
def _(grad: Tensor, scale: Ints, channels_last: bool) -> Tensor:
    lead, h, w = _map_sizes("upsample_bed_of_nails_backward", grad)
    return empty_as(grad, [*lead, h // scale[0], w // scale[1]], channels_last=channels_last)


# ---- vmap: the mapped dimension joins the batch ------------------------------------------------------------------------


def _register_vmap(name: str, tensors: int) -> Callable[..., Any]:
    """Registers the batching rule of an op whose first `tensors` arguments are maps, and returns the op."""
    op = _ext.op(name)

    @_ext.vmap(name)
    def _(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        size, maps = info.batch_size, []
        for t, dim in zip(args[:tensors], in_dims, strict=False):
            t = t.unsqueeze(0).expand(size, *t.shape) if dim is None else t.movedim(dim, 0)
            maps.append(t.flatten(0, 1) if t.dim() == 5 else t)
            batched = t.dim() == 5
        result = op(*maps, *args[tensors:])
        unfold = lambda t: t.unflatten(0, (size, -1 if size else 0)) if batched else t  # noqa: E731
        return (tuple(map(unfold, result)), (0, 0)) if isinstance(result, tuple) else (unfold(result), 0)

    return op


_max_pool2d = _register_vmap("max_pool2d", 1)
_max_pool2d_with_offsets = _register_vmap("max_pool2d_with_offsets", 1)
_max_pool2d_with_indices = _register_vmap("max_pool2d_with_indices", 1)
_max_pool2d_backward = _register_vmap("max_pool2d_backward", 2)
_adaptive_max_pool2d = _register_vmap("adaptive_max_pool2d", 1)
_adaptive_max_pool2d_with_indices = _register_vmap("adaptive_max_pool2d_with_indices", 1)
_avg_pool2d = _register_vmap("avg_pool2d", 1)
_avg_pool2d_backward = _register_vmap("avg_pool2d_backward", 1)
_adaptive_avg_pool2d = _register_vmap("adaptive_avg_pool2d", 1)
_adaptive_avg_pool2d_backward = _register_vmap("adaptive_avg_pool2d_backward", 1)
_max_unpool2d = _register_vmap("max_unpool2d", 2)
_max_unpool2d_backward = _register_vmap("max_unpool2d_backward", 2)
_bed_of_nails = _register_vmap("upsample_bed_of_nails", 1)
_bed_of_nails_backward = _register_vmap("upsample_bed_of_nails_backward", 1)


# ---- gradients of linear ops: a pair of ops, each the other's backward ---------------------------------------------------


def _input_layout(input: Tensor) -> tuple[Any, Any, bool]:
    return input.shape[-2], input.shape[-1], is_channels_last(input)


def _save_avg(ctx: Any, args: tuple[Any, ...], _output: Any) -> None:
    input, geometry = args
    ctx.how = (input.shape[-2:], geometry, is_channels_last(input))


def _avg_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    size, geometry, channels_last = ctx.how
    return _grad_of_avg(grad, size, *geometry, channels_last), None


def _save_grad_of_avg(ctx: Any, args: tuple[Any, ...], _output: Any) -> None:
    ctx.geometry = args[2:-1]


def _grad_of_avg_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return _avg(grad, *ctx.geometry), *(None,) * 8


_avg_with_grad = differentiable("AvgPool2d", lambda input, geometry: _avg_pool2d(input, *geometry), _save_avg, _avg_backward)
_grad_of_avg_with_grad = differentiable("AvgPool2dBackward", _avg_pool2d_backward, _save_grad_of_avg, _grad_of_avg_backward)


def _avg(input: Tensor, *geometry: Any) -> Tensor:
    return _avg_with_grad(input, geometry) if needs_grad(input) else _avg_pool2d(input, *geometry)


def _grad_of_avg(grad: Tensor, *geometry: Any) -> Tensor:
    return _grad_of_avg_with_grad(grad, *geometry) if needs_grad(grad) else _avg_pool2d_backward(grad, *geometry)


def _save_adaptive(ctx: Any, args: tuple[Any, ...], _output: Any) -> None:
    *ctx.size, ctx.channels_last = _input_layout(args[0])


def _adaptive_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    args = (grad, ctx.size, ctx.channels_last)
    return (_grad_of_adaptive(*args) if needs_grad(grad) else _adaptive_avg_pool2d_backward(*args)), None


def _save_grad_of_adaptive(ctx: Any, args: tuple[Any, ...], _output: Any) -> None:
    ctx.output_size = tuple(args[0].shape[-2:])


def _grad_of_adaptive_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return adaptive_avg_pool2d(grad, ctx.output_size), None, None


_adaptive_avg_with_grad = differentiable("AdaptiveAvgPool2d", _adaptive_avg_pool2d, _save_adaptive, _adaptive_backward)
_grad_of_adaptive = differentiable(
    "AdaptiveAvgPool2dBackward", _adaptive_avg_pool2d_backward, _save_grad_of_adaptive, _grad_of_adaptive_backward
)


def _save_nails(ctx: Any, args: tuple[Any, ...], _output: Any) -> None:
    ctx.scale, ctx.channels_last = args[1], is_channels_last(args[0])


def _nails_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    args = (grad, ctx.scale, ctx.channels_last)
    return (_grad_of_nails(*args) if needs_grad(grad) else _bed_of_nails_backward(*args)), None


def _save_grad_of_nails(ctx: Any, args: tuple[Any, ...], _output: Any) -> None:
    ctx.scale = args[1]


def _grad_of_nails_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return upsample_bed_of_nails(grad, ctx.scale), None, None


_nails_with_grad = differentiable("UpsampleBedOfNails", _bed_of_nails, _save_nails, _nails_backward)
_grad_of_nails = differentiable("UpsampleBedOfNailsBackward", _bed_of_nails_backward, _save_grad_of_nails, _grad_of_nails_backward)


# ---- by index: what max unpooling and the gradients of max pooling are made of -------------------------------------------


def _save_scatter(ctx: Any, args: tuple[Any, ...], _output: Any) -> None:
    ctx.save_for_backward(args[1])


def _scatter_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return _gather(grad, *ctx.saved_tensors), None, None, None


def _save_gather(ctx: Any, args: tuple[Any, ...], _output: Any) -> None:
    ctx.save_for_backward(args[1])
    ctx.size = tuple(args[0].shape[-2:])


def _gather_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return _scatter(grad, *ctx.saved_tensors, ctx.size, True), None


_scatter_with_grad = differentiable("MaxUnpool2d", _max_unpool2d, _save_scatter, _scatter_backward)
_gather_with_grad = differentiable("MaxUnpool2dBackward", _max_unpool2d_backward, _save_gather, _gather_backward)


def _scatter(input: Tensor, indices: Tensor, size: Ints, accumulate: bool) -> Tensor:
    """Values to their places in a map of this size; those that meet there are summed, or else the last stays."""
    args = (input, indices, size, accumulate)
    return _scatter_with_grad(*args) if needs_grad(input) else _max_unpool2d(*args)


def _gather(input: Tensor, indices: Tensor) -> Tensor:
    """The map's values at the places named."""
    return _gather_with_grad(input, indices) if needs_grad(input) else _max_unpool2d_backward(input, indices)


# ---- max pooling: the forward pass for training notes where each maximum was -----------------------------------------------


def _max_forward(input: Tensor, geometry: tuple[Ints, Ints, Ints, Ints, bool], indices: bool) -> Any:
    kernel, stride, padding, dilation, ceil_mode = geometry
    # One byte an output says where in its window the maximum lies, if nobody asked for indices.
    small = not indices and kernel[0] * kernel[1] <= 256
    op = _max_pool2d_with_offsets if small else _max_pool2d_with_indices
    return op(input, kernel, stride, padding, dilation, ceil_mode)


def _save_max(ctx: Any, args: tuple[Any, ...], output: Any) -> None:
    input, geometry, _ = args
    where = output[1]
    ctx.how = (input.shape[-2:], geometry, is_channels_last(input))
    ctx.mark_non_differentiable(where)
    ctx.save_for_backward(where)


def grad_of_max_pool2d(
    grad: Tensor, where: Tensor, size: Ints, geometry: tuple[Ints, Ints, Ints, Ints, bool], channels_last: bool
) -> Tensor:
    """The gradient of max pooling's input of this height and width; where: offsets or indices of the maxima."""
    args = (grad, where, size, *geometry, channels_last)
    return _grad_of_max(*args) if needs_grad(grad) else _max_pool2d_backward(*args)


def _max_backward(ctx: Any, grad: Tensor, _grad_of_where: Any) -> tuple[Any, ...]:
    return grad_of_max_pool2d(grad, *ctx.saved_tensors, *ctx.how), None, None


def _save_grad_of_max(ctx: Any, args: tuple[Any, ...], _output: Any) -> None:
    ctx.save_for_backward(args[1])
    ctx.size, ctx.geometry = args[2], args[3:-1]


def _grad_of_max_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (where,) = ctx.saved_tensors
    if where.dtype != torch.int64:
        where = _indices_of(where, ctx.size[1], *ctx.geometry[:-1])
    return _gather(grad, where), *(None,) * 8


def _indices_of(offsets: Tensor, width: int, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints) -> Tensor:
    """Places in the map from places in the windows."""
    offsets = offsets.long()
    top = torch.arange(offsets.shape[-2], device=offsets.device)[:, None] * stride[0] - padding[0]
    left = torch.arange(offsets.shape[-1], device=offsets.device) * stride[1] - padding[1]
    return (top + offsets // kernel[1] * dilation[0]) * width + left + offsets % kernel[1] * dilation[1]


_max_with_grad = differentiable("MaxPool2d", _max_forward, _save_max, _max_backward)
_grad_of_max = differentiable("MaxPool2dBackward", _max_pool2d_backward, _save_grad_of_max, _grad_of_max_backward)


def _save_adaptive_max(ctx: Any, args: tuple[Any, ...], output: Any) -> None:
    ctx.size = tuple(args[0].shape[-2:])
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])


def _adaptive_max_backward(ctx: Any, grad: Tensor, _grad_of_indices: Any) -> tuple[Any, ...]:
    return _scatter(grad, *ctx.saved_tensors, ctx.size, True), None


_adaptive_max_with_grad = differentiable("AdaptiveMaxPool2d", _adaptive_max_pool2d_with_indices, _save_adaptive_max, _adaptive_max_backward)


# ---- public ----------------------------------------------------------------------------------------------------------


def max_pool2d(
    input: Tensor,
    kernel_size: int | Ints,
    stride: int | Ints | None = None,
    padding: int | Ints = 0,
    dilation: int | Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The maximum of each window of ``input`` [N, C, H, W] or [C, H, W]: float32, float64, bfloat16, float16.

    As ``torch.nn.functional.max_pool2d``: NaN wins over numbers; with ``return_indices`` also int64 places h * W + w of the first
    maximum of each window (the last NaN). Differentiable any number of times. Raises RuntimeError for a window that does not fit,
    padding above half of it, empty C, H or W and other dtypes, TypeError for arguments that are not ints. Source: csrc/pool/max_pool2d*.
    """
    _check_input(input, "max_pool2d")
    _check_flag(ceil_mode, "max_pool2d", "ceil_mode")
    kernel = _pair(kernel_size, "max_pool2d", "kernel_size")
    geometry = (
        kernel,
        _stride(stride, kernel, "max_pool2d"),
        _pair(padding, "max_pool2d", "padding"),
        _pair(dilation, "max_pool2d", "dilation"),
        ceil_mode,
    )
    if needs_grad(input):
        values, where = _max_with_grad(input, geometry, return_indices)
        return (values, where) if return_indices else values
    return _max_pool2d_with_indices(input, *geometry) if return_indices else _max_pool2d(input, *geometry)


def adaptive_max_pool2d(
    input: Tensor, output_size: int | Sequence[int | None], return_indices: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """The maximum of each of ``output_size`` windows that share out ``input`` [N, C, H, W] or [C, H, W].

    float32, float64, bfloat16, float16. As ``torch.nn.functional.adaptive_max_pool2d``; NaN and indices as in max_pool2d.
    Differentiable any number of times. Raises RuntimeError for negative sizes, empty C, H or W and other dtypes, TypeError for sizes
    that are not ints, ValueError for an input of too few dimensions. Source: csrc/pool/max_pool2d*.
    """
    _check_input(input, "adaptive_max_pool2d")
    size = _output_size(input, output_size, "adaptive_max_pool2d")
    if needs_grad(input):
        values, indices = _adaptive_max_with_grad(input, size)
        return (values, indices) if return_indices else values
    return _adaptive_max_pool2d_with_indices(input, size) if return_indices else _adaptive_max_pool2d(input, size)


def avg_pool2d(
    input: Tensor,
    kernel_size: int | Ints,
    stride: int | Ints | None = None,
    padding: int | Ints = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The average of each window of ``input`` [N, C, H, W] or [C, H, W]: float32, float64, bfloat16, float16 (summed in float32).

    As ``torch.nn.functional.avg_pool2d``; differentiable any number of times. Raises RuntimeError for a window that does not fit,
    padding above half of it, a divisor of zero, empty C, H or W and other dtypes, TypeError for arguments that are not ints,
    IndexError for an input of fewer than three dimensions. Source: csrc/pool/avg_pool2d*.
    """
    _check_input(input, "avg_pool2d")
    _check_flag(ceil_mode, "avg_pool2d", "ceil_mode")
    _check_flag(count_include_pad, "avg_pool2d", "count_include_pad")
    if divisor_override is not None and type(divisor_override) is not int:
        raise TypeError(f"avg_pool2d(): argument 'divisor_override' must be int, not {type(divisor_override).__name__}")
    if input.dim() < 3:
        raise IndexError(f"avg_pool2d: expected a 3-D or 4-D input, got {list(input.shape)}")
    kernel = _pair(kernel_size, "avg_pool2d", "kernel_size")
    stride = _stride(stride, kernel, "avg_pool2d")
    return _avg(input, kernel, stride, _pair(padding, "avg_pool2d", "padding"), ceil_mode, count_include_pad, divisor_override)


def sum_pool2d(
    input: Tensor,
    kernel_size: int | Ints,
    stride: int | Ints | None = None,
    padding: int | Ints = 0,
    ceil_mode: bool = False,
) -> Tensor:
    """The sum of each window of ``input`` [N, C, H, W] or [C, H, W]: float32, float64, bfloat16, float16 (summed in float32).

    Equals ``avg_pool2d(..., divisor_override=1)``; differentiable any number of times. Raises what avg_pool2d raises.
    Source: csrc/pool/avg_pool2d*.
    """
    return avg_pool2d(input, kernel_size, stride, padding, ceil_mode, True, 1)


def adaptive_avg_pool2d(input: Tensor, output_size: int | Sequence[int | None]) -> Tensor:
    """The average of each of ``output_size`` windows that share out ``input`` [N, C, H, W] or [C, H, W].

    float32, float64, bfloat16, float16 (summed in float32). As ``torch.nn.functional.adaptive_avg_pool2d``, but always for maps:
    torch also takes other dimensions and empty maps where ``output_size`` is 1. Differentiable any number of times. Raises RuntimeError
    for negative sizes, empty H or W and other dtypes, TypeError for sizes that are not ints, ValueError for an input of too few
    dimensions. Source: csrc/pool/avg_pool2d*.
    """
    _check_input(input, "adaptive_avg_pool2d")
    size = _output_size(input, output_size, "adaptive_avg_pool2d")
    return _adaptive_avg_with_grad(input, size) if needs_grad(input) else _adaptive_avg_pool2d(input, size)


def max_unpool2d(
    input: Tensor,
    indices: Tensor,
    kernel_size: int | Ints,
    stride: int | Ints | None = None,
    padding: int | Ints = 0,
    output_size: Ints | None = None,
) -> Tensor:
    """Puts the values of ``input`` [N, C, H, W] or [C, H, W] back to the places that max_pool2d's ``indices`` name; zeros elsewhere.

    float32, float64, bfloat16, float16; int64 indices. As ``torch.nn.functional.max_unpool2d``; of several values for one place the last
    stays. Differentiable any number of times. Raises RuntimeError for an index outside the output (and names it), other index dtypes
    and shapes, ValueError for an ``output_size`` that no pooling with these windows could have had. Source: csrc/pool/max_unpool2d*.
    """
    _check_input(input, "max_unpool2d")
    if torch._C._is_any_autocast_enabled():
        (input,) = autocast_float32(input)
    kernel = _pair(kernel_size, "max_unpool2d", "kernel_size")
    strides = kernel if stride is None else _pair(stride, "max_unpool2d", "stride")
    pads = _pair(padding, "max_unpool2d", "padding")
    if input.dim() not in (3, 4):
        raise RuntimeError(f"max_unpool2d: expected a 3-D or 4-D input, got {list(input.shape)}")
    default = [(n - 1) * s + k - 2 * p for n, s, k, p in zip(plain_sizes(input)[-2:], strides, kernel, pads, strict=True)]
    size = default
    if output_size is not None:
        size = list(output_size)[2:] if len(output_size) == 4 else list(output_size)
        if len(size) != 2:
            raise ValueError(f"output_size should be a sequence containing 2 or 4 elements, but it has a length of {len(output_size)}")
        for d in range(2):
            least, most = default[d] - strides[d], default[d] + strides[d]
            if not least < size[d] < most:
                raise ValueError(f"invalid output_size {size}: dim {d} must be between {least} and {most}, both excluded")
    if size[0] < 0 or size[1] < 0:
        raise ValueError(f"max_unpool2d: output_size must not be negative, got {size}")
    return _scatter(input, indices, size, False)


def upsample_bed_of_nails(input: Tensor, scale_factor: int | Ints = 2) -> Tensor:
    """Each value of ``input`` [N, C, H, W] or [C, H, W] in the top left corner of its ``scale_factor`` cell, zeros elsewhere.

    [[1, 2], [3, 4]] becomes [[1, 0, 2, 0], [0, 0, 0, 0], [3, 0, 4, 0], [0, 0, 0, 0]]. float32, float64, bfloat16, float16; differentiable
    any number of times. Raises RuntimeError for a factor below one, empty C, H or W and other dtypes, TypeError for factors that are
    not ints. Source: csrc/pool/upsample_bed_of_nails*.
    """
    _check_input(input, "upsample_bed_of_nails")
    scale = _pair(scale_factor, "upsample_bed_of_nails", "scale_factor")
    return _nails_with_grad(input, scale) if needs_grad(input) else _bed_of_nails(input, scale)
