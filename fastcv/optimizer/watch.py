"""Whether tensors are still what they were: what fold_cache.py and packed_weights.py keep depends on it.

A change shows in the tensor object, its memory or its version counter; all of load_state_dict, optimizers and .to() show
there. Writes through ``tensor.data`` do not, so a few elements of each tensor are compared as well: a step of an optimizer
or of a moving average that goes through ``.data`` changes all of them. Those are read by address, where the tensor still has
its memory: a view would keep others from resizing it. What FSDP brings is not watched but left alone (kernels.is_managed): it
changes everything unseen, and a checkpoint may well have zeros where one looks.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence

from torch import Tensor

_BITS = {8: ctypes.c_uint64, 4: ctypes.c_uint32, 2: ctypes.c_uint16}


class Watch:
    """The state of some CPU tensors, each of which may be None, at the time of making. Keeps none of them alive."""

    def __init__(self, tensors: Sequence[Tensor | None]) -> None:
        self._seen = [(None, 0, 0) if t is None else (weakref.ref(t), t.data_ptr(), t._version) for t in tensors]
        self._probes = [(probe, probe.value) for t in tensors if t is not None and t.numel() for probe in _elements(t)]

    def holds(self, tensors: Sequence[Tensor | None]) -> bool:
        """True if these are the same tensors and none has changed."""
        for t, (known, address, version) in zip(tensors, self._seen, strict=True):
            if t is None or known is None:
                if t is not known:
                    return False
            elif known() is not t or t._version != version or t.data_ptr() != address:
                return False
        for probe, value in self._probes:  # noqa: SIM110 - all() costs a generator at every call
            if probe.value != value:
                return False
        return True


def _elements(t: Tensor) -> list[ctypes._SimpleCData]:
    """The first, the middle and the last element where they lie in memory, as bits; of a vector the first and the last."""
    last = t.numel() - 1
    found = []
    for i in sorted({0, last // 2, last} if t.dim() > 1 else {0, last}):
        offset, rest = 0, i
        for size, stride in zip(reversed(t.shape), reversed(t.stride()), strict=True):
            rest, index = divmod(rest, size)
            offset += index * stride
        found.append(_BITS[t.element_size()].from_address(t.data_ptr() + offset * t.element_size()))
    return found
