"""Whether tensors are still what they were: what fold_cache.py and packed_weights.py keep depends on it.

A change shows in the tensor object, its memory or its version counter; all of load_state_dict, optimizers and .to() show
there. Writes through ``tensor.data`` do not, so a few elements of each tensor are compared as well: a step of an optimizer
or of a moving average that goes through ``.data`` changes all of them. Those are read by address, where the tensor still has
its memory: a view would keep others from resizing it. What FSDP brings is not watched but left alone (kernels.is_managed): it
changes everything unseen, and a checkpoint may well have zeros where one looks. The look itself is csrc/common/watch.h.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from .. import _ext

if TYPE_CHECKING:
    from .._C import Watch


def watch_of(tensors: Sequence[Tensor | None]) -> Watch:
    """The state of CPU tensors, each of which may be None: holds(tensors) is true until one has changed. Keeps none of them alive."""
    return _ext.module().Watch(tensors, elements_of(tensors))


def elements_of(tensors: Sequence[Tensor | None]) -> list[tuple[int, int]]:
    """What is compared of them: as address and bytes."""
    return [element for t in tensors if t is not None and t.numel() for element in _elements(t)]


def _elements(t: Tensor) -> list[tuple[int, int]]:
    """The first, the middle and the last element where they lie in memory, as address and bytes; of a vector the first and last."""
    last, size = t.numel() - 1, t.element_size()
    found = []
    for i in sorted({0, last // 2, last} if t.dim() > 1 else {0, last}):
        offset, rest = 0, i
        for length, stride in zip(reversed(t.shape), reversed(t.stride()), strict=True):
            rest, index = divmod(rest, length)
            offset += index * stride
        found.append((t.data_ptr() + offset * size, size))
    return found
