"""The weights of one convolution or linear layer as its kernel arranges them, kept between calls without gradients.

A convolution's are arranged at the second call of the same kind (image size and layout, dtype, geometry, precision, and what
fastcv.use and fastcv.tuned ask for) and again when the weight has changed, so that a weight that is used once, or for ever other
sizes, costs what it always did. The first call runs the kernel of the later ones: the one for weights that are kept. They take as much
memory as the weight itself, as parts of numbers 1.5 times that, in a Winograd convolution up to 4 times. A linear layer's serve any
input, and are arranged at the first call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import _ext
from .watch import watch_of

if TYPE_CHECKING:
    from .._C import Watch

_pack_conv = _ext.op("conv_pack")
_pack_dgrad = _ext.op("conv_dgrad_pack")

PLAIN = (Tensor, nn.Parameter)
POINTWISE = ((1, 1), (0, 0), (1, 1), 1)  # stride, padding, dilation and groups of a linear layer as a convolution
_NOT_YET = torch.empty(0, dtype=torch.uint8)  # to the raw ops: weights that will be kept, and are not arranged


class PackedWeights:
    """What functional.conv asks for the packed weights of a call; for one module."""

    def __init__(self) -> None:
        # The kind of call, the weight, its arrangement once it is made, the weight cast by autocast where that was needed: one
        # tuple, so that calls of other threads see all or none of it.
        self._entry: tuple[Any, Watch, Tensor | None, Tensor | None] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedWeights, ()  # copies and pickles start anew

    @property
    def packed(self) -> Tensor | None:
        """What is kept."""
        return None if self._entry is None else self._entry[2]

    def drop(self) -> None:
        """Forgets them."""
        self._entry = None

    def of_conv(self, x: Tensor, weight: Tensor, geometry: tuple[Any, ...], precision: int) -> Tensor | None:
        """For the raw op conv(x, weight, ..., *geometry, precision); None where none are kept."""
        kind = (x.shape[1:], x.stride(), geometry, precision, _ext.choices)
        return self._again(kind, weight, x.dtype, lambda: _pack_conv(x, weight, *geometry, precision))

    def of_dgrad(self, g: Tensor, weight: Tensor, size: Any, geometry: tuple[Any, ...], precision: int) -> Tensor | None:
        """For the raw op conv_dgrad(g, weight, bias, size, *geometry, precision)."""
        kind = (g.shape[1:], g.stride(), size, geometry, precision, _ext.choices)
        return self._again(kind, weight, g.dtype, lambda: _pack_dgrad(g, weight, size, *geometry, precision))

    def of_linear(self, x: Tensor, weight: Tensor, precision: int) -> tuple[Tensor, Tensor]:
        """(weight, packed) for the raw op conv(x, weight, ..., *POINTWISE, precision, packed): x [N, C, 1, rows], channels_last;
        weight, [K, C], is a plain CPU tensor with a version counter, and cast to x's dtype if it has another.
        """
        kind, entry = (x.dtype, precision, _ext.choices), self._entry
        if entry is None or entry[0] != kind or not entry[1].holds((weight,)):
            watch = watch_of((weight,))
            lowered = None if weight.dtype is x.dtype else _as_filters(weight.detach().to(x.dtype))
            packed = _pack_conv(x, _as_filters(weight) if lowered is None else lowered, *POINTWISE, precision)
            entry = self._entry = (kind, watch, packed, lowered)
        return _as_filters(weight) if entry[3] is None else entry[3], entry[2]

    def _again(self, kind: Any, weight: Tensor, dtype: torch.dtype, pack: Callable[[], Tensor]) -> Tensor | None:
        if type(weight) not in PLAIN or weight.dtype is not dtype or weight.device.type != "cpu" or weight.is_inference():
            return None  # the last has no version counter, for the others the op has a sentence
        entry = self._entry
        if entry is None or kind != entry[0] or not entry[1].holds((weight,)):
            self._entry = (kind, watch_of((weight,)), None, None)
            return _NOT_YET
        packed = entry[2]
        if packed is None:
            packed = pack()
            self._entry = (kind, entry[1], packed, None)
        return packed


def _as_filters(weight: Tensor) -> Tensor:
    return weight.view(*weight.shape, 1, 1)
