"""The norm family; same stem as csrc/norm. Autograd and fake kernels stand in _batch_norm.py and _group_norm.py beside this file."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from .. import _ext
from . import _batch_norm, _group_norm
from ._common import autocast_float32, differentiable, is_channels_last, needs_grad
from ._layout import row_major

__all__ = ["batch_norm", "batch_norm_act", "group_norm", "instance_norm", "layer_norm", "local_response_norm"]

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_HALVES = (torch.bfloat16, torch.float16)
_PLAIN = (Tensor, torch.nn.Parameter)


# What all of them check ----------------------------------------------------------------------------------------------------------


def _check_input(op: str, input: Tensor) -> None:
    if input.dtype not in _FLOATS:
        raise NotImplementedError(f"fastcv {op}: not implemented for {input.dtype}; expected float32, float64, bfloat16 or float16")


def _check_dtypes(op: str, input: Tensor, *vectors: tuple[str, Tensor | None]) -> None:
    """torch's rule: all vectors have one dtype, the input's, or float32 beside a 16-bit input."""
    first = None
    for name, t in vectors:
        if t is None:
            continue
        if not isinstance(t, Tensor):
            raise TypeError(f"fastcv {op}: argument '{name}' must be Tensor, not {type(t).__name__}")
        if first is None:
            first = t.dtype
            if first != input.dtype and not (first == torch.float32 and input.dtype in _HALVES):
                raise RuntimeError(f"fastcv {op}: mixed dtypes: input is {input.dtype}, {name} is {first}")
        elif t.dtype != first:
            raise RuntimeError(f"fastcv {op}: mixed dtypes: expected {name} of {first} as the other vectors, got {t.dtype}")


def _as_vector(op: str, name: str, t: Tensor | None, channels: int) -> Tensor | None:
    if t is None:
        return None
    if t.numel() != channels:
        raise RuntimeError(f"fastcv {op}: {name} should contain {channels} elements not {t.numel()}")
    return t if t.dim() == 1 else t.reshape(-1)


def _float32_on_cuda(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """aten's autocast runs group and layer norm in float32 on CUDA and leaves them alone on the CPU."""
    return autocast_float32(*tensors) if tensors[0] is not None and tensors[0].is_cuda else tensors


# Batch norm ----------------------------------------------------------------------------------------------------------------------

_ACTIVATIONS = {None: (1.0, 0.0), "relu": (0.0, 0.0), "relu6": (0.0, 6.0), "leaky_relu": (0.01, 0.0)}


def _slope_and_cap(op: str, activation: str | None, negative_slope: float) -> tuple[float, float]:
    """What the kernels know an activation by (csrc/norm/norm.h)."""
    if activation not in _ACTIVATIONS:
        raise ValueError(f"fastcv {op}: activation must be None, 'relu', 'relu6' or 'leaky_relu', got {activation!r}")
    if activation != "leaky_relu":
        return _ACTIVATIONS[activation]
    if not 0 <= negative_slope < float("inf"):
        raise ValueError(f"fastcv {op}: negative_slope must be a finite number >= 0, got {negative_slope}")
    return float(negative_slope), 0.0


def _checked(
    op: str,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor | None, ...] | None:
    """running_mean, running_var, weight and bias as vectors, after torch's checks; None for an empty input that torch lets pass."""
    dim = input.dim()
    shape = input.shape
    if training:
        if dim == 0:
            raise IndexError(f"fastcv {op}: expected an input of at least 2 dimensions, got a scalar")
        if shape[0] == 1 and prod(shape[2:]) == 1:
            raise ValueError(
                f"Expected more than 1 value per channel when training, got input size {shape} (a last batch of one? use drop_last)"
            )
        if eps <= 0.0:
            raise ValueError(f"batch_norm eps must be positive during training, but got {eps}")
    elif eps < 0.0:
        raise ValueError(f"batch_norm eps must be non-negative, but got {eps}")
    if running_mean is None or running_var is None:
        if not training:
            missing = "running_mean" if running_mean is None else "running_var"
            raise RuntimeError(f"fastcv {op}: {missing} must be defined in evaluation mode")
        if running_mean is not running_var:
            raise ValueError("running_mean and running_var must either both be None or neither be None")
    if dim == 1 and input.numel() == 0 and (running_mean is None or running_mean.numel() == 0):
        return None
    if dim < 2:
        kind = IndexError if running_mean is None else RuntimeError
        raise kind(f"fastcv {op}: expected an input of at least 2 dimensions, got {list(input.shape)}")
    if not isinstance(momentum, (float, int)):
        raise TypeError(f"fastcv {op}: argument 'momentum' must be float, not {type(momentum).__name__}")
    dtype, channels = input.dtype, shape[1]
    if dtype not in _FLOATS:
        _check_input(op, input)
    for t in (weight, bias, running_mean, running_var):
        if t is None or (type(t) in _PLAIN and t.dtype is dtype and t.dim() == 1 and t.numel() == channels):
            continue
        _check_dtypes(op, input, ("weight", weight), ("bias", bias), ("running_mean", running_mean), ("running_var", running_var))
        weight, bias = _as_vector(op, "weight", weight, channels), _as_vector(op, "bias", bias, channels)
        running_mean = _as_vector(op, "running_mean", running_mean, channels)
        running_var = _as_vector(op, "running_var", running_var, channels)
        break
    if running_mean is not None and (running_mean.requires_grad or running_var.requires_grad):
        raise RuntimeError(f"fastcv {op} is not differentiable with respect to running_mean and running_var: they cannot require grad")
    return running_mean, running_var, weight, bias


def _normalise(
    op: str,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    residual: Tensor | None = None,
    slope: float = 1.0,
    cap: float = 0.0,
) -> Tensor:
    vectors = _checked(op, input, running_mean, running_var, weight, bias, training, momentum, eps)
    if vectors is None:
        return input.clone()
    running_mean, running_var, weight, bias = vectors
    grad = needs_grad(input, weight, bias, residual)
    if not training:
        run = _batch_norm.evaluate_with_grad if grad else _batch_norm.evaluate
        return run(input, residual, running_mean, running_var, weight, bias, eps, slope, cap)
    plainly = not (torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active())
    left = _batch_norm.statistics_left(input) if plainly else None
    if left is not None:
        normalise = _batch_norm.measured_with_grad if grad else _batch_norm.evaluate
        output = normalise(input, residual, *left, weight, bias, eps, slope, cap)
        if running_mean is not None:
            _batch_norm.update(running_mean, running_var, *left, input.numel() // input.shape[1], momentum)
        return output
    if running_mean is not None and plainly:
        if not grad:
            return _batch_norm.train_update(input, residual, running_mean, running_var, weight, bias, momentum, eps, slope, cap)[0]
        scalars = (momentum, eps, slope, cap)
        return _batch_norm.train_update_with_grad(input, residual, running_mean, running_var, weight, bias, scalars)
    run = _batch_norm.train_with_grad if grad else _batch_norm.train
    output, mean, var = run(input, residual, weight, bias, eps, slope, cap)
    if running_mean is not None and input.numel() > 0:
        _batch_norm.update(running_mean, running_var, mean, var, input.numel() // input.shape[1], momentum)
    return output


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``torch.nn.functional.batch_norm``: each channel (dim 1) of ``input`` normalised over the batch and all positions.

    input: [N, C, ...] of any strides, float32, float64, bfloat16 or float16; the output has its dtype and torch's layout.
    The vectors [C] have the input's dtype, or all float32 beside 16-bit input. With ``training`` the batch's own statistics
    normalise (biased variance) and update the running ones (unbiased variance); otherwise the running ones normalise.
    Statistics are merged in double; results do not depend on the number of threads. Differentiable twice and more.
    Raises ValueError (one value per channel in training, eps, one running statistic missing), RuntimeError (sizes, dtypes,
    no statistics in evaluation), NotImplementedError (other dtypes). Source: csrc/norm/batch_norm.h.
    """
    return _normalise("batch_norm", input, running_mean, running_var, weight, bias, training, momentum, eps)


def batch_norm_act(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    activation: str | None = None,
    negative_slope: float = 0.01,
) -> Tensor:
    """``activation(batch_norm(input, ...) + residual)`` in one kernel, forward and backward.

    The arguments of :func:`batch_norm` (float32, float64, bfloat16, float16), and: residual, of the shape and dtype of the
    input; activation, one of None, "relu", "relu6" and "leaky_relu"; negative_slope (>= 0), for "leaky_relu".
    The sum is rounded once, so 16-bit results are closer to the exact ones than three separate operations.
    Raises what batch_norm raises, ValueError for an unknown activation or a bad slope, RuntimeError for a residual of another
    shape or dtype. Source: csrc/norm/batch_norm.h.
    """
    slope, cap = _slope_and_cap("batch_norm_act", activation, negative_slope)
    if residual is not None and (residual.shape != input.shape or residual.dtype != input.dtype):
        raise RuntimeError(
            f"fastcv batch_norm_act: expected a residual of shape {list(input.shape)} and {input.dtype}, "
            f"got {list(residual.shape)} and {residual.dtype}"
        )
    return _normalise("batch_norm_act", input, running_mean, running_var, weight, bias, training, momentum, eps, residual, slope, cap)


# Group, instance and layer norm --------------------------------------------------------------------------------------------------


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """``torch.nn.functional.group_norm``: each of ``num_groups`` groups of channels of each image normalised by itself.

    input: [N, C, ...] of any strides, float32, float64, bfloat16 or float16; the output has its dtype and torch's layout.
    weight, bias: [C] of the input's dtype, or float32 beside 16-bit input. An image's result does not depend on the batch.
    Differentiable twice and more. Raises RuntimeError (dimensions, sizes, dtypes, C not divisible), ValueError (one value per
    group), ZeroDivisionError (num_groups 0), NotImplementedError (other dtypes). Source: csrc/norm/group_norm.h.
    """
    if input.dim() < 2:
        raise RuntimeError(f"Expected at least 2 dimensions for input tensor but received {input.dim()}")
    if not isinstance(num_groups, (int, torch.SymInt)):
        raise TypeError(f"fastcv group_norm: argument 'num_groups' must be int, not {type(num_groups).__name__}")
    n, channels = input.shape[:2]
    if n * channels // num_groups * prod(input.shape[2:]) == 1:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {list(input.shape)}, num_groups={num_groups}"
        )
    if num_groups < 0:
        raise RuntimeError(f"Expected num groups to be greater than 0, got {num_groups}")
    if channels % num_groups != 0:
        raise RuntimeError(
            f"Expected number of channels in input to be divisible by num_groups, "
            f"but got input of shape {list(input.shape)} and num_groups={num_groups}"
        )
    _check_input("group_norm", input)
    _check_dtypes("group_norm", input, ("weight", weight), ("bias", bias))
    for name, t in (("weight", weight), ("bias", bias)):
        if t is not None and (t.dim() != 1 or t.shape[0] != channels):
            raise RuntimeError(
                f"Expected {name} to be a vector of size equal to the number of channels in input, "
                f"but got {name} of shape {list(t.shape)} and input of shape {list(input.shape)}"
            )
    input, weight, bias = _float32_on_cuda(input, weight, bias)
    if needs_grad(input, weight, bias):
        return _group_norm.group_with_grad(input, num_groups, weight, bias, eps)
    return _group_norm.group(input, num_groups, weight, bias, eps)[0]


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """``torch.nn.functional.layer_norm``: the last dimensions (``normalized_shape``) normalised, for each leading index by itself.

    input: [*, *normalized_shape] of any strides, float32, float64, bfloat16 or float16; the output is row-major and has its dtype.
    weight, bias: of normalized_shape and the input's dtype, or float32 beside 16-bit input. A row's result does not depend on
    the other rows. Differentiable twice and more. Raises RuntimeError (shapes, dtypes), TypeError (normalized_shape is no
    sequence of ints), NotImplementedError (other dtypes). Source: csrc/norm/layer_norm.h.
    """
    if not isinstance(normalized_shape, (tuple, list)) or not all(isinstance(s, (int, torch.SymInt)) for s in normalized_shape):
        raise TypeError(f"fastcv layer_norm: argument 'normalized_shape' must be tuple of ints, got {normalized_shape!r}")
    shape = tuple(normalized_shape)
    dims = len(shape)
    if dims == 0:
        raise RuntimeError("Expected normalized_shape to be at least 1-dimensional, i.e., containing at least one element, but got []")
    for name, t in (("weight", weight), ("bias", bias)):
        if t is not None and tuple(t.shape) != shape:
            raise RuntimeError(
                f"Expected {name} to be of same shape as normalized_shape, "
                f"but got {name} of shape {list(t.shape)} and normalized_shape = {list(shape)}"
            )
    if input.dim() < dims or tuple(input.shape[-dims:]) != shape:
        raise RuntimeError(f"Given normalized_shape={list(shape)}, expected input with that shape at its end, but got {list(input.shape)}")
    _check_input("layer_norm", input)
    _check_dtypes("layer_norm", input, ("weight", weight), ("bias", bias))
    input, weight, bias = _float32_on_cuda(input, weight, bias)
    if needs_grad(input, weight, bias):
        return _group_norm.layer_with_grad(input, dims, weight, bias, eps)
    return _group_norm.layer(input, dims, weight, bias, eps)[0]


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``torch.nn.functional.instance_norm``: each channel of each image normalised over its positions.

    input: [N, C, *] of any strides, float32, float64, bfloat16 or float16; the output is row-major, as torch's, and has its
    dtype. The vectors [C] have the input's dtype, or float32 beside 16-bit input. With ``use_input_stats`` the running
    statistics, where given, move towards the images' average (an empty batch leaves them alone; torch makes them NaN);
    otherwise they normalise. Differentiable twice and more. Raises ValueError (one position, one running statistic missing),
    RuntimeError (sizes, dtypes, no statistics), NotImplementedError (other dtypes). Source: csrc/norm/group_norm.h.
    """
    if use_input_stats:
        if prod(input.shape[2:]) == 1:
            raise ValueError(f"Expected more than 1 spatial element when training, got input size {input.shape}")
        if (running_mean is None) is not (running_var is None):
            raise ValueError("running_mean and running_var must either both be None or neither be None")
    elif running_mean is None or running_var is None:
        raise RuntimeError("Expected running_mean and running_var to be defined when use_input_stats is false")
    if input.dim() < 2:
        raise RuntimeError(f"fastcv instance_norm: expected an input of at least 2 dimensions, got {list(input.shape)}")
    _check_input("instance_norm", input)
    channels = input.shape[1]
    vectors = []
    for name, t in (("running_mean", running_mean), ("running_var", running_var), ("weight", weight), ("bias", bias)):
        _check_dtypes("instance_norm", input, (name, t))
        if t is not None and t.dim() > 1:
            raise RuntimeError(f"fastcv instance_norm: expected {name} to be a vector, got {list(t.shape)}")
        vectors.append(_as_vector("instance_norm", name, t, channels))
    running_mean, running_var, weight, bias = vectors
    if running_mean is not None and (running_mean.requires_grad or running_var.requires_grad):
        raise RuntimeError(
            "fastcv instance_norm is not differentiable with respect to running_mean and running_var: they cannot require grad"
        )
    input = row_major(input)
    grad = needs_grad(input, weight, bias)
    if not use_input_stats:
        run = _batch_norm.evaluate_with_grad if grad else _batch_norm.evaluate
        return run(input, None, running_mean, running_var, weight, bias, eps, 1.0, 0.0)
    if channels == 0:
        return input.clone()
    run = _group_norm.group_with_statistics if grad else _group_norm.group
    output, mean, var = run(input, channels, weight, bias, eps)
    if running_mean is not None and input.numel() > 0:
        _batch_norm.update(running_mean, running_var, mean, var, prod(input.shape[2:]), momentum)
    return output.view(input.shape) if channels == 1 else output  # one channel: strides that could be either layout's


# Local response norm -------------------------------------------------------------------------------------------------------------

_response = _ext.op("local_response_norm")
_response_backward = _ext.op("local_response_norm_backward")


@_ext.fake("local_response_norm")
def _(input: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    return _batch_norm.empty_like(input)


@_ext.fake("local_response_norm_backward")
def _(grad: Tensor, input: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    return _batch_norm.empty_like(input)


@_ext.vmap("local_response_norm")
def _(info: Any, in_dims: Any, input: Tensor, *rest: Any) -> Any:
    images = input.movedim(in_dims[0], 0)
    return _response(images.flatten(0, 1), *rest).unflatten(0, images.shape[:2]), 0


@_ext.vmap("local_response_norm_backward")
def _(info: Any, in_dims: Any, grad: Tensor, input: Tensor, *rest: Any) -> Any:
    pair = [
        t.unsqueeze(0).expand(info.batch_size, *t.shape) if d is None else t.movedim(d, 0)
        for t, d in zip((grad, input), in_dims[:2], strict=True)
    ]
    return _response_backward(*(t.flatten(0, 1) for t in pair), *rest).unflatten(0, pair[0].shape[:2]), 0


def _save_response(ctx: Any, args: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(args[0])
    ctx.scalars = args[1:]


def _once(ctx: Any, grad: Tensor) -> Any:
    raise RuntimeError("fastcv local_response_norm: its gradient cannot be differentiated again; use torch's for double backward")


_response_backward_with_grad = differentiable("LocalResponseNormBackward", _response_backward, lambda ctx, args, output: None, _once)


def _backward_response(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (input,) = ctx.saved_tensors
    run = _response_backward_with_grad if needs_grad(grad, input) else _response_backward
    return run(grad, input, *ctx.scalars), None, None, None, None


_response_with_grad = differentiable("LocalResponseNorm", _response, _save_response, _backward_response)


def local_response_norm(input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    """``torch.nn.functional.local_response_norm``: x / (k + alpha * average of x^2 over ``size`` neighbouring channels) ** beta.

    input: [N, C, *spatial] of any strides, float32, float64, bfloat16 or float16 (torch's CPU kernel lacks float16); the output
    has its dtype and strides. Channels that do not exist count as zeros. beta 0.5, 0.75 and 1 are fastest. Differentiable once.
    Inside autocast 16-bit images are returned in float32, as torch does. Raises ValueError (fewer than 3 dimensions),
    RuntimeError (size < 1), TypeError (size no int), NotImplementedError (other dtypes). Source: csrc/norm/local_response_norm.h.
    """
    dim = input.dim()
    if dim < 3:
        raise ValueError(f"Expected 3D or higher dimensionality input (got {dim} dimensions)")
    if input.numel() == 0:
        return input
    if not isinstance(size, (int, torch.SymInt)):
        raise TypeError(f"fastcv local_response_norm: argument 'size' must be int, not {type(size).__name__}")
    if size < 1:
        raise RuntimeError(f"fastcv local_response_norm: size should be greater than zero, but got {size}")
    _check_input("local_response_norm", input)
    if dim > 3 or input.is_cuda:  # where torch takes the average in float32
        (input,) = autocast_float32(input)
    run = _response_with_grad if needs_grad(input) else _response
    if input.is_contiguous() or is_channels_last(input):
        return run(input, size, alpha, beta, k)
    if dim == 3:  # channels innermost: as one row of an image
        return run(input.unsqueeze(2), size, alpha, beta, k).squeeze(2)
    # Positions in the order of memory; the channels' neighbours stay where they are.
    order = [0, 1, *sorted(range(2, dim), key=input.stride, reverse=True)]
    back = [order.index(d) for d in range(dim)]
    return run(input.permute(order), size, alpha, beta, k).permute(back)
