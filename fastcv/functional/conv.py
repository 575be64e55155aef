"""Convolutions: torch's functions of 1 to 3 dimensions, their transposes and the fused form; same stem as csrc/conv.

Three raw ops carry everything, and each one's gradients are the other two (the bias has its own sum):
    conv(x, w):   dx = dgrad(dy, w)    dw = wgrad(x, dy)
    dgrad(dy, w): ddy = conv(dx, w)    dw = wgrad(dx, dy)      (dgrad is also the forward of the transposed convolution)
    wgrad(x, dy): dx = dgrad(dy, dw)   ddy = conv(x, dw)
so every function here can be differentiated any number of times.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from .. import _ext
from ._common import autocast_lower, differentiable, is_channels_last, needs_grad, plain_sizes

__all__ = ["conv1d", "conv2d", "conv2d_fused", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"]

Ints = int | Sequence[int]
Geometry = tuple[Sequence[int], Sequence[int], Sequence[int], int]  # stride, padding, dilation, groups

_conv_raw = _ext.op("conv")
_dgrad_raw = _ext.op("conv_dgrad")
_wgrad_raw = _ext.op("conv_wgrad")
_bias_grad_raw = _ext.op("conv_bias_grad")
_activation_raw = _ext.op("conv_activation")

# csrc/conv/conv.h: enum Activation.
_ACTIVATIONS: dict[str | None, int] = {None: 0, "relu": 1, "relu6": 2, "silu": 3, "hardswish": 4, "gelu": 5, "leaky_relu": 6}
_LEAKY_RELU = 6
_SLOPE = 0.01  # torch's default
_LEVELS = {"highest": 0, "high": 1, "tf32": 1, "medium": 2, "bf16": 2, "ieee": 3}


@torch.compiler.assume_constant_result
def _float32_precision(cuda: bool) -> int:
    """What float32 may be computed with (csrc/conv/conv.h: enum Precision), from torch's own switches.

    The convolution's switch decides; on the CPU, where it is unset, the one of matrix products. "highest", the default,
    is float32 arithmetic in any algorithm within the accuracy rule. A convolution's switch set to "ieee" admits the direct
    sum only: torch.backends.mkldnn.conv.fp32_precision = "ieee" keeps every NaN and infinity to the outputs that read it.
    """
    setting = torch._C._get_fp32_precision_getter("cuda" if cuda else "mkldnn", "conv")
    if setting == "none":
        setting = "highest" if cuda else torch._C._get_float32_matmul_precision()
    elif cuda and setting == "ieee":
        setting = "highest"  # torch's own default there
    return _LEVELS[setting]


def _precision(t: Tensor) -> int:
    level = _float32_precision(t.is_cuda)
    return level if t.dtype is torch.float32 or level == _LEVELS["ieee"] else _LEVELS["highest"]


# ---- shapes and layouts, as csrc/conv/conv_torch.cpp has them ---------------------------------------------------------


def _asks_channels_last(t: Tensor) -> bool:
    return is_channels_last(t.unsqueeze(2) if t.dim() == 3 else t)


def _output_channels_last(x: Tensor, w: Tensor) -> bool:
    if x.dim() == 5 and x.dtype in (torch.float64, torch.float16):
        return False
    return (x.dim() > 3 and _asks_channels_last(x)) or _asks_channels_last(w)


def _empty(like: Tensor, sizes: Sequence[int], channels_last: bool) -> Tensor:
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
    slope: float = _SLOPE,
) -> Tensor:
    return _empty(input, conv_sizes(input, weight, stride, padding, dilation), _output_channels_last(input, weight))


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
    slope: float = _SLOPE,
) -> Tensor:
    sizes = [grad_output.shape[0], weight.shape[1] * groups, *input_size]
    return _empty(grad_output, sizes, _output_channels_last(grad_output, weight))


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
    return _empty(input, sizes, is_channels_last(input) or is_channels_last(grad_output))


@_ext.fake("conv_bias_grad")
def _(grad_output: Tensor) -> Tensor:
    return grad_output.new_empty([grad_output.shape[1]])


@_ext.fake("conv_activation")
def _(input: Tensor, grad: Tensor | None, activation: int, order: int, slope: float = _SLOPE) -> Tensor:
    return _empty(input, input.shape, is_channels_last(input))


# ---- batching: mapped images join the batch, mapped weights become groups ---------------------------------------------


def _in_batch(t: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """[N, ...] and a mapped dimension as [size * N, ...]."""
    if t is None:
        return None
    t = t.movedim(dim, 0) if dim is not None else t.expand(size, *t.shape)
    return t.flatten(0, 1)


def _in_channels(t: Tensor, dim: int | None, size: int) -> Tensor:
    """[N, C, ...] and a mapped dimension as [N, size * C, ...]."""
    t = t.movedim(dim, 1) if dim is not None else t.unsqueeze(1).expand(-1, size, *t.shape[1:])
    return t.flatten(1, 2)


def _in_rows(t: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """[K, ...] and a mapped dimension as [size * K, ...]."""
    return _in_batch(t, dim, size)


@_ext.vmap("conv")
def _(info: Any, in_dims: Any, x: Tensor, w: Tensor, b: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int, *rest: Any):
    size, residual = info.batch_size, rest[0]
    end = (*rest[1:3], None, *rest[4:])  # packed weights are a shortcut
    if in_dims[1] is None and in_dims[2] is None:
        residual = _in_batch(residual, in_dims[7], size)
        y = _conv_raw(_in_batch(x, in_dims[0], size), w, b, stride, padding, dilation, groups, residual, *end)
        return y.unflatten(0, (size, -1)), 0
    x, w, b = _in_channels(x, in_dims[0], size), _in_rows(w, in_dims[1], size), _in_rows(b, in_dims[2], size)
    residual = None if residual is None else _in_channels(residual, in_dims[7], size)
    y = _conv_raw(x, w, b, stride, padding, dilation, groups * size, residual, *end)
    return y.unflatten(1, (size, -1)), 1


@_ext.vmap("conv_dgrad")
def _(
    info: Any, in_dims: Any, g: Tensor, w: Tensor, b: Tensor | None, input_size: Any, stride: Any, padding: Any, dilation: Any, *rest: Any
):
    size, (groups, precision, _, residual), residual_dim = info.batch_size, (*rest, None, None)[:4], (*in_dims, None, None)[10]
    if in_dims[1] is None and in_dims[2] is None:
        end = (precision, None, _in_batch(residual, residual_dim, size), *rest[4:])
        y = _dgrad_raw(_in_batch(g, in_dims[0], size), w, b, input_size, stride, padding, dilation, groups, *end)
        return y.unflatten(0, (size, -1)), 0
    g, w, b = _in_channels(g, in_dims[0], size), _in_rows(w, in_dims[1], size), _in_rows(b, in_dims[2], size)
    end = (precision, None, None if residual is None else _in_channels(residual, residual_dim, size), *rest[4:])
    y = _dgrad_raw(g, w, b, input_size, stride, padding, dilation, groups * size, *end)
    return y.unflatten(1, (size, -1)), 1


@_ext.vmap("conv_wgrad")
def _(info: Any, in_dims: Any, x: Tensor, g: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any, groups: int, precision: int):
    size = info.batch_size
    x, g = _in_channels(x, in_dims[0], size), _in_channels(g, in_dims[1], size)
    dw = _wgrad_raw(x, g, kernel, stride, padding, dilation, groups * size, precision)
    return dw.unflatten(0, (size, -1)), 0


@_ext.vmap("conv_bias_grad")
def _(info: Any, in_dims: tuple[int], g: Tensor) -> tuple[Tensor, int]:
    return _bias_grad_raw(_in_channels(g, in_dims[0], info.batch_size)).unflatten(0, (info.batch_size, -1)), 0


@_ext.vmap("conv_activation")
def _(info: Any, in_dims: Any, x: Tensor, g: Tensor | None, *how: Any) -> tuple[Tensor, int]:
    size = info.batch_size
    y = _activation_raw(_in_batch(x, in_dims[0], size), _in_batch(g, in_dims[1], size), *how)
    return y.unflatten(0, (size, -1)), 0


# ---- differentiation ------------------------------------------------------------------------------------------------------


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
        both = _activation(grad, ctx.saved_tensors[1], 0, 0, ctx.slope) if ctx.has_grad else grad  # grad * g
        dx = _activation(x, both, ctx.activation, ctx.order + 1, ctx.slope)
    if ctx.needs_input_grad[1]:
        dg = _activation(x, grad, ctx.activation, ctx.order, ctx.slope)
    return dx, dg, None, None, None


_activation_with_grad = differentiable("ConvActivation", _activation_raw, _activation_save, _activation_backward)


def _activation(x: Tensor, g: Tensor | None, activation: int, order: int, slope: float) -> Tensor:
    """g * (the order-th derivative of the activation at x); without g, that derivative."""
    call = _activation_with_grad if needs_grad(x, g) else _activation_raw
    return call(x, g, activation, order, slope)


# What follows a sum: the activation's code and the slope of leaky_relu below zero; None for nothing. The formulas below take both on
# their own: torch.compile makes symbols of floats and sizes, and finds none within a tuple.
End = tuple[int, float] | None


def _by_output(activation: int, slope: float) -> bool:
    """True where the derivative at x is that at the activation's value, so that x need not be kept."""
    return activation <= 2 or (activation == _LEAKY_RELU and slope >= 0)


def _conv_forward(
    x: Tensor, w: Tensor, b: Tensor | None, residual: Tensor | None, geometry: Geometry, precision: int, activation: int, slope: float
) -> Tensor:
    stride, padding, dilation, groups = geometry
    return _conv_raw(x, w, b, stride, padding, dilation, groups, residual, activation, precision, None, slope)


def _conv_save(ctx: Any, args: tuple[Any, ...], output: Tensor) -> None:
    x, w, _, _, *ctx.how = args
    if args[6]:
        ctx.save_for_backward(x, w, output)
    else:
        ctx.save_for_backward(x, w)


def _conv_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, w, *y = ctx.saved_tensors
    geometry, precision, activation, slope = ctx.how
    dx = dw = db = None
    if y:
        grad = _activation(*y, grad, activation, 1, slope)
    if ctx.needs_input_grad[0]:
        dx = _dgrad(grad, w, None, x.shape[2:], geometry, precision)
    if ctx.needs_input_grad[1]:
        dw = _wgrad(x, grad, w.shape[2:], geometry, precision)
    if ctx.needs_input_grad[2]:
        db = _bias_grad(grad)
    return dx, dw, db, grad if ctx.needs_input_grad[3] else None, None, None, None, None


_conv_with_grad = differentiable("Conv", _conv_forward, _conv_save, _conv_backward)


def _conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    residual: Tensor | None,
    geometry: Any,
    precision: int,
    packs: Any = None,
    end: End = None,
) -> Tensor:
    activation, slope = (0, 0.0) if end is None else end
    if needs_grad(x, w, b, residual):
        if _by_output(activation, slope):
            return _conv_with_grad(x, w, b, residual, geometry, precision, activation, slope)
        return _activation(_conv_with_grad(x, w, b, residual, geometry, precision, 0, 0.0), None, activation, 0, slope)
    packed = None if packs is None else packs.of_conv(x, w, geometry, precision)
    stride, padding, dilation, groups = geometry
    return _conv_raw(x, w, b, stride, padding, dilation, groups, residual, activation, precision, packed, slope)


def _dgrad_forward(
    g: Tensor,
    w: Tensor,
    b: Tensor | None,
    residual: Tensor | None,
    size: Any,
    geometry: Geometry,
    precision: int,
    activation: int,
    slope: float,
) -> Tensor:
    stride, padding, dilation, groups = geometry
    return _dgrad_raw(g, w, b, size, stride, padding, dilation, groups, precision, None, residual, activation, slope)


def _dgrad_save(ctx: Any, args: tuple[Any, ...], output: Tensor) -> None:
    g, w, _, _, _, *ctx.how = args
    if args[7]:
        ctx.save_for_backward(g, w, output)
    else:
        ctx.save_for_backward(g, w)


def _dgrad_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    g, w, *y = ctx.saved_tensors
    geometry, precision, activation, slope = ctx.how
    dg = dw = db = None
    if y:
        grad = _activation(*y, grad, activation, 1, slope)
    if ctx.needs_input_grad[0]:
        dg = _crop(_conv(grad, w, None, None, geometry, precision), g)
    if ctx.needs_input_grad[1]:
        dw = _wgrad(grad, g, w.shape[2:], geometry, precision)
    if ctx.needs_input_grad[2]:
        db = _bias_grad(grad)
    return dg, dw, db, grad if ctx.needs_input_grad[3] else None, None, None, None, None, None


_dgrad_with_grad = differentiable("ConvDgrad", _dgrad_forward, _dgrad_save, _dgrad_backward)


def _dgrad(
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
    activation, slope = (0, 0.0) if end is None else end
    if needs_grad(g, w, b, residual):
        if _by_output(activation, slope):
            return _dgrad_with_grad(g, w, b, residual, size, geometry, precision, activation, slope)
        return _activation(_dgrad_with_grad(g, w, b, residual, size, geometry, precision, 0, 0.0), None, activation, 0, slope)
    packed = None if packs is None else packs.of_dgrad(g, w, size, geometry, precision)
    stride, padding, dilation, groups = geometry
    return _dgrad_raw(g, w, b, size, stride, padding, dilation, groups, precision, packed, residual, activation, slope)


def _wgrad_forward(x: Tensor, g: Tensor, kernel: Any, geometry: Any, precision: int) -> Tensor:
    return _wgrad_raw(x, g, kernel, *geometry, precision)


def _wgrad_save(ctx: Any, args: tuple[Any, ...], output: Tensor) -> None:
    x, g, _, ctx.geometry, ctx.precision = args
    ctx.save_for_backward(x, g)


def _wgrad_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, g = ctx.saved_tensors
    dx = dg = None
    if ctx.needs_input_grad[0]:
        dx = _dgrad(g, grad, None, x.shape[2:], ctx.geometry, ctx.precision)
    if ctx.needs_input_grad[1]:
        dg = _crop(_conv(x, grad, None, None, ctx.geometry, ctx.precision), g)
    return dx, dg, None, None, None


_wgrad_with_grad = differentiable("ConvWgrad", _wgrad_forward, _wgrad_save, _wgrad_backward)


def _wgrad(x: Tensor, g: Tensor, kernel: Any, geometry: Any, precision: int) -> Tensor:
    call = _wgrad_with_grad if needs_grad(x, g) else _wgrad_forward
    return call(x, g, kernel, geometry, precision)


def _bias_grad_save(ctx: Any, args: tuple[Any, ...], output: Tensor) -> None:
    ctx.sizes = args[0].shape


def _bias_grad_backward(ctx: Any, grad: Tensor) -> Tensor:
    return grad.view(1, -1, *[1] * (len(ctx.sizes) - 2)).expand(ctx.sizes)


_bias_grad_with_grad = differentiable("ConvBiasGrad", _bias_grad_raw, _bias_grad_save, _bias_grad_backward)


def _bias_grad(g: Tensor) -> Tensor:
    return _bias_grad_with_grad(g) if needs_grad(g) else _bias_grad_raw(g)


# ---- arguments ----------------------------------------------------------------------------------------------------------------


def _int(value: Any, name: str) -> int:
    if not isinstance(value, (bool, float)):
        if isinstance(value, (int, torch.SymInt)):
            return value
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"{name} must be an int or a sequence of ints, got {value!r}")


def _ints(value: Any, nd: int, name: str) -> Sequence[int]:
    """``value`` as nd ints; one is repeated."""
    if type(value) is int:
        return (value,) * nd
    if not isinstance(value, (tuple, list)):
        return (_int(value, name),) * nd
    for v in value:
        if type(v) is not int:
            value = [_int(v, name) for v in value]
            break
    if len(value) != nd:
        if len(value) != 1:
            raise RuntimeError(f"expected {name} to be a single integer value or a list of {nd} values, but got {name}={[*value]}")
        return (value[0],) * nd
    return value


def _pads(value: Any, nd: int, weight: Tensor, stride: Sequence[int], dilation: Sequence[int]) -> Sequence[int]:
    """padding as nd ints, or as the nd before and the nd after; where 'same' cannot be even, the end has one more."""
    if not isinstance(value, str):
        return _ints(value, nd, "padding")
    if value == "valid":
        return (0,) * nd
    if value != "same":
        raise RuntimeError(f"Invalid padding string: {value!r}")
    if any(s != 1 for s in stride):
        raise RuntimeError(f"padding='same' is not supported for strided convolutions, got stride={[*stride]}")
    total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    return [t // 2 for t in total] + [t - t // 2 for t in total]


def _check(name: str, nd: int, input: Any, weight: Any, bias: Any, groups: Any) -> bool:
    """The types and numbers of dimensions; everything else is the door's. Returns whether the input is batched."""
    if not isinstance(input, Tensor) or not isinstance(weight, Tensor) or not (bias is None or isinstance(bias, Tensor)):
        types = ", ".join(type(t).__name__ for t in (input, weight, bias))
        raise TypeError(f"{name}: input and weight must be tensors and bias a tensor or None, got {types}")
    if type(groups) is not int:
        _int(groups, "groups")
    dims = input.dim()
    if dims != nd + 2 and dims != nd + 1:
        raise RuntimeError(
            f"Expected {nd + 1}D (unbatched) or {nd + 2}D (batched) input to {name}, but got input of size: {[*input.shape]}"
        )
    if weight.dim() != nd + 2:
        raise RuntimeError(f"{name}: expected a weight of {nd + 2} dimensions, got weight of size {[*weight.shape]}")
    if input.numel() == 0 and 0 in input.shape[-nd:] and 0 not in input.shape[:-nd]:
        raise RuntimeError(f"Only zero batch or zero channel inputs are supported, but got input shape: {[*input.shape]}")
    return dims == nd + 2


# ---- calls: the public functions, with `packs`, which may know the weights as a kernel arranges them (fastcv.optimizer), and what may
# follow the sums in the same kernel: + residual, an activation, of which leaky_relu has a slope --------------------------------------


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
    slope: float = _SLOPE,
) -> Tensor:
    """The convolution ``name`` of ``nd`` dimensions, and what follows it."""
    batched = _check(name, nd, input, weight, bias, groups)
    geometry = geometry_of(nd, weight, stride, padding, dilation, groups)
    if batched:
        return convolve_batch(input, weight, bias, geometry, packs, residual, activation, slope)
    residual = None if residual is None else residual.unsqueeze(0)
    return convolve_batch(input.unsqueeze(0), weight, bias, geometry, packs, residual, activation, slope).squeeze(0)


def geometry_of(nd: int, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int) -> Geometry:
    """The last four arguments of a convolution of ``nd`` dimensions as convolve_batch takes them."""
    stride, dilation = _ints(stride, nd, "stride"), _ints(dilation, nd, "dilation")
    return stride, _pads(padding, nd, weight, stride, dilation), dilation, groups


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
    end = None if activation is None else (_ACTIVATIONS[activation], slope)
    return _conv(input, weight, bias, residual, geometry, _precision(input), packs, end)


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
    negative_slope: float = _SLOPE,
) -> Tensor:
    """activation(conv2d(input, weight, bias, ...) + residual) in one pass over the output.

    residual: a tensor of the output's shape and dtype, or None. activation: None, "relu", "relu6", "silu", "hardswish", "gelu" (of
    approximate="none") or "leaky_relu", for which negative_slope is. Shapes as conv2d; float32, float64, bfloat16, float16.
    Differentiable up to eight times; with a gradient silu, hardswish, gelu and slopes below zero are steps of their own. Raises
    ValueError for another activation, TypeError for a slope that is no number, otherwise as conv2d. Source: csrc/conv.
    """
    if activation not in _ACTIVATIONS:
        raise ValueError(f"conv2d_fused: activation must be one of {list(_ACTIVATIONS)}, got {activation!r}")
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
    slope: float = _SLOPE,
) -> Tensor:
    """The transposed convolution ``name`` of ``nd`` dimensions, and what follows it."""
    batched = _check(name, nd, input, weight, bias, groups)
    if torch._C._is_any_autocast_enabled():
        input, weight, bias, residual = autocast_lower(input, weight, bias, residual)
    stride, padding = _ints(stride, nd, "stride"), _ints(padding, nd, "padding")
    output_padding, dilation = _ints(output_padding, nd, "output_padding"), _ints(dilation, nd, "dilation")
    if not batched:
        input, residual = input.unsqueeze(0), None if residual is None else residual.unsqueeze(0)
    size, kernel = plain_sizes(input), plain_sizes(weight)
    output = [(size[i + 2] - 1) * stride[i] - 2 * padding[i] + dilation[i] * (kernel[i + 2] - 1) + output_padding[i] + 1 for i in range(nd)]
    if any(output_padding):
        for extra, s, d in zip(output_padding, stride, dilation, strict=True):
            if extra < 0 or (extra >= s and extra >= d):
                raise RuntimeError(
                    f"output padding must be non-negative and smaller than either stride or dilation, but got "
                    f"output_padding={[*output_padding]}, stride={[*stride]}, dilation={[*dilation]}"
                )
    if min(output) < 0 or kernel[1] == 0:
        raise RuntimeError(
            f"{name}: input {[*input.shape]} and weight {[*weight.shape]} leave an output of {output}, and no channel or less"
        )
    end = None if activation is None else (_ACTIVATIONS[activation], slope)
    y = _dgrad(input, weight, bias, output, (stride, padding, dilation, groups), _precision(input), packs, residual, end)
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
