"""What the machine does at most: copies, the chains of csrc/roof for each instruction, and torch's matrix products on random data."""

from __future__ import annotations

from typing import Any

import torch

from fastcv.bench import probes

from . import device as dev
from .results import Key, Row

COLUMNS, KEY, LIMIT, JOBS = ("ceiling", "unit", "value"), ("ceiling",), 60.0, 1
MATRICES = {"matmul bf16": (torch.bfloat16, False), "matmul tf32": (torch.float32, True), "matmul f32": (torch.float32, False)}


def plan(options: dict[str, Any]) -> list[Key]:
    return [{"ceiling": name} for name in ("copy", *MATRICES, "L2 read", "copy in L2", *probes.CHAINS)]


def run(key: Key, options: dict[str, Any]) -> list[Row]:
    name, device = key["ceiling"], dev.name_of(options)
    small = device == "cpu"
    if name in ("copy", "copy in L2"):
        elements = (1 << 12) if small else (1 << 29) if name == "copy" else (2 << 20)
        x = torch.randn(elements, device=device)
        y = torch.empty_like(x)
        amount, unit, call = 2 * x.nbytes / 1e9, "GB/s", lambda: y.copy_(x)
    elif name in MATRICES:
        dtype, tf32 = MATRICES[name]
        n = 64 if small else 8192
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        torch.backends.cuda.matmul.fp32_precision = "tf32" if tf32 else "ieee"
        amount, unit, call = 2 * n**3 / 1e12, "TFLOP/s", lambda: a @ b
    elif name == "L2 read":
        call, bytes_ = probes.cache_read(device, dev.multiprocessors(device), small=small)
        amount, unit = bytes_ / 1e9, "GB/s"
    else:
        call, operations = probes.chain(name, device, dev.multiprocessors(device), small=small)
        amount, unit = operations / 1e12, "TFLOP/s"
    times, failed = dev.race({"": [call]}, device, 0.5)
    if failed:
        raise RuntimeError(failed[""])
    return [{"unit": unit, "value": f"{amount / times['']:.5g}"}]
