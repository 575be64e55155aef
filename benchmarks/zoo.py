"""Vision models of transformers with random weights: errors, share of time in fastcv, speed. ``python benchmarks/zoo.py``.

One image without gradients, and a training pass of two. Errors are against float64, relative to the Euclidean norm; speeds are
medians of interleaved rounds, as times of torch over those of fastcv: above 1 fastcv is faster. Writes results/zoo.csv and .md.
"""

from __future__ import annotations

import argparse
import copy
import csv
import gc
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))

import torch
from ops import cpu_name
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import fastcv
from fastcv.bench import Sample, geometric_mean, interleave
from fastcv.testing.zoo import ZOO, Entry, output_of

LAST = torch.channels_last
ROUNDS = (5, 15)


def relative(a: Tensor, exact: Tensor) -> float:
    return ((a.double() - exact).norm() / exact.norm()).item()


def calling(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with torch.no_grad():
            return output_of(model(x))

    return call


def training(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """One pass with random output gradients; the same dropout each time. Returns all gradients as a vector."""
    model.train()

    def call() -> Tensor:
        model.zero_grad(set_to_none=True)
        torch.manual_seed(0)
        output = output_of(model(x))
        output.backward(torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output))
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    return call


def share(call: Callable[[], Any]) -> float:
    """The part of the time within torch and fastcv ops that fastcv ops take."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        call()
    events = profiler.key_averages()
    total = sum(e.self_cpu_time_total for e in events)
    return sum(e.self_cpu_time_total for e in events if e.key.startswith("fastcv::")) / total


def run(entry: Entry, small: bool, with_compile: bool, seconds: float) -> dict[str, Any]:
    model, x = entry.build(small), entry.images(small, 1)
    exact = calling(copy.deepcopy(model).double(), x.double())()
    ours = fastcv.optimize(model)
    report = ours.fastcv_report
    last, ours_last = copy.deepcopy(model).to(memory_format=LAST), copy.deepcopy(ours).to(memory_format=LAST)
    contenders = {
        "torch": calling(model, x),
        "torch channels_last": calling(last, x.to(memory_format=LAST)),
        "fastcv": calling(ours, x),
        "fastcv channels_last": calling(ours_last, x.to(memory_format=LAST)),
    }
    row: dict[str, Any] = {
        "model": entry.name,
        "size": x.shape[-1],
        "on_fastcv": sum(bool(r.op) for r in report.rows),
        "of": len(report.rows),
        "chains": sum(bool(r.fused) for r in report.rows),
        "error": relative(contenders["fastcv"](), exact),
        "torch_error": relative(contenders["torch"](), exact),
        "share": share(contenders["fastcv"]),
    }
    if with_compile:
        torch._dynamo.reset()
        try:
            compiled = torch.compile(copy.deepcopy(model))
            call = calling(compiled, x)
            start = time.perf_counter()
            call()
            row["compile_s"] = time.perf_counter() - start
            contenders["compile"] = call
        except Exception as error:  # a model that torch.compile refuses is a row without its time
            print(f"{entry.name}: torch.compile: {type(error).__name__}", file=sys.stderr)
    times = interleave(contenders, seconds, ROUNDS)
    mine = min(times["fastcv"].median, times["fastcv channels_last"].median)
    row |= {"fastcv_ms": mine * 1e3, "torch_ms": times["torch"].median * 1e3, "ratio": times["torch"].median / times["fastcv"].median}
    row["ratio_channels_last"] = times["torch channels_last"].median / times["fastcv channels_last"].median
    row["ratio_best"] = min(times["torch"].median, times["torch channels_last"].median) / mine
    row["ratio_compile"] = times["compile"].median / mine if "compile" in times else None
    del contenders, last, ours_last, ours
    gc.collect()
    return row | train(entry, model, small, seconds)


def train(entry: Entry, model: nn.Module, small: bool, seconds: float) -> dict[str, Any]:
    x = entry.images(small, 2)
    exact = training(copy.deepcopy(model).double(), x.double())()
    calls = {"torch": training(copy.deepcopy(model), x), "fastcv": training(fastcv.optimize(model.train(), mode="training"), x)}
    errors = {name: relative(call(), exact) for name, call in calls.items()}
    times: dict[str, Sample] = interleave(calls, seconds / 2, ROUNDS)
    return {
        "gradient_error": errors["fastcv"],
        "torch_gradient_error": errors["torch"],
        "ratio_training": times["torch"].median / times["fastcv"].median,
    }


HEADER = (
    "| model | pixels | on fastcv | chains | output error (torch's) | gradient error (torch's) | time in fastcv | fastcv ms | "
    "torch / fastcv | both channels_last | best layouts | torch.compile / fastcv | training |"
)


def markdown(rows: list[dict[str, Any]], machine: str) -> str:
    lines = [machine, "", HEADER, "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"]
    for r in rows:
        compiled = f"{r['ratio_compile']:.2f}" if r["ratio_compile"] else "-"
        lines.append(
            f"| {r['model']} | {r['size']} | {r['on_fastcv']}/{r['of']} | {r['chains']} | {r['error']:.1e} ({r['torch_error']:.1e}) | "
            f"{r['gradient_error']:.1e} ({r['torch_gradient_error']:.1e}) | {r['share']:.0%} | {r['fastcv_ms']:.1f} | {r['ratio']:.2f} | "
            f"{r['ratio_channels_last']:.2f} | {r['ratio_best']:.2f} | {compiled} | {r['ratio_training']:.2f} |"
        )
    means = {
        key: geometric_mean([r[key] for r in rows if r[key]]) for key in ("ratio", "ratio_channels_last", "ratio_best", "ratio_training")
    }
    return "\n".join(lines) + "\n\nGeometric means: " + ", ".join(f"{k} {v:.2f}" for k, v in means.items()) + ".\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=[], help="only these")
    parser.add_argument("--small", action="store_true", help="the small configurations of the tests")
    parser.add_argument("--compile", nargs="*", default=None, help="also time torch.compile, of all or of these models")
    parser.add_argument("--seconds", type=float, default=8.0, help="about this long per model")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "zoo", help="path without suffix")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows: list[dict[str, Any]] = []
    info = fastcv.build_info()
    machine = (
        f"{cpu_name()}, {torch.get_num_threads()} threads, {fastcv.cpu_isa()}; torch {torch.__version__}, "
        f"fastcv {info['version']} ({info['git']}), {info['compiler']}. One image, float32; training: two images, forward and backward."
    )
    for entry in ZOO:
        if options.models and entry.name not in options.models:
            continue
        with_compile = options.compile is not None and (not options.compile or entry.name in options.compile)
        rows.append(run(entry, options.small, with_compile, options.seconds))
        gc.collect()
        print({k: round(v, 9) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        keys = list(dict.fromkeys(key for row in rows for key in row))
        with open(f"{options.output}.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, keys)
            writer.writeheader()
            writer.writerows(rows)
        Path(f"{options.output}.md").write_text(markdown(rows, machine))
    return 0


if __name__ == "__main__":
    sys.exit(main())
