"""Throughput of fastcv.models against the same models of torch.nn and torch.compile. ``python benchmarks/models.py``.

Inference and training at batches of 1, 8 and 32, float32. Each contender takes part in the layout in which a trial found it faster,
torch.compile in torch's; then they take turns in one process, and medians count. Answers and losses are compared before anything is
timed. Writes results/models.csv and .md after every row; --resume goes on with the rows that the same build has measured.
"""

from __future__ import annotations

import argparse
import csv
import gc
import io
import itertools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(Path(__file__).parent))

import torch
from ops import cpu_name
from torch import Tensor, nn

import fastcv
from fastcv import models
from fastcv.bench import geometric_mean, interleave
from fastcv.models.summary import summarise

DEFAULT = [
    *(
        "resnet20",
        "alexnet",
        "vgg16",
        "resnet18",
        "resnet50",
        "resnext50_32x4d",
        "seresnet50",
        "densenet121",
        "mobilenet_v1",
        "mobilenet_v2",
    ),
    *("shufflenet_v2_x1_0", "vit_b_16", "swin_t", "mixer_b_16", "unet_small", "fcn_resnet50", "deeplabv3_resnet50", "upernet_resnet50"),
]
LAYOUTS = {torch.contiguous_format: "nchw", torch.channels_last: "nhwc"}
OURS = ("fastcv.nn", "optimize")
CONTENDERS = ("torch", "compile", *OURS)
ROUNDS = (3, 25)
TRIAL = 0.3  # seconds of a trial, at least one call
ALLOWED = 1e-3  # the largest difference of outputs, relative: any wrong layer shows more, rounding of 150 layers a thousand times less


def logits(answer: Any) -> Tensor:
    return answer if isinstance(answer, Tensor) else answer["out"]


def inference(network: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    network.eval()

    def call() -> Tensor:
        with torch.inference_mode():
            return logits(network(x))

    return call


def training(network: nn.Module, x: Tensor, library: Any) -> Callable[[], Tensor]:
    """A step of SGD with momentum on random labels."""
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
    loss_of = library.CrossEntropyLoss()
    labels: list[Tensor] = []

    def call() -> Tensor:
        answer = logits(network(x))
        if not labels:
            shape = (answer.shape[0], *answer.shape[2:])
            labels.append(torch.randint(answer.shape[1], shape, generator=torch.Generator().manual_seed(1)))
        loss = loss_of(answer, labels[0])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return call


def build(name: str, layers: Any, size: tuple[int, ...]) -> nn.Module:
    """The model, the same parameters each time, none of them all zero: such a head would hide what stands before it."""
    torch.manual_seed(0)
    network = models.get_model(name, layers=layers, **models.model_info(name).config_for(*size))
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.constant_(parameter, 0.01)
    return network


def maker(contender: str, name: str, train: bool, size: tuple[int, ...]) -> Callable[[], nn.Module]:
    mode = "training" if train else "inference"
    return {
        "torch": lambda: build(name, nn, size),
        "compile": lambda: torch.compile(build(name, nn, size).train(train)),
        "fastcv.nn": lambda: build(name, fastcv.nn, size),
        "optimize": lambda: fastcv.optimize(build(name, nn, size).train(train), mode=mode, inplace=True),
    }[contender]


def calling(contender: str, name: str, train: bool, images: Tensor, layout: torch.memory_format) -> Callable[[], Tensor]:
    """A new network of this contender and what one call of it does."""
    network, x = maker(contender, name, train, tuple(images.shape[1:]))().to(memory_format=layout), images.to(memory_format=layout)
    return training(network, x, fastcv.nn if contender in OURS else nn) if train else inference(network, x)


def trial(contender: str, name: str, train: bool, images: Tensor, layout: torch.memory_format) -> tuple[float, Tensor]:
    """Seconds of a call, the shortest of some, and what the second call gave: of training, the loss after one update."""
    call = calling(contender, name, train, images, layout)
    torch.manual_seed(3)  # of dropout
    call()
    seconds: list[float] = []
    second = None
    while not seconds or sum(seconds) < TRIAL:
        start = time.perf_counter()
        answer = call()
        seconds.append(time.perf_counter() - start)
        second = answer if second is None else second
    return min(seconds), second


def needed(name: str, batch: int, train: bool, size: tuple[int, ...], contenders: int) -> float:
    """About how many bytes the race takes: parameters, gradients and momenta of all, and the maps of one with their gradients."""
    page = summarise(build(name, nn, size), (1, *size))
    return contenders * 4 * page.parameters * (3 if train else 1) + (2.5 if train else 0.5) * batch * page.memory


def run(name: str, batch: int, train: bool, names: list[str], seconds: float, size: tuple[int, ...]) -> dict[str, Any]:
    """Images per second of each contender. Raises SystemExit if fastcv's answers are not torch's."""
    images = torch.randn(batch, *size, generator=torch.Generator().manual_seed(2))
    chosen, answers = {}, {}
    for contender in ("torch", *OURS):
        trials = {layout: trial(contender, name, train, images, layout) for layout in LAYOUTS}
        chosen[contender] = min(trials, key=lambda layout: trials[layout][0])
        answers[contender] = trials[torch.contiguous_format][1]
        gc.collect()
    differences = {c: ((answers[c] - answers["torch"]).norm() / answers["torch"].norm()).item() for c in OURS}
    for contender, difference in differences.items():
        if not difference <= ALLOWED:
            raise SystemExit(f"{name}, {contender}, batch {batch}: differs from torch by {difference:.1e} of the norm; nothing was timed")
    if "compile" in names:
        chosen["compile"] = chosen["torch"]
    calls = {contender: calling(contender, name, train, images, layout) for contender, layout in chosen.items()}
    if "compile" in calls:
        torch._dynamo.reset()
        try:
            calls["compile"]()
        except Exception as error:  # a model that torch.compile refuses is a row without its time
            print(f"{name}: torch.compile: {type(error).__name__}", file=sys.stderr)
            del calls["compile"]
    times = interleave(calls, seconds, ROUNDS)
    row: dict[str, Any] = {"difference": max(differences.values())}
    row |= {contender: batch / times[contender].median if contender in times else None for contender in CONTENDERS}
    row |= {f"{contender} layout": LAYOUTS[layout] for contender, layout in chosen.items() if contender != "compile"}
    return row


def better(row: dict[str, Any]) -> float:
    return max(row[contender] for contender in OURS)


COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "model": lambda r: r["model"],
    "pass": lambda r: r["pass"],
    "batch": lambda r: str(r["batch"]),
    "pixels": lambda r: str(r["pixels"]),
    "torch img/s": lambda r: f"{r['torch']:.2f}",
    "torch.compile": lambda r: f"{r['compile']:.2f}" if r["compile"] else "-",
    "fastcv.nn": lambda r: f"{r['fastcv.nn']:.2f}",
    "optimize": lambda r: f"{r['optimize']:.2f}",
    "fastcv / torch": lambda r: f"{better(r) / r['torch']:.2f}",
    "fastcv / compile": lambda r: f"{better(r) / r['compile']:.2f}" if r["compile"] else "-",
}


def markdown(rows: list[dict[str, Any]], machine: str) -> str:
    lines = [machine, "", "| " + " | ".join(COLUMNS) + " |", "|---|---|" + "---:|" * (len(COLUMNS) - 2)]
    lines += ["| " + " | ".join(cell(r) for cell in COLUMNS.values()) + " |" for r in rows]
    means = []
    for kind in ("inference", "training"):
        ratios = [better(r) / r["torch"] for r in rows if r["pass"] == kind]
        if ratios:
            means.append(f"{kind} {geometric_mean(ratios):.2f}, slowest {min(ratios):.2f}")
    return "\n".join(lines) + "\n\nGeometric means, fastcv / torch: " + "; ".join(means) + ".\n"


def earlier(file: Path, build: str) -> list[dict[str, Any]]:
    """The rows of ``file`` that this build has measured."""
    if not file.exists():
        return []
    with file.open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["build"] == build]
    numbers = {"batch": int, "pixels": int, "difference": float} | dict.fromkeys(CONTENDERS, float)
    return [{key: numbers.get(key, str)(value) if value else None for key, value in row.items()} for row in rows]


def write(file: Path, content: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(f".{file.name}")
    fresh.write_text(content)
    fresh.replace(file)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=DEFAULT, help="only these")
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 8, 32])
    parser.add_argument("--passes", nargs="*", choices=["inference", "training"], default=["inference", "training"])
    parser.add_argument("--compile", action="store_true", help="time torch.compile too")
    parser.add_argument("--side", type=int, help="pixels of a side in place of the published ones")
    parser.add_argument("--seconds", type=float, default=8.0, help="about this long per row")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "models", help="path without suffix")
    parser.add_argument("--resume", action="store_true", help="keep what this build has measured into --output, measure the rest")
    options = parser.parse_args()
    for name in options.models:
        if name not in models.list_models():
            parser.error(f"there is no model {name!r}")
    for option, values in (("--batches", options.batches), ("--side", [options.side or 1])):
        if min(values, default=1) < 1:
            parser.error(f"{option} must be positive, got {min(values)}")
    info = fastcv.build_info()
    machine = (
        f"{cpu_name()}, {torch.get_num_threads()} threads, {fastcv.cpu_isa()}; torch {torch.__version__}, "
        f"fastcv {info['version']} ({info['git']}), {info['compiler']}. float32, images per second, each in its better layout."
    )
    table, page = (options.output.with_name(f"{options.output.name}.{suffix}") for suffix in ("csv", "md"))
    rows = earlier(table, machine) if options.resume else []
    names = ["torch", *OURS, *(["compile"] if options.compile else [])]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name, kind, batch in itertools.product(options.models, options.passes, options.batches):
        model = models.model_info(name)
        if kind == "training" and batch == 1 and model.task == "segmentation":
            continue  # batch norm after image pooling cannot train on one image
        channels, height, width = model.input_size
        size = (channels, options.side or height, options.side or width)
        facts = {"model": name, "pass": kind, "batch": batch, "pixels": size[1]}
        if any(facts.items() <= row.items() and (row["compile"] or not options.compile) for row in rows):
            continue
        if (bytes_ := needed(name, batch, kind == "training", size, len(names))) > 0.7 * memory:
            print(f"{facts}: left out, it needs about {bytes_ / 2**30:.0f} GiB", flush=True)
            continue
        row = facts | run(name, batch, kind == "training", names, options.seconds, size) | {"build": machine}
        gc.collect()
        rows = [other for other in rows if not facts.items() <= other.items()] + [row]
        print({key: round(v, 9) if isinstance(v, float) else v for key, v in row.items() if key != "build"}, flush=True)
        stream = io.StringIO()
        writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write(table, stream.getvalue())
        write(page, markdown(rows, machine))
    return 0


if __name__ == "__main__":
    sys.exit(main())
