"""Throughput of fastcv.models against the same models of torch.nn and torch.compile. ``python benchmarks/models.py``.

Inference and training at batches of 1, 8 and 32, float32, in each contender's better layout. Contenders take turns in one process;
times are medians. The answers are compared before anything is timed. Writes results/models.csv and .md.
"""

from __future__ import annotations

import argparse
import csv
import gc
import os
import sys
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
LAYOUTS = {"": torch.contiguous_format, " channels_last": torch.channels_last}
ROUNDS = (5, 25)
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
    shape = logits(network(x)).shape
    labels = torch.randint(shape[1], (shape[0], *shape[2:]), generator=torch.Generator().manual_seed(1))

    def call() -> Tensor:
        loss = loss_of(logits(network(x)), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return call


def build(name: str, layers: Any) -> nn.Module:
    torch.manual_seed(0)
    return models.get_model(name, layers=layers)


def contenders(name: str, batch: int, train: bool, with_compile: bool, size: tuple[int, ...]) -> dict[str, Callable[[], Tensor]]:
    image = torch.randn(batch, *size, generator=torch.Generator().manual_seed(2))
    calls: dict[str, Callable[[], Tensor]] = {}
    for suffix, layout in LAYOUTS.items():
        x = image.to(memory_format=layout)
        makers: dict[str, Callable[[], nn.Module]] = {
            "torch": lambda: build(name, nn),
            "fastcv.nn": lambda: build(name, fastcv.nn),
            "optimize": lambda: fastcv.optimize(build(name, nn).train(train), mode="training" if train else "inference", inplace=True),
        }
        if with_compile:
            makers["compile"] = lambda: torch.compile(build(name, nn).train(train))
        for contender, make in makers.items():
            network = make().to(memory_format=layout)
            library = nn if contender in ("torch", "compile") else fastcv.nn
            calls[contender + suffix] = training(network, x, library) if train else inference(network, x)
    return calls


def check(name: str, size: tuple[int, ...]) -> float:
    """The relative difference of the outputs of fastcv's and torch's layers on one image. Raises SystemExit if it is no rounding."""
    x = torch.randn(1, *size, generator=torch.Generator().manual_seed(2))
    theirs, ours = (build(name, layers) for layers in (nn, fastcv.nn))
    for network in (theirs, ours):
        for parameter in network.parameters():
            if not parameter.any():
                nn.init.constant_(parameter, 0.01)
    expected, got = inference(theirs, x)(), inference(ours, x)()
    difference = ((got - expected).norm() / expected.norm()).item()
    if not difference <= ALLOWED:
        raise SystemExit(f"{name}: the outputs differ by {difference:.1e} of their norm; nothing was timed")
    return difference


def run(name: str, batch: int, train: bool, with_compile: bool, seconds: float, side: int | None) -> dict[str, Any]:
    channels, height, width = models.model_info(name).input_size
    size = (channels, side or height, side or width)
    torch._dynamo.reset()
    row: dict[str, Any] = {"model": name, "pass": "training" if train else "inference", "batch": batch, "pixels": size[1]}
    row["difference"] = check(name, size)
    times = interleave(contenders(name, batch, train, with_compile, size), seconds, ROUNDS)
    for contender in ("torch", "compile", "fastcv.nn", "optimize"):
        medians = [sample.median for key, sample in times.items() if key.startswith(contender)]
        row[contender] = batch / min(medians) if medians else None
    return row


COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "model": lambda r: r["model"],
    "pass": lambda r: r["pass"],
    "batch": lambda r: str(r["batch"]),
    "pixels": lambda r: str(r["pixels"]),
    "torch img/s": lambda r: f"{r['torch']:.2f}",
    "torch.compile": lambda r: f"{r['compile']:.2f}" if r["compile"] else "-",
    "fastcv.nn": lambda r: f"{r['fastcv.nn']:.2f}",
    "optimize": lambda r: f"{r['optimize']:.2f}",
    "fastcv / torch": lambda r: f"{max(r['fastcv.nn'], r['optimize']) / r['torch']:.2f}",
    "fastcv / compile": lambda r: f"{max(r['fastcv.nn'], r['optimize']) / r['compile']:.2f}" if r["compile"] else "-",
}


def markdown(rows: list[dict[str, Any]], machine: str) -> str:
    lines = [machine, "", "| " + " | ".join(COLUMNS) + " |", "|---|---|" + "---:|" * (len(COLUMNS) - 2)]
    lines += ["| " + " | ".join(cell(r) for cell in COLUMNS.values()) + " |" for r in rows]
    means = []
    for kind in ("inference", "training"):
        ratios = [max(r["fastcv.nn"], r["optimize"]) / r["torch"] for r in rows if r["pass"] == kind]
        if ratios:
            means.append(f"{kind} {geometric_mean(ratios):.2f}, slowest {min(ratios):.2f}")
    return "\n".join(lines) + "\n\nGeometric means, fastcv / torch: " + "; ".join(means) + ".\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=DEFAULT, help="only these")
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 8, 32])
    parser.add_argument("--passes", nargs="*", choices=["inference", "training"], default=["inference", "training"])
    parser.add_argument("--compile", action="store_true", help="time torch.compile too")
    parser.add_argument("--side", type=int, help="pixels of a side in place of the published ones")
    parser.add_argument("--seconds", type=float, default=8.0, help="about this long per row")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "models", help="path without suffix")
    options = parser.parse_args()
    for name in options.models:
        if name not in models.list_models():
            parser.error(f"there is no model {name!r}")
    info = fastcv.build_info()
    machine = (
        f"{cpu_name()}, {torch.get_num_threads()} threads, {fastcv.cpu_isa()}; torch {torch.__version__}, "
        f"fastcv {info['version']} ({info['git']}), {info['compiler']}. float32, images per second, each in its better layout."
    )
    rows: list[dict[str, Any]] = []
    for name in options.models:
        for kind in options.passes:
            for batch in options.batches:
                if kind == "training" and batch == 1 and models.model_info(name).task == "segmentation":
                    continue  # batch norm after image pooling cannot train on one image
                rows.append(run(name, batch, kind == "training", options.compile, options.seconds, options.side))
                gc.collect()
                print({key: round(v, 9) if isinstance(v, float) else v for key, v in rows[-1].items()}, flush=True)
                options.output.parent.mkdir(parents=True, exist_ok=True)
                with open(f"{options.output}.csv", "w", newline="") as file:
                    writer = csv.DictWriter(file, rows[0])
                    writer.writeheader()
                    writer.writerows(rows)
                Path(f"{options.output}.md").write_text(markdown(rows, machine))
    return 0


if __name__ == "__main__":
    sys.exit(main())
