"""Every CUDA kernel against float64, on poisoned outputs: the accuracy rule forward and backward, the same bits again and in a CUDA graph.

A task is a case in a dtype and a layout with the variants that the tables choose; its row names the other CUDA kernels that could have run,
and each of those becomes a task of its own.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

import fastcv
from fastcv import functional
from fastcv.testing import Case, cases_of
from fastcv.testing.compare import check_case

from . import device as dev
from .results import Key, Row

COLUMNS = ("case", "dtype", "layout", "variant", "ran", "others", "result", "wrong")
KEY, LIMIT, JOBS = ("case", "dtype", "layout", "variant"), 90.0, 6
ENVIRONMENT = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
NAMES = {dtype: name for name, dtype in dev.DTYPES.items()}
CHOSEN = "(chosen)"


@cache
def _cases() -> dict[str, Case]:
    return {case.id: case for case in cases_of() if not case.bench}


def plan(options: dict[str, Any]) -> list[Key]:
    keys = [
        {"case": case.id, "dtype": NAMES[dtype], "layout": layout, "variant": CHOSEN}
        for case in _cases().values()
        if not options["ops"] or case.op in options["ops"]
        for dtype in case.dtypes
        for layout in case.layouts
    ]
    return keys[:: options.get("every", 1)]


def more(row: Row) -> list[Key]:
    return [{k: str(row[k]) for k in KEY[:3]} | {"variant": variant} for variant in str(row.get("others", "")).split()]


def _once(case: Case, dtype: torch.dtype, layout: str, device: str) -> list[torch.Tensor]:
    """Outputs and gradients of one call."""
    args, kwargs = case.arguments(dtype, layout)
    args = [dev.there(a, device) for a in args]
    leaves = [args[i].requires_grad_() for i in case.grad]
    outputs = dev.tensors_of(getattr(functional, case.op)(*args, **{k: dev.there(v, device) for k, v in kwargs.items()}))
    grads = list(torch.autograd.grad(outputs[0].sum(), leaves)) if leaves and outputs[0].requires_grad else []
    return [t.detach() for t in (*outputs, *grads)]


def _in_a_graph(case: Case, dtype: torch.dtype, layout: str) -> list[torch.Tensor]:
    """The outputs of a replayed CUDA graph, captured on a stream of its own."""
    args, kwargs = case.arguments(dtype, layout)
    args, kwargs = [dev.there(a, "cuda") for a in args], {k: dev.there(v, "cuda") for k, v in kwargs.items()}
    replay, output = dev.captured(lambda: getattr(functional, case.op)(*args, **kwargs))
    replay()
    torch.cuda.synchronize()
    return dev.tensors_of(output)


def _same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in zip(a, b, strict=False))


def _check(case: Case, dtype: torch.dtype, layout: str, device: str) -> str:
    """What is wrong, or ''."""
    check_case(case, getattr(functional, case.op), dtype, layout, device=device)
    first = _once(case, dtype, layout, device)
    if not _same(_once(case, dtype, layout, device), first):
        return "other bits in a second run"
    if device == "cuda" and not _same(_in_a_graph(case, dtype, layout), first):
        return "other bits in a CUDA graph"
    return ""


def run(key: Key, options: dict[str, Any]) -> list[Row]:
    case, device, wrong = _cases()[key["case"]], dev.name_of(options), ""
    dtype, layout, chosen = dev.DTYPES[key["dtype"]], key["layout"], key["variant"] == CHOSEN
    forced = {} if chosen else dict([key["variant"].split(":")])

    def check() -> None:
        nonlocal wrong
        try:
            wrong = _check(case, dtype, layout, device)
        except AssertionError as error:
            wrong = dev.one_line(error)

    with fastcv.use(**forced), dev.poisoned_outputs():
        try:
            choices = fastcv.why_not(check)
        except (RuntimeError, ValueError) as error:
            if not chosen and "cannot run this call" in str(error):
                return [{"result": "refused"}]
            raise
    known = fastcv.variants()
    on_gpu = {(op, name) for op, table in known.items() for name, needs in table if needs.startswith("sm")}
    ran = dict.fromkeys(f"{op}:{name}" for op, name, reason in choices if not reason)
    could = "comes after" if device == "cuda" else "a CUDA kernel"
    others = dict.fromkeys(f"{op}:{name}" for op, name, reason in choices if reason.startswith(could) and (op, name) in on_gpu)
    return [
        {
            "ran": " ".join(ran),
            "others": " ".join(name for name in others if name not in ran) if chosen else "",
            "result": "wrong" if wrong else "right",
            "wrong": wrong,
        }
    ]
