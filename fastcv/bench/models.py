"""Whole models: images per second and memory of a model on torch, and of the same model after ``fastcv.optimize``, in turns."""

from __future__ import annotations

import copy
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from .. import optimize
from ..testing import max_error
from .guard import LIMITS, Guard, unreliable
from .memory import peak
from .race import interleave
from .rows import UNRELIABLE, WRONG, Row
from .values import first

ROUNDS = (5, 60)
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def build(name: str) -> nn.Module:
    """A model by name: of fastcv.models, of the zoo of transformers' vision models (benchmarks/zoo.py), or package.module:function.

    Raises ValueError, which names what there is.
    """
    from .. import models
    from ..cli import build_model
    from ..testing.zoo import ZOO

    if ":" in name:
        return build_model(name)
    entries = {entry.name: entry for entry in ZOO}
    getter = getattr(models, "get_model", None)
    known = list(models.list_models()) if getter is not None else []
    if name in known:
        return getter(name)
    if name in entries:
        try:
            return entries[name].build(False)
        except ImportError:
            raise ValueError(f"the model {name} needs transformers: pip install transformers") from None
    raise ValueError(f"no model {name!r}: give package.module:function, or one of {', '.join([*known, *entries])}")


def _output(result: Any) -> Tensor:
    """The first tensor of what a model returns."""
    if hasattr(result, "values") and not isinstance(result, Tensor):
        result = next(v for v in result.values() if isinstance(v, Tensor))
    return first(result)


def forward(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with torch.no_grad():
            return _output(model(x))

    return call


def training(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """Forward, and backward from a fixed gradient; returns the output."""
    upstream: list[Tensor] = []

    def call() -> Tensor:
        model.zero_grad(set_to_none=True)
        output = _output(model(x))
        if not upstream:
            upstream.append(torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output))
        output.backward(upstream[0])
        return output.detach()

    return call


def contenders(model: nn.Module, x: Tensor, train: bool, compiled: bool) -> dict[str, Callable[[], Tensor]]:
    """Calls by name: torch and fastcv in both layouts, and torch.compile if asked."""
    make, mode = (training, "training") if train else (forward, "inference")
    model = model.train(train)
    calls = {}
    for layout, memory_format in LAYOUTS.items():
        image = x.to(memory_format=memory_format)
        theirs = copy.deepcopy(model).to(memory_format=memory_format)
        calls[f"torch {layout}"] = make(theirs, image)
        calls[f"fastcv {layout}"] = make(optimize(copy.deepcopy(model), mode=mode).to(memory_format=memory_format), image)
    if compiled:
        torch._dynamo.reset()
        calls["compile contiguous"] = make(torch.compile(copy.deepcopy(model)), x)
    return calls


def race(name: str, model: nn.Module, x: Tensor, train: bool = False, compiled: bool = False, seconds: float = 10.0) -> list[Row]:
    """A row for each contender. Errors are of the output, against the model in float64 (in training mode, with its dropout, none)."""
    calls = contenders(model, x, train, compiled)
    exact = None if train else forward(copy.deepcopy(model).double().eval(), x.double())()
    guard = Guard()
    guard.start()
    samples = interleave(calls, seconds, ROUNDS)
    noise = guard.noise()
    size = "x".join(map(str, x.shape))
    rows = []
    for contender, call in calls.items():
        who, layout = contender.split()
        row = Row(
            case=f"model-{name}-{size}",
            op="model",
            dtype="f32",
            mode="fwd+bwd" if train else "fwd",
            layout=layout,
            contender=contender,
            who=who,
            cache="hot",
            threads=torch.get_num_threads(),
            times=samples[contender].times,
            noise=noise.as_dict(),
        )
        row.peak, row.workspace = peak(call)
        if exact is not None:
            row.error = max_error(call(), exact)
        rows.append(row)
    own = [r.error for r in rows if r.who == "torch" and r.error is not None]
    for row in rows:
        if own:
            row.peer_error = max(own)
        if reason := unreliable(noise, row.times, 0, LIMITS):
            row.status, row.reason = UNRELIABLE, reason
        if row.error is not None and not row.error < 1e-2:
            row.status, row.reason = WRONG, f"its output is {row.error:.2g} off the model in float64"
    return rows


def images_per_second(row: Row) -> float:
    return int(row.case.rpartition("-")[2].split("x")[0]) / median(row.times)
