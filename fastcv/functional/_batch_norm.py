"""Batch norm behind its public functions: fake kernels, batching rules, autograd of the raw ops of csrc/norm/batch_norm_torch.cpp."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _ext
from ._common import differentiable, empty_as, is_channels_last, needs_grad
from ._norm_second_order import cast, second_order, summed, widen

Vector = Tensor | None

train = _ext.op("batch_norm_train")
evaluate = _ext.op("batch_norm_eval")
_update = _ext.op("batch_norm_update_")
train_update = _ext.op("batch_norm_train_update_")
_backward = _ext.op("batch_norm_backward")

DX, DWEIGHT, DBIAS, DRESIDUAL = 1, 2, 4, 8  # what batch_norm_backward is asked for


# Fake kernels ------------------------------------------------------------------------------------------------------------------


def in_channels_last(input: Tensor) -> bool:
    """The layout of results, as csrc/norm/norm_door.h has it: what is row-major stays so, else channels_last by fact or by suggestion."""
    last = torch.channels_last if input.dim() == 4 else torch.channels_last_3d
    dense = input.dim() in (4, 5) and input.is_contiguous(memory_format=last)
    return not input.is_contiguous() and (dense or is_channels_last(input))


def empty_like(input: Tensor) -> Tensor:
    return empty_as(input, input.shape, channels_last=in_channels_last(input))


def vector_like(t: Vector, wanted: int, input: Tensor) -> Tensor:
    return t.new_empty(t.shape) if wanted and t is not None else (input if t is None else t).new_empty(0)


@_ext.fake("batch_norm_train")
def _(input: Tensor, residual: Vector, weight: Vector, bias: Vector, eps: float, slope: float, cap: float) -> tuple[Tensor, ...]:
    statistics = [input.new_empty(input.shape[1], dtype=torch.float64) for _ in range(2)]
    return empty_like(input), *statistics


@_ext.fake("batch_norm_eval")
def _(
    input: Tensor, residual: Vector, mean: Tensor, var: Tensor, weight: Vector, bias: Vector, eps: float, slope: float, cap: float
) -> Tensor:
    return empty_like(input)


@_ext.fake("batch_norm_backward")
def _(
    grad: Tensor,
    input: Tensor,
    output: Vector,
    mean: Tensor,
    var: Tensor,
    weight: Vector,
    bias: Vector,
    training: bool,
    eps: float,
    slope: float,
    cap: float,
    wanted: int,
) -> tuple[Tensor, ...]:
    dx = empty_like(input) if wanted & DX else input.new_empty(0)
    dresidual = empty_like(input) if wanted & DRESIDUAL else input.new_empty(0)
    return dx, vector_like(weight, wanted & DWEIGHT, input), vector_like(bias, wanted & DBIAS, input), dresidual


@_ext.fake("batch_norm_update_")
def _(running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, count: int, momentum: float) -> None:
    return None


@_ext.fake("batch_norm_train_update_")
def _(input: Tensor, *_: Any) -> tuple[Tensor, ...]:
    statistics = [input.new_empty(input.shape[1], dtype=torch.float64) for _ in range(2)]
    return empty_like(input), *statistics


# Batching: a mapped dimension becomes part of the channels, which are independent of each other -----------------------------------


def fold(t: Vector, dim: int | None, size: int) -> Vector:
    """[.., B, ..] x [N, C, ...] as [N, B * C, ...]; not mapped: repeated."""
    if t is None:
        return None
    t = t.unsqueeze(1).expand(t.shape[0], size, *t.shape[1:]) if dim is None else t.movedim(dim, 1)
    return t.flatten(1, 2)


def fold_vector(t: Vector, dim: int | None, size: int) -> Vector:
    """[B, C] as [B * C]; not mapped: repeated."""
    if t is None:
        return None
    return (t.unsqueeze(0).expand(size, *t.shape) if dim is None else t.movedim(dim, 0)).flatten(0, 1)


def unfold(t: Tensor, size: int) -> Tensor:
    return t.unflatten(1, (size, t.shape[1] // size)) if t.dim() > 1 else t


def unfold_vector(t: Tensor, size: int) -> Tensor:
    return t.unflatten(0, (size, t.shape[0] // size))


@_ext.vmap("batch_norm_train")
def _(info: Any, in_dims: Any, input: Tensor, residual: Vector, weight: Vector, bias: Vector, *rest: float) -> Any:
    size = info.batch_size
    y, mean, var = train(
        fold(input, in_dims[0], size),
        fold(residual, in_dims[1], size),
        fold_vector(weight, in_dims[2], size),
        fold_vector(bias, in_dims[3], size),
        *rest,
    )
    return (unfold(y, size), unfold_vector(mean, size), unfold_vector(var, size)), (1, 0, 0)


@_ext.vmap("batch_norm_eval")
def _(info: Any, in_dims: Any, input: Tensor, residual: Vector, *rest: Any) -> Any:
    size = info.batch_size
    vectors = [fold_vector(t, d, size) for t, d in zip(rest[:4], in_dims[2:6], strict=True)]
    return unfold(evaluate(fold(input, in_dims[0], size), fold(residual, in_dims[1], size), *vectors, *rest[4:]), size), 1


@_ext.vmap("batch_norm_backward")
def _(info: Any, in_dims: Any, *args: Any) -> Any:
    size = info.batch_size
    images = [fold(t, d, size) for t, d in zip(args[:3], in_dims[:3], strict=True)]
    vectors = [fold_vector(t, d, size) for t, d in zip(args[3:7], in_dims[3:7], strict=True)]
    dx, dweight, dbias, dresidual = _backward(*images, *vectors, *args[7:])
    outputs = [unfold(dx, size), unfold_vector(dweight, size), unfold_vector(dbias, size), unfold(dresidual, size)]
    dims = (1 if dx.dim() > 1 else None, 0, 0, 1 if dresidual.dim() > 1 else None)
    return tuple(outputs), dims


@_ext.vmap("batch_norm_update_")
def _(info: Any, in_dims: Any, running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, count: int, momentum: float) -> Any:
    if in_dims[0] is None or in_dims[1] is None:
        raise RuntimeError("fastcv batch_norm: vmap over the input needs running_mean and running_var that are mapped too, or None")

    def at(t: Tensor, dim: int | None, i: int) -> Tensor:
        return t if dim is None else t.select(dim, i)

    for i in range(info.batch_size):
        tensors = (running_mean, running_var, mean, var)
        _update(*(at(t, d, i) for t, d in zip(tensors, in_dims[:4], strict=True)), count, momentum)
    return None, None


def update(running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, count: int, momentum: float) -> None:
    """Moves the running statistics [C] towards those of a batch of ``count`` values per channel; csrc/norm/batch_norm.h."""
    if torch._C._are_functorch_transforms_active() and _functionalised():
        for running, statistic, scale in ((running_mean, mean, 1.0), (running_var, var, count / (count - 1))):
            batch = statistic.view(-1, *running.shape).mean(0)
            running.copy_((1 - momentum) * running + momentum * scale * batch)
        return
    _update(running_mean, running_var, mean, var, count, momentum)


def _functionalised() -> bool:
    """True inside torch.func.functionalize, which takes no op of others that writes to its arguments."""
    functorch = torch._C._functorch
    return functorch.peek_interpreter_stack().key() == functorch.TransformType.Functionalize


# Autograd ----------------------------------------------------------------------------------------------------------------------


def _save_backward(ctx: Any, args: tuple[Any, ...], outputs: Any) -> None:
    ctx.save_for_backward(*args[:7])
    ctx.scalars = args[7:]
    ctx.set_materialize_grads(False)


def _double_backward(ctx: Any, v: Vector, vw: Vector, vb: Vector, vr: Vector) -> tuple[Any, ...]:
    grad, input, output, mean, var, weight, bias = ctx.saved_tensors
    training, eps, slope, cap, wanted = ctx.scalars
    v, vw, vb, vr = (t if wanted & bit else None for t, bit in ((v, DX), (vw, DWEIGHT), (vb, DBIAS), (vr, DRESIDUAL)))
    dims = [0, *range(2, input.dim())]
    shape = [1, -1, *[1] * (input.dim() - 2)]
    g, x, w, b, v, vw, vb, vr = widen(grad, input, weight, bias, v, vw, vb, vr)
    w, b, vw, vb = (None if t is None else t.reshape(shape) for t in (w, b, vw, vb))
    fixed = None if training else (mean.to(x.dtype).reshape(shape), var.to(x.dtype).reshape(shape))
    gate = None
    if (slope, cap) != (1.0, 0.0):
        z = output
        if z is None:
            z = (x - mean.to(x.dtype).reshape(shape)) * torch.rsqrt(var.to(x.dtype).reshape(shape) + eps)
            z = z if w is None else z * w
            z = z if b is None else z + b
        gate = torch.where(z <= 0, slope, 1.0).to(x.dtype)
        if cap > 0:
            gate = torch.where(z >= cap, 0.0, gate)
        g = g * gate
    dg, dx, dw = second_order(v, vw, vb, g, x, w, dims, eps, fixed)
    if vr is not None:
        dg = vr if dg is None else dg + vr
    if gate is not None and dg is not None:
        dg = dg * gate
    return cast(dg, grad), cast(dx, input), None, None, None, summed(dw, dims, weight), *[None] * 6


_backward_with_grad = differentiable("BatchNormBackward", _backward, _save_backward, _double_backward)


def gradients(
    grad: Tensor, tensors: Sequence[Vector], scalars: Sequence[float], training: bool, need: Sequence[bool]
) -> tuple[Vector, ...]:
    """Of input, residual, weight and bias, those that ``need`` says. tensors: input, output (null: the gate is recomputed), mean, var,
    weight, bias; scalars: eps, slope, cap.
    """
    input, output, mean, var, weight, bias = tensors
    eps, slope, cap = scalars
    plain = slope == 1.0 and cap <= 0
    wanted = DX * need[0] | DWEIGHT * need[2] | DBIAS * need[3] | DRESIDUAL * (need[1] and not plain)
    args = (grad, input, output, mean, var, weight, bias, training, eps, slope, cap, wanted)
    if wanted:
        dx, dweight, dbias, dresidual = (_backward_with_grad if needs_grad(grad, input, weight, bias) else _backward)(*args)
    else:
        dx = dweight = dbias = dresidual = grad
    return (
        dx if need[0] else None,
        (grad if plain else dresidual) if need[1] else None,
        dweight if need[2] else None,
        dbias if need[3] else None,
    )


def _gradients(ctx: Any, grad: Tensor, training: bool, weight_at: int) -> tuple[Vector, ...]:
    """weight_at: which of the arguments the weight is; the bias comes behind it."""
    need = ctx.needs_input_grad
    return gradients(grad, ctx.saved_tensors, ctx.scalars, training, (*need[:2], *need[weight_at : weight_at + 2]))


def _kept_output(output: Tensor, residual: Vector, slope: float, cap: float) -> Vector:
    return output if residual is not None and not (slope == 1.0 and cap <= 0) else None


def _save_train(ctx: Any, args: tuple[Any, ...], outputs: Any) -> None:
    input, residual, weight, bias, *scalars = args
    y, mean, var = outputs
    ctx.mark_non_differentiable(mean, var)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(input, _kept_output(y, residual, *scalars[1:]), mean, var, weight, bias)
    ctx.scalars = scalars


def _backward_train(ctx: Any, grad: Vector, *_: Vector) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 7
    return *_gradients(ctx, grad, True, 2), None, None, None


def _train_update(
    input: Tensor, residual: Vector, running_mean: Tensor, running_var: Tensor, weight: Vector, bias: Vector, how: Any
) -> Any:
    momentum, eps, slope, cap = how
    return train_update(input, residual, running_mean, running_var, weight, bias, momentum, eps, slope, cap)


def _save_train_update(ctx: Any, args: tuple[Any, ...], outputs: Any) -> None:
    input, residual, _, _, weight, bias, how = args
    y, mean, var = outputs
    ctx.scalars = how[1:]
    kept = None if residual is None else _kept_output(y, residual, *how[2:])
    ctx.save_for_backward(input, kept, mean, var, weight, bias)


def _backward_train_update(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    dx, dresidual, dweight, dbias = _gradients(ctx, grad, True, 4)
    return dx, dresidual, None, None, dweight, dbias, None


def _save_eval(ctx: Any, args: tuple[Any, ...], y: Tensor) -> None:
    input, residual, mean, var, weight, bias, *scalars = args
    ctx.save_for_backward(input, _kept_output(y, residual, *scalars[1:]), mean, var, weight, bias)
    ctx.scalars = scalars


def _backward_eval(ctx: Any, grad: Tensor, training: bool = False) -> tuple[Any, ...]:
    dx, dresidual, dweight, dbias = _gradients(ctx, grad, training, 4)
    return dx, dresidual, None, None, dweight, dbias, None, None, None


def _backward_measured(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return _backward_eval(ctx, grad, training=True)


train_update_with_grad = differentiable("BatchNormTrain", _train_update, _save_train_update, _backward_train_update, one_result=True)
train_with_grad = differentiable("BatchNormTrain", train, _save_train, _backward_train)
evaluate_with_grad = differentiable("BatchNormEval", evaluate, _save_eval, _backward_eval)
# With the mean and biased variance that somebody else has taken of this very input: their gradients are part of the input's.
measured_with_grad = differentiable("BatchNormTrain", evaluate, _save_eval, _backward_measured)

_STATISTICS = "_fastcv_statistics"


def leave_statistics(t: Tensor, mean: Tensor, var: Tensor) -> None:
    """Leaves with a tensor its channels' mean and biased variance, for the batch norm that reads it."""
    if not t.is_inference():
        setattr(t, _STATISTICS, (mean, var, t._version, t.data_ptr()))


def statistics_left(t: Tensor) -> tuple[Tensor, Tensor] | None:
    """What leave_statistics left with this very tensor, if it has not been changed since."""
    left = getattr(t, _STATISTICS, None)
    return None if left is None or left[2:] != (t._version, t.data_ptr()) else left[:2]
