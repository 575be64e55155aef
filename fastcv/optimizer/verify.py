"""Compares an optimised model with torch's on an example, against float64, and undoes what errs too much.

The rule (yardstick.py) is asked of each fused chain and each module on the input it gets within the model, then of the whole
model's outputs and, in training mode, of all parameters' gradients together (some are zero but for rounding, and have no
relative error alone). Where every part passes and the whole does not, fusions are undone in the order of their own errors, no
more of them than it takes; then kernels. Everything runs on copies: statistics, gradients and random states of the model
stay. What is exact enough may then run inside channels_last (layout.py).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .chain import BatchNormChain, Chain
from .forwards import HeadForward, KernelForward, MemberForward, installed
from .kernels import SYNCHRONISED, kind_of, op_of
from .layout import LayoutForward, device_of_rows, why_not_channels_last
from .linear import ACTIVATIONS
from .pending import Pending
from .report import Report, Row
from .trace import model_copy
from .yardstick import Measured, Yardstick, cast, fresh, measure, run


def verify(model: nn.Module, report: Report, example: Any) -> None:
    """Fills in the report's errors; takes away fusions, then kernels, of ``model`` that err by more than the rule allows."""
    args, kwargs = _arguments(example)
    training = report.mode == "training"
    rows = {row.name: row for row in report.rows}
    yardstick = Yardstick(model, args, kwargs, training)

    def judge(twin: nn.Module) -> dict[str, Measured]:
        return yardstick.judge(run(twin, args, kwargs, training))

    measured: dict[str, Measured] = {}
    for undo in (None, undo_fusions, undo_kernels):
        if undo is not None:
            for row in _undo_enough(model, rows, undo, measured, judge):
                row.reason = "undone: the model's output erred by more than twice torch's own error"
        watched = model_copy(model)
        measured = _watch(watched)
        overall = judge(watched)
        for name, result in measured.items():
            rows[name].max_error, rows[name].allowed = result.error, result.allowed
        for name, size in _saved_bytes(watched).items():
            rows[name].saved_bytes = size
        bad = {name for name, result in measured.items() if not result.passed}
        if bad:
            _undo_alone(model, rows, bad)
            overall = judge(model_copy(model))
        report.errors = {name: (result.error, result.allowed) for name, result in overall.items()}
        if _passed(overall):
            if not training:
                report.layout_kept = why_not_channels_last(model, report, args, kwargs)
            if report.layout_kept == "":
                _go_inside(model, report, device_of_rows(args, kwargs), judge)
            break
    report.both_layouts = yardstick.both_layouts


def _passed(results: dict[str, Measured]) -> bool:
    return all(result.passed for result in results.values())


def _go_inside(model: nn.Module, report: Report, device: str, judge: Callable[[nn.Module], dict[str, Measured]]) -> None:
    """Sets the model's forward to run inside channels_last, if its outputs are as exact there."""
    twin = model_copy(model)
    LayoutForward(twin, report, device).install()
    overall = judge(twin)
    if not _passed(overall):
        report.layout_kept = "its output would err by more than twice torch's own error"
        return
    report.errors = {name: (result.error, result.allowed) for name, result in overall.items()}
    LayoutForward(model, report, device).install()


def _saved_bytes(watched: nn.Module) -> dict[str, int]:
    """What the readers of each chain's result did not keep in the one run of this copy."""
    forwards = [installed(module) for module in watched.modules()]
    chains = {f.chain.name: f.chain for f in forwards if isinstance(f, HeadForward)}
    return {name: chain.saved_bytes for name, chain in chains.items() if isinstance(chain, BatchNormChain)}


Undo = Callable[[nn.Module, dict[str, Row], set[str] | None], list[Row]]


def _undo_enough(
    model: nn.Module, rows: dict[str, Row], undo: Undo, measured: dict[str, Measured], judge: Callable[[nn.Module], dict[str, Measured]]
) -> list[Row]:
    """Undoes as few as it takes, those with the largest errors of their own first, or all if that is not enough."""
    forwards = {name: installed(module) for name, module in model.named_modules()}
    kind = HeadForward if undo is undo_fusions else KernelForward
    names = [f.chain.name if isinstance(f, HeadForward) else name for name, f in forwards.items() if isinstance(f, kind)]
    order = sorted(names, key=lambda name: -_share(measured.get(name)))  # stable: what the example did not run comes last

    def enough(count: int) -> bool:
        twin = model_copy(model)
        undo(twin, {name: copy.copy(row) for name, row in rows.items()}, set(order[:count]))
        return _passed(judge(twin))

    low, high = 1, len(order)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return undo(model, rows, set(order[:high]))


def _share(result: Measured | None) -> float:
    """Of what the rule allows, how much a part takes up; -1 for one that was not measured."""
    return -1.0 if result is None else result.error / result.allowed


def _undo_alone(model: nn.Module, rows: dict[str, Row], names: set[str]) -> None:
    for name in names:
        row = rows[name]
        error, allowed = row.max_error, row.allowed
        (undo_fusions if row.fused else undo_kernels)(model, rows, {name})
        row.reason = f"undone: error {error:.1e} on the example, allowed {allowed:.1e}"


def undo_fusions(model: nn.Module, rows: dict[str, Row], names: set[str] | None = None) -> list[Row]:
    """Each module of the chains (all, or those with heads of these names) on a kernel of its own; returns the heads' rows."""
    undone = []
    for name, module in model.named_modules():
        forward = installed(module)
        if isinstance(forward, (HeadForward, MemberForward)) and (names is None or forward.chain.name in names):
            row = rows[name]
            row.op = (op_of(module) or "") if row.op else ""  # a linear layer on torch's product has none
            if row.op:
                KernelForward(module).install()
            else:
                del module.forward
            if row.fused:
                undone.append(row)
                row.fused = []
    return undone


def undo_kernels(model: nn.Module, rows: dict[str, Row], names: set[str] | None = None) -> list[Row]:
    """The modules (all, or of these names) on torch's kernels again; returns their rows."""
    undone = []
    for name, module in model.named_modules():
        if isinstance(installed(module), KernelForward) and (names is None or name in names):
            del module.forward
            rows[name].op = ""
            undone.append(rows[name])
    return undone


def _arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, dict):
        return (), example
    return (tuple(example) if isinstance(example, (tuple, list)) else (example,)), {}


def _watch(model: nn.Module) -> dict[str, Measured]:
    """Makes the copy's chains and kernels measure themselves at each call; returns where their worst results will stand."""
    worst: dict[str, Measured] = {}

    def note(name: str, ours: Any, reference: Callable[[torch.dtype | None], Any]) -> Any:
        answer = _answer(ours)
        if isinstance(answer, Tensor) and answer.is_floating_point():
            result = _measure(answer.detach(), lambda dtype: _answer(reference(dtype)))
            before = worst.get(name)
            if before is None or (before.passed, before.allowed - before.error) > (result.passed, result.allowed - result.error):
                worst[name] = result
        return ours

    for name, module in model.named_modules():
        forward = installed(module)
        if isinstance(forward, HeadForward):
            _watch_chain(forward.chain, note)
        elif isinstance(forward, KernelForward) and not isinstance(forward, MemberForward) and not isinstance(module, SYNCHRONISED):
            _watch_kernel(name, forward, note)
    return worst


def _answer(result: Any) -> Any:
    """What of a module's result is measured: beside the output of attention stand its weights, beside that of pooling indices."""
    return result[0] if isinstance(result, tuple) else result


def _measure(ours: Tensor, reference: Callable[[torch.dtype | None], Any]) -> Measured:
    """reference: torch's answer in a dtype, or in the dtype of the model."""
    peers = [reference(None), *([reference(torch.float32)] if ours.dtype is torch.float64 else [])]
    return measure(ours, reference(torch.float64), peers)


def _watch_chain(chain: Chain, note: Callable[..., Any]) -> None:
    compute = chain.compute

    def measured(pending: Pending, activation: str | None, again: bool, windows: dict[str, Any] | None = None) -> Tensor:
        modules = [chain.head] if isinstance(chain, BatchNormChain) else [chain.head, chain.bn][: 1 + pending.normalised]
        twins = [_twin(m) for m in modules if m is not None]
        x, residual = pending.x.detach().clone(memory_format=torch.preserve_format), fresh(pending.residual)

        def reference(dtype: torch.dtype | None) -> Tensor:
            cast = (lambda t: t) if dtype is None else (lambda t: t.to(dtype))
            with torch.no_grad():
                y = cast(x)
                for twin in twins:
                    y = cast(copy.deepcopy(twin))(y)
                y = y if residual is None else y + cast(residual)
                if activation == "leaky_relu":
                    y = F.leaky_relu(y, pending.slope)
                elif activation is not None:
                    y = ACTIVATIONS[activation](y)
                return y if windows is None else F.max_pool2d(y, **windows)

        return note(chain.name, compute(pending, activation, again, windows), reference)

    chain.compute = measured


def _watch_kernel(name: str, forward: KernelForward, note: Callable[..., Any]) -> None:
    module = forward.module

    def measured(*args: Any, **kwargs: Any) -> Any:
        twin = _twin(module)
        inputs = fresh((args, kwargs))

        def reference(dtype: torch.dtype | None) -> Any:
            with torch.no_grad():
                own_args, own_kwargs = inputs if dtype is None else cast(inputs, dtype)
                return (twin if dtype is None else copy.deepcopy(twin).to(dtype))(*own_args, **own_kwargs)

        return note(name, forward(*args, **kwargs), reference)

    module.forward = measured


def _twin(module: nn.Module) -> nn.Module:
    """A copy of a leaf module on torch's kernels, without hooks."""
    kind = getattr(nn, (kind_of(module) or type(module)).__name__)
    twin = kind.__new__(kind)
    nn.Module.__init__(twin)
    twin.__dict__.update({k: v for k, v in vars(module).items() if k != "forward" and not k.endswith("_hooks")})
    copied = {k: None if v is None else v.detach().clone() for k, v in (*module._parameters.items(), *module._buffers.items())}
    twin.__dict__["_parameters"] = {k: None if (t := copied[k]) is None else nn.Parameter(t, False) for k in module._parameters}
    twin.__dict__["_buffers"] = {k: copied[k] for k in module._buffers}
    return twin
