"""fastcv.explain: where the time of a model goes, layer by layer, and what keeps each layer from being faster."""

from __future__ import annotations

import time
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .. import _ext
from ..bench import roofs
from ..bench.machine import processor
from ..optimizer.kernels import is_attention, op_of, resembles, why_left_alone
from ..optimizer.optimize import restore
from ..optimizer.report import Report
from ..optimizer.report import Row as ReportRow
from ..optimizer.trace import model_copy, random_states_kept
from . import work
from .explanation import Backward as BackwardPart
from .explanation import Choice, Explanation, Layer
from .gradients import Backward, Spans
from .watch import Clock, Work, record, watched


def explain(model: nn.Module, *inputs: Any, seconds: float = 2.0, backward: bool = False, **kwargs: Any) -> Explanation:
    """Runs ``model(*inputs, **kwargs)`` and says for every layer what ran, how long, and how far from the machine's roof.

    The result prints as a table (with rich where it is installed), has ``to_json()`` and ``to_html()``, and ``save(path)`` for
    a path that ends in .json or .html. It is of the model as it is: optimised, partly or not at all. Beside it runs the same
    model on torch alone (what ``fastcv.restore`` gives), call by call in turn, and if an input has 4 dimensions, the model with
    everything in channels_last; times are medians of about ``seconds`` of such rounds, at least three.

    backward: also run the backward pass, from all outputs with a gradient, for the gradients of the parameters; each layer then
    says how long its part of that takes and which variants compute it. Without it a model in training mode runs its forward as
    the caller's gradient mode says, one in evaluation mode without gradients. All runs are on copies: the model, its statistics,
    its gradients, its hooks and the random state stay as they are; what the model raises is raised. Raises TypeError if model is
    no Module, ValueError for compiled models, without inputs, and with backward=True if no output has a gradient; NotBuiltError.
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
    runs = {}
    for name, contender in contenders.items():
        arguments = _channels_last((inputs, kwargs)) if name == "channels_last" else (inputs, kwargs)
        runs[name] = _Run(contender, *arguments, backward and name != "channels_last")
    with random_states_kept(model, inputs, kwargs), torch.set_grad_enabled(backward or (torch.is_grad_enabled() and model.training)):
        for run in runs.values():
            for _ in range(2):  # warm-up: folded and packed weights, first touch of memory
                run.take()
        done, done_backward = runs["model"].record()
        called = dict(runs["model"].clock.calls)
        runs["model"].take()
        rounds, backward_rounds = _rounds(runs, seconds)
    layers = _layers(model, done, rounds, {name: max(1, count // 3) for name, count in called.items()})
    spread = quantiles([sum(times.values()) for times in rounds["model"]], n=10, method="inclusive")
    names = {layer.name for layer in layers}
    backward_totals = {}
    if backward:
        _add_backward(layers, done_backward, backward_rounds)
        backward_totals = _totals(backward_rounds) | {"between": _between(backward_rounds["model"], names)}
    return Explanation(
        type(model).__name__,
        layers,
        _totals(rounds),
        _between(rounds["model"], names),
        (spread[0], spread[-1]),
        len(rounds["model"]),
        _describe((inputs, kwargs)),
        _machine(),
        backward_totals,
    )


def _channels_last(value: Any) -> Any:
    return pytree.tree_map_only(Tensor, lambda t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t, value)


class _Run:
    """One contender: a watched copy of the model that nobody else uses, its inputs, and its clocks."""

    def __init__(self, model: nn.Module, inputs: Any, kwargs: Any, backward: bool) -> None:
        spans = Spans() if backward else None
        self.clock = Clock(spans)
        self.backward = Backward(model, spans) if backward else None
        self._inputs = inputs, kwargs
        self._model = watched(model, self.clock)

    def _forward(self) -> Any:
        """A call on its own inputs: what it changes in place is copied for every call, before the clocks start."""
        args, keywords = pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), self._inputs)
        if self.backward is not None:
            self.backward.spans.clear()
        return self._model(*args, **keywords)

    def take(self) -> tuple[dict[str, float], dict[str, float]]:
        """One call: exclusive seconds by frame, forward and backward."""
        output = self._forward()
        forward = self.clock.take()
        if self.backward is None:
            return forward, {}
        self.backward.prepare(output)()
        self.clock.take()  # of what the backward pass calls again, such as a checkpointed layer
        return forward, self.backward.clock.take()

    def record(self) -> tuple[dict[str, Work], dict[str, Work]]:
        """One call, not timed: what ran in each frame, forward and backward."""
        outputs: list[Any] = []
        forward = record(lambda: outputs.append(self._forward()), self.clock)
        if self.backward is None:
            return forward, {}
        backward = record(self.backward.prepare(outputs[0]), self.backward.clock)
        self.backward.clock.take()
        return forward, backward


Rounds = dict[str, list[dict[str, float]]]


def _rounds(runs: dict[str, _Run], seconds: float) -> tuple[Rounds, Rounds]:
    """Exclusive seconds by frame, of each contender in each round, forward and backward; the order turns from round to round."""
    forward: Rounds = {name: [] for name in runs}
    backward: Rounds = {name: [] for name, run in runs.items() if run.backward is not None}
    order = list(runs)
    end = time.perf_counter() + seconds
    while len(forward[order[0]]) < 3 or (time.perf_counter() < end and len(forward[order[0]]) < 200):
        for name in order:
            times, gradient_times = runs[name].take()
            forward[name].append(times)
            if name in backward:
                backward[name].append(gradient_times)
        order = order[1:] + order[:1]
    return forward, backward


def _totals(rounds: Rounds) -> dict[str, float]:
    return {name: median(sum(times.values()) for times in runs) for name, runs in rounds.items()}


def _between(runs: list[dict[str, float]], layers: set[str]) -> float:
    return median(sum(t for name, t in times.items() if name not in layers) for times in runs)


def _add_backward(layers: list[Layer], done: dict[str, Work], rounds: Rounds) -> None:
    times = {kind: _medians(rounds[kind]) for kind in ("model", "torch")}
    for layer in layers:
        entry = done.get(layer.name, Work())
        layer.backward = part = BackwardPart(entry.ops, _choices(entry.choices), entry.flops, entry.bytes)
        part.seconds = times["model"].get(layer.name, 0.0)
        part.torch_seconds = sum(times["torch"].get(name, 0.0) for name in layer.members)
        if layer.bound and entry.dtype is not None:
            part.bound, part.least_seconds = _roof(entry)


def _layers(model: nn.Module, done: dict[str, Work], rounds: Rounds, calls: dict[str, int]) -> list[Layer]:
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
            members=members,
            conversions=entry.conversions,
            reason=_reason(module, entry, row, rows is not None),
        )
        if entry.input is None or entry.input.device.type == "meta":
            layer.bound, layer.least_seconds = _roof(entry)
        layers.append(layer)
    return layers


def _medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {name: median(run.get(name, 0.0) for run in runs) for name in runs[0]}


def _roof(entry: Work) -> tuple[str, float]:
    """The nearer roof, and the seconds that it allows."""
    compute = 0.0
    if entry.flops and entry.dtype is not None and entry.dtype.is_floating_point:
        compute = entry.flops / roofs.arithmetic(entry.dtype)
    memory = entry.bytes / roofs.copy(entry.bytes) if entry.bytes else 0.0
    return "arithmetic" if compute > memory else "memory", max(compute, memory)


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
    if is_attention(module):
        return "scaled_dot_product_attention runs on torch" if optimised else "the model is not optimised: fastcv.optimize(model)"
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
