"""What a rewritten graph calls where fastcv.functional alone does not do: graphs have numbers that are symbols, and parameters as
inputs of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import functional
from ..nn.fold import fold_tensors


def _numbers(values: Sequence[Any]) -> list[Any]:
    """Symbols for floats, which dynamic shapes bring along, as floats; a guard then says that they are these."""
    return [float(v) if isinstance(v, torch.SymFloat) else v for v in values]


def batch_norm(*args: Any, **kwargs: Any) -> Tensor:
    """fastcv.functional.batch_norm."""
    return functional.batch_norm(*_numbers(args), **dict(zip(kwargs, _numbers(list(kwargs.values())), strict=True)))


def batch_norm_act(*args: Any) -> Tensor:
    """fastcv.functional.batch_norm_act, also for slopes below zero; its last two arguments are the activation and the slope."""
    *rest, activation, slope = _numbers(args)
    if activation == "leaky_relu" and slope < 0:
        return F.leaky_relu(functional.batch_norm_act(*rest, None), slope)
    return functional.batch_norm_act(*rest, activation, slope)


class FoldedConv(nn.Module):
    """activation(batch_norm(op(x)) + residual); folds in float64, and again when one of the tensors has changed.

    op: a convolution or transposed convolution of fastcv.functional, with its arguments after the bias as geometry; or
    "linear", whose product is torch's. Only conv2d takes a residual and an activation.
    """

    def __init__(self, op: str, geometry: Sequence[Any], activation: str | None) -> None:
        super().__init__()
        self.op = op
        self.geometry = tuple(geometry)
        self.activation = activation
        self._known: list[tuple[Tensor | None, int, int]] = []
        self._eps: float | None = None
        self._folded: tuple[Tensor, Tensor] | None = None

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        gamma: Tensor | None,
        beta: Tensor | None,
        mean: Tensor,
        var: Tensor,
        eps: float,
    ) -> Tensor:
        w, b = self._fold(eps, weight, bias, gamma, beta, mean, var)
        if self.op == "conv2d":
            return functional.conv2d_fused(x, w, b, *self.geometry, residual, self.activation)
        return (F.linear if self.op == "linear" else getattr(functional, self.op))(x, w, b, *self.geometry)

    def _fold(self, eps: float, *tensors: Tensor | None) -> tuple[Tensor, Tensor]:
        if self._folded is not None and self._eps == eps:
            for t, (known, address, version) in zip(tensors, self._known, strict=True):
                if t is not known or (t is not None and (_version(t) != version or t.data_ptr() != address)):
                    break
            else:
                return self._folded
        groups = self.geometry[3] if self.op.startswith("conv_transpose") else None
        with torch.no_grad():
            folded = fold_tensors(*tensors, eps, groups)
        if any(t is not None and t.is_inference() for t in tensors):
            return folded  # their changes do not show
        self._known = [(None, 0, 0) if t is None else (t, t.data_ptr(), t._version) for t in tensors]
        self._folded, self._eps = folded, eps
        return folded


def _version(t: Tensor) -> int:
    return -1 if t.is_inference() else t._version
