"""Every timed case of fastcv.testing against torch in both layouts: ``make bench`` (BENCH="--ops conv2d" for some).

A row is one case in one layout. Its ratio is the time of torch's best layout over fastcv's time in the row's layout:
above 1 fastcv is faster. Outputs are verified before anything is timed. Writes benchmarks/results/ops.csv and .md.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# A worker thread that has gone to sleep is woken in some 5 ms where the waiting one spins on its core: longer than most
# calls here, and charged to whoever comes after a single-threaded contender. Passive waiting wakes it in microseconds.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

import fastcv
from fastcv.bench import Sample, geometric_mean, interleave
from fastcv.testing import Case, cases_of, max_error

WRONG: list[str] = []  # cases that disagreed with torch and were not timed
DTYPES = {"f32": torch.float32, "f64": torch.float64, "bf16": torch.bfloat16, "f16": torch.float16}


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def first(value: Any) -> torch.Tensor:
    return value if isinstance(value, torch.Tensor) else value[0]


def called(function: Callable[..., Any], case: Case, dtype: torch.dtype, layout: str) -> Any:
    args, kwargs = case.arguments(dtype, layout)
    return function(*args, **kwargs)


def forward(function: Callable[..., Any], case: Case, dtype: torch.dtype, layout: str) -> Callable[[], torch.Tensor]:
    args, kwargs = case.arguments(dtype, layout)
    return lambda: first(function(*args, **kwargs))


def both_ways(function: Callable[..., Any], case: Case, dtype: torch.dtype, layout: str) -> Callable[[], torch.Tensor]:
    args, kwargs = case.arguments(dtype, layout)
    leaves = [args[i].requires_grad_() for i in case.grad]
    # Not ones: the gradient of a sum of probabilities is nothing but rounding. In the output's layout, as from a network's next layer.
    output = first(function(*args, **kwargs)).detach()
    grad = torch.empty_like(output).copy_(torch.randn(output.shape, generator=torch.Generator().manual_seed(1)))
    return lambda: torch.autograd.grad(first(function(*args, **kwargs)), leaves, grad)[0]


Functions = dict[str, tuple[Callable[..., Any], str]]  # of each contender: its function and layout


def verified(make: Any, case: Case, dtype: torch.dtype, functions: Functions, contenders: dict[str, Callable[[], torch.Tensor]]) -> str:
    """'' if every fastcv contender is as close to torch in float64 as torch is in this dtype (twice, plus some eps).

    Where the op chooses, the choice must be that close to the best one, and the rest is held against float64 for that choice.
    """
    peer = case.torch_function()
    errors = {}
    exact = make(peer, case, torch.float64, "contiguous")()
    for name, call in contenders.items():
        choice_error = 0.0
        if case.choice is not None:
            best = first(called(peer, case, torch.float64, "contiguous"))
            function, layout = functions[name]
            reference = case.reference(called(function, case, dtype, layout))
            choice_error = max_error(first(called(reference, case, torch.float64, "contiguous")), best)
            exact = make(reference, case, torch.float64, "contiguous")()
        errors[name] = max(max_error(call(), exact), choice_error)
    allowed = 2 * max(error for name, error in errors.items() if name.startswith("torch")) + 20 * torch.finfo(dtype).eps
    for name, error in errors.items():
        if error > allowed:
            return f"{name} is {error:.2g} off float64, allowed {allowed:.2g}"
    return ""


def run(case: Case, dtype_name: str, mode: str, seconds: float) -> list[dict[str, Any]]:
    dtype = DTYPES[dtype_name]
    make = forward if mode == "fwd" else both_ways
    ours = getattr(fastcv.functional, case.op)
    theirs = case.torch_function()
    functions = {f"{who} {layout}": (f, layout) for layout in case.layouts for who, f in (("fastcv", ours), ("torch", theirs))}
    contenders = {name: make(function, case, dtype, layout) for name, (function, layout) in functions.items()}
    wrong = verified(make, case, dtype, functions, contenders)
    if wrong:
        WRONG.append(case.id)
        print(f"WRONG {case.id} {dtype_name} {mode}: {wrong}; not timed", file=sys.stderr)
        return []
    samples: dict[str, Sample] = interleave(contenders, seconds)
    best = min(samples[f"torch {layout}"].median for layout in case.layouts)
    rows = []
    for layout in case.layouts:
        mine, torchs = samples[f"fastcv {layout}"], samples[f"torch {layout}"]
        low, high = mine.p10_p90
        rows.append(
            {
                "case": case.id,
                "dtype": dtype_name,
                "mode": mode,
                "layout": layout,
                "fastcv_ms": round(mine.median * 1e3, 4),
                "p10_ms": round(low * 1e3, 4),
                "p90_ms": round(high * 1e3, 4),
                "torch_ms": round(torchs.median * 1e3, 4),
                "torch_best_ms": round(best * 1e3, 4),
                "ratio": round(best / mine.median, 3),
                "gflops": round(case.flops / mine.median / 1e9, 1) if case.flops and mode == "fwd" else "",
            }
        )
    return rows


def markdown(rows: list[dict[str, Any]], title: str) -> str:
    lines = [title, "", "| case | dtype | mode | layout | fastcv ms | torch ms | torch best / fastcv |", "|---|---|---|---|---:|---:|---:|"]
    for r in rows:
        cells = [r["case"], r["dtype"], r["mode"], r["layout"], f"{r['fastcv_ms']:.3f}", f"{r['torch_ms']:.3f}", f"{r['ratio']:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def by_op(rows: list[dict[str, Any]]) -> str:
    """The rows of each op, dtype and pass in one line: how many, geometric mean and slowest ratio in either layout."""
    groups: dict[tuple[str, str, str], list[float]] = {}
    for r in rows:
        groups.setdefault((r["case"].split("-")[0], r["dtype"], r["mode"]), []).append(r["ratio"])
    lines = ["| op | dtype | pass | rows | torch best / fastcv, geometric mean | slowest row |", "|---|---|---|---:|---:|---:|"]
    for (op, dtype, mode), ratios in groups.items():
        lines.append(f"| {op} | {dtype} | {mode} | {len(ratios)} | {geometric_mean(ratios):.2f} | {min(ratios):.2f} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ops", nargs="*", default=[], help="only these functions")
    parser.add_argument("--dtypes", nargs="*", default=["f32"], choices=sorted(DTYPES))
    parser.add_argument("--modes", nargs="*", default=["fwd", "fwd+bwd"], choices=["fwd", "fwd+bwd"])
    parser.add_argument("--seconds", type=float, default=1.0, help="about this long per case and mode")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "ops", help="path without suffix")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for case in cases_of(*options.ops, bench=True):
        for dtype in options.dtypes:
            for mode in options.modes:
                if DTYPES[dtype] not in case.dtypes or (mode == "fwd+bwd" and not case.grad):
                    continue
                for row in run(case, dtype, mode, options.seconds):
                    rows.append(row)
                    print(
                        f"{row['case']:52} {row['dtype']:4} {row['mode']:7} {row['layout']:13} fastcv {row['fastcv_ms']:9.3f} ms"
                        f"  torch {row['torch_ms']:9.3f} ms  ratio {row['ratio']:6.2f}",
                        flush=True,
                    )
    if not rows:
        print("no timed case matches", file=sys.stderr)
        return 1
    info = fastcv.build_info()
    machine = (
        f"{cpu_name()}, {torch.get_num_threads()} threads, {fastcv.cpu_isa()}; torch {torch.__version__}, "
        f"fastcv {info['version']} ({info['git']}), {info['compiler']}, OMP_WAIT_POLICY={os.environ['OMP_WAIT_POLICY']}. "
        "Medians of interleaved rounds."
    )
    mean, worst = geometric_mean(r["ratio"] for r in rows), min(rows, key=lambda r: r["ratio"])
    where = ", ".join(worst[key] for key in ("case", "dtype", "mode", "layout"))
    summary = f"{len(rows)} rows, geometric mean {mean:.2f}, slowest {worst['ratio']:.2f} ({where})"
    print(f"{machine}\n{summary}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{options.output}.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    Path(f"{options.output}.md").write_text(markdown(rows, f"{machine}\n\n{summary}\n\n{by_op(rows)}"))
    return 1 if WRONG else 0


if __name__ == "__main__":
    sys.exit(main())
