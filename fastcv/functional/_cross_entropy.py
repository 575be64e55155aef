"""cross_entropy and nll_loss; kernels in csrc/loss/cross_entropy* and nll*."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _ext
from ._common import autocast_float32, differentiable, needs_grad
from ._loss_common import _check_float, _in_transform, _reduction_number
from ._softmax import _log_softmax, _softmax

_cross_entropy = _ext.op("cross_entropy")
_cross_entropy_with_grad = _ext.op("cross_entropy_with_grad")
_cross_entropy_backward = _ext.op("cross_entropy_backward")


def _sample_shape(input: Tensor) -> list[int]:
    return [] if input.dim() == 1 else [input.shape[0], *input.shape[2:]]


def _empty_grad(input: Tensor) -> Tensor:
    """For fake kernels: the gradient of scores, laid out as scores_of in csrc/loss/cross_entropy_torch.cpp lays it out."""
    if input.dim() > 1 and not input.is_contiguous():
        order = [0, *range(2, input.dim()), 1] if input.dim() > 2 else [1, 0]
        if input.permute(order).is_contiguous():
            inverse = sorted(range(input.dim()), key=order.__getitem__)
            return input.new_empty([input.shape[d] for d in order]).permute(inverse)
    return input.new_empty(input.shape)


@_ext.fake("cross_entropy")
def _(input: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore_index: int, label_smoothing: float) -> Tensor:
    return input.new_empty(_sample_shape(input) if reduction == 0 else [])


@_ext.fake("cross_entropy_with_grad")
def _(
    input: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore_index: int, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    return input.new_empty([]), _empty_grad(input)


@_ext.fake("cross_entropy_backward")
def _(
    grad: Tensor, input: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore_index: int, label_smoothing: float
) -> Tensor:
    return _empty_grad(input)


def _register_loop(name: str) -> None:
    """The batching rule of an op whose reduction is over the whole call: one call per mapped sample."""
    op = _ext.op(name)

    @_ext.vmap(name)
    def _(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        results = [op(*(a if d is None else a.select(d, i) for a, d in zip(args, in_dims, strict=True))) for i in range(info.batch_size)]
        if isinstance(results[0], tuple):
            return tuple(torch.stack(parts) for parts in zip(*results, strict=True)), (0,) * len(results[0])
        return torch.stack(results), 0


for _name in (
    "cross_entropy",
    "cross_entropy_with_grad",
    "cross_entropy_backward",
    "nll_loss",
    "nll_loss_backward",
    "linear_cross_entropy",
    "linear_cross_entropy_with_grad",
    "linear_cross_entropy_backward",
    "multi_margin_loss",
    "multi_margin_loss_backward",
    "kl_div",
    "kl_div_backward",
    "soft_iou_loss",
    "soft_iou_loss_backward",
):
    _register_loop(_name)

_scale_gradient_ = _ext.op("scale_gradient_")


@_ext.fake("scale_gradient_")
def _(x: Tensor, factor: Tensor) -> None:
    return None


def _scaled(ready: Tensor, grad: Tensor) -> Tensor:
    """A gradient written together with its loss, times the loss's own gradient (which mostly is 1), in place."""
    if grad.is_cuda or grad.item() != 1:  # on a GPU nobody waits for it: the kernel looks
        _scale_gradient_(ready, grad)
    return ready


def _class_dim(input: Tensor) -> int:
    return 0 if input.dim() == 1 else 1


def _along_classes(vector: Tensor, input: Tensor) -> Tensor:
    return vector.reshape(vector.shape + (1,) * (input.dim() - _class_dim(input) - 1))


def _coefficients(
    input: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore_index: int, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """a and d such that loss = -sum(a * log_softmax(input)) / d, with a of input's shape. For derivatives that no kernel has."""
    dim = _class_dim(input)
    if target.is_floating_point():
        a = target * (1 - label_smoothing) + label_smoothing / input.shape[dim]
        if weight is not None:
            a = a * _along_classes(weight, input)
        count = torch.tensor(input.numel() // input.shape[dim], dtype=input.dtype, device=input.device)
    else:
        target = target.long() if input.dim() > 1 else target.long().reshape(())
        counts = target != ignore_index
        index = torch.where(counts, target, 0)
        w = torch.ones(input.shape[dim], dtype=input.dtype, device=input.device) if weight is None else weight
        w_target = w[index] * counts
        a = torch.zeros_like(input).scatter(dim, index.unsqueeze(dim), ((1 - label_smoothing) * w_target).unsqueeze(dim))
        if label_smoothing > 0:
            a = a + counts.unsqueeze(dim) * _along_classes(w, input) * (label_smoothing / input.shape[dim])
        count = w_target.sum()
    return a, count if reduction == 1 else torch.ones_like(count)


def _composed_cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore_index: int, label_smoothing: float
) -> Tensor:
    """The loss from log_softmax and small torch ops: differentiable in everything, any number of times."""
    a, count = _coefficients(input, target, weight, reduction, ignore_index, label_smoothing)
    logs = _log_softmax(input, _class_dim(input), 3, None)
    loss = -(a * logs).sum(_class_dim(input))
    return loss if reduction == 0 else loss.sum() / count


def _forward_cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore_index: int, label_smoothing: float, fuse: bool
) -> Any:
    if fuse:
        return _cross_entropy_with_grad(input, target, weight, reduction, ignore_index, label_smoothing)
    return _cross_entropy(input, target, weight, reduction, ignore_index, label_smoothing), None


def _save_cross_entropy(ctx: Any, args: tuple[Any, ...], outputs: tuple[Tensor, Tensor | None]) -> None:
    input, target, weight, *ctx.options, _ = args
    ctx.ready = outputs[1]  # the first backward gives it away; another one computes it again
    ctx.save_for_backward(input, target, weight)


def _backward_cross_entropy(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    input, target, weight = ctx.saved_tensors
    ready, ctx.ready = ctx.ready, None
    if needs_grad(grad, input):  # the gradient will itself be differentiated
        with torch.enable_grad():
            a, count = _coefficients(input, target, weight, *ctx.options)
            scale = grad.unsqueeze(_class_dim(input)) if ctx.options[0] == 0 else grad / count
            p = _softmax(input, _class_dim(input), 3, None)
            result = scale * (p * a.sum(_class_dim(input), keepdim=True) - a)
    elif ready is not None:
        result = _scaled(ready, grad)
    else:
        result = _cross_entropy_backward(grad, input, target, weight, *ctx.options)
    return result, None, None, None, None, None, None


_cross_entropy_grad = differentiable("CrossEntropy", _forward_cross_entropy, _save_cross_entropy, _backward_cross_entropy, one_result=True)


def _check_classes(op: str, input: Tensor, target: Tensor, weight: Tensor | None) -> None:
    """torch's errors for class indices; in the order torch finds them."""
    n = input.dim()
    if n < 1:
        raise ValueError(f"{op}: expected 1 or more dimensions, got a scalar input")
    if target.dtype not in (torch.int64, torch.uint8):
        raise RuntimeError(f"{op}: expected target dtype to be Long or Byte, but got {target.dtype}")
    if n == 1:
        if target.dim() > 1:
            raise RuntimeError(f"{op}: 0D or 1D target tensor expected for a 1D input, got size {tuple(target.shape)}")
        if target.dim() == 1 and target.shape[0] != 1:
            raise ValueError(f"{op}: for 1D input, 1D target must have size 1, but got target size {target.shape[0]}")
    else:
        if target.dim() == 0 or target.shape[0] != input.shape[0]:
            got = target.shape[0] if target.dim() else "none"
            raise ValueError(f"{op}: expected input batch_size ({input.shape[0]}) to match target batch_size ({got})")
        if target.shape[1:] != input.shape[2:]:
            want = (input.shape[0], *input.shape[2:])
            raise RuntimeError(f"{op}: expected target size {want} for input {tuple(input.shape)}, got {tuple(target.shape)}")
    _check_float(op, input)
    if weight is not None:
        classes = input.shape[0 if n == 1 else 1]
        if weight.dim() != 1 or weight.shape[0] != classes:
            raise RuntimeError(
                f"{op}: weight tensor should be defined either for all {classes} classes or no classes "
                f"but got weight tensor of shape: {list(weight.shape)}"
            )
        if weight.dtype != input.dtype:
            raise RuntimeError(f"{op}: expected weight of input's dtype {input.dtype}, but found {weight.dtype}")
        if weight.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(f"{op}: not differentiable with respect to weight when target holds class indices")


def _prepare_soft(
    input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """torch's errors for class probabilities, and everything in one dtype."""
    if not target.is_floating_point():
        raise RuntimeError(f"cross_entropy: expected floating point type for target with class probabilities, got {target.dtype}")
    if ignore_index >= 0:
        raise RuntimeError(f"cross_entropy: ignore_index is not supported for floating point target, got {ignore_index}")
    if input.dim() < 1:
        raise IndexError("cross_entropy: expected 1 or more dimensions, got a scalar input")
    _check_float("cross_entropy", input)
    classes = input.shape[_class_dim(input)]
    if weight is not None and (weight.dim() != 1 or weight.shape[0] != classes):
        raise RuntimeError(
            f"cross_entropy: weight tensor should be defined either for all {classes} classes or no classes "
            f"but got weight tensor of shape: {list(weight.shape)}"
        )
    dtype = torch.promote_types(input.dtype, target.dtype)
    if weight is not None:
        dtype = torch.promote_types(dtype, weight.dtype)
        weight = weight.to(dtype)
    return input.to(dtype), target.to(dtype), weight


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of scores against class indices or class probabilities, without storing probabilities.

    input: (C,), (N, C) or (N, C, d1, ...) scores; float32, float64, bfloat16, float16; row-major and channels_last are read as
    they are. target: int64 or uint8 indices of shape (), (N,) or (N, d1, ...), or probabilities of input's shape.
    weight: (C,) of input's dtype. The mean divides by the summed weights of the targets that are not ``ignore_index``; where
    there is none it is NaN, as in torch. At random initialisation the loss is about ln C.
    The result has input's dtype (the promoted one for probabilities); under autocast float32.

    Where input alone needs a gradient and the reduction is mean or sum, the gradient is written in the same pass as the loss.
    Differentiable any number of times (beyond the first from small ops); with probabilities also in target and weight.
    Raises IndexError naming position and value of a class index out of range, ValueError and RuntimeError as torch does for
    shapes and dtypes that do not fit, NotImplementedError for input dtypes without a kernel. Source: csrc/loss/cross_entropy*.
    """
    number = _reduction_number(reduction, size_average, reduce)
    input, weight = autocast_float32(input, weight)
    if label_smoothing > 1:
        raise RuntimeError(f"cross_entropy: label_smoothing must be between 0.0 and 1.0. Got: {label_smoothing}")
    if not label_smoothing > 0:  # torch takes negative and NaN as none
        label_smoothing = 0.0
    if target.shape == input.shape:
        input, target, weight = _prepare_soft(input, target, weight, ignore_index, label_smoothing)
    else:
        if input.dim() == 0:
            raise IndexError("cross_entropy: expected 1 or more dimensions, got a scalar input")
        _check_classes("cross_entropy", input, target, weight)
    if needs_grad(target, weight):
        return _composed_cross_entropy(input, target, weight, number, ignore_index, label_smoothing)
    if needs_grad(input):
        fuse = number != 0 and not _in_transform()
        return _cross_entropy_grad(input, target, weight, number, ignore_index, label_smoothing, fuse)
    return _cross_entropy(input, target, weight, number, ignore_index, label_smoothing)


_nll_loss = _ext.op("nll_loss")
_nll_loss_backward = _ext.op("nll_loss_backward")


@_ext.fake("nll_loss")
def _(input: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore_index: int) -> Tensor:
    return input.new_empty(_sample_shape(input) if reduction == 0 else [])


@_ext.fake("nll_loss_backward")
def _(grad: Tensor, input: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore_index: int) -> Tensor:
    return _empty_grad(input)


def _save_nll(ctx: Any, args: tuple[Any, ...], loss: Tensor) -> None:
    input, target, weight, *ctx.options = args
    ctx.save_for_backward(input, target, weight)


def _backward_nll(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    input, target, weight = ctx.saved_tensors
    run = _nll_backward_grad if needs_grad(grad) else _nll_loss_backward
    return run(grad, input.detach(), target, weight, *ctx.options), None, None, None, None


def _save_nll_backward(ctx: Any, args: tuple[Any, ...], grad_input: Tensor) -> None:
    _, _, target, weight, *ctx.options = args
    ctx.save_for_backward(target, weight)


def _second_nll(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    target, weight = ctx.saved_tensors  # the backward is linear in the loss's gradient: its own backward is the loss again
    return _nll(grad, target, weight, *ctx.options), None, None, None, None, None


_nll_grad = differentiable("NllLoss", _nll_loss, _save_nll, _backward_nll)
_nll_backward_grad = differentiable("NllLossBackward", _nll_loss_backward, _save_nll_backward, _second_nll)


def _nll(input: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore_index: int) -> Tensor:
    return (_nll_grad if needs_grad(input) else _nll_loss)(input, target, weight, reduction, ignore_index)


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """-weight[target] * input[target]: the loss of log-probabilities against class indices.

    Shapes and reductions are those of `cross_entropy` with class indices; float32, float64, bfloat16, float16.
    Differentiable any number of times in input. Raises what `cross_entropy` raises. Source: csrc/loss/nll*.
    """
    number = _reduction_number(reduction, size_average, reduce)
    input, weight = autocast_float32(input, weight)
    _check_classes("nll_loss", input, target, weight)
    return _nll(input, target, weight, number, ignore_index)
