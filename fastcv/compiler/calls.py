"""What a rewritten graph calls where fastcv.functional alone does not do: graphs have numbers that are symbols, and parameters as
inputs of their own.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from .. import functional
from ..functional import conv as convolutions
from ..functional._conv_arguments import precision_of
from ..nn.fold import fold_tensors
from ..optimizer.kernels import LINEAR, under_transform
from ..optimizer.linear import linear
from ..optimizer.packed_weights import PackedWeights
from ..optimizer.watch import watch_of

if TYPE_CHECKING:
    from .._C import Watch


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


def conv_fused(op: str, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Sequence[Any], *end: Any) -> Tensor:
    """The convolution ``op`` with its arguments after the bias as geometry; end: packs, residual, activation and slope."""
    run = convolutions.transposed if op.startswith("conv_transpose") else convolutions.convolve
    return run(int(op[-2]), op, x, weight, bias, *geometry, *end)


class _Kept:
    """What is made of one weight."""

    def __init__(self) -> None:
        self.packs = PackedWeights()
        self.folded: tuple[float, Watch, tuple[Tensor, Tensor]] | None = None
        self.sequence: Any = None  # what sequence.py makes of a run of convolutions, of which this is the first one's

    def __reduce__(self) -> tuple[Any, ...]:
        return _Kept, ()  # copies and pickles start anew


class RawCall(NamedTuple):
    """The arguments of the raw op conv but for the images."""

    weight: Tensor
    bias: Tensor | None
    packed: Tensor | None
    geometry: tuple[Any, ...]
    precision: int
    activation: int
    slope: float


class PackedConv(nn.Module):
    """One convolution of the graph, or one linear layer: activation(op(x) + residual).

    op: a convolution or transposed convolution of fastcv.functional, with its arguments after the bias as geometry; or "linear",
    which takes no residual. slope: of leaky_relu. The weight as the kernel arranges it is kept between calls
    (packed_weights.py), for each weight: torch.compile runs one graph for all models of the same code and shapes.
    """

    def __init__(self, op: str, geometry: Sequence[Any], activation: str | None, slope: float) -> None:
        super().__init__()
        self.op = op
        self.geometry = tuple(geometry)
        self.activation = activation
        self.slope = slope
        self._kept = WeakIdKeyDictionary()
        self._latest: tuple[Callable[[], Tensor | None], _Kept] | None = None

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None) -> Tensor:
        return self._run(self.kept_of(weight).packs, x, weight, bias, residual)

    def kept_of(self, weight: Tensor) -> _Kept:
        """What is made of this weight."""
        latest = self._latest
        if latest is not None and latest[0]() is weight:
            return latest[1]
        kept = self._kept.get(weight)
        if kept is None:
            kept = self._kept[weight] = _Kept()
        self._latest = (weakref.ref(weight), kept)
        return kept

    def raw_call(self, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> RawCall:
        """What forward hands to the raw op conv for the same arguments; op: a convolution."""
        return self._raw_call(self.kept_of(weight).packs, x, weight, bias)

    def _raw_call(self, packs: PackedWeights, x: Tensor, weight: Tensor, bias: Tensor | None) -> RawCall:
        geometry, precision = convolutions.geometry_of(int(self.op[-2]), weight, *self.geometry), precision_of(x)
        end = (0, 0.0) if self.activation is None else (convolutions.ACTIVATIONS[self.activation], self.slope)
        return RawCall(weight, bias, packs.of_conv(x, weight, geometry, precision), geometry, precision, *end)

    def _run(self, packs: PackedWeights, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        used = None if under_transform() else packs
        if self.op == LINEAR:
            return linear(x, weight, bias, self.activation, used, self.slope)
        return conv_fused(self.op, x, weight, bias, self.geometry, used, residual, self.activation, self.slope)


class FoldedConv(PackedConv):
    """The same with a batch norm after the convolution; folds in float64, and again when one of the tensors has changed."""

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
        kept = self.kept_of(weight)
        w, b = self._fold(kept, eps, weight, bias, gamma, beta, mean, var)
        return self._run(kept.packs, x, w, b, residual)

    def raw_call(self, x: Tensor, residual: Tensor | None, weight: Tensor, *rest: Any) -> RawCall:
        """The same, of the folded weight and bias."""
        kept, (*tensors, eps) = self.kept_of(weight), rest
        return self._raw_call(kept.packs, x, *self._fold(kept, eps, weight, *tensors))

    def _fold(self, kept: _Kept, eps: float, *tensors: Tensor | None) -> tuple[Tensor, Tensor]:
        if kept.folded is not None:
            known, watch, result = kept.folded
            if known == eps and watch.holds(tensors):
                return result
        groups = self.geometry[3] if self.op.startswith("conv_transpose") else None
        folded = fold_tensors(*tensors, eps, groups)
        if all(t is None or (t.device.type == "cpu" and not t.is_inference()) for t in tensors):  # others' changes do not show
            kept.folded = (eps, watch_of(tensors), folded)
        return folded
