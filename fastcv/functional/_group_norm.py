"""Group and layer norm behind their public functions: fake kernels, batching rules, autograd of the raw ops of csrc/norm."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from .. import _ext
from ._batch_norm import DBIAS, DWEIGHT, DX, Vector, fold, fold_vector, unfold, unfold_vector, vector_like
from ._common import differentiable, empty_as, is_channels_last, needs_grad
from ._norm_second_order import cast, second_order, summed, widen

group = _ext.op("group_norm")
layer = _ext.op("layer_norm")
_group_backward = _ext.op("group_norm_backward")
_layer_backward = _ext.op("layer_norm_backward")


# Fake kernels ------------------------------------------------------------------------------------------------------------------


@_ext.fake("group_norm")
def _(input: Tensor, num_groups: int, weight: Vector, bias: Vector, eps: float) -> tuple[Tensor, ...]:
    statistics = [input.new_empty((input.shape[0], num_groups), dtype=torch.float64) for _ in range(2)]
    return empty_as(input, input.shape, channels_last=is_channels_last(input)), *statistics


@_ext.fake("group_norm_backward")
def _(
    grad: Tensor,
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    num_groups: int,
    weight: Vector,
    bias: Vector,
    eps: float,
    wanted: int,
) -> tuple[Tensor, ...]:
    dx = empty_as(input, input.shape, channels_last=is_channels_last(input)) if wanted & DX else input.new_empty(0)
    return dx, vector_like(weight, wanted & DWEIGHT, input), vector_like(bias, wanted & DBIAS, input)


@_ext.fake("layer_norm")
def _(input: Tensor, dims: int, weight: Vector, bias: Vector, eps: float) -> tuple[Tensor, ...]:
    statistics = [input.new_empty(input.shape[: input.dim() - dims], dtype=torch.float64) for _ in range(2)]
    return input.new_empty(input.shape), *statistics


@_ext.fake("layer_norm_backward")
def _(
    grad: Tensor, input: Tensor, mean: Tensor, var: Tensor, dims: int, weight: Vector, bias: Vector, eps: float, wanted: int
) -> tuple[Tensor, ...]:
    dx = input.new_empty(input.shape if wanted & DX else 0)
    return dx, vector_like(weight, wanted & DWEIGHT, input), vector_like(bias, wanted & DBIAS, input)


# Batching ----------------------------------------------------------------------------------------------------------------------


@_ext.vmap("group_norm")
def _(info: Any, in_dims: Any, input: Tensor, num_groups: int, weight: Vector, bias: Vector, eps: float) -> Any:
    """The mapped dimension becomes part of the channels, and each of its entries brings its own groups."""
    size = info.batch_size
    vectors = fold_vector(weight, in_dims[2], size), fold_vector(bias, in_dims[3], size)
    y, mean, var = group(fold(input, in_dims[0], size), num_groups * size, *vectors, eps)
    return (unfold(y, size), unfold(mean, size), unfold(var, size)), (1, 1, 1)


@_ext.vmap("group_norm_backward")
def _(
    info: Any,
    in_dims: Any,
    grad: Tensor,
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    num_groups: int,
    weight: Vector,
    bias: Vector,
    eps: float,
    wanted: int,
) -> Any:
    size = info.batch_size
    images = [fold(t, d, size) for t, d in zip((grad, input, mean, var), in_dims[:4], strict=True)]
    vectors = fold_vector(weight, in_dims[5], size), fold_vector(bias, in_dims[6], size)
    dx, dweight, dbias = _group_backward(*images, num_groups * size, *vectors, eps, wanted)
    return (unfold(dx, size), unfold_vector(dweight, size), unfold_vector(dbias, size)), (1 if dx.dim() > 1 else None, 0, 0)


def _one_by_one(op: Any, info: Any, in_dims: Any, args: tuple[Any, ...]) -> Any:
    results = [op(*(a if d is None else a.select(d, i) for a, d in zip(args, in_dims, strict=True))) for i in range(info.batch_size)]
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True)), (0,) * len(results[0])


@_ext.vmap("layer_norm")
def _(info: Any, in_dims: Any, input: Tensor, dims: int, weight: Vector, bias: Vector, eps: float) -> Any:
    """Leading dimensions are rows already; only weights that are mapped too need a call for each entry."""
    if in_dims[2] is not None or in_dims[3] is not None:
        return _one_by_one(layer, info, in_dims, (input, dims, weight, bias, eps))
    return layer(input.movedim(in_dims[0], 0), dims, weight, bias, eps), (0, 0, 0)


@_ext.vmap("layer_norm_backward")
def _(info: Any, in_dims: Any, *args: Any) -> Any:
    return _one_by_one(_layer_backward, info, in_dims, args)


# Autograd ----------------------------------------------------------------------------------------------------------------------


def _save_backward(ctx: Any, args: tuple[Any, ...], outputs: Any) -> None:
    grad, input, _mean, _var, size, weight, _bias, eps, wanted = args
    ctx.save_for_backward(grad, input, weight)
    ctx.scalars = size, eps, wanted
    ctx.set_materialize_grads(False)


def _second_order(
    ctx: Any, ups: tuple[Vector, ...], shape: list[int], vector: list[int], dims: list[int], rest: list[int]
) -> tuple[Any, ...]:
    """shape: what input is viewed as; vector: what weight and bias are; dims: normalised over; rest: summed over for the weight."""
    grad, input, weight = ctx.saved_tensors
    _, eps, wanted = ctx.scalars
    v, vw, vb = (t if wanted & bit else None for t, bit in zip(ups, (DX, DWEIGHT, DBIAS), strict=True))
    g, x, w, v, vw, vb = widen(grad, input, weight, v, vw, vb)
    g, x, v = (None if t is None else t.reshape(shape) for t in (g, x, v))
    w, vw, vb = (None if t is None else t.reshape(vector) for t in (w, vw, vb))
    dg, dx, dw = second_order(v, vw, vb, g, x, w, dims, eps)
    return cast(dg, grad), cast(dx, input), None, None, None, summed(dw, rest, weight), None, None, None


def _group_double_backward(ctx: Any, *ups: Vector) -> tuple[Any, ...]:
    groups = ctx.scalars[0]
    n, c, *spatial = ctx.saved_tensors[1].shape
    return _second_order(ctx, ups, [n, groups, c // groups, prod(spatial)], [1, groups, c // groups, 1], [2, 3], [0, 3])


def _layer_double_backward(ctx: Any, *ups: Vector) -> tuple[Any, ...]:
    sizes, dims = ctx.saved_tensors[1].shape, ctx.scalars[0]
    count = prod(sizes[-dims:])
    return _second_order(ctx, ups, [prod(sizes[:-dims]), count], [1, count], [1], [0])


_group_backward_with_grad = differentiable("GroupNormBackward", _group_backward, _save_backward, _group_double_backward)
_layer_backward_with_grad = differentiable("LayerNormBackward", _layer_backward, _save_backward, _layer_double_backward)


def _save(ctx: Any, args: tuple[Any, ...], outputs: Any) -> None:
    input, size, weight, bias, eps = args
    ctx.save_for_backward(input, *outputs[1:], weight, bias)
    ctx.scalars = size, eps


def _backward_of(raw: Any, with_grad: Any) -> Any:
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        input, mean, var, weight, bias = ctx.saved_tensors
        size, eps = ctx.scalars
        need = ctx.needs_input_grad
        wanted = DX * need[0] | DWEIGHT * need[2] | DBIAS * need[3]
        run = with_grad if needs_grad(grad, input, weight) else raw
        dx, dweight, dbias = run(grad, input, mean, var, size, weight, bias, eps, wanted)
        return dx if need[0] else None, None, dweight if need[2] else None, dbias if need[3] else None, None

    return backward


_backward_group = _backward_of(_group_backward, _group_backward_with_grad)
group_with_grad = differentiable("GroupNorm", group, _save, _backward_group, one_result=True)
layer_with_grad = differentiable("LayerNorm", layer, _save, _backward_of(_layer_backward, _layer_backward_with_grad), one_result=True)


def _save_with_statistics(ctx: Any, args: tuple[Any, ...], outputs: Any) -> None:
    _save(ctx, args, outputs)
    ctx.mark_non_differentiable(*outputs[1:])
    ctx.set_materialize_grads(False)


def _backward_with_statistics(ctx: Any, grad: Vector, *_: Vector) -> tuple[Any, ...]:
    return (None,) * 5 if grad is None else _backward_group(ctx, grad)


# The same with mean and variance as results, for the running statistics of instance norm.
group_with_statistics = differentiable("GroupNorm", group, _save_with_statistics, _backward_with_statistics)
