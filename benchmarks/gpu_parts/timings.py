"""Every timed case of fastcv.testing on fastcv and on torch, interleaved: forward, and forward with backward.

Inputs change from call to call and together do not fit into the second-level cache. The floor is the call's bytes, each tensor once, over
the copy bandwidth of this machine.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from fastcv import functional
from fastcv.testing import Case, cases_of, max_error

from . import device as dev
from .results import Key, Row

COLUMNS = ("case", "dtype", "layout", "pass", "fastcv_us", "torch_us", "ratio", "of_floor", "difference")
KEY, LIMIT, JOBS = ("case", "dtype", "layout", "pass"), 60.0, 1


@cache
def _cases() -> dict[str, Case]:
    return {case.id: case for case in cases_of(bench=True)}


def plan(options: dict[str, Any]) -> list[Key]:
    keys = [
        {"case": case.id, "dtype": dtype, "layout": layout, "pass": which}
        for which in ("fwd", "fwd+bwd")
        for dtype in ("bf16", "f32")
        for case in _cases().values()
        if (not options["ops"] or case.op in options["ops"]) and dev.DTYPES[dtype] in case.dtypes and (case.grad or which == "fwd")
        for layout in reversed(case.layouts)
    ]
    return keys[:: options.get("every", 1)]


def _bound(function: Callable[..., Any], case: Case, key: Key, device: str) -> tuple[list[Callable[[], Any]], int]:
    """Calls on copies of the arguments that together do not fit into the L2 cache, and the bytes that one call must move."""
    args, kwargs = case.arguments(dev.DTYPES[key["dtype"]], key["layout"])
    held = sum(t.nbytes for t in dev.tensors_of([*args, *kwargs.values()]))
    calls: list[Callable[[], Any]] = []
    for _ in range(max(2, min(16, dev.L2_BYTES // max(held, 1) + 1)) if device == "cuda" else 1):
        mine = [dev.there(a, device).clone() if isinstance(a, torch.Tensor) else a for a in args]
        options = {k: dev.there(v, device).clone() if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}
        leaves = [mine[i].requires_grad_() for i in case.grad] if key["pass"] == "fwd+bwd" else []
        grads: list[torch.Tensor] = []

        def call(mine: Any = mine, options: Any = options, leaves: Any = leaves, grads: Any = grads) -> Any:
            output = function(*mine, **options)
            if not leaves:
                return output
            output = dev.tensors_of(output)[0]
            if not grads:
                grads.append(torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output))
            return torch.autograd.grad(output, leaves, grads[0])

        calls.append(call)
    return calls, held + sum(t.nbytes for t in dev.tensors_of(calls[0]()))


def run(key: Key, options: dict[str, Any]) -> list[Row]:
    case, device = _cases()[key["case"]], dev.name_of(options)
    if device == "cuda":
        torch.backends.cudnn.benchmark = True
    ours, moved = _bound(getattr(functional, case.op), case, key, device)
    theirs, _ = _bound(case.torch_function(), case, key, device)
    a, b = dev.tensors_of(ours[0]())[0], dev.tensors_of(theirs[0]())[0]
    difference = max_error(a, b.double())
    times, failed = dev.race({"fastcv": ours, "torch": theirs}, device, options["seconds"])
    if failed:
        raise RuntimeError("; ".join(f"{name}: {why}" for name, why in failed.items()))
    copy = options["ceilings"].get("copy", 0.0) * 1e9
    return [
        {
            "fastcv_us": round(times["fastcv"] * 1e6, 2),
            "torch_us": round(times["torch"] * 1e6, 2),
            "ratio": round(times["torch"] / times["fastcv"], 3),
            "of_floor": round(moved / copy / times["fastcv"], 3) if copy else "",
            "difference": f"{difference:.2g}",
        }
    ]
