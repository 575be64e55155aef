"""softmax and log_softmax; kernels in csrc/loss/softmax*."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from .. import _ext
from ._common import autocast_float32, differentiable, needs_grad
from ._loss_common import _check_float


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
    """x - log sum exp(x) along ``dim``: any shape; float32, float64, bfloat16, float16; differentiable twice.

    Arguments and corner cases as `softmax`. Raises what `softmax` raises. Source: csrc/loss/softmax*.
    """
    return _log_softmax(input, dim, _stacklevel, dtype)
