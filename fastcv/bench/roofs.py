"""What this machine can do at most: multiply-adds per second, and bytes copied per second from each level of memory.

Every number is the best of many short runs: a roof is what the machine does when nobody disturbs it. ``fastcv bench roofs``
measures them at length and keeps them in a file for this machine, instruction set and number of threads; without the file they are measured
when first asked for, once per process.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from .. import _ext
from . import probes
from .machine import level, processor

SCHEMA = 1
_SECONDS = 0.15  # for each roof
SIZES = tuple(1 << shift for shift in range(18, 29, 2))  # bytes read and written: 256 KiB to 256 MiB
DTYPES = {"f32": torch.float32, "f64": torch.float64, "bf16": torch.bfloat16, "f16": torch.float16}


@_ext.fake("fma_chain")
def _(input: torch.Tensor, steps: int) -> torch.Tensor:
    return torch.empty(input.shape, dtype=input.dtype, device=input.device)


def _best(call: Callable[[], object], seconds: float, wait: Callable[[], object] = lambda: None) -> float:
    """The shortest time of one call, in seconds. wait: returns when the call's work is done."""
    call()
    wait()
    best, end = float("inf"), perf_counter() + seconds
    while (start := perf_counter()) < end:
        call()
        wait()
        best = min(best, perf_counter() - start)
    return best


def _measure_arithmetic(dtype: torch.dtype, threads: int, seconds: float) -> float:
    if dtype in (torch.float32, torch.float64):
        x = torch.rand(3072 * threads, dtype=dtype)
        chain, steps = _ext.op("fma_chain"), 20_000
        return 2 * x.numel() * steps / _best(lambda: chain(x, steps), seconds)
    a, b = (torch.rand(1024, 1024).to(dtype) for _ in range(2))
    matrices = 2 * 1024**3 / _best(lambda: torch.mm(a, b), seconds)
    chains = [_measure_chain(name, threads, seconds) for name in probes.CPU_CHAINS if dtype == torch.bfloat16 and not probes.lacks(name)]
    return max(matrices, _roof(torch.float32, threads), *chains)


def _measure_chain(name: str, threads: int, seconds: float) -> float:
    call, operations = probes.cpu_chain(name, threads)
    return operations / _best(call, seconds)


def _measure_copy(size: int, seconds: float) -> float:
    source = torch.rand(size // 8)
    target = torch.empty_like(source)
    return size / _best(lambda: target.copy_(source), seconds)


_known: dict[tuple[Any, int], float] = {}  # by dtype or size, and threads


def _measured(what: torch.dtype | int, threads: int, seconds: float) -> float:
    return _measure_copy(what, seconds) if isinstance(what, int) else _measure_arithmetic(what, threads, seconds)


def _roof(what: torch.dtype | int, threads: int) -> float:
    if (what, threads) not in _known:
        if isinstance(what, int):
            kept = stored().get("copy", {}).get(str(what))
        else:
            kept = stored().get("flops", {}).get(next((name for name, dtype in DTYPES.items() if dtype == what), ""))
        _known[what, threads] = kept or _measured(what, threads, _SECONDS)
    return _known[what, threads]


def look_again() -> None:
    """Measures what is known once more, longer, and keeps the larger value: a busy machine may have hidden a roof."""
    threads = torch.get_num_threads()
    for what, count in list(_known):
        if count == threads:
            _known[what, count] = max(_known[what, count], _measured(what, threads, 3 * _SECONDS))


def arithmetic(dtype: torch.dtype) -> float:
    """FLOP/s with torch's current number of threads: float32 and float64 by multiply-adds in registers (csrc/roof); bfloat16 by the
    products of its own in registers (AMX tiles, AVX-512 dot products) or torch's product of 1024 x 1024 matrices, whichever is
    faster; float16 by that product or in float32.
    """
    return _roof(dtype, torch.get_num_threads())


def copy(size: int) -> float:
    """Bytes/s, read and written, of a copy that moves about ``size`` bytes: caches hold small ones.

    At least that of a copy through memory: on a busy machine a short copy may never have run undisturbed.
    """
    threads = torch.get_num_threads()
    nearest = min(SIZES, key=lambda s: abs(s.bit_length() - size.bit_length()))
    return max(_roof(nearest, threads), _roof(SIZES[-1], threads))


def again() -> None:
    """Forgets what this process measured and reads the file anew."""
    stored.cache_clear()
    _known.clear()


def path() -> Path:
    """The file with this user's roofs: $FASTCV_CACHE, else the user's cache folder."""
    base = os.environ.get("FASTCV_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastcv"
    return Path(base) / "roofs.json"


def machine_key() -> str:
    return f"{processor()}, {_ext.cpu_isa()}, {torch.get_num_threads()} threads"


def _kept() -> dict[str, Any]:
    """The whole file: {} if there is none; a file that another version wrote, or that is damaged, counts as none."""
    try:
        whole = json.loads(path().read_text())
    except (OSError, ValueError):
        return {}
    return whole if isinstance(whole, dict) and whole.get("schema") == SCHEMA else {}


@cache
def stored() -> dict[str, Any]:
    """This machine's entry in the file; {} without one."""
    return _kept().get("machines", {}).get(machine_key(), {}) if _ext.is_built() else {}


def measure_all(
    seconds: float = 1.0, progress: Callable[[str, float | str], None] = lambda name, value: None
) -> dict[str, dict[str, float]]:
    """Every roof of the CPU, about ``seconds`` each: {"chain": 16-bit products in registers by instruction, "flops": by dtype, "copy": by
    size in bytes}. Not yet stored. progress: gets what was measured, or why it was not.
    """
    threads = torch.get_num_threads()
    roofs: dict[str, dict[str, float]] = {"chain": {}, "flops": {}, "copy": {}}
    for name in probes.CPU_CHAINS:
        missing = probes.lacks(name)
        if not missing:
            roofs["chain"][name] = _measure_chain(name, threads, seconds)
        progress(f"{name} in bf16", missing or roofs["chain"][name])
    for name, dtype in DTYPES.items():
        roofs["flops"][name] = max(
            _measure_arithmetic(dtype, threads, seconds), roofs["flops"].get("f32", 0.0) if dtype.itemsize == 2 else 0.0
        )
        progress(f"multiply-adds in {name}", roofs["flops"][name])
    for size in SIZES:
        roofs["copy"][str(size)] = _measure_copy(size, seconds)
        where = level(size)
        progress(f"copy of {size >> 10} KiB{where and f' ({where})'}", roofs["copy"][str(size)])
    return roofs


def higher(roofs: dict[str, dict[str, float]], before: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Of every roof the higher of two measurements."""
    return {
        kind: {name: max(value, before.get(kind, {}).get(name, 0.0)) for name, value in values.items()} for kind, values in roofs.items()
    }


def measure_gpu(device: str = "cuda", seconds: float = 1.0) -> dict[str, Any]:
    """The GPU's: products of 8192 x 8192 matrices by dtype, a copy of 1 GiB, chains of single instructions (those that the GPU has)
    and reads from its second-level cache (csrc/roof). Needs a GPU; not stored.
    """
    roofs: dict[str, Any] = {"flops": {}, "copy": {}, "chain": {}, "read": {}}
    for name, dtype in DTYPES.items():
        side = 2048 if name == "f64" else 8192
        a, b = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
        roofs["flops"][name] = 2 * side**3 / _best(lambda a=a, b=b: torch.mm(a, b), seconds, torch.cuda.synchronize)
    source = torch.rand(1 << 27, device=device)
    target = torch.empty_like(source)
    roofs["copy"][str(1 << 30)] = (1 << 30) / _best(lambda: target.copy_(source), seconds, torch.cuda.synchronize)
    if not _ext.build_info()["cuda"]:
        return roofs
    multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    for name in probes.CHAINS:
        call, operations = probes.chain(name, device, multiprocessors)
        with contextlib.suppress(ValueError, RuntimeError):  # an instruction of another architecture
            roofs["chain"][name] = operations / _best(call, seconds, torch.cuda.synchronize)
    call, amount = probes.cache_read(device, multiprocessors)
    roofs["read"]["L2"] = amount / _best(call, seconds, torch.cuda.synchronize)
    return roofs


def place() -> Path:
    """The file, in a folder that exists. Raises OSError, one sentence, where it could not be written."""
    file = path()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{file} cannot be written: {error.strerror}") from None
    if not os.access(file.parent, os.W_OK):
        raise OSError(f"{file} cannot be written: no permission")
    return file


def store(roofs: dict[str, Any]) -> Path:
    """Writes this machine's entry; the file is replaced whole. Raises as ``place``."""
    file = place()
    machines = _kept().get("machines", {}) | {machine_key(): roofs}
    fresh = file.with_suffix(f".{os.getpid()}")
    fresh.write_text(json.dumps({"schema": SCHEMA, "machines": machines}, indent=1))
    fresh.replace(file)
    again()
    return file
