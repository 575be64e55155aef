"""fastcv.explain: where the time of a model goes, layer by layer, and what keeps each layer from being faster."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .. import _ext
from ..bench import roofs
from ..bench.machine import processor
from ..optimizer.kernels import op_of, resembles, why_left_alone
from ..optimizer.optimize import restore
from ..optimizer.report import Report
from ..optimizer.report import Row as ReportRow
from ..optimizer.trace import model_copy
from . import work
from .explanation import Choice, Explanation, Layer
from .watch import Clock, Work, record, watched


def explain(model: nn.Module, *inputs: Any, seconds: float = 2.0, **kwargs: Any) -> Explanation:
    """Runs ``model(*inputs, **kwargs)`` and says for every layer what ran, how long, and how far from the machine's roof.

    The result prints as a table (with rich where it is installed), has ``to_json()`` and ``to_html()``, and ``save(path)`` for
    a path that ends in .json or .html. It is of the model as it is: optimised, partly or not at all. Beside it runs the same
    model on torch alone (what ``fastcv.restore`` gives), call by call in turn, and if an input has 4 dimensions, the model with
    everything in channels_last; times are medians of about ``seconds`` of such rounds, at least three.

    A model in training mode runs its forward as the caller's gradient mode says, one in evaluation mode without gradients.
    All runs are on copies: the model, its statistics, its hooks and the random state stay as they are; what the model raises
    is raised. Raises TypeError if model is no Module, ValueError for compiled models and without inputs, NotBuiltError.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"fastcv.explain: model must be a torch.nn.Module, got {type(model).__name__}")
    if not inputs and not kwargs:
        raise ValueError("fastcv.explain: give the inputs that the model is to be called with")
    if any(isinstance(m, torch._dynamo.eval_frame.OptimizedModule) for m in model.modules()):
        raise ValueError("fastcv.explain: the model is compiled, its layers cannot be told apart; explain it before torch.compile")
    _ext.module()
    ours = model_copy(model)
    contenders = {"model": ours, "torch": restore(model_copy(model))}
    spatial = any(isinstance(t, Tensor) and t.dim() == 4 and t.device.type == "cpu" for t in pytree.tree_leaves((inputs, kwargs)))
    if spatial:
        contenders["channels_last"] = model_copy(model).to(memory_format=torch.channels_last)
    clocks = {name: Clock() for name in contenders}
    calls = {}
    for name, contender in contenders.items():
        arguments = _channels_last((inputs, kwargs)) if name == "channels_last" else (inputs, kwargs)
        calls[name] = _call(watched(contender, clocks[name]), *arguments)
    with torch.random.fork_rng(devices=[]), _gradients(model):
        for name in contenders:
            for _ in range(2):  # warm-up: folded and packed weights, first touch of memory
                calls[name]()
            clocks[name].take()
        done = record(calls["model"], clocks["model"])
        called = dict(clocks["model"].calls)
        clocks["model"].take()
        rounds = _rounds(calls, clocks, seconds)
    layers = _layers(model, done, rounds, {name: max(1, count // 3) for name, count in called.items()})
    totals = {name: median(sum(times.values()) for times in runs) for name, runs in rounds.items()}
    spread = quantiles([sum(times.values()) for times in rounds["model"]], n=10, method="inclusive")
    names = {layer.name for layer in layers}
    between = median(sum(t for name, t in times.items() if name not in names) for times in rounds["model"])
    return Explanation(
        type(model).__name__,
        layers,
        totals,
        between,
        (spread[0], spread[-1]),
        len(rounds["model"]),
        _describe((inputs, kwargs)),
        _machine(),
    )


def _gradients(model: nn.Module) -> AbstractContextManager[Any]:
    return torch.set_grad_enabled(torch.is_grad_enabled() and model.training)


def _channels_last(value: Any) -> Any:
    return pytree.tree_map_only(Tensor, lambda t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t, value)


def _call(model: Callable[..., Any], inputs: Any, kwargs: Any) -> Callable[[], Any]:
    """A call of the model on its own inputs: what it changes in place is copied for every call, before the clocks start."""

    def call() -> Any:
        args, keywords = pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), (inputs, kwargs))
        return model(*args, **keywords)

    return call


def _rounds(calls: dict[str, Callable[[], Any]], clocks: dict[str, Clock], seconds: float) -> dict[str, list[dict[str, float]]]:
    """Exclusive seconds by frame, of each contender in each round; the order turns from round to round."""
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in calls}
    order = list(calls)
    end = time.perf_counter() + seconds
    while len(rounds[order[0]]) < 3 or (time.perf_counter() < end and len(rounds[order[0]]) < 200):
        for name in order:
            calls[name]()
            rounds[name].append(clocks[name].take())
        order = order[1:] + order[:1]
    return rounds


def _layers(model: nn.Module, done: dict[str, Work], rounds: dict[str, list[dict[str, float]]], calls: dict[str, int]) -> list[Layer]:
    report = vars(model).get("fastcv_report")
    rows = {row.name: row for row in report.rows} if isinstance(report, Report) else None
    modules = dict(model.named_modules())
    times = {kind: _medians(rounds[kind]) for kind in ("model", "torch")}
    layers = []
    for name, seconds in times["model"].items():
        entry = done.get(name)
        if entry is None or not entry.ops:
            continue
        row = (rows or {}).get(name)
        module = modules[name]
        own = not isinstance(module, nn.Sequential) and next(module.children(), None) is not None
        members = [name, *(m for m in row.fused if m in modules)] if row is not None else [name]
        layer = Layer(
            name=name,
            type=type(module).__name__ + (" (its own code)" if own else ""),
            fused=list(row.fused) if row is not None else [],
            ops=entry.ops,
            choices=_choices(entry.choices),
            input=_shape(entry.input),
            output=_shape(entry.output),
            dtype=str(entry.dtype).removeprefix("torch."),
            layout="" if entry.input is None else work.layout(entry.input),
            calls=calls.get(name, 1),
            flops=entry.flops,
            bytes=entry.bytes,
            seconds=seconds,
            torch_seconds=sum(times["torch"].get(m, 0.0) for m in members),
            conversions=entry.conversions,
            reason=_reason(module, entry, row, rows is not None),
        )
        if entry.input is None or entry.input.device.type == "meta":
            _against_roof(layer, entry)
        layers.append(layer)
    return layers


def _medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {name: median(run.get(name, 0.0) for run in runs) for name in runs[0]}


def _against_roof(layer: Layer, entry: Work) -> None:
    compute = 0.0
    if entry.flops and entry.dtype is not None and entry.dtype.is_floating_point:
        compute = entry.flops / roofs.arithmetic(entry.dtype)
    memory = entry.bytes / roofs.copy(entry.bytes) if entry.bytes else 0.0
    layer.bound = "arithmetic" if compute > memory else "memory"
    layer.least_seconds = max(compute, memory)


def _choices(recorded: list[tuple[str, str, str]]) -> list[Choice]:
    """One Choice per different call: the variants before the chosen one in the table with why they were not taken."""
    choices: list[Choice] = []
    refused: list[tuple[str, str]] = []
    for op, variant, reason in recorded:
        if variant == _ext.module().variants(op)[0][0]:
            refused = []
        if reason == "":
            choice = Choice(op, variant, tuple(refused))
            if choice not in choices:
                choices.append(choice)
        else:
            refused.append((variant, reason))
    return choices


def _reason(module: nn.Module, entry: Work, row: ReportRow | None, optimised: bool) -> str:
    """Why the layer, or part of it, ran on torch, or was not fused; "" if neither."""
    torchs = [op for op in entry.ops if not op.startswith("fastcv.")]
    if row is not None and row.reason:
        return row.reason
    if not torchs:
        return ""
    if next(module.children(), None) is not None:
        return "functions and operators in the user's forward run on torch"
    if resembles(module) is None:
        return f"fastcv has no kernel for {type(module).__name__}"
    if not optimised:
        return why_left_alone(module) or "the model is not optimised: fastcv.optimize(model)"
    if row is None:
        return f"{op_of(module)} is not among the ops that fastcv.optimize was asked for" if op_of(module) else ""
    return "" if row.op and len(torchs) < len(entry.ops) else "no kernel serves this input: its device, dtype or tensor class"


def _shape(t: Tensor | None) -> list[int]:
    return [] if t is None else list(t.shape)


def _describe(value: Any) -> str:
    tensors = [t for t in pytree.tree_leaves(value) if isinstance(t, Tensor)]
    return ", ".join(f"{str(t.dtype).removeprefix('torch.')}[{', '.join(map(str, t.shape))}] {work.layout(t)}" for t in tensors)


def _machine() -> dict[str, Any]:
    return {
        "processor": processor(),
        "isa": _ext.cpu_isa(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "fastcv": _ext.build_info()["version"],
        "fma_roof": roofs.arithmetic(torch.float32),
        "copy_roof": roofs.copy(1 << 28),
    }
