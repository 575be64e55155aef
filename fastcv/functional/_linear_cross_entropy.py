"""linear_cross_entropy; kernels in csrc/loss/linear_cross_entropy*."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _ext
from ._common import autocast_float32, differentiable, needs_grad
from ._cross_entropy import _check_classes, _composed_cross_entropy, _prepare_soft, _scaled
from ._loss_common import _check_float, _in_transform, _reduction_number

_linear_cross_entropy = _ext.op("linear_cross_entropy")
_linear_cross_entropy_with_grad = _ext.op("linear_cross_entropy_with_grad")
_linear_cross_entropy_backward = _ext.op("linear_cross_entropy_backward")


def _linear_grads(input: Tensor, linear_weight: Tensor, needs: tuple[bool, ...]) -> tuple[Tensor, ...]:
    shapes = (input.shape, linear_weight.shape, linear_weight.shape[:1])
    return tuple(input.new_empty(shape if need else [0]) for shape, need in zip(shapes, needs, strict=True))


@_ext.fake("linear_cross_entropy")
def _(input: Tensor, linear_weight: Tensor, linear_bias: Any, target: Tensor, weight: Any, reduction: int, *_: Any) -> Tensor:
    return input.new_empty([input.shape[0]] if reduction == 0 else [])


@_ext.fake("linear_cross_entropy_with_grad")
def _(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    reduction: int,
    ignore_index: int,
    label_smoothing: float,
    *needs: bool,
) -> tuple[Tensor, ...]:
    return input.new_empty([]), *_linear_grads(input, linear_weight, needs)


@_ext.fake("linear_cross_entropy_backward")
def _(
    grad: Tensor,
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    reduction: int,
    ignore_index: int,
    label_smoothing: float,
    *needs: bool,
) -> tuple[Tensor, ...]:
    return _linear_grads(input, linear_weight, needs)


def _forward_linear(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, *rest: Any) -> tuple[Any, ...]:
    *options, needs = rest
    if needs is not None:
        return _linear_cross_entropy_with_grad(input, linear_weight, linear_bias, *options, *needs)
    return _linear_cross_entropy(input, linear_weight, linear_bias, *options), None, None, None


def _save_linear(ctx: Any, args: tuple[Any, ...], outputs: tuple[Tensor | None, ...]) -> None:
    input, linear_weight, linear_bias, target, weight, *ctx.options, _ = args
    ctx.ready = outputs[1:]  # as for cross_entropy
    ctx.save_for_backward(input, linear_weight, linear_bias, target, weight)


def _backward_linear(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    input, linear_weight, linear_bias, target, weight = ctx.saved_tensors
    ready, ctx.ready = ctx.ready, None
    leaves = (input, linear_weight, linear_bias)
    needs = ctx.needs_input_grad[:3]
    if needs_grad(grad, *leaves):  # the gradients will themselves be differentiated
        wanted = [t for t, need in zip(leaves, needs, strict=True) if need]

        def loss(*values: Tensor) -> Tensor:
            given = iter(values)
            return _composed_linear(
                *(next(given) if need else t for t, need in zip(leaves, needs, strict=True)), target, weight, *ctx.options
            )

        if torch._C._are_functorch_transforms_active():
            found = iter(torch.func.vjp(loss, *wanted)[1](grad))
        else:
            with torch.enable_grad():
                found = iter(torch.autograd.grad(loss(*wanted), wanted, grad, create_graph=True))
        results = [next(found) if need else None for need in needs]
    elif ready is not None and ready[0] is not None:
        results = [_scaled(g, grad) if need else None for g, need in zip(ready, needs, strict=True)]
    else:
        found = _linear_cross_entropy_backward(grad, *leaves, target, weight, *ctx.options, *needs)
        results = [g if need else None for g, need in zip(found, needs, strict=True)]
    return *results, *(None,) * 6


_linear_grad = differentiable("LinearCrossEntropy", _forward_linear, _save_linear, _backward_linear, one_result=True)


def _composed_linear(
    input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, target: Tensor, weight: Tensor | None, *options: Any
) -> Tensor:
    """With the scores stored and torch's matrix product: only for derivatives that no kernel has."""
    return _composed_cross_entropy(torch.nn.functional.linear(input, linear_weight, linear_bias), target, weight, *options)


def _linear_loss(
    input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, target: Tensor, weight: Tensor | None, *options: Any
) -> Tensor:
    if needs_grad(target, weight):
        return _composed_linear(input, linear_weight, linear_bias, target, weight, *options)
    if needs_grad(input, linear_weight, linear_bias):
        fuse = options[0] != 0 and not _in_transform()
        needs = tuple(t is not None and t.requires_grad for t in (input, linear_weight, linear_bias)) if fuse else None
        return _linear_grad(input, linear_weight, linear_bias, target, weight, *options, needs)
    return _linear_cross_entropy(input, linear_weight, linear_bias, target, weight, *options)


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: Any = None,
) -> Tensor:
    """cross_entropy(linear(input, linear_weight, linear_bias), target, ...) without storing the matrix of scores.

    input: (features,) or (N, features); linear_weight: (C, features), or (C, d1, ..., features) for a loss of K dimensions;
    linear_bias: (C, d1, ...); target, weight and the rest as in `cross_entropy`; one dtype of float32, float64, bfloat16, float16.
    Scores are made for a chunk of rows at a time (at most about two million), in eager mode together with the gradients, and
    gradients cost no more memory than themselves. ``options`` is accepted for torch's signature; there is nothing to choose.
    Differentiable any number of times; beyond the first order, and in target and weight, the scores are stored.
    Raises RuntimeError for shapes that do not fit, else as `cross_entropy`. Source: csrc/loss/linear_cross_entropy*.
    """
    if not 1 <= input.dim() <= 2:
        raise RuntimeError(f"expected input with dimensionality 1 or 2, got {input.dim()}")
    if linear_weight.dim() < 2:
        raise RuntimeError(f"expected linear_weight with dimensionality at least 2, got {linear_weight.dim()}")
    features = input.shape[-1]
    if features != linear_weight.shape[-1]:
        raise RuntimeError(f"expected equal last dimensions of input and linear_weight, got {features} and {linear_weight.shape[-1]}")
    classes, extra = linear_weight.shape[0], linear_weight.shape[1:-1]
    if linear_bias is not None and linear_bias.shape != linear_weight.shape[:-1]:
        raise RuntimeError(f"expected linear_bias shape {tuple(linear_weight.shape[:-1])}, got {tuple(linear_bias.shape)}")
    if extra and input.dim() == 1:
        raise RuntimeError(f"linear_weight of shape {tuple(linear_weight.shape)} requires batched input (N, {features})")
    scores = torch.empty((*input.shape[:-1], classes, *extra), dtype=input.dtype, device="meta")  # for checks of shape and dtype
    soft = target.shape == scores.shape
    if soft and ignore_index is not None:
        raise RuntimeError("ignore_index cannot be specified when target contains probabilities")
    number = _reduction_number(reduction, None, None)
    ignore_index = -100 if ignore_index is None else ignore_index
    input, linear_weight, linear_bias, weight = autocast_float32(input, linear_weight, linear_bias, weight)
    if input.dtype != linear_weight.dtype or (linear_bias is not None and linear_bias.dtype != input.dtype):
        raise RuntimeError(f"expected input, linear_weight and linear_bias of one dtype, got {input.dtype} and {linear_weight.dtype}")
    _check_float("linear_cross_entropy", input)
    if soft:
        dtype = input.dtype
        _, target, weight = _prepare_soft(scores.to(dtype), target, weight, ignore_index, label_smoothing)
        input, linear_weight = input.to(target.dtype), linear_weight.to(target.dtype)
        linear_bias = None if linear_bias is None else linear_bias.to(target.dtype)
    else:
        _check_classes("linear_cross_entropy", scores.to(input.dtype), target, weight)
    if not 0 < label_smoothing <= 1:
        if label_smoothing > 1:
            raise RuntimeError(f"linear_cross_entropy: label_smoothing must be between 0.0 and 1.0. Got: {label_smoothing}")
        label_smoothing = 0.0
    if input.dim() == 1:
        flat = target.reshape(1, classes) if soft else target.reshape(1)
        loss = _linear_loss(input.unsqueeze(0), linear_weight, linear_bias, flat, weight, number, ignore_index, label_smoothing)
        return loss.squeeze(0) if number == 0 else loss
    if not extra:
        return _linear_loss(input, linear_weight, linear_bias, target, weight, number, ignore_index, label_smoothing)
    # A loss of K dimensions: one call per position, reduced here.
    weights = linear_weight.reshape(classes, -1, features).unbind(1)
    biases = [None] * len(weights) if linear_bias is None else linear_bias.reshape(classes, -1).unbind(1)
    targets = target.reshape(input.shape[0], classes, -1).unbind(2) if soft else target.reshape(input.shape[0], -1).unbind(1)
    options_ = (weight, 0, ignore_index, label_smoothing)
    losses = [_linear_loss(input, w, b, t, *options_) for w, b, t in zip(weights, biases, targets, strict=True)]
    loss = torch.stack(losses, 1).reshape(input.shape[0], *extra)
    if number == 0:
        return loss
    if number == 2:
        return loss.sum()
    if soft:
        return loss.mean()
    counts = target != ignore_index
    return loss.sum() / (counts.sum() if weight is None else (weight[torch.where(counts, target.long(), 0)] * counts).sum())
