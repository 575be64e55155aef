"""Where a fused chain may hold values back: inside the forward of the module that owns it, in the same thread.

Outside - a layer called by itself, a feature extractor that runs some of the layers - every module of a chain computes what
torch's module computes.
"""

from __future__ import annotations

import threading
from typing import Any

import torch

from .pending import Pending, holds_pending, value_of

_local = threading.local()


class Region:
    """Ties a chain to its owner; compared by identity, so a copy of a model has regions of its own."""


class Frame:
    """One running call of an owner's forward."""

    __slots__ = ("grad_mode", "pendings", "region")

    def __init__(self, region: Region) -> None:
        self.region = region
        self.grad_mode = torch.is_grad_enabled()
        self.pendings: list[Pending] = []

    def __enter__(self) -> Frame:
        frames = _local.__dict__.setdefault("frames", [])
        frames.append(self)
        return self

    def __exit__(self, *_: Any) -> None:
        _local.frames.pop()
        self.pendings.clear()  # they refer to this frame: a cycle would keep their inputs until the garbage collector runs

    def hold(self, pending: Pending) -> Pending:
        """Keeps track of a value that is held back, so that it is computed before the forward ends."""
        pendings = self.pendings
        while pendings and pendings[-1].computed:
            pendings.pop()
        pendings.append(pending)
        return pending

    def settle(self, output: Any) -> Any:
        """Computes what is still held back and returns the forward's output as tensors."""
        for pending in self.pendings:
            if not pending.computed:
                pending.value()
        return value_of(output) if holds_pending(output) else output


def current_frame(region: Region) -> Frame | None:
    """The innermost running call of the region's owner in this thread, or None."""
    for frame in reversed(_local.__dict__.get("frames", ())):
        if frame.region is region:
            return frame
    return None
