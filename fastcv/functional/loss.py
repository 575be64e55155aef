"""The loss family; same stem as csrc/loss."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn import _reduction as _Reduction

from .. import _ext
from ._common import autocast_float32, differentiable, needs_grad

__all__ = [
    "cross_entropy",
    "kl_div",
    "linear_cross_entropy",
    "log_softmax",
    "multi_margin_loss",
    "nll_loss",
    "soft_iou_loss",
    "softmax",
]

_FLOATS = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))


def _check_float(op: str, input: Tensor) -> None:
    if input.dtype not in _FLOATS:
        raise NotImplementedError(f"{op}: no kernel for {input.dtype}; it takes float32, float64, bfloat16 and float16")


def _reduction_number(reduction: str, size_average: bool | None, reduce: bool | None) -> int:
    """0 none, 1 mean, 2 sum, as torch counts; torch's warnings and ValueError for legacy and unknown names."""
    if size_average is None and reduce is None:
        if reduction == "mean":
            return 1
    else:
        reduction = _Reduction.legacy_get_string(size_average, reduce)
    return _Reduction.get_enum(reduction)


def _in_transform() -> bool:
    """True where Python may not look at values: while compiling, and inside torch.func transforms."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


# ---- softmax, log_softmax ---------------------------------------------------------------------------------------------


def _register_softmax(name: str, log: bool) -> Any:
    forward, backward = _ext.op(name), _ext.op(f"{name}_backward")

    @_ext.fake(name)
    def _(input: Tensor, dim: int) -> Tensor:
        return input.new_empty(input.shape)

    @_ext.fake(f"{name}_backward")
    def _(grad: Tensor, output: Tensor, dim: int) -> Tensor:
        return output.new_empty(output.shape)

    def batched_dim(dim: int, logical_dims: int) -> int:
        return dim if dim < 0 else dim + 1

    @_ext.vmap(name)
    def _(info: Any, in_dims: tuple[int | None, None], input: Tensor, dim: int) -> tuple[Tensor, int]:
        moved = input.movedim(in_dims[0], 0)
        if moved.dim() == 1:  # each sample is a scalar
            return forward(moved.unsqueeze(1), 1).squeeze(1), 0
        return forward(moved, batched_dim(dim, moved.dim() - 1)), 0

    @_ext.vmap(f"{name}_backward")
    def _(info: Any, in_dims: tuple[int | None, ...], grad: Tensor, output: Tensor, dim: int) -> tuple[Tensor, int]:
        grad, output = _batched(info, in_dims[0], grad), _batched(info, in_dims[1], output)
        if output.dim() == 1:
            return backward(grad.unsqueeze(1), output.unsqueeze(1), 1).squeeze(1), 0
        return backward(grad, output, batched_dim(dim, output.dim() - 1)), 0

    # Second order, from small torch ops: rare, and differentiable any number of times.
    def save_second(ctx: Any, args: tuple[Any, ...], dx: Tensor) -> None:
        grad, output, ctx.dim = args
        ctx.save_for_backward(grad, output)

    def second(ctx: Any, ddx: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        grad, output = ctx.saved_tensors
        if log:
            p = output.exp()
            return ddx - (ddx * p).sum(ctx.dim, keepdim=True), -ddx * p * grad.sum(ctx.dim, keepdim=True), None
        inner = (ddx * output).sum(ctx.dim, keepdim=True)
        return output * (ddx - inner), ddx * (grad - (grad * output).sum(ctx.dim, keepdim=True)) - grad * inner, None

    backward_with_grad = differentiable(f"{name.title()}Backward", backward, save_second, second)

    def save(ctx: Any, args: tuple[Any, ...], output: Tensor) -> None:
        ctx.dim = args[1]
        ctx.save_for_backward(output)

    def first(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (output,) = ctx.saved_tensors
        run = backward_with_grad if needs_grad(grad, output) else backward
        return run(grad, output, ctx.dim), None

    with_grad = differentiable(name.title(), forward, save, first)

    def run(input: Tensor, dim: int | None, stacklevel: int, dtype: torch.dtype | None) -> Tensor:
        if dim is None:
            warnings.warn(
                f"Implicit dimension choice for {name} has been deprecated. Change the call to include dim=X as an argument.",
                stacklevel=stacklevel,
            )
            dim = 0 if input.dim() in (0, 1, 3) else 1
        elif type(dim) is not int and not isinstance(dim, (int, torch.SymInt)):
            raise TypeError(f"{name}: dim must be int, not {type(dim).__name__}")
        if dtype is not None:
            input = input.to(dtype)
        elif input.is_cuda:  # aten's autocast lists: float32 on CUDA, input's dtype on the CPU
            (input,) = autocast_float32(input)
        _check_float(name, input)
        return with_grad(input, dim) if needs_grad(input) else forward(input, dim)

    return run


def _batched(info: Any, dim: int | None, t: Tensor) -> Tensor:
    """t with its mapped dimension first; expanded where it has none."""
    return t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)


_softmax = _register_softmax("softmax", log=False)
_log_softmax = _register_softmax("log_softmax", log=True)


def softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Tensor:
    """exp(x) / sum exp(x) along ``dim``; the same shape, row-major, in ``dtype`` (default: input's; under CUDA autocast float32).

    input: any shape and strides; float32, float64, bfloat16, float16 (16-bit types compute in float32); anything castable
    if ``dtype`` is given. Without ``dim`` it warns and takes 0 for tensors of 0, 1 or 3 dimensions, else 1.
    A slice with NaN or +inf, or with only -inf, becomes NaN. Differentiable any number of times.
    Raises IndexError for a dim out of range, TypeError for a dim that is no int, NotImplementedError for other dtypes.
    Source: csrc/loss/softmax*.
    """
    return _softmax(input, dim, _stacklevel, dtype)


def log_softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Tensor:
    """x - log sum exp(x) along ``dim``; arguments, dtypes, corner cases and errors as `softmax`. Source: csrc/loss/softmax*."""
    return _log_softmax(input, dim, _stacklevel, dtype)


# ---- cross_entropy ----------------------------------------------------------------------------------------------------

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
    "scale_gradient",
):
    _register_loop(_name)

_scale_gradient = _ext.op("scale_gradient")


@_ext.fake("scale_gradient")
def _(x: Tensor, factor: Tensor) -> Tensor:
    return _empty_grad(x)


def _scaled(ready: Tensor, grad: Tensor) -> Tensor:
    """A gradient written together with its loss, times the loss's own gradient (which mostly is 1)."""
    return ready if grad.item() == 1 else _scale_gradient(ready, grad)


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
    if ctx.ready is not None:
        ctx.mark_non_differentiable(ctx.ready)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(input, target, weight)


def _backward_cross_entropy(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 7
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


_cross_entropy_grad = differentiable("CrossEntropy", _forward_cross_entropy, _save_cross_entropy, _backward_cross_entropy)


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
        return _cross_entropy_grad(input, target, weight, number, ignore_index, label_smoothing, fuse)[0]
    return _cross_entropy(input, target, weight, number, ignore_index, label_smoothing)


# ---- nll_loss ---------------------------------------------------------------------------------------------------------

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

    Shapes, dtypes, reductions and errors are those of `cross_entropy` with class indices. Differentiable any number of times in
    input. Source: csrc/loss/nll*.
    """
    number = _reduction_number(reduction, size_average, reduce)
    input, weight = autocast_float32(input, weight)
    _check_classes("nll_loss", input, target, weight)
    return _nll(input, target, weight, number, ignore_index)


# ---- linear_cross_entropy ---------------------------------------------------------------------------------------------

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
    ctx.mark_non_differentiable(*(g for g in ctx.ready if g is not None))
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(input, linear_weight, linear_bias, target, weight)


def _backward_linear(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    rest = (None,) * 6
    if grad is None:
        return None, None, None, *rest
    input, linear_weight, linear_bias, target, weight = ctx.saved_tensors
    ready, ctx.ready = ctx.ready, None
    leaves = (input, linear_weight, linear_bias)
    needs = ctx.needs_input_grad[:3]
    if needs_grad(grad, *leaves):  # the gradients will themselves be differentiated
        with torch.enable_grad():
            loss = _composed_linear(*leaves, target, weight, *ctx.options)
            wanted = [t for t, need in zip(leaves, needs, strict=True) if need]
            found = iter(torch.autograd.grad(loss, wanted, grad, create_graph=True))
        results = [next(found) if need else None for need in needs]
    elif ready is not None and ready[0] is not None:
        results = [_scaled(g, grad) if need else None for g, need in zip(ready, needs, strict=True)]
    else:
        found = _linear_cross_entropy_backward(grad, *leaves, target, weight, *ctx.options, *needs)
        results = [g if need else None for g, need in zip(found, needs, strict=True)]
    return *results, *rest


_linear_grad = differentiable("LinearCrossEntropy", _forward_linear, _save_linear, _backward_linear)


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
        return _linear_grad(input, linear_weight, linear_bias, target, weight, *options, needs)[0]
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


# ---- multi_margin_loss ------------------------------------------------------------------------------------------------

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
    loss = run(input.reshape(rows, classes), target.reshape(rows), int(p), float(margin), weight, number)
    return loss.reshape(()) if scalar_result else loss


# ---- kl_div -----------------------------------------------------------------------------------------------------------

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
        if reduction == "mean":
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
    divisor = 1.0
    if number == 1:
        divisor = float(input.numel())
    elif reduction == "batchmean":
        divisor = float(batch)
    run = _kl_grad if needs_grad(input, target) else _kl_div
    loss = run(input, target, number != 0, divisor, log_target)
    if number == 0 and order is not None:
        return loss.permute(sorted(range(len(order)), key=order.__getitem__))
    return loss


# ---- soft_iou_loss ----------------------------------------------------------------------------------------------------

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
    ctx.mark_non_differentiable(outputs[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(input, target, outputs[1])


def _backward_iou(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Any, ...]:
    if grad is None:
        return None, None, None
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


_iou_grad = differentiable("SoftIouLoss", _soft_iou_loss, _save_iou, _backward_iou)


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
    loss = (_iou_grad if needs_grad(input, target) else _soft_iou_loss)(input, target, eps)[0]
    if reduction == "whole":
        return loss.reshape(())
    return loss if reduction == "none" else loss.mean() if reduction == "mean" else loss.sum()
