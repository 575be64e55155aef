"""fastcv.optimize and fastcv.restore: a model of torch.nn modules on fastcv's kernels, and back.

Why forwards of instances: the classes, the module tree, parameters, state_dict, hooks and the user's own forward stay what
they were; nothing outside the model changes; and taking the forwards away restores it. Why the traced graph is not run: a
graph freezes what the forward decided while it was traced. Here the graph only proves that a fusion is worth trying; the
user's forward runs, and each fused chain checks at each call that the next step is the one expected (pending.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from torch import nn

from .. import _ext
from . import attention, linear
from .chain import BatchNormChain, Chain, ConvChain
from .forwards import (
    ActivationForward,
    AttentionForward,
    BatchNormForward,
    HeadForward,
    KernelForward,
    MaxPoolForward,
    OwnerForward,
    RecomputingForward,
    installed,
)
from .kernels import IN_PLACE_ACTIVATIONS, LINEAR, OPS, is_attention, is_linear, is_sharded, op_of, resembles, why_left_alone
from .patterns import Plan, measured, prove
from .region import Region
from .report import RUNS_ON_TORCH, Report, Row
from .trace import model_copy, trace
from .verify import verify

_MODES = ("inference", "training")


def optimize(
    model: nn.Module,
    mode: str = "inference",
    ops: str | Iterable[str] = "auto",
    fuse: bool = True,
    example: Any = None,
    strict: bool = False,
    inplace: bool = False,
    recompute: bool = True,
) -> nn.Module:
    """Returns a copy of ``model`` (with inplace=True the model itself) whose modules run on fastcv's kernels.

    mode: "inference" folds batch norms into convolutions and linear layers and fuses activations and residual additions,
    wherever no gradient is needed and the batch norm is in evaluation mode, and runs the linear layers that gain by it on packed
    weights; everywhere else, and with "training", batch norm, addition and activation are fused, with gradients, and so are batch
    norm, activation and max pooling, without the map between them.
    ops: "auto" for all, or names in fastcv.functional such as ["conv2d", "batch_norm"], and "linear" for nn.Linear. fuse: False
    leaves one kernel per module. example: an input (a tensor; a tuple or list of arguments; a dict of keyword arguments) to
    compare the outputs on, before and after, against float64: what errs by more than twice torch's own error is undone and
    reported. With one, a model made mostly of 1x1 and depthwise convolutions also runs row-major images in channels_last inside,
    where that is safe.
    strict: raise RuntimeError with the report if any module was left alone or not fused. recompute: in training mode, compute
    a fused batch norm's output again in the backward pass where only convolutions read it, rather than keep it: less memory,
    the same bits, one more pass over it. With an example the report says how many bytes.

    The result's ``fastcv_report`` says for each module what was done and why not more. state_dict is unchanged, and loading
    one, moving the model, copying, pickling and switching between train() and eval() work as before. Modules that are not
    exactly of a type that fastcv serves, and those with hooks, parametrisations or quantisation, are left alone. An exception
    leaves the model as it was. Raises TypeError if model is no Module, ValueError for unknown modes and ops, NotBuiltError.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"fastcv.optimize: model must be a torch.nn.Module, got {type(model).__name__}")
    if mode not in _MODES:
        raise ValueError(f"fastcv.optimize: mode must be one of {_MODES}, got {mode!r}")
    chosen = _chosen_ops(ops)
    _ext.module()
    if not inplace and any(is_sharded(t) for t in model.parameters()):
        raise RuntimeError("fastcv.optimize: a model under fully_shard cannot be copied; use inplace=True, or optimize before fully_shard")
    target = model if inplace else model_copy(model)
    before = _strip(target)
    try:
        report = _apply(target, mode, chosen, fuse, recompute)
        if example is not None:
            verify(target, report, example)
        if strict and report.skipped():
            raise RuntimeError(f"fastcv.optimize(strict=True): not everything is on fastcv\n{report}")
        target.fastcv_report = report
    except BaseException:
        _strip(target)
        for module, attributes in before:
            vars(module).update(attributes)
        raise
    return target


def restore(model: nn.Module) -> nn.Module:
    """Takes away, in place, all that optimize set on ``model``, and returns it. A model never optimised stays as it is."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"fastcv.restore: model must be a torch.nn.Module, got {type(model).__name__}")
    _strip(model)
    return model


def _chosen_ops(ops: str | Iterable[str]) -> frozenset[str]:
    available = frozenset((*OPS.values(), LINEAR))
    if ops == "auto":
        return available
    chosen = frozenset([ops] if isinstance(ops, str) else ops)
    if not chosen <= available:
        raise ValueError(f"fastcv.optimize: no module runs on {sorted(chosen - available)}; ops are {sorted(available)} or 'auto'")
    return chosen


def _strip(model: nn.Module) -> list[tuple[nn.Module, dict[str, Any]]]:
    """Removes forwards and reports; returns what was removed."""
    removed = []
    for module in model.modules():
        attributes = {}
        if installed(module) is not None:
            attributes["forward"] = vars(module).pop("forward")
        if isinstance(vars(module).get("fastcv_report"), Report):
            attributes["fastcv_report"] = vars(module).pop("fastcv_report")
        if attributes:
            removed.append((module, attributes))
    return removed


def _apply(model: nn.Module, mode: str, ops: frozenset[str], fuse: bool, recompute: bool) -> Report:
    """Plans first, then sets the forwards."""
    report = Report(mode)
    modules = dict(model.named_modules(remove_duplicate=False))
    rows: dict[str, Row] = {}
    served: list[nn.Module] = []
    others: Counter[str] = Counter()
    read_by_owner = {id(m.out_proj) for m in model.modules() if is_attention(m)}  # in whose row they are
    for name, module in model.named_modules():
        if id(module) in read_by_owner:
            continue
        if resembles(module) is None:
            if next(module.children(), None) is None and module is not model:
                others[type(module).__name__] += 1
            continue
        rows[name] = row = Row(name, type(module).__name__)
        row.reason = _why_on_torch(module, mode) or why_left_alone(module) or ""
        if not row.reason and op_of(module) in ops:
            row.op = op_of(module)
            row.packed_bytes = _packed_bytes(module)
            served.append(module)
        elif not row.reason or (resembles(module) in (nn.Linear, nn.MultiheadAttention) and LINEAR not in ops):
            others[type(module).__name__] += 1
            del rows[name]
    plans: list[Plan] = []
    readers: dict[str, str] = {}
    if fuse:
        traces, failures = trace(model, training=mode == "training")
        plans, refused = prove(traces, modules, ops, training=mode == "training")
        readers = measured(traces, modules, ops) if mode == "training" else {}
        for name in {*refused, *(plan.head for plan in plans)} - rows.keys():  # linear layers
            rows[name] = Row(name, type(modules[name]).__name__)
            others[type(modules[name]).__name__] -= 1
        for name, reason in refused.items():
            if not rows[name].reason or rows[name].reason.startswith(RUNS_ON_TORCH):
                rows[name].reason = f"not fused: {reason}"
        _report_untraced(failures, rows, {t.full_name(n) for t in traces for n in t.graph.nodes if n.op == "call_module"})
    for module in served:
        (AttentionForward if is_attention(module) else KernelForward)(module).install()
    _install_chains(plans, modules, rows, recompute and mode == "training")
    for name, reader in readers.items():
        installed(modules[name]).reader = modules[reader]
    report.rows = [rows[name] for name in modules if name in rows]
    report.left_to_torch = dict(+others)
    return report


def _why_on_torch(module: nn.Module, mode: str) -> str:
    """Why linear layers that could be served stay on torch's kernel; "" for other modules and for those that fastcv's serves."""
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return f"{RUNS_ON_TORCH}nn.MultiheadAttention reads its weight itself"
    if op_of(module) != LINEAR or why_left_alone(module) is not None:
        return ""
    if mode == "training":
        return f"{RUNS_ON_TORCH}its gradients are torch's"
    why = attention.why_torch_for(module) if is_attention(module) else linear.why_torch_for(module)
    return why and RUNS_ON_TORCH + why


def _packed_bytes(module: nn.Module) -> int:
    if is_attention(module):
        return attention.packed_bytes(module)
    return linear.packed_bytes(module.weight) if is_linear(module) else 0


def _install_chains(plans: list[Plan], modules: dict[str, nn.Module], rows: dict[str, Row], recompute: bool) -> None:
    regions: dict[str, Region] = {}
    for plan in plans:
        region = regions.get(plan.owner)
        if region is None:
            region = regions[plan.owner] = Region()
            OwnerForward(modules[plan.owner], region).install()
        head, watched = modules[plan.head], [modules[name] for name in plan.watched]
        row = rows[plan.head]
        row.fused = plan.labels
        chain: Chain
        if op_of(head) == "batch_norm":
            chain = BatchNormChain(plan.head, head, plan.steps, region, watched)
            row.op = "batch_norm_max_pool2d" if chain.pools else "batch_norm_act"
            if chain.pools:
                pool = plan.labels[-1]
                MaxPoolForward(modules[pool], chain).install()
                rows[pool].op = f"fused into {plan.head}"
            if recompute and "add" not in plan.steps and plan.readers:
                chain.recomputed = True
                for reader in plan.readers:
                    RecomputingForward(modules[reader]).install()
        else:
            bn = None if plan.bn is None else modules[plan.bn]
            chain = ConvChain(plan.head, head, bn, plan.steps, region, watched)
            chain.torchs_product = is_linear(head) and not row.op
            row.op = row.op if is_linear(head) else f"{row.op}_fused"
            if bn is not None:
                BatchNormForward(bn, chain).install()
                rows[plan.bn].op = f"folded into {plan.head}"
                if bn.training:
                    row.reason = "in training mode: folded after eval()"
        HeadForward(head, chain).install()
        for module in watched:
            if type(module) in IN_PLACE_ACTIVATIONS:
                ActivationForward(module).install()


def _report_untraced(failures: dict[str, str], rows: dict[str, Row], called: set[str]) -> None:
    """The modules that no traced forward calls: whether they could be fused is not known."""
    for owner in sorted(failures, key=len, reverse=True):
        for name, row in rows.items():
            within = name.startswith(f"{owner}.") or not owner
            if within and name not in called and row.op in _FUSABLE and not row.reason:
                row.reason = f"not fused: the forward of {owner or 'the model'} cannot be traced ({failures[owner]})"


_FUSABLE = frozenset(("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "batch_norm"))
