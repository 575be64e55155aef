"""Where the kernels run: a GPU, or, to rehearse the script without one, the emulator behind forced variants on CPU tensors."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

import fastcv
from fastcv.bench.timers import CpuTimer, CudaTimer

ROOT = Path(__file__).resolve().parents[2]
DTYPES = {"f32": torch.float32, "f64": torch.float64, "bf16": torch.bfloat16, "f16": torch.float16}
L2_BYTES = 256 << 20  # no GPU has a larger second-level cache


def name_of(options: dict[str, Any]) -> str:
    return "cuda" if options["device"] == "cuda" else "cpu"


def there(value: Any, device: str) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value


def wait(device: str) -> None:
    """Until all work is done; raises what a kernel did wrong."""
    if device == "cuda":
        torch.cuda.synchronize()


def timer(device: str) -> Any:
    return CudaTimer() if device == "cuda" else CpuTimer()


def multiprocessors(device: str) -> int:
    return torch.cuda.get_device_properties(0).multi_processor_count if device == "cuda" else 1


def tensors_of(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for v in value for t in tensors_of(v)] if isinstance(value, (tuple, list)) else []


def one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


@contextlib.contextmanager
def poisoned_outputs() -> Iterator[None]:
    """Fresh memory holds NaN, so that an output which no thread writes shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def race(calls: dict[str, Sequence[Callable[[], Any]]], device: str, seconds: float) -> tuple[dict[str, float], dict[str, str]]:
    """(median seconds of each contender's call, what failed). A contender is a list of the same call on different data, taken in turn.

    Contenders are interleaved, after three calls each to warm up; one that raises is left out.
    """
    clock, times, failed = timer(device), {name: [] for name in calls}, {}
    for name, variants in calls.items():
        try:
            for turn in range(3):
                variants[turn % len(variants)]()
            wait(device)
        except Exception as error:  # the others are still worth timing
            failed[name] = one_line(error)
    rest = [name for name in calls if name not in failed]
    spent, turn = 0.0, 0
    while rest and turn < 300 and (turn < 7 or spent < seconds):
        for name in rest:
            taken = clock.time(calls[name][turn % len(calls[name])])[0]
            times[name].append(taken)
            spent += taken
        turn += 1
    return {name: median(values) for name, values in times.items() if values}, failed


def captured(call: Callable[[], Any]) -> tuple[Callable[[], Any], Any]:
    """(the replay of a CUDA graph of this call, what the replays write)."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call()
    return graph.replay, output


def build_id() -> str:
    """Of the sources that results depend on, and of torch: another one makes earlier rows stale."""
    digest = hashlib.sha256(torch.__version__.encode())
    files = [ROOT / "CMakeLists.txt", *sorted((ROOT / "cmake").glob("*"))]
    for folder, suffixes in (("csrc", {".h", ".cpp", ".cu", ".cuh", ".txt"}), ("fastcv/functional", {".py"})):
        files += sorted(p for p in (ROOT / folder).rglob("*") if p.suffix in suffixes)
    for file in files:
        digest.update(str(file.relative_to(ROOT)).encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def facts(options: dict[str, Any]) -> dict[str, Any]:
    """What the results belong to. Runs in a worker: it starts the GPU."""
    known: dict[str, Any] = {"torch": torch.__version__, "python_build": fastcv.build_info()}
    if name_of(options) == "cpu":
        return {"device": "emulator", **known}
    p = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info()
    return {
        "device": p.name,
        "capability": f"{p.major}.{p.minor}",
        "multiprocessors": p.multi_processor_count,
        "l2_bytes": int(p.L2_cache_size),
        "memory_bytes": total,
        "memory_free_bytes": free,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        **known,
    }
