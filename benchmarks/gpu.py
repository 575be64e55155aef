"""The one script for a machine with a GPU: ceilings, correctness, sanitizers, timings, in that order.

    FASTCV_CUDA=ON python setup.py build_ext --inplace && python benchmarks/gpu.py --output "$OUT"

Nothing here waits for a person: every part writes its file as soon as it is done (gpu_ceilings.csv, gpu_correctness.csv,
gpu_sanitizer.csv, gpu_timings.csv, gpu.json), and a part that fails is reported and does not stop the next one. The exit status is
non-zero if a kernel was wrong. A timing is of device time between two events, with inputs that change from call to call so that the L2
cache holds none of them, contenders interleaved, medians. Its floor is the call's bytes over the copy bandwidth measured here.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch

import fastcv
from fastcv import functional
from fastcv.testing import Case, cases_of, max_error
from fastcv.testing.compare import check_case

NAMES = {torch.float32: "f32", torch.float64: "f64", torch.bfloat16: "bf16", torch.float16: "f16"}
L2_BYTES = 256 << 20  # no GPU has a larger L2 cache
Row = dict[str, Any]


def write(path: Path, rows: list[Row]) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)


def device_seconds(calls: dict[str, list[Callable[[], object]]], seconds: float) -> dict[str, float]:
    """Median device time of each contender's call. A contender is a list of the same call on different data, taken in turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for variants in calls.values():
        for call in variants[:3]:
            call()
    torch.cuda.synchronize()
    end, turn = time.perf_counter() + seconds, 0
    while turn < 7 or (time.perf_counter() < end and turn < 300):
        pairs = []
        for name, variants in calls.items():
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            variants[turn % len(variants)]()
            stop.record()
            pairs.append((name, start, stop))
        torch.cuda.synchronize()
        for name, start, stop in pairs:
            times[name].append(start.elapsed_time(stop) / 1e3)
        turn += 1
    return {name: median(values) for name, values in times.items()}


def ceilings() -> list[Row]:
    """What the machine can do at most: copies from memory and from the L2 cache, and matrix products on random data."""
    rows = []

    def add(what: str, unit: str, amount: float, call: Callable[[], object]) -> None:
        rows.append({"ceiling": what, "unit": unit, "value": round(amount / device_seconds({"": [call]}, 0.5)[""], 1)})

    for what, elements in (("copy", 1 << 29), ("copy in L2", 2 << 20)):
        x = torch.randn(elements, device="cuda")
        y = torch.empty_like(x)
        add(what, "GB/s", 2 * x.nbytes / 1e9, lambda y=y, x=x: y.copy_(x))
    n = 8192
    for what, dtype in (("matmul bf16", torch.bfloat16), ("matmul f32", torch.float32)):
        a, b = (torch.randn(n, n, device="cuda", dtype=dtype) for _ in range(2))
        add(what, "TFLOP/s", 2 * n**3 / 1e12, lambda a=a, b=b: a @ b)
    return rows


@contextmanager
def poisoned_outputs() -> Iterator[None]:
    """Fresh memory holds NaN, so that an output which no thread writes shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def gpu_rows(op: str) -> list[str]:
    return [name for name, needs in fastcv.variants().get(op, []) if needs.startswith("sm")]


def once(case: Case, dtype: torch.dtype, layout: str) -> list[torch.Tensor]:
    """Outputs and gradients of one call on the GPU."""
    args, kwargs = case.arguments(dtype, layout)
    args = [a.cuda() if isinstance(a, torch.Tensor) else a for a in args]
    kwargs = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}
    leaves = [args[i].requires_grad_() for i in case.grad]
    outputs = getattr(functional, case.op)(*args, **kwargs)
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else [t for t in outputs if isinstance(t, torch.Tensor)]
    grads = list(torch.autograd.grad(outputs[0].sum(), leaves)) if leaves and outputs[0].requires_grad else []
    return [t.detach() for t in (*outputs, *grads)]


def in_a_graph(case: Case, dtype: torch.dtype, layout: str) -> list[torch.Tensor]:
    """The outputs of a replayed CUDA graph, captured on a stream of its own."""
    args, kwargs = case.arguments(dtype, layout)
    args = [a.cuda() if isinstance(a, torch.Tensor) else a for a in args]
    kwargs = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}
    function = getattr(functional, case.op)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function(*args, **kwargs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = function(*args, **kwargs)
    graph.replay()
    torch.cuda.synchronize()
    return [outputs] if isinstance(outputs, torch.Tensor) else [t for t in outputs if isinstance(t, torch.Tensor)]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in zip(a, b, strict=False))


def check(case: Case, dtype: torch.dtype, layout: str, variant: str) -> str:
    """'' if the case is right with this variant ('' lets the table choose), the same twice, and the same in a graph."""
    try:
        with fastcv.use(**({case.op: variant} if variant else {})), poisoned_outputs():
            check_case(case, getattr(functional, case.op), dtype, layout, device="cuda")
            first = once(case, dtype, layout)
            if not same(first, once(case, dtype, layout)):
                return "other bits in a second run"
            if not same(in_a_graph(case, dtype, layout), first):
                return "other bits in a CUDA graph"
    except Exception as error:  # a wrong kernel must not end the script
        text = str(error).strip().splitlines()
        return "" if "cannot run this call" in str(error) else f"{type(error).__name__}: {text[0] if text else ''}"
    return ""


def correctness(ops: list[str], small: bool) -> list[Row]:
    rows = []
    for case in cases_of():
        if (ops and case.op not in ops) or (small and case.bench):
            continue
        for dtype in case.dtypes:
            for layout in case.layouts:
                for variant in ["", *gpu_rows(case.op)]:
                    wrong = check(case, dtype, layout, variant)
                    rows.append(
                        {"case": case.id, "dtype": NAMES[dtype], "layout": layout, "variant": variant or "(chosen)", "wrong": wrong}
                    )
                    if wrong:
                        print(f"WRONG {case.id} {NAMES[dtype]} {layout} {variant}: {wrong}", flush=True)
    return rows


def sanitizers(ops: list[str], limit: float) -> list[Row]:
    """compute-sanitizer's tools over the small cases, each in a process of its own."""
    program, rows = shutil.which("compute-sanitizer"), []
    if program is None:
        return [{"tool": "compute-sanitizer", "result": "not on PATH"}]
    for tool in ("memcheck", "racecheck", "synccheck"):
        command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable, __file__, "--parts", "small", "--output", os.devnull]
        try:
            done = subprocess.run(command + (["--ops", *ops] if ops else []), capture_output=True, text=True, timeout=limit)
            summary = [line for line in done.stdout.splitlines() if "ERROR SUMMARY" in line or "not supported" in line]
            rows.append({"tool": tool, "result": summary[-1].strip("= ") if summary else f"exit status {done.returncode}"})
        except subprocess.TimeoutExpired:
            rows.append({"tool": tool, "result": f"not done after {limit:.0f} s"})
        print(rows[-1], flush=True)
    return rows


def tensors_of(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for v in value for t in tensors_of(v)] if isinstance(value, (tuple, list)) else []


def bound(function: Callable[..., Any], case: Case, dtype: torch.dtype, layout: str, train: bool) -> tuple[list[Callable[[], Any]], int]:
    """Calls on copies of the arguments that together do not fit into the L2 cache, and the bytes that one call must move."""
    args, kwargs = case.arguments(dtype, layout)
    held = sum(t.nbytes for t in tensors_of([*args, *kwargs.values()]))
    calls, moved = [], held
    for _ in range(max(2, min(16, L2_BYTES // max(held, 1) + 1))):
        mine = [a.cuda() if isinstance(a, torch.Tensor) else a for a in args]
        options = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}
        leaves = [mine[i].requires_grad_() for i in case.grad] if train else []

        def call(mine: Any = mine, options: Any = options, leaves: Any = leaves, grad: list[torch.Tensor] = []) -> Any:  # noqa: B006
            output = function(*mine, **options)
            if not leaves:
                return output
            output = tensors_of(output)[0]
            if not grad:
                grad.append(torch.randn(output.shape, device="cuda").to(output))
            return torch.autograd.grad(output, leaves, grad[0])

        calls.append(call)
    moved += sum(t.nbytes for t in tensors_of(calls[0]()))
    return calls, moved


def timings(ops: list[str], seconds: float, copy: float) -> list[Row]:
    rows = []
    torch.backends.cudnn.benchmark = True
    for case in cases_of():
        if not case.bench or (ops and case.op not in ops):
            continue
        for dtype in (torch.bfloat16, torch.float32):
            if dtype not in case.dtypes:
                continue
            for train in (False, True) if case.grad else (False,):
                for layout in case.layouts:
                    row: Row = {"case": case.id, "dtype": NAMES[dtype], "pass": "fwd+bwd" if train else "fwd", "layout": layout}
                    try:
                        ours, moved = bound(getattr(functional, case.op), case, dtype, layout, train)
                        theirs, _ = bound(case.torch_function(), case, dtype, layout, train)
                        a, b = tensors_of(ours[0]())[0], tensors_of(theirs[0]())[0]
                        times = device_seconds({"fastcv": ours, "torch": theirs}, seconds)
                        row |= {
                            "fastcv_us": round(times["fastcv"] * 1e6, 2),
                            "torch_us": round(times["torch"] * 1e6, 2),
                            "ratio": round(times["torch"] / times["fastcv"], 3),
                            "of_floor": round(moved / copy / 1e9 / times["fastcv"], 3) if copy else "",
                            "difference": f"{max_error(a, b.double()):.2g}",
                        }
                    except Exception as error:  # the other cases are still worth timing
                        row["failed"] = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                    rows.append(row)
                    print(row, flush=True)
                    torch.cuda.empty_cache()
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder for the results")
    parser.add_argument("--ops", nargs="*", default=[], help="only these functions")
    parser.add_argument("--seconds", type=float, default=0.3, help="about this long per timing")
    parser.add_argument("--limit", type=float, default=120, help="seconds per sanitizer tool")
    parser.add_argument(
        "--parts",
        nargs="*",
        default=["ceilings", "correctness", "timings", "sanitizers"],
        choices=["ceilings", "correctness", "small", "timings", "sanitizers"],
    )
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks/gpu.py needs a GPU that torch can use; this machine has none.", file=sys.stderr)
        return 2
    if not fastcv.build_info()["cuda"]:
        print("benchmarks/gpu.py needs fastcv built with FASTCV_CUDA=ON.", file=sys.stderr)
        return 2
    if "small" in options.parts:  # what a sanitizer runs: no files
        return any(row["wrong"] for row in correctness(options.ops, True))
    options.output.mkdir(parents=True, exist_ok=True)
    properties = torch.cuda.get_device_properties(0)
    facts = {
        "device": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "build": fastcv.build_info(),
    }
    (options.output / "gpu.json").write_text(json.dumps(facts, indent=1, default=str) + "\n")
    copy, failed = 0.0, False
    for part in options.parts:
        start = time.perf_counter()
        try:
            if part == "ceilings":
                rows = ceilings()
                copy = next(row["value"] for row in rows if row["ceiling"] == "copy")
            elif part == "correctness":
                rows = correctness(options.ops, False)
                failed = any(row["wrong"] for row in rows)
            elif part == "timings":
                rows = timings(options.ops, options.seconds, copy)
            else:
                rows = sanitizers(options.ops, options.limit)
            write(options.output / f"gpu_{part}.csv", rows)
            wrong = sum(bool(row.get("wrong") or row.get("failed")) for row in rows)
            print(f"{part}: {len(rows)} rows, {wrong} wrong, {time.perf_counter() - start:.0f} s", flush=True)
            if part == "ceilings":
                print(*rows, sep="\n", flush=True)
        except Exception as error:  # a broken part must not cost the others
            failed = True
            print(f"{part} failed: {type(error).__name__}: {error}", flush=True)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
