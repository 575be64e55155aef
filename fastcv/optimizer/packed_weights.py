"""The weights of one convolution as its kernel arranges them, kept between calls without gradients.

They are arranged at the second call of the same kind (image size and layout, dtype, geometry, precision) and again when the
weight has changed, so that a weight that is used once, or for ever other sizes, costs what it always did. They take as
much memory as the weight itself, in a Winograd convolution 1.8 to 4 times that.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import _ext
from .watch import Watch

_pack_conv = _ext.op("conv_pack")
_pack_dgrad = _ext.op("conv_dgrad_pack")

_PLAIN = (Tensor, nn.Parameter)


class PackedWeights:
    """What functional.conv asks for the packed weights of a call; for one module."""

    def __init__(self) -> None:
        self.drop()

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedWeights, ()  # copies and pickles start anew

    def drop(self) -> None:
        """Forgets them."""
        self._kind: Any = None
        self._watch: Watch | None = None
        self._packed: Tensor | None = None

    def of_conv(self, x: Tensor, weight: Tensor, geometry: tuple[Any, ...], precision: int) -> Tensor | None:
        """For the raw op conv(x, weight, ..., *geometry, precision); None where it is to arrange them itself."""
        if not self._again((x.shape[1:], x.stride(), geometry, precision), weight, x.dtype):
            return None
        if self._packed is None:
            self._packed = _pack_conv(x, weight, *geometry, precision)
        return self._packed

    def of_dgrad(self, g: Tensor, weight: Tensor, size: Any, geometry: tuple[Any, ...], precision: int) -> Tensor | None:
        """For the raw op conv_dgrad(g, weight, bias, size, *geometry, precision)."""
        if not self._again((g.shape[1:], g.stride(), size, geometry, precision), weight, g.dtype):
            return None
        if self._packed is None:
            self._packed = _pack_dgrad(g, weight, size, *geometry, precision)
        return self._packed

    def _again(self, kind: Any, weight: Tensor, dtype: torch.dtype) -> bool:
        if type(weight) not in _PLAIN or weight.dtype is not dtype or weight.device.type != "cpu" or weight.is_inference():
            return False  # the last has no version counter, for the others the op has a sentence
        if self._watch is not None and kind == self._kind and self._watch.holds((weight,)):
            return True
        self._kind, self._watch, self._packed = kind, Watch((weight,)), None
        return False
