"""Whether tensors are still what they were: what fold_cache.py and packed_weights.py keep depends on it.

A change shows in the tensor object, its memory or its version counter; all of load_state_dict, optimizers and .to() show
there. Writes through ``tensor.data`` do not, so a few elements of each tensor are compared as well: a step of an optimizer
or of a moving average that goes through ``.data`` changes all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_SAME_SIZE = {8: torch.int64, 4: torch.int32, 2: torch.int16}


class Watch:
    """The state of some tensors, which may be None, at the time of making."""

    def __init__(self, tensors: Sequence[Tensor | None]) -> None:
        self._seen = [(t, 0, 0) if t is None else (t, t.data_ptr(), t._version) for t in tensors]
        self._probes: list[tuple[Callable[[int], int], int, int]] = []
        for t in tensors:
            if t is not None and t.numel():
                array = t.detach().view(_SAME_SIZE[t.element_size()]).numpy()
                last = t.numel() - 1
                self._probes += [(array.item, i, array.item(i)) for i in sorted({0, last // 2, last} if t.dim() > 1 else {0, last})]

    def holds(self, tensors: Sequence[Tensor | None]) -> bool:
        """True if these are the same tensors and none has changed."""
        for t, (known, address, version) in zip(tensors, self._seen, strict=True):
            if t is not known or (t is not None and (t._version != version or t.data_ptr() != address)):
                return False
        for item, i, value in self._probes:  # noqa: SIM110 - all() costs a generator at every call
            if item(i) != value:
                return False
        return True
