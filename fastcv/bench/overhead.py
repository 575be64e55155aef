"""What a call costs beside its arithmetic: every function on tensors of a few elements, fastcv's and torch's.

Twice for each function, without gradients and recording one: the raw op alone (dispatch, door and kernel), and the function. The raw
ops may differ: a loss that will be asked for its gradient writes it at once. The budget is 3 us without gradients and 10 us with them
over the kernel, which on tensors this small is most of nothing; so the difference says what the Python layer adds. The smaller halves
of interleaved rounds, in microseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from .. import functional as ours
from .race import interleave
from .rows import Sample

BUDGET = {"wrapper_us": 3.0, "recording_us": 10.0}


def tiny() -> dict[str, tuple[Callable[..., Any], Callable[..., Any] | None, tuple[Any, ...]]]:
    """name -> fastcv's function, torch's (None: it has none) and arguments of a few elements, the first a leaf."""
    x, seq, vol = torch.randn(1, 4, 4, 4), torch.randn(1, 4, 8), torch.randn(1, 2, 3, 3, 3)
    row, labels = torch.randn(4, 8), torch.tensor([0, 3, 5, 1])
    ones, zeros = torch.ones(4), torch.zeros(4)
    pooled, where = F.max_pool2d(x, 2, return_indices=True)
    return {
        "conv1d": (ours.conv1d, F.conv1d, (seq, torch.randn(4, 4, 1), zeros)),
        "conv2d": (ours.conv2d, F.conv2d, (x, torch.randn(4, 4, 1, 1), zeros)),
        "conv3d": (ours.conv3d, F.conv3d, (vol, torch.randn(2, 2, 1, 1, 1), torch.zeros(2))),
        "conv_transpose2d": (ours.conv_transpose2d, F.conv_transpose2d, (x, torch.randn(4, 4, 1, 1), zeros)),
        "conv2d_fused": (lambda x, w, b: ours.conv2d_fused(x, w, b, activation="relu"), None, (x, torch.randn(4, 4, 1, 1), zeros)),
        "batch_norm eval": (ours.batch_norm, F.batch_norm, (x, zeros, ones, ones, zeros)),
        "batch_norm train": (ours.batch_norm, F.batch_norm, (x, zeros.clone(), ones.clone(), ones, zeros, True)),
        "group_norm": (ours.group_norm, F.group_norm, (x, 2, ones, zeros)),
        "layer_norm": (ours.layer_norm, F.layer_norm, (row, (8,), torch.ones(8), torch.zeros(8))),
        "instance_norm": (ours.instance_norm, F.instance_norm, (x,)),
        "local_response_norm": (ours.local_response_norm, F.local_response_norm, (x, 2)),
        "max_pool2d": (ours.max_pool2d, F.max_pool2d, (x, 2)),
        "avg_pool2d": (ours.avg_pool2d, F.avg_pool2d, (x, 2)),
        "adaptive_avg_pool2d": (ours.adaptive_avg_pool2d, F.adaptive_avg_pool2d, (x, 1)),
        "adaptive_max_pool2d": (ours.adaptive_max_pool2d, F.adaptive_max_pool2d, (x, 1)),
        "max_unpool2d": (ours.max_unpool2d, F.max_unpool2d, (pooled, where, 2)),
        "softmax": (ours.softmax, F.softmax, (row, 1)),
        "log_softmax": (ours.log_softmax, F.log_softmax, (row, 1)),
        "cross_entropy": (ours.cross_entropy, F.cross_entropy, (row, labels)),
        "nll_loss": (ours.nll_loss, F.nll_loss, (row, labels)),
        "multi_margin_loss": (ours.multi_margin_loss, F.multi_margin_loss, (row, labels)),
        "cdist": (ours.cdist, torch.cdist, (row, row.clone())),
        "knn": (lambda x, y: ours.knn(x, y, 2), None, (row, row.clone())),
    }


class _First(TorchDispatchMode):
    """Keeps the first fastcv op that runs, with its arguments."""

    call: tuple[Any, tuple[Any, ...]] | None = None

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op.namespace == "fastcv" and self.call is None:
            self.call = (op, args)
        return op(*args, **(kwargs or {}))


def lower(sample: Sample) -> float:
    """The median of the faster half of the rounds, in microseconds: what others do on the machine only adds."""
    times = sorted(sample.times)
    return median(times[: max(1, len(times) // 2)]) * 1e6


def raw_call(function: Callable[..., Any], args: tuple[Any, ...]) -> Callable[[], Any]:
    """The first fastcv op that the function runs, alone and without gradients."""
    with _First() as first:
        function(*args)
    op, found = first.call
    found = tuple(a.detach() if isinstance(a, torch.Tensor) else a for a in found)
    return lambda: op(*found)


def measure(
    name: str, mine: Callable[..., Any], theirs: Callable[..., Any] | None, args: tuple[Any, ...], seconds: float
) -> dict[str, Any]:
    leaf = (args[0].clone().requires_grad_(), *args[1:])

    def off(function: Callable[..., Any]) -> Callable[[], Any]:
        def call() -> Any:
            with torch.no_grad():
                return function(*args)

        return call

    raw = raw_call(mine, args)
    contenders: dict[str, Callable[[], Any]] = {"raw": off(lambda *_: raw()), "off": off(mine), "nothing": off(lambda *_: None)}
    contenders |= {"raw_on": raw_call(mine, leaf), "on": lambda: mine(*leaf)}
    if theirs is not None:
        contenders |= {"torch_off": off(theirs), "torch_on": lambda: theirs(*leaf)}
    times = {key: lower(sample) for key, sample in interleave(contenders, seconds, (30, 400), floor=1e-3).items()}
    mode = times["nothing"]
    row = {"function": name, "raw_us": times["raw"] - mode, "no_grad_us": times["off"] - mode}
    row |= {"raw_grad_us": times["raw_on"], "grad_us": times["on"]}
    if theirs is not None:
        row |= {"torch_no_grad_us": times["torch_off"] - mode, "torch_grad_us": times["torch_on"]}
    return row | {"wrapper_us": row["no_grad_us"] - row["raw_us"], "recording_us": row["grad_us"] - row["raw_grad_us"]}


KEYS = ("raw_us", "no_grad_us", "torch_no_grad_us", "wrapper_us", "raw_grad_us", "grad_us", "torch_grad_us", "recording_us")
TITLES = ("raw op", "no gradient", "torch's", "over the raw op", "raw op", "gradient recorded", "torch's", "over the raw op")


def markdown(rows: list[dict[str, Any]], machine: str) -> str:
    lines = [machine, "", "| function | " + " | ".join(TITLES) + " |", "|---|" + "---:|" * len(TITLES)]
    for row in rows:
        cells = [f"{row[key]:.1f}" if key in row else "" for key in KEYS]
        lines.append(f"| {row['function']} | " + " | ".join(cells) + " |")
    middle = [median(row[key] for row in rows if key in row) for key in KEYS]
    return "\n".join([*lines, "| median | " + " | ".join(f"{m:.1f}" for m in middle) + " |"]) + "\n"
