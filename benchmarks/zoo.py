"""Vision models of transformers with random weights: errors, share of time in fastcv, speed. ``python benchmarks/zoo.py``.

One image without gradients, and a training pass of two. Errors are against float64, relative to the Euclidean norm; speeds are
medians of interleaved rounds, as times of torch over those of fastcv: above 1 fastcv is faster. Writes results/zoo.csv and .md: what
is measured replaces what stands there, everything else stays, so that ``--models levit --parts compile`` fills one cell. The answers in
float64, which take minutes of some models, are kept under --references and computed once.
"""

from __future__ import annotations

import argparse
import copy
import csv
import gc
import io
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
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
    """One pass with random output gradients, without dropout, whose draws differ between dtypes. Returns all gradients as a vector."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) or "DropPath" in type(module).__name__:
            module.eval()

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


class References:
    """Answers in float64, by name, kept as files that the versions of torch and transformers are part of the names of."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, entry: Entry, small: bool, what: str, compute: Callable[[], Tensor]) -> Tensor:
        side = entry.size[0 if small else 1]
        versions = f"torch{torch.__version__}-transformers{version('transformers')}"
        path = self.folder / f"{entry.name}-{side}{'-small' if small else ''}-{what}-{versions}.pt"
        if path.exists():
            return torch.load(path, weights_only=True)
        result = compute()
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        torch.save(result, unfinished)
        unfinished.replace(path)
        return result


def contenders_of(model: nn.Module, ours: nn.Module, x: Tensor) -> dict[str, Callable[[], Tensor]]:
    """torch and fastcv, in both layouts."""
    calls = {"torch": calling(model, x), "fastcv": calling(ours, x)}
    for name, m in (("torch", model), ("fastcv", ours)):
        calls[f"{name} channels_last"] = calling(copy.deepcopy(m).to(memory_format=LAST), x.to(memory_format=LAST))
    return calls


def infer(entry: Entry, small: bool, seconds: float, references: References) -> dict[str, Any]:
    """Errors, share of time and speed of one image in both layouts."""
    model, x = entry.build(small), entry.images(small, 1)
    exact = references.get(entry, small, "output", calling(copy.deepcopy(model).double(), x.double()))
    ours = fastcv.optimize(model)
    rows = ours.fastcv_report.rows
    contenders = contenders_of(model, ours, x)
    row: dict[str, Any] = {
        "model": entry.name,
        "size": x.shape[-1],
        "on_fastcv": sum(bool(r.op) for r in rows),
        "of": len(rows),
        "chains": sum(bool(r.fused) for r in rows),
        "error": relative(contenders["fastcv"](), exact),
        "torch_error": relative(contenders["torch"](), exact),
        "share": share(contenders["fastcv"]),
    }
    times = interleave(contenders, seconds, ROUNDS)
    mine = min(times["fastcv"].median, times["fastcv channels_last"].median)
    row |= {"fastcv_ms": mine * 1e3, "torch_ms": times["torch"].median * 1e3, "ratio": times["torch"].median / times["fastcv"].median}
    row["ratio_channels_last"] = times["torch channels_last"].median / times["fastcv channels_last"].median
    row["ratio_best"] = min(times["torch"].median, times["torch channels_last"].median) / mine
    return row


def compare_with_compile(entry: Entry, small: bool, seconds: float) -> dict[str, Any]:
    """torch.compile against fastcv in its better layout; a model that torch.compile refuses has the reason instead of the time."""
    model, x = entry.build(small), entry.images(small, 1)
    contenders = contenders_of(model, fastcv.optimize(model), x)
    torch._dynamo.reset()
    contenders["compile"] = calling(torch.compile(model), x)
    start = time.perf_counter()
    try:
        contenders["compile"]()
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        print(f"{entry.name}: torch.compile: {reason}", file=sys.stderr)
        return {"compile_error": reason, "ratio_compile": "", "compile_s": ""}
    seconds_to_compile = time.perf_counter() - start
    times = interleave({k: v for k, v in contenders.items() if not k.startswith("torch")}, seconds, ROUNDS)
    mine = min(times["fastcv"].median, times["fastcv channels_last"].median)
    return {"compile_error": "", "ratio_compile": times["compile"].median / mine, "compile_s": seconds_to_compile}


def train(entry: Entry, small: bool, seconds: float, references: References) -> dict[str, Any]:
    """Gradient errors and speed of a training pass of two images."""
    model, x = entry.build(small), entry.images(small, 2)
    exact = references.get(entry, small, "gradient", training(copy.deepcopy(model).double(), x.double()))
    calls = {"torch": training(copy.deepcopy(model), x), "fastcv": training(fastcv.optimize(model.train(), mode="training"), x)}
    errors = {name: relative(call(), exact) for name, call in calls.items()}
    times: dict[str, Sample] = interleave(calls, seconds / 2, ROUNDS)
    return {
        "gradient_error": errors["fastcv"],
        "torch_gradient_error": errors["torch"],
        "ratio_training": times["torch"].median / times["fastcv"].median,
    }


PARTS = ("inference", "compile", "training")


def measure(entry: Entry, parts: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """The columns of the parts."""
    references, row = References(options.references), {"model": entry.name}
    if "inference" in parts:
        row |= infer(entry, options.small, options.seconds, references)
        gc.collect()
    if "compile" in parts:
        row |= compare_with_compile(entry, options.small, options.seconds)
        gc.collect()
    if "training" in parts:
        row |= train(entry, options.small, options.seconds, references)
    return row


def merged(path: Path, new: dict[str, Any]) -> list[dict[str, Any]]:
    """The table of the file with the new columns of one model in it, in the order of the zoo."""
    rows: dict[str, dict[str, Any]] = {}
    if path.exists():
        with open(path, newline="") as file:
            rows = {row["model"]: {k: v for k, v in row.items() if v not in ("", None)} for row in csv.DictReader(file)}
    rows[new["model"]] = rows.get(new["model"], {}) | new
    order = [entry.name for entry in ZOO]
    return sorted(rows.values(), key=lambda row: order.index(row["model"]) if row["model"] in order else len(order))


def write(path: Path, text: str) -> None:
    """All of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_text(text)
    unfinished.replace(path)


def table(rows: list[dict[str, Any]]) -> str:
    """As CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "model": lambda r: r["model"],
    "pixels": lambda r: r["size"],
    "on fastcv": lambda r: f"{r['on_fastcv']}/{r['of']}",
    "chains": lambda r: r["chains"],
    "output error (torch's)": lambda r: f"{float(r['error']):.1e} ({float(r['torch_error']):.1e})",
    "gradient error (torch's)": lambda r: f"{float(r['gradient_error']):.1e} ({float(r['torch_gradient_error']):.1e})",
    "time in fastcv": lambda r: f"{float(r['share']):.0%}",
    "fastcv ms": lambda r: f"{float(r['fastcv_ms']):.1f}",
    "torch / fastcv": lambda r: f"{float(r['ratio']):.2f}",
    "both channels_last": lambda r: f"{float(r['ratio_channels_last']):.2f}",
    "best layouts": lambda r: f"{float(r['ratio_best']):.2f}",
    "torch.compile / fastcv": lambda r: f"{float(r['ratio_compile']):.2f}",
    "training": lambda r: f"{float(r['ratio_training']):.2f}",
}
INFERENCE = ("on fastcv", "chains", "output error (torch's)", "time in fastcv", "fastcv ms", "torch / fastcv", "both channels_last")
NEEDS = dict.fromkeys((*INFERENCE, "pixels", "best layouts"), "ratio") | {
    "gradient error (torch's)": "gradient_error",
    "torch.compile / fastcv": "ratio_compile",
    "training": "ratio_training",
}


def markdown(rows: list[dict[str, Any]], machine: str) -> str:
    lines = [machine, "", "| " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * (len(COLUMNS) - 1)]
    for r in rows:
        cells = [str(cell(r)) if title not in NEEDS or r.get(NEEDS[title]) else "-" for title, cell in COLUMNS.items()]
        lines.append("| " + " | ".join(cells) + " |")
    names = {"ratio": "row-major", "ratio_channels_last": "channels_last", "ratio_best": "best layouts", "ratio_training": "training"}
    measured = {text: [float(r[key]) for r in rows if r.get(key)] for key, text in names.items()}
    means = {text: geometric_mean(ratios) for text, ratios in measured.items() if ratios}
    return "\n".join(lines) + "\n\nGeometric means, torch / fastcv: " + ", ".join(f"{k} {v:.2f}" for k, v in means.items()) + ".\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=[], help="only these")
    parser.add_argument("--small", action="store_true", help="the small configurations of the tests")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["inference", "training"], help="what to measure")
    parser.add_argument("--references", type=Path, default=Path.home() / ".cache" / "fastcv" / "zoo", help="folder of float64 answers")
    parser.add_argument("--seconds", type=float, default=8.0, help="about this long per model")
    parser.add_argument("--output", type=Path, help="path without suffix, by default results/zoo or results/zoo-small")
    options = parser.parse_args()
    options.output = options.output or Path(__file__).parent / "results" / ("zoo-small" if options.small else "zoo")
    warnings.simplefilter("ignore")
    unknown = sorted(set(options.models) - {entry.name for entry in ZOO})
    if unknown:
        parser.error(f"no model {unknown[0]!r}; there are {', '.join(entry.name for entry in ZOO)}")
    info = fastcv.build_info()
    machine = (
        f"{cpu_name()}, {torch.get_num_threads()} threads, {fastcv.cpu_isa()}; torch {torch.__version__}, "
        f"fastcv {info['version']} ({info['git']}, or as zoo.csv says), {info['compiler']}. "
        "One image, float32; training: two images, forward and backward."
    )
    for entry in ZOO:
        if options.models and entry.name not in options.models:
            continue
        new = measure(entry, options.parts, options) | {f"{part}_commit": info["git"] for part in options.parts}
        gc.collect()
        print({k: round(v, 9) if isinstance(v, float) else v for k, v in new.items()}, flush=True)
        rows = merged(Path(f"{options.output}.csv"), new)
        write(Path(f"{options.output}.csv"), table(rows))
        write(Path(f"{options.output}.md"), markdown(rows, machine))
    return 0


if __name__ == "__main__":
    sys.exit(main())
