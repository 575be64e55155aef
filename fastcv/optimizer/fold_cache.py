"""The folded weights of a convolution and its batch norm, folded again whenever one of their tensors has changed.

A change shows in the tensor object, its memory or its version counter; all of load_state_dict, optimizers and .to() show
there. Writes through ``tensor.data`` do not, so a few elements of each tensor are compared as well: a step of an optimizer
or of a moving average that goes through ``.data`` changes all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.fold import folded_parameters

_SAME_SIZE = {8: torch.int64, 4: torch.int32, 2: torch.int16}


class FoldCache:
    """folded() -> (weight, bias) of the convolution that computes bn(conv(x))."""

    def __init__(self, conv: nn.Module, bn: nn.Module) -> None:
        self.conv = conv
        self.bn = bn
        self._entry: tuple[Any, ...] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"conv": self.conv, "bn": self.bn, "_entry": None}

    def _tensors(self) -> list[Tensor | None]:
        conv, bn = self.conv._parameters, self.bn._parameters
        buffers = self.bn._buffers
        return [conv["weight"], conv["bias"], bn["weight"], bn["bias"], buffers["running_mean"], buffers["running_var"]]

    def folded(self) -> tuple[Tensor, Tensor]:
        """The current folded parameters, detached, in the dtype of the convolution's weight."""
        if self._entry is not None and self._unchanged():
            return self._entry[-1]
        tensors = self._tensors()
        with torch.no_grad():
            result = folded_parameters(self.conv, self.bn)
        key = [(t, 0, 0) if t is None else (t, t.data_ptr(), t._version) for t in tensors]
        self._entry = (self.bn.eps, key, self._probes(tensors), result)
        return result

    def _unchanged(self) -> bool:
        eps, key, probes, _ = self._entry
        if self.bn.eps != eps:
            return False
        for t, (known, address, version) in zip(self._tensors(), key, strict=True):
            if t is not known or (t is not None and (t._version != version or t.data_ptr() != address)):
                return False
        for item, i, value in probes:  # noqa: SIM110 - all() costs a generator at every call
            if item(i) != value:
                return False
        return True

    def drop(self) -> None:
        """Forgets the folded parameters: they are about to change."""
        self._entry = None

    @staticmethod
    def _probes(tensors: list[Tensor | None]) -> list[tuple[Callable[[int], int], int, int]]:
        probes = []
        for t in tensors:
            if t is not None and t.numel():
                array = t.detach().view(_SAME_SIZE[t.element_size()]).numpy()
                last = t.numel() - 1
                probes += [(array.item, i, array.item(i)) for i in sorted({0, last // 2, last} if t.dim() > 1 else {0, last})]
        return probes
