"""Runs a copy of a model with a clock around every module's forward and a record of every op that runs within.

The copy's forwards are wrapped as instance attributes; hooks would make fused chains step aside, and so show another model
than the one that was asked about. A chain of fastcv.optimize computes within the user's code where its last step is taken:
its computation is a frame of its own, under the name of the chain's head.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from .. import _ext
from ..optimizer.forwards import HeadForward
from . import work


class Clock:
    """Exclusive seconds per name: the time within a frame less that of the frames within it. One thread's only."""

    def __init__(self, spans: Any = None) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self.stack: list[list[Any]] = []  # [name, seconds in inner frames, start]
        self.thread = threading.get_ident()
        self.spans = spans  # told of every change of the innermost frame (gradients.py)

    def enter(self, name: str) -> None:
        """Begins a frame."""
        if self.spans is not None:
            self.spans.note(name)
        self.stack.append([name, 0.0, time.perf_counter()])

    def leave(self) -> None:
        """Ends the innermost frame."""
        end = time.perf_counter()
        name, inner, start = self.stack.pop()
        self.seconds[name] += end - start - inner
        if self.stack:
            self.stack[-1][1] += end - start
        if self.spans is not None:
            self.spans.note(self.current)

    def timed(self, name: str, function: Callable[..., Any], call_of_layer: bool = True) -> Callable[..., Any]:
        """``function``, its time counted under ``name``; call_of_layer: False for what is part of a call counted elsewhere."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != self.thread:
                return function(*args, **kwargs)
            self.enter(name)
            try:
                return function(*args, **kwargs)
            finally:
                self.leave()
                self.calls[name] += call_of_layer

        return call

    @property
    def current(self) -> str:
        """The name of the innermost frame."""
        return self.stack[-1][0] if self.stack else ""

    def take(self) -> dict[str, float]:
        """The seconds since the last call."""
        taken, self.seconds = dict(self.seconds), defaultdict(float)
        return taken


def watched(model: nn.Module, clock: Clock) -> Callable[..., Any]:
    """``model`` - a copy that nobody else uses - with all its forwards timed; returns the model to call."""
    chains = {}
    for module in model.modules():
        forward = vars(module).get("forward")
        if isinstance(forward, HeadForward):
            chains[forward.chain.name] = forward.chain
    for name, chain in chains.items():
        chain.compute = clock.timed(name, chain.compute, call_of_layer=False)
    for name, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):
            module.forward = clock.timed(name, module.forward)
    return model


@dataclass
class Conversion:
    """A copy into another layout that an op made of an argument. seconds: 0 where it was an op of its own, timed with its layer."""

    to: str
    bytes: int
    seconds: float = 0.0


@dataclass
class Work:
    """What ran within the frames of one name during one call of the model."""

    ops: dict[str, int] = field(default_factory=dict)
    flops: int = 0
    bytes: int = 0
    choices: list[tuple[str, str, str]] = field(default_factory=list)
    conversions: list[Conversion] = field(default_factory=list)
    input: Tensor | None = None
    output: Tensor | None = None
    dtype: torch.dtype | None = None


class Recorder(TorchDispatchMode):
    """Adds each op to the Work of the frame it runs in. Holds meta tensors only, so that nothing is kept alive."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.work: dict[str, Work] = defaultdict(Work)

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = op(*args, **kwargs)
        if work.only_views(op) or not self.clock.stack:
            return out
        tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        results = [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor)]
        if all(t.dim() == 0 for t in (*tensors, *results)):
            return out  # bookkeeping, such as the number of batches that a batch norm has seen
        entry = self.work[self.clock.current]
        name = op._opname if op.namespace == "aten" else f"{op.namespace}.{op._opname}"
        entry.ops[name] = entry.ops.get(name, 0) + 1
        entry.flops += work.flops(op, args, kwargs, out)
        # Packed weights are read in place of the weight, which is counted.
        read = [a for a, parameter in zip(args, op._schema.arguments, strict=False) if parameter.name != "packed"]
        entry.bytes += work.bytes_moved(read, kwargs, out)
        if tensors and entry.input is None:
            entry.input = _shape_of(tensors[0])
            entry.dtype = next((t.dtype for t in tensors if t.is_floating_point()), tensors[0].dtype)
        if results:
            entry.output = _shape_of(results[0])
        if op.namespace == "fastcv":
            entry.choices += _ext.module().take_recorded_choices()
            for size, channels_last, seconds in _ext.module().take_hidden_copies():
                entry.conversions.append(Conversion("channels_last" if channels_last else "row-major", size, seconds))
        elif op._opname in ("clone", "copy_") and tensors and results and _changes_layout(tensors[-1], results[0]):
            entry.conversions.append(Conversion(work.layout(results[0]), work.bytes_moved(tensors[-1], {}, results[0])))
        return out


def _shape_of(t: Tensor) -> Tensor:
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta") if t.layout is torch.strided else t.to("meta")


def _changes_layout(source: Tensor, result: Tensor) -> bool:
    return source.dim() in (4, 5) and source.shape == result.shape and source.stride() != result.stride() and source.numel() > 1


@contextmanager
def choices_recorded() -> Iterator[None]:
    """Within the block the variant tables and the doors write down what they do."""
    module = _ext.module()
    module.take_recorded_choices(), module.take_hidden_copies()
    module.record_choices(True)
    try:
        yield
    finally:
        module.record_choices(False)
        module.take_recorded_choices(), module.take_hidden_copies()


def record(call: Callable[[], Any], clock: Clock) -> dict[str, Work]:
    """Runs ``call`` once; returns what ran in each of the clock's frames."""
    with choices_recorded(), Recorder(clock) as recorder:
        call()
    return dict(recorder.work)
