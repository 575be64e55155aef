"""The folded weights of a convolution and its batch norm, folded again whenever one of their tensors has changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..nn.fold import folded_parameters
from .watch import watch_of

if TYPE_CHECKING:
    from .._C import Watch


class FoldCache:
    """folded() -> (weight, bias) of the convolution that computes bn(conv(x))."""

    def __init__(self, conv: nn.Module, bn: nn.Module) -> None:
        self.conv = conv
        self.bn = bn
        self._entry: tuple[float, Watch, tuple[Tensor, Tensor]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"conv": self.conv, "bn": self.bn, "_entry": None}

    def folded(self) -> tuple[Tensor, Tensor]:
        """The current folded parameters, detached, in the dtype of the convolution's weight."""
        conv, bn, buffers = self.conv._parameters, self.bn._parameters, self.bn._buffers
        tensors = [conv["weight"], conv["bias"], bn["weight"], bn["bias"], buffers["running_mean"], buffers["running_var"]]
        if self._entry is not None:
            eps, watch, result = self._entry
            if self.bn.eps == eps and watch.holds(tensors):
                return result
        result = folded_parameters(self.conv, self.bn)
        if all(t is None or t.is_cpu for t in tensors):  # elsewhere a look at their elements would wait for the device
            self._entry = (self.bn.eps, watch_of(tensors), result)
        return result

    def drop(self) -> None:
        """Forgets the folded parameters: they are about to change."""
        self._entry = None
