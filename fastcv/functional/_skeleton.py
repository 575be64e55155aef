"""The Python side of the do-nothing op: what a new op's public function, autograd formula, fake kernel and vmap rule look like."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import _ext
from ._common import differentiable, empty_as, is_channels_last, needs_grad

_skeleton = _ext.op("skeleton")


@_ext.fake("skeleton")
def _(input: Tensor) -> Tensor:
    return empty_as(input, input.shape, channels_last=is_channels_last(input))


@_ext.vmap("skeleton")
def _(_info: Any, in_dims: tuple[int | None], input: Tensor) -> tuple[Tensor, int | None]:
    return _skeleton(input), in_dims[0]


def _save(ctx: Any, args: tuple[Any, ...], output: Tensor) -> None:
    pass


def _backward(ctx: Any, grad: Tensor) -> Tensor:
    return skeleton(grad)


_with_grad = differentiable("Skeleton", _skeleton, _save, _backward)


def skeleton(input: Tensor) -> Tensor:
    """Returns a copy of ``input`` (any shape; float32, float64, bfloat16, float16), in torch's output layout.

    Differentiable any number of times. Raises RuntimeError for other dtypes. Source: csrc/_skeleton.
    """
    return _with_grad(input) if needs_grad(input) else _skeleton(input)
