"""Throughput of fastcv.models against the same models of torch.nn and torch.compile. ``python benchmarks/models.py``.

Inference and training at batches of 1, 8 and 32, float32. torch and fastcv take part in the layout in which a trial found them faster,
torch.compile in channels_last, in which it computes convolutions on the CPU anyway, and fastcv by the door, fastcv.nn or
fastcv.optimize, that the trial found faster (batches above 8 by the trial at 8); then they take turns in one process, and medians
count. Answers and losses are compared before anything is timed; a model whose answers differ is named, left out, and makes the exit code 1.

Writes results/models.csv and, from it, models.md after every row: what is measured replaces the same row, everything else stays, so that
a table comes together from parts; rows of another build are marked. Rows come in the order of their work, so that --minutes ends with
the smaller ones done; --resume leaves out what this build has measured, --table only writes models.md anew. --prepare times
nothing: it fills torch.compile's cache on disk, which takes longer than all the rest and does not mind a busy machine.
"""

from __future__ import annotations

import argparse
import copy
import csv
import functools
import gc
import io
import itertools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch import Tensor, nn

import fastcv
from fastcv import models
from fastcv.bench import geometric_mean, interleave, machine
from fastcv.models.summary import Summary, summarise

DEFAULT = [
    *("resnet20", "alexnet", "vgg16", "resnet18", "resnet50", "resnext50_32x4d", "seresnet50", "densenet121", "mobilenet_v1"),
    *("mobilenet_v2", "shufflenet_v2_x1_0", "vit_b_16", "swin_t", "mixer_b_16"),
    *("unet_small", "fcn_resnet50", "deeplabv3_resnet50", "upernet_resnet50"),
]
SEGMENTED = 224  # pixels of a side for segmentation networks, whose papers' sizes take up to six times the work
LAYOUTS = {torch.contiguous_format: "nchw", torch.channels_last: "nhwc"}
OURS = ("fastcv.nn", "optimize")
ROUNDS = (3, 25)
TRIAL = 0.3  # seconds of a trial, at least one call
TRIED = 8  # the largest batch of a trial
ALLOWED = 1e-3  # the largest difference of outputs, relative: any wrong layer shows more, rounding of 150 layers a thousand times less
SHARE = 10  # times what torch differs by from itself: after an update rounding may be far above ALLOWED in torch alone
NUDGE = 1 + 2**-23  # of the images: less than any sum of a layer rounds


class WrongAnswer(Exception):
    """fastcv's answers are not torch's; the sentence says whose."""


class Job(NamedTuple):
    """A row of the table. work: multiply-adds of a call, three times those of inference in training."""

    model: str
    kind: str
    batch: int
    size: tuple[int, int, int]
    work: float

    @property
    def train(self) -> bool:
        return self.kind == "training"

    @property
    def facts(self) -> dict[str, Any]:
        return {"model": self.model, "pass": self.kind, "batch": self.batch, "pixels": self.size[1]}


Contender = tuple[str, torch.memory_format]


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


@functools.lru_cache(maxsize=16)  # drawing the parameters of a large network takes longer than a call of it
def _built(name: str, ours: bool, size: tuple[int, ...]) -> nn.Module:
    torch.manual_seed(0)
    network = models.get_model(name, layers=fastcv.nn if ours else nn, **models.model_info(name).config_for(*size))
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.constant_(parameter, 0.01)
    return network


def build(name: str, ours: bool, size: tuple[int, ...]) -> nn.Module:
    """The model, the same parameters each time, none of them all zero: such a head would hide what stands before it."""
    return copy.deepcopy(_built(name, ours, size))


@functools.cache
def page(name: str, size: tuple[int, ...]) -> Summary:
    with torch.device("meta"):
        network = models.get_model(name, layers=nn, **models.model_info(name).config_for(*size))
    return summarise(network, (1, *size))


def calling(contender: str, job: Job, images: Tensor, layout: torch.memory_format) -> Callable[[], Tensor]:
    """A new network of this contender and what one call of it does."""
    network = build(job.model, contender == "fastcv.nn", job.size).train(job.train)
    if contender == "compile":
        network = torch.compile(network)
    elif contender == "optimize":
        network = fastcv.optimize(network, mode=job.kind, inplace=True)
    network, x = network.to(memory_format=layout), images.to(memory_format=layout)
    return training(network, x, fastcv.nn if contender in OURS else nn) if job.train else inference(network, x)


def images_of(job: Job) -> Tensor:
    return torch.randn(job.batch, *job.size, generator=torch.Generator().manual_seed(2))


def started(contender: str, job: Job, images: Tensor, layout: torch.memory_format) -> tuple[Callable[[], Tensor], Tensor, Tensor]:
    """A call, and what it gave the first two times: of training, the losses before and after one update."""
    call = calling(contender, job, images, layout)
    torch.manual_seed(3)  # of dropout
    return call, call(), call()


def trial(contender: str, job: Job, layout: torch.memory_format) -> tuple[float, Tensor, Tensor]:
    """Seconds of a call, the shortest of some, and what the first two calls gave."""
    call, before, after = started(contender, job, images_of(job), layout)
    seconds: list[float] = []
    while not seconds or sum(seconds) < TRIAL:
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds), before, after


def apart(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@functools.cache
def chosen(job: Job) -> tuple[Contender, Contender, float]:
    """torch's and fastcv's faster form, and the largest difference of fastcv's answers. Raises WrongAnswer if they are not torch's."""
    trials = {(contender, layout): trial(contender, job, layout) for contender in ("torch", *OURS) for layout in LAYOUTS}
    _, before, after = trials["torch", torch.contiguous_format]
    again = [trials["torch", torch.channels_last][2]]
    if job.train:
        again.append(started("torch", job, images_of(job) * NUDGE, torch.contiguous_format)[2])
    allowed = max(ALLOWED, *(SHARE * apart(other, after) for other in again))
    differences = []
    for contender in OURS:
        _, *ours = trials[contender, torch.contiguous_format]
        for answer, exact, most in ((ours[0], before, ALLOWED), (ours[1], after, allowed)):
            differences.append(difference := apart(answer, exact))
            if not difference <= most:
                what = f"differs from torch by {difference:.1e} of the norm, allowed are {most:.1e}"
                raise WrongAnswer(f"{job.model}, {contender}, batch {job.batch}: {what}; nothing was timed")
    gc.collect()

    def fastest(names: tuple[str, ...]) -> Contender:
        return min((form for form in trials if form[0] in names), key=lambda form: trials[form][0])

    return fastest(("torch",)), fastest(OURS), max(differences)


def needed(job: Job, contenders: int) -> float:
    """About how many bytes the race takes: parameters, gradients and momenta of all, and the maps of one with their gradients."""
    summary = page(job.model, job.size)
    return contenders * 4 * summary.parameters * (3 if job.train else 1) + (2.5 if job.train else 0.5) * job.batch * summary.memory


def compiled(job: Job) -> Callable[[], Tensor] | None:
    """torch.compile's call, compiled; None, and a line that says so, for a model that it refuses."""
    torch._dynamo.reset()
    call = calling("compile", job, images_of(job), torch.channels_last)
    try:
        call()
    except Exception as error:  # whatever its compilers raise
        print(f"{job.model}: torch.compile: {type(error).__name__}", file=sys.stderr)
        return None
    return call


def run(job: Job, with_compile: bool, seconds: float) -> dict[str, Any]:
    """Images per second of each contender. Raises WrongAnswer if fastcv's answers are not torch's."""
    theirs, ours, difference = chosen(job._replace(batch=min(job.batch, TRIED), work=0))
    images = images_of(job)
    calls = {"torch": calling("torch", job, images, theirs[1]), "fastcv": calling(ours[0], job, images, ours[1])}
    if with_compile and (call := compiled(job)) is not None:
        calls["compile"] = call
    times = interleave(calls, seconds, ROUNDS)
    row = {name: job.batch / times[name].median if name in times else None for name in ("torch", "compile", "fastcv")}
    return row | {"door": ours[0], "layout": LAYOUTS[ours[1]], "torch layout": LAYOUTS[theirs[1]], "difference": difference}


# ---- the table

NUMBERS = {"batch": int, "pixels": int} | dict.fromkeys(("torch", "compile", "fastcv", "difference"), float)
KEY = ("model", "pass", "batch", "pixels")
COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "model": lambda r: r["model"],
    "pass": lambda r: r["pass"],
    "batch": lambda r: str(r["batch"]),
    "pixels": lambda r: str(r["pixels"]),
    "torch img/s": lambda r: f"{r['torch']:.2f} {r['torch layout']}",
    "torch.compile": lambda r: f"{r['compile']:.2f}" if r["compile"] else "-",
    "fastcv": lambda r: f"{r['fastcv']:.2f} {r['layout']}",
    "by": lambda r: r["door"],
    "fastcv / torch": lambda r: f"{r['fastcv'] / r['torch']:.2f}",
    "fastcv / compile": lambda r: f"{r['fastcv'] / r['compile']:.2f}" if r["compile"] else "-",
}


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in KEY)


def read(file: Path) -> list[dict[str, Any]]:
    """The rows of the CSV file; [] without one. Raises ValueError for another file."""
    if not file.exists():
        return []
    with file.open(newline="") as stream:
        reader = csv.DictReader(stream)
        if not {*KEY, *NUMBERS, "door", "build"} <= set(reader.fieldnames or ()):
            raise ValueError(f"{file} is no table of this program; nothing was written")
        return [{name: NUMBERS.get(name, str)(value) if value else None for name, value in row.items()} for row in reader]


def markdown(rows: list[dict[str, Any]]) -> str:
    """Every build that a row is of, the table, and the means."""
    builds = list(dict.fromkeys(row["build"] for row in rows))
    marks = {build: f" [{place}]" if len(builds) > 1 else "" for place, build in enumerate(builds, start=1)}
    heads = [f"{build}.{marks[build]}" for build in builds]
    rule = "float32, images per second; each contender in its better layout, fastcv by its faster door."
    lines = [*(line for head in [*heads, rule] for line in (head, "")), "| " + " | ".join(COLUMNS) + " |"]
    lines += ["|---|---|" + "---:|" * (len(COLUMNS) - 2)]
    lines += [f"| {' | '.join(cell(r) for cell in COLUMNS.values())}{marks[r['build']]} |" for r in rows]
    means = []
    for kind, peer in itertools.product(("inference", "training"), ("torch", "compile")):
        ratios = {key(r): r["fastcv"] / r[peer] for r in rows if r["pass"] == kind and r[peer]}
        if ratios:
            least = min(ratios, key=ratios.__getitem__)
            means.append(
                f"{kind} / {peer} {geometric_mean(list(ratios.values())):.2f}, slowest {ratios[least]:.2f} ({least[0]}, {least[2]})"
            )
    return "\n".join(lines) + "\n\nGeometric means: " + "; ".join(means) + ".\n"


def csv_text(rows: list[dict[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def write(file: Path, content: str) -> None:
    """All of it or nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(f".{file.name}")
    fresh.write_text(content)
    fresh.replace(file)


def _build() -> str:
    """The machine and what was compiled: a commit that changes no kernel leaves the rows as they are."""
    info = fastcv.build_info()
    threads = torch.get_num_threads()
    return (
        f"{machine.processor()}, {threads} thread{'s' if threads != 1 else ''}, {fastcv.cpu_isa()}; torch {torch.__version__}, "
        f"fastcv {info['version']} ({info['git']}), {info['compiler']}"
    )


def jobs_of(given: argparse.Namespace) -> list[Job]:
    """The rows asked for, the least work first."""
    jobs = []
    for name, kind, batch in itertools.product(given.models, given.passes, given.batches):
        info = models.model_info(name)
        if kind == "training" and batch == 1 and info.task == "segmentation":
            continue  # batch norm after image pooling cannot train on one image
        channels, height, width = info.input_size
        if info.task == "segmentation":
            height, width = min(height, SEGMENTED), min(width, SEGMENTED)
        size = (channels, given.side or height, given.side or width)
        work = page(name, size).multiply_adds * batch * (3 if kind == "training" else 1)
        jobs.append(Job(name, kind, batch, size, float(work)))
    return sorted(jobs, key=lambda job: job.work)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=DEFAULT, help="only these; 'all' are those of fastcv.models.list_models()")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--passes", nargs="+", choices=["inference", "training"], default=["inference", "training"])
    parser.add_argument("--compile", action="store_true", help="time torch.compile too")
    parser.add_argument("--side", type=int, help="pixels of a side in place of the published ones")
    parser.add_argument("--seconds", type=float, default=5.0, help="about this long per row, three rounds at least")
    parser.add_argument("--minutes", type=float, default=0.0, help="begin no row that would end later; 0: no limit")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "models", help="path without suffix")
    parser.add_argument("--resume", action="store_true", help="leave out what this build has measured into --output")
    parser.add_argument("--prepare", action="store_true", help="time nothing: compile the rows for a later --compile")
    parser.add_argument("--table", action="store_true", help="measure nothing: write the page from the CSV file")
    given = parser.parse_args()
    if given.models == ["all"]:
        given.models = models.list_models()
    for name in given.models:
        if name not in models.list_models():
            parser.error(f"there is no model {name!r}")
    for option, values in (("--batches", given.batches), ("--side", [given.side or 1])):
        if min(values) < 1:
            parser.error(f"{option} must be positive, got {min(values)}")
    table, beside = (given.output.with_name(f"{given.output.name}.{suffix}") for suffix in ("csv", "md"))
    try:
        rows = read(table)
        if given.table and not rows:
            raise ValueError(f"{table} holds no row: there is nothing to write a page of")
    except ValueError as error:
        parser.error(str(error))
    if given.table:
        write(beside, markdown(rows))
        return 0
    build_ = _build()
    done = {key(row) for row in rows if row["build"] == build_ and (row["compile"] or not given.compile)} if given.resume else set()
    jobs = [job for job in jobs_of(given) if key(job.facts) not in done]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    begin, pace, wrong = time.perf_counter(), 0.0, False
    for place, job in enumerate(jobs):
        passed = time.perf_counter() - begin
        # The last row's seconds per multiply-add: rows come by their work, and larger ones run no slower for their size.
        if given.minutes and passed + pace * job.work > 60 * given.minutes:
            print(f"{place} rows in {passed / 60:.1f} minutes, {len(jobs) - place} are left for --resume", flush=True)
            break
        if (bytes_ := needed(job, 3)) > 0.7 * memory:
            print(f"{job.facts}: left out, it needs about {bytes_ / 2**30:.0f} GiB", flush=True)
            continue
        if given.prepare:
            compiled(job)
            print(f"{time.perf_counter() - begin - passed:6.1f} s  {job.facts}", flush=True)
            continue
        try:
            row = job.facts | run(job, given.compile, given.seconds) | {"build": build_}
        except WrongAnswer as error:
            print(error, file=sys.stderr, flush=True)
            wrong = True
            continue
        gc.collect()
        pace = (time.perf_counter() - begin - passed) / job.work
        table_rows = {key(other): other for other in rows} | {key(row): row}
        rows = sorted(table_rows.values(), key=key)
        figures = {name: round(v, 9) if isinstance(v, float) else v for name, v in row.items() if name != "build"}
        print(f"{time.perf_counter() - begin - passed:6.1f} s  {figures}", flush=True)
        write(table, csv_text(rows))
        write(beside, markdown(rows))
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
