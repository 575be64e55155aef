"""Compares an optimised model with torch's on an example, against float64, and undoes what errs too much.

The rule is fastcv.testing's: an error against float64 of at most twice torch's own in the same dtype, plus one eps. It is
asked of each fused chain and each module on the input it gets within the model, then of the whole model's outputs and, in
training mode, of all parameters' gradients together (some are zero but for rounding, and have no relative error alone).
The largest error of a small example is a matter of luck in the last bit, so what breaks the rule by its largest error is
undone only if it breaks it by the Euclidean norm of its error as well; a wrong element stands out in both.
Everything runs on copies: statistics, gradients and random states of the model stay. What is exact enough may then run
inside channels_last (layout.py).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .chain import BatchNormChain, Chain
from .forwards import BatchNormForward, HeadForward, KernelForward, installed
from .kernels import SYNCHRONISED, kind_of, op_of
from .layout import LayoutForward, why_not_channels_last
from .pending import Pending
from .report import Report, Row
from .trace import model_copy

_ACTIVATIONS = {"relu": F.relu, "relu6": F.relu6, "silu": F.silu, "hardswish": F.hardswish}


Results = dict[str, Tensor]


class Measured(NamedTuple):
    """An error against float64 by the largest element, what torch's own allows, and whether the rule is kept."""

    error: float
    allowed: float
    passed: bool


def verify(model: nn.Module, report: Report, example: Any) -> None:
    """Fills in the report's errors; takes away fusions, then kernels, of ``model`` that err by more than the rule allows."""
    args, kwargs = _arguments(example)
    training = report.mode == "training"
    rows = {row.name: row for row in report.rows}
    torchs = _run(_torch_only(model), args, kwargs, training)
    exact, single = (
        _run(_torch_only(model).to(dtype), _cast(args, dtype), _cast(kwargs, dtype), training) for dtype in (torch.float64, torch.float32)
    )
    for undo in (None, undo_fusions, undo_kernels):
        if undo is not None:
            for row in undo(model, rows):
                row.reason = "undone: the model's output erred by more than twice torch's own error"
        watched = model_copy(model)
        measured = _watch(watched)
        overall = _errors(_run(watched, args, kwargs, training), torchs, exact, single)
        for name, result in measured.items():
            rows[name].max_error, rows[name].allowed = result.error, result.allowed
        for name, size in _saved_bytes(watched).items():
            rows[name].saved_bytes = size
        bad = {name for name, result in measured.items() if not result.passed}
        if bad:
            _undo_alone(model, rows, bad)
            overall = _errors(_run(model_copy(model), args, kwargs, training), torchs, exact, single)
        report.errors = {name: (result.error, result.allowed) for name, result in overall.items()}
        if all(result.passed for result in overall.values()):
            if not training:
                report.layout_kept = why_not_channels_last(model, report, args, kwargs)
            if report.layout_kept == "":
                _go_inside(model, report, args, kwargs, (torchs, exact, single))
            return


def _go_inside(model: nn.Module, report: Report, args: Any, kwargs: Any, references: tuple[Results, Results, Results]) -> None:
    """Sets the model's forward to run inside channels_last, if its outputs are as exact there."""
    twin = model_copy(model)
    LayoutForward(twin, report).install()
    overall = _errors(_run(twin, args, kwargs, training=False), *references)
    if not all(result.passed for result in overall.values()):
        report.layout_kept = "its output would err by more than twice torch's own error"
        return
    report.errors = {name: (result.error, result.allowed) for name, result in overall.items()}
    LayoutForward(model, report).install()


def _saved_bytes(watched: nn.Module) -> dict[str, int]:
    """What the readers of each chain's result did not keep in the one run of this copy."""
    forwards = [installed(module) for module in watched.modules()]
    chains = {f.chain.name: f.chain for f in forwards if isinstance(f, HeadForward)}
    return {name: chain.saved_bytes for name, chain in chains.items() if isinstance(chain, BatchNormChain)}


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
        if isinstance(forward, (HeadForward, BatchNormForward)) and (names is None or forward.chain.name in names):
            row = rows[name]
            row.op = op_of(module) or ""
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


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return pytree.tree_map_only(Tensor, lambda t: t.detach().to(dtype) if t.is_floating_point() else t, value)


def _fresh(value: Any) -> Any:
    return pytree.tree_map_only(Tensor, lambda t: t.detach().clone(memory_format=torch.preserve_format), value)


def _torch_only(model: nn.Module) -> nn.Module:
    twin = model_copy(model)
    for module in twin.modules():
        if installed(module) is not None and not isinstance(module, SYNCHRONISED):
            del module.forward
    return twin


def _run(model: nn.Module, args: Any, kwargs: Any, training: bool) -> dict[str, Tensor]:
    """Outputs, and in training mode gradients of a fixed weighting of them, as one vector each. Dropout is off."""
    model.train(training)
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
    with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(training):
        torch.manual_seed(0)
        output = model(*_fresh(args), **_fresh(kwargs))
        tensors = [t for t in pytree.tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point()]
        results = {"output": torch.cat([t.detach().flatten() for t in tensors])} if tensors else {}
        used = [t for t in tensors if t.requires_grad]
        if used:
            generator = torch.Generator().manual_seed(0)
            weights = [torch.randn(t.shape, generator=generator).to(t.device, t.dtype) for t in used]
            torch.autograd.backward(used, weights)
            gradients = [p.grad.detach().flatten() for p in model.parameters() if p.grad is not None]
            if gradients:
                results["gradient"] = torch.cat(gradients)
    return results


def _errors(ours: Results, torchs: Results, exact: Results, single: Results) -> dict[str, Measured]:
    return {key: _measure(ours[key], torchs[key], exact[key], single[key]) for key in exact if key in ours}


def _measure(ours: Tensor, torchs: Tensor, exact: Tensor, single: Tensor) -> Measured:
    """single: torch's result in float32, whose error, scaled, stands for torch's own where torch in float64 is the reference."""
    from ..testing.compare import max_error

    eps = torch.finfo(ours.dtype).eps
    scaled = eps / torch.finfo(torch.float32).eps if ours.dtype is torch.float64 else 0.0
    largest, total = (
        (error(ours, exact), 2 * max(error(torchs, exact), error(single, exact) * scaled if scaled else 0.0) + eps)
        for error in (max_error, _total_error)
    )
    return Measured(*largest, passed=largest[0] <= largest[1] or total[0] <= total[1])


def _total_error(result: Tensor, reference: Tensor) -> float:
    """Euclidean norm of the error over that of the reference, both without the elements that are not finite."""
    result, reference = result.double(), reference.double()
    finite = reference.isfinite()
    if not torch.equal(finite, result.isfinite()):
        return float("inf")
    scale = reference[finite].norm().item()
    error = (result[finite] - reference[finite]).norm().item()
    return error / scale if scale > 0 else error


def _watch(model: nn.Module) -> dict[str, Measured]:
    """Makes the copy's chains and kernels measure themselves at each call; returns where their worst results will stand."""
    worst: dict[str, Measured] = {}

    def note(name: str, ours: Any, reference: Callable[[torch.dtype | None], Any]) -> Any:
        if isinstance(ours, Tensor) and ours.is_floating_point():
            result = _measure(ours.detach(), reference(None), reference(torch.float64), reference(torch.float32))
            before = worst.get(name)
            if before is None or (before.passed, before.allowed - before.error) > (result.passed, result.allowed - result.error):
                worst[name] = result
        return ours

    for name, module in model.named_modules():
        forward = installed(module)
        if isinstance(forward, HeadForward):
            _watch_chain(forward.chain, note)
        elif isinstance(forward, KernelForward) and not isinstance(forward, BatchNormForward) and not isinstance(module, SYNCHRONISED):
            _watch_kernel(name, forward, note)
    return worst


def _watch_chain(chain: Chain, note: Callable[..., Any]) -> None:
    compute = chain.compute

    def measured(pending: Pending, activation: str | None, again: bool) -> Tensor:
        modules = [chain.head] if isinstance(chain, BatchNormChain) else [chain.head, chain.bn][: 1 + pending.normalised]
        twins = [_twin(m) for m in modules if m is not None]
        x, residual = pending.x.detach().clone(memory_format=torch.preserve_format), _fresh(pending.residual)

        def reference(dtype: torch.dtype | None) -> Tensor:
            cast = (lambda t: t) if dtype is None else (lambda t: t.to(dtype))
            with torch.no_grad():
                y = cast(x)
                for twin in twins:
                    y = cast(copy.deepcopy(twin))(y)
                y = y if residual is None else y + cast(residual)
                if activation == "leaky_relu":
                    return F.leaky_relu(y, pending.slope)
                return y if activation is None else _ACTIVATIONS[activation](y)

        return note(chain.name, compute(pending, activation, again), reference)

    chain.compute = measured


def _watch_kernel(name: str, forward: KernelForward, note: Callable[..., Any]) -> None:
    module = forward.module

    def measured(*args: Any, **kwargs: Any) -> Any:
        twin = _twin(module)
        inputs = _fresh((args, kwargs))

        def reference(dtype: torch.dtype | None) -> Any:
            with torch.no_grad():
                own_args, own_kwargs = inputs if dtype is None else _cast(inputs, dtype)
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
