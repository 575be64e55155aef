"""The doors are memory-safe: real calls of every raw op, with one argument spoiled, raise or return, and never crash."""

import contextlib
import os
import random
import resource
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastcv
import fastcv.bench.roofs  # registers a fake kernel
from fastcv.functional._conv_ops import sequence_raw, step_numbers
from fastcv.functional._conv_statistics import convolve_measured
from fastcv.functional._layout import row_major
from fastcv.functional._skeleton import skeleton
from fastcv.functional._sync_batch_norm import sync_batch_norm
from fastcv.testing import cases_of, check_case

FAMILIES = {
    "conv": ["conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "conv2d_fused"],
    "norm": ["batch_norm", "batch_norm_act", "batch_norm_max_pool2d", "group_norm", "layer_norm", "instance_norm", "local_response_norm"],
    "pool": [
        "max_pool2d",
        "avg_pool2d",
        "adaptive_avg_pool2d",
        "adaptive_max_pool2d",
        "max_unpool2d",
        "sum_pool2d",
        "upsample_bed_of_nails",
    ],
    "loss": ["softmax", "log_softmax", "cross_entropy", "nll_loss", "linear_cross_entropy", "multi_margin_loss", "kl_div", "soft_iou_loss"],
    "neighbors": ["cdist", "knn", "nearest"],
}


class Recorder(TorchDispatchMode):
    """Keeps the arguments of every fastcv op that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, list[Any]]] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if op.namespace == "fastcv":
            self.calls.append((op, [*args]))
        return op(*args, **(kwargs or {}))


def recorded(functions: list[str]) -> list[tuple[Any, list[Any]]]:
    with Recorder() as recorder:
        skeleton(torch.ones(2, 3))
        row_major(torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last))
        sync_batch_norm(torch.randn(2, 3, 4, 5, requires_grad=True), None, None, None, None, 0.1, 1e-5).sum().backward()
        if "conv2d" in functions:
            x, w, vector = torch.randn(2, 3, 6, 5), torch.randn(4, 3, 3, 2), torch.ones(4)
            geometry = ([2, 1], [1, 0], [1, 1], 1)
            convolve_measured(x, w, vector, geometry)
            packed = torch.ops.fastcv.conv_pack(x, w, *geometry, 0)
            steps = step_numbers(0, -1, 1, 2, 3, geometry, 6, 0) + step_numbers(5, 5, 4, -1, -1, ([1, 1], [0] * 2, [1, 1], 2), 1, 0)
            sequence_raw([x, w, vector, packed, torch.randn(4, 2, 1, 1)], steps, [0.1, 0.0], [5, 6])
            with torch.no_grad():
                net = fastcv.optimize(nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ConvTranspose2d(4, 5, 2, 2)).eval())
                for _ in range(2):  # the second call packs the weights
                    net(torch.randn(2, 3, 7, 8))
        for case in cases_of(*functions):
            if not case.bench and torch.float32 in case.dtypes:
                check_case(case, getattr(fastcv.functional, case.op), torch.float32)
    return recorder.calls


NUMBERS = [-(2**62), -(2**40), -3, -1, 0, 1, 2, 3, 7, 2**31, 2**40, 2**62]


def spoil(value: Any, rng: random.Random) -> Any:
    """Another value of the same kind (or None), plausible or absurd."""
    if isinstance(value, torch.Tensor):
        sizes = list(value.shape)
        match rng.randrange(9):
            case 0 if sizes:
                sizes[rng.randrange(len(sizes))] = rng.choice([0, 1, 2, 3, 5])
                return torch.randn(sizes).to(value.dtype)
            case 1:
                return torch.randn([*sizes, 2]).to(value.dtype)
            case 2 if sizes:
                return torch.randn(sizes[1:]).to(value.dtype)
            case 3:
                return value.to(
                    rng.choice([torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool, torch.complex64])
                )
            case 4 if len(sizes) > 1:
                return value.transpose(0, -1)
            case 5:
                return torch.zeros(()).to(value.dtype).expand(sizes)
            case 6 if value.dtype == torch.int64:
                return torch.full_like(value, rng.choice(NUMBERS))
            case 7:
                return value.flatten()[:-1]
            case _:
                return torch.empty(0, dtype=value.dtype)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice(NUMBERS)
    if isinstance(value, float):
        return rng.choice([0.0, -1.0, float("nan"), float("inf"), 1e300])
    if isinstance(value, (list, tuple)):
        values = list(value)
        match rng.randrange(3):
            case 0:
                return values[:-1]
            case 1:
                return [*values, 1]
            case _:
                if values:
                    values[rng.randrange(len(values))] = rng.choice(NUMBERS)
                return values
    return torch.ones(3) if value is None else value


def fuzz(functions: list[str], per_op: int, seed: int) -> None:
    """Prints each call before it is made, so that the last line names the one that crashed."""
    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
    rng = random.Random(seed)
    by_op: dict[Any, list[list[Any]]] = {}
    for op, args in recorded(functions):
        by_op.setdefault(op, []).append(args)
    for op, calls in by_op.items():
        for _ in range(per_op):
            args = list(rng.choice(calls))
            for _ in range(rng.choice([1, 1, 1, 2])):
                if args:
                    i = rng.randrange(len(args))
                    args[i] = spoil(args[i], rng)
            shown = [(*a.shape, a.dtype, a.stride()) if isinstance(a, torch.Tensor) else a for a in args]
            print(op, shown, file=sys.stderr, flush=True)
            with contextlib.suppress(RuntimeError, ValueError, IndexError, TypeError, NotImplementedError, MemoryError):
                op(*args)
    print("survived", len(by_op))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_spoiled_argument_never_crashes(family: str) -> None:
    here = os.path.dirname(__file__)
    code = f"import sys; sys.path.insert(0, {here!r}); import test_raw_ops as t; t.fuzz(t.FAMILIES[{family!r}], 400, seed=1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    tail = "\n".join(done.stderr.splitlines()[-3:])
    assert done.returncode == 0, f"exit code {done.returncode}; the last calls were:\n{tail}"
    assert int(done.stdout.split()[-1]) >= 2, "no op of the family was recorded"


# Ops that no public function calls: those that ask a machine what it does (fastcv.bench.roofs has their fake kernels).
NOT_IN_CASES = [
    (torch.ops.fastcv.fma_chain.default, (torch.rand(5), 3)),
    (torch.ops.fastcv.step_chain.default, (torch.rand(5), 3)),
    (torch.ops.fastcv.cache_read.default, (torch.rand(5), 2, 3)),
    (torch.ops.fastcv.tile_product.default, (torch.rand(64, 64), torch.rand(128, 64))),
    (torch.ops.fastcv.tma_tile.default, (torch.rand(1, 3, 3, 8).half(), [0, 0, 0, 0], [0, 0], [0, 0], [0, 0], [1, 1], 8, True, True)),
]


def test_every_raw_op_passes_opcheck() -> None:
    """Schema, fake kernel and dynamic shapes of each op on a call that the cases make."""
    seen: dict[Any, int] = {}
    for functions in FAMILIES.values():
        for op, args in recorded(functions):
            if seen.get(op, 0) < 4:
                seen[op] = seen.get(op, 0) + 1
                args = [a.detach() if isinstance(a, torch.Tensor) else a for a in args]
                torch.library.opcheck(op, tuple(args), test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"))
    for op, args in NOT_IN_CASES:
        torch.library.opcheck(op, args, test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"))
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("fastcv::")}
    missing = registered - {op.name() for op in seen} - {op.name() for op, _ in NOT_IN_CASES}
    assert not missing, f"no case runs {sorted(missing)}"
