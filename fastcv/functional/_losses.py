"""multi_margin_loss, kl_div and soft_iou_loss; kernels of the same names in csrc/loss."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn import _reduction as _Reduction

from .. import _ext
from ._common import autocast_float32, differentiable, needs_grad
from ._loss_common import _check_float, _reduction_number

_multi_margin_loss = _ext.op("multi_margin_loss")
_multi_margin_loss_backward = _ext.op("multi_margin_loss_backward")


@_ext.fake("multi_margin_loss")
def _(input: Tensor, target: Tensor, p: int, margin: float, weight: Tensor | None, reduction: int) -> Tensor:
    return input.new_empty([input.shape[0]] if reduction == 0 else [])


@_ext.fake("multi_margin_loss_backward")
def _(grad: Tensor, input: Tensor, target: Tensor, p: int, margin: float, weight: Tensor | None, reduction: int) -> Tensor:
    return input.new_empty(input.shape)


def _save_margin(ctx: Any, args: tuple[Any, ...], loss: Tensor) -> None:
    input, target, ctx.p, ctx.margin, weight, ctx.reduction = args
    ctx.save_for_backward(input, target, weight)


def _backward_margin(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    input, target, weight = ctx.saved_tensors
    if needs_grad(grad, input):  # second order, from small torch ops
        with torch.enable_grad():
            index = target.unsqueeze(1)
            slack = ctx.margin - input.gather(1, index) + input
            active = (slack > 0).scatter(1, index, False)
            scale = (grad / input.shape[0] if ctx.reduction == 1 else grad) / input.shape[1]
            if weight is not None:
                scale = scale * weight[target]
            slope = torch.where(active, slack * 2 if ctx.p == 2 else torch.ones_like(slack), 0) * scale.expand(input.shape[0]).unsqueeze(1)
            result = slope.scatter_add(1, index, -slope.sum(1, keepdim=True))
    else:
        result = _multi_margin_loss_backward(grad, input, target, ctx.p, ctx.margin, weight, ctx.reduction)
    return result, None, None, None, None, None


_margin_grad = differentiable("MultiMarginLoss", _multi_margin_loss, _save_margin, _backward_margin)


def multi_margin_loss(
    input: Tensor,
    target: Tensor,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The multiclass hinge loss: weight[t] / C * sum over c != t of max(0, margin - x[t] + x[c]) ** p, p in {1, 2}.

    input: (N, C), (C,) or (); float32, float64, bfloat16, float16. target: int64 of shape (N,), () or (1,). weight: (C,) of
    input's dtype. The sum over wrong classes without the division by C ("SVM loss") is C times this. Of an empty batch the
    sum is 0 and the mean NaN. Differentiable any number of times in input (beyond the first from small ops).
    Raises ValueError for another p or a weight that is no vector, RuntimeError for other shapes, dtypes and targets out of
    range. Source: csrc/loss/multi_margin*.
    """
    number = _reduction_number(reduction, size_average, reduce)
    if p != 1 and p != 2:
        raise ValueError(f"only p == 1 and p == 2 supported, got p={p}")
    if weight is not None and weight.dim() != 1:
        raise ValueError(f"weight must be one-dimensional, got shape {tuple(weight.shape)}")
    input, weight = autocast_float32(input, weight)
    if input.dim() > 2 or input.shape[-1:].numel() == 0:
        raise RuntimeError(f"expected non-empty vector or matrix with optional 0-dim batch size, but got: {list(input.shape)}")
    _check_float("multi_margin_loss", input)
    classes = input.shape[-1] if input.dim() else 1
    rows = input.shape[0] if input.dim() == 2 else 1
    if target.dim() > 1 or target.numel() != rows:
        raise RuntimeError(f"multi_margin_loss: expected target size [{rows}] for input {list(input.shape)}, got {list(target.shape)}")
    if target.dtype != torch.int64:
        raise RuntimeError(f"multi_margin_loss: expected target of dtype torch.int64, got {target.dtype}")
    if weight is not None:
        if weight.numel() != classes:
            raise RuntimeError(f"multi_margin_loss: inconsistent weight size, expected {classes} but got {list(weight.shape)}")
        if weight.dtype != input.dtype:
            raise RuntimeError(f"multi_margin_loss: expected weight of input's dtype {input.dtype}, got {weight.dtype}")
        if weight.requires_grad and torch.is_grad_enabled():
            raise RuntimeError("multi_margin_loss: not differentiable with respect to weight")
    scalar_result = target.dim() == 0
    run = _margin_grad if needs_grad(input) else _multi_margin_loss
    if input.dim() != 2 or scalar_result:
        input, target = input.reshape(rows, classes), target.reshape(rows)
    loss = run(input, target, int(p), float(margin), weight, number)
    return loss.reshape(()) if scalar_result else loss


_kl_div = _ext.op("kl_div")
_kl_div_backward = _ext.op("kl_div_backward")


@_ext.fake("kl_div")
def _(input: Tensor, target: Tensor, reduce: bool, divisor: float, log_target: bool) -> Tensor:
    return input.new_empty([] if reduce else input.shape)


@_ext.fake("kl_div_backward")
def _(
    grad: Tensor, input: Tensor, target: Tensor, reduce: bool, divisor: float, log_target: bool, need_input: bool, need_target: bool
) -> tuple[Tensor, Tensor]:
    return input.new_empty(input.shape if need_input else [0]), input.new_empty(input.shape if need_target else [0])


def _save_kl(ctx: Any, args: tuple[Any, ...], loss: Tensor) -> None:
    input, target, *ctx.options = args
    ctx.save_for_backward(input, target)


def _backward_kl(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    input, target = ctx.saved_tensors
    reduce, divisor, log_target = ctx.options
    need_input, need_target = ctx.needs_input_grad[:2]
    if needs_grad(grad, input, target):  # second order, from small torch ops
        with torch.enable_grad():
            g = grad / divisor if reduce else grad
            e = target.exp() if log_target else target
            dx = -e * g if need_input else None
            dt = None
            if need_target:
                dt = g * (e * (target - input + 1) if log_target else target.log() + target / target - input)
        return dx, dt, None, None, None
    dx, dt = _kl_div_backward(grad, input, target, *ctx.options, need_input, need_target)
    return dx if need_input else None, dt if need_target else None, None, None, None


_kl_grad = differentiable("KlDiv", _kl_div, _save_kl, _backward_kl)


def kl_div(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    log_target: bool = False,
) -> Tensor:
    """The Kullback-Leibler divergence, element by element: target * (log target - input), 0 log 0 = 0; input is a log-probability.

    With ``log_target`` exp(target) * (target - input). input, target: shapes that broadcast, float32, float64, bfloat16, float16,
    promoted to one dtype. reduction: "none", "mean" (over all elements; warns, as torch does), "batchmean" (over the first
    dimension: the mathematical definition), "sum". KL(P, Q) = H(P, Q) - H(P) is kl_div(log Q, P, reduction="sum").
    Differentiable any number of times in both. Raises RuntimeError for integers, complex numbers and shapes that do not
    broadcast, ValueError for an unknown reduction. Source: csrc/loss/kl_div*.
    """
    if size_average is not None or reduce is not None:
        number = _Reduction.legacy_get_enum(size_average, reduce)
    else:
        if reduction == "mean" and not torch.compiler.is_compiling():
            warnings.warn(
                "reduction: 'mean' divides the total loss by both the batch size and the support size. "
                "'batchmean' divides only by the batch size, and aligns with the KL div math definition.",
                stacklevel=2,
            )
        number = 2 if reduction == "batchmean" else _Reduction.get_enum(reduction)
    for t in (input, target):
        if t.is_complex():
            raise RuntimeError(f"kl_div: complex inputs not supported, got {t.dtype}")
        if not t.is_floating_point():
            raise RuntimeError(f"kl_div: integral inputs not supported, got {t.dtype}")
    batch = input.shape[0] if input.dim() else 1
    input, target = autocast_float32(input, target)
    dtype = torch.promote_types(input.dtype, target.dtype)
    input, target = torch.broadcast_tensors(input.to(dtype), target.to(dtype))
    _check_float("kl_div", input)
    order = None
    if input.dim() > 1 and not target.is_contiguous():  # as in torch, the result takes the order of target's dimensions
        order = sorted(range(input.dim()), key=lambda d: -target.stride(d))
        input, target = input.permute(order), target.permute(order)
    divisor = input.numel() if number == 1 else batch if reduction == "batchmean" else 1
    traced = torch.compiler.is_compiling()  # where the op's float would fix the sizes that it is made of
    run = _kl_grad if needs_grad(input, target) else _kl_div
    loss = run(input, target, number != 0, 1.0 if traced else float(divisor), log_target)
    if traced and number != 0:
        loss = loss / divisor
    if number == 0 and order is not None:
        return loss.permute(sorted(range(len(order)), key=order.__getitem__))
    return loss


_soft_iou_loss = _ext.op("soft_iou_loss")
_soft_iou_loss_backward = _ext.op("soft_iou_loss_backward")


@_ext.fake("soft_iou_loss")
def _(input: Tensor, target: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return input.new_empty([input.shape[0]]), input.new_empty([input.shape[0], 2], dtype=torch.float64)


@_ext.fake("soft_iou_loss_backward")
def _(grad: Tensor, input: Tensor, target: Tensor, sums: Tensor, eps: float, need_input: bool, need_target: bool) -> tuple[Tensor, Tensor]:
    return input.new_empty(input.shape if need_input else [0]), input.new_empty(input.shape if need_target else [0])


def _save_iou(ctx: Any, args: tuple[Any, ...], outputs: tuple[Tensor, Tensor]) -> None:
    input, target, ctx.eps = args
    ctx.save_for_backward(input, target, outputs[1])


def _backward_iou(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    input, target, sums = ctx.saved_tensors
    need_input, need_target = ctx.needs_input_grad[:2]
    if needs_grad(grad, input, target):  # second order, from small torch ops
        with torch.enable_grad():
            both = (input * target).sum(1, keepdim=True) + ctx.eps
            either = (input + target - input * target).sum(1, keepdim=True) + ctx.eps
            scale = grad.unsqueeze(1) / either.square()
            dx, dt = (scale * (both * (1 - other) - either * other) for other in (target, input))
    else:
        dx, dt = _soft_iou_loss_backward(grad, input, target, sums, ctx.eps, need_input, need_target)
    return dx if need_input else None, dt if need_target else None, None


_iou_grad = differentiable("SoftIouLoss", _soft_iou_loss, _save_iou, _backward_iou, one_result=True)


def soft_iou_loss(input: Tensor, target: Tensor, reduction: str = "whole", eps: float = 0.0) -> Tensor:
    """1 - (sum(X*Y) + eps) / (sum(X + Y - X*Y) + eps): the soft intersection over union of probabilities X and a mask Y.

    input, target: one shape, values in [0, 1]; float32, float64, bfloat16, float16, promoted to one dtype.
    reduction: "whole" sums over all elements, as the formula is written, and gives a scalar; the others take one ratio per sample
    (the first dimension) and give (N,) for "none", their "mean" or their "sum". Where both are empty masks the loss is 0.
    Differentiable any number of times in both. Raises ValueError for shapes that differ, a negative eps or an unknown reduction,
    RuntimeError for integers. Source: csrc/loss/soft_iou*.
    """
    if input.shape != target.shape:
        raise ValueError(f"soft_iou_loss: expected input and target of one shape, got {tuple(input.shape)} and {tuple(target.shape)}")
    if reduction not in ("whole", "none", "mean", "sum"):
        raise ValueError(f"{reduction} is not a valid value for reduction; it is one of whole, none, mean, sum")
    if not eps >= 0:
        raise ValueError(f"soft_iou_loss: eps must not be negative, got {eps}")
    if not (input.is_floating_point() and target.is_floating_point()):
        raise RuntimeError(f"soft_iou_loss: expected floating tensors, got {input.dtype} and {target.dtype}")
    if reduction != "whole" and input.dim() == 0:
        raise ValueError(f"soft_iou_loss: reduction {reduction} needs a batch dimension, got a scalar")
    input, target = autocast_float32(input, target)
    dtype = torch.promote_types(input.dtype, target.dtype)
    groups = 1 if reduction == "whole" else input.shape[0]
    size = (groups, input.numel() // groups if groups else 0)
    input, target = (t.to(dtype).reshape(size) for t in (input, target))
    _check_float("soft_iou_loss", input)
    loss = _iou_grad(input, target, eps) if needs_grad(input, target) else _soft_iou_loss(input, target, eps)[0]
    if reduction == "whole":
        return loss.reshape(())
    return loss if reduction == "none" else loss.mean() if reduction == "mean" else loss.sum()
