"""Whole models against torch, torch.compile, ONNX Runtime and OpenVINO: ``make bench-peers`` (PEERS="--models resnet50" for some).

The race is that of ``fastcv bench model``, fastcv by both of its doors (--vs fastcv-compile: torch.compile with its backend). Writes
results/engines.csv and, from it, engines.md after every race: what is measured replaces the line of the same race, everything else
stays, so that an interrupted run keeps what it has; --resume goes on with what the same build has not measured yet. A peer that is
not installed is left out. --table only writes engines.md anew from engines.csv.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from pathlib import Path
from typing import Any

# See fastcv.bench.machine.wait_passively; before torch is imported, or it has no effect.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch  # noqa: F401  first: it loads OpenMP

from fastcv.bench import machine, model_tables, models, peers, roofs, store
from fastcv.bench.rows import Row

RACE = ("model", "batch", "size", "dtype", "mode", "threads")


def key(line: dict[str, Any]) -> tuple[str, ...]:
    """What a line is the answer to."""
    return tuple(str(line[name]) for name in RACE)


def read(file: Path) -> list[dict[str, Any]]:
    """The lines of the CSV file; [] without one. Raises ValueError for another file."""
    if not file.exists():
        return []
    with open(file, newline="") as stream:
        reader = csv.DictReader(stream)
        if not {*RACE, "build", "ratio", "remarks"} <= set(reader.fieldnames or ()):
            raise ValueError(f"{file} is no table of engines; nothing was written")
        return list(reader)


def merged(lines: list[dict[str, Any]], new: dict[str, Any], order: list[tuple[str, ...]]) -> list[dict[str, Any]]:
    """``lines`` with the new one in it, in the order of the races, others behind them."""
    table = {key(line): line for line in lines} | {key(new): new}
    return sorted(table.values(), key=lambda line: order.index(key(line)) if key(line) in order else len(order))


def write(file: Path, text: str) -> None:
    """All of it or nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    fresh.write_text(text)
    fresh.replace(file)


def page(lines: list[dict[str, Any]]) -> str:
    """engines.md: every build that a line is of, and the table."""
    heads = list(dict.fromkeys(line["build"] for line in lines))
    rule = (
        "Medians of interleaved calls in ms, each contender in its better layout; fastcv by the faster of its doors, fastcv.optimize or "
        'torch.compile(backend="fastcv") ("compiled"); torch.compile with frozen weights.'
    )
    return model_tables.markdown("\n\n".join([*(f"{head}." for head in heads), rule]), lines)


def jobs_of(given: argparse.Namespace) -> list[models.Job]:
    """Inference of every model, batch and dtype, then training."""
    jobs = models.plan_jobs(given.models, batches=given.batches, dtypes=given.dtypes) if "inference" in given.passes else []
    if "training" in given.passes:
        jobs += models.plan_jobs(given.models, batches=given.training_batches, train=True)
    return jobs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["vgg16", "resnet50"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8], help="of inference")
    parser.add_argument("--training-batches", nargs="+", type=int, default=[8])
    parser.add_argument("--dtypes", nargs="+", default=["f32", "bf16"], choices=sorted(roofs.DTYPES), help="of inference")
    parser.add_argument("--passes", nargs="+", default=["inference", "training"], choices=["inference", "training"])
    parser.add_argument("--vs", nargs="+", default=list(models.PEERS), choices=models.PEERS)
    parser.add_argument("--seconds", type=float, default=30.0, help="about this long per race, beside the preparations")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "engines", help="path without suffix")
    parser.add_argument("--json", type=Path, help="append every time measured to this file")
    parser.add_argument("--resume", action="store_true", help="keep what this build has measured, measure the rest")
    parser.add_argument("--table", action="store_true", help="measure nothing: write the page from the CSV file")
    given = parser.parse_args()
    table, beside = (Path(f"{given.output}{suffix}") for suffix in (".csv", ".md"))
    try:
        lines = read(table)
        if given.table:
            if not lines:
                raise ValueError(f"{table} holds no race: there is nothing to write a page of")
            write(beside, page(lines))
            return 0
        for name in given.models:
            if ":" not in name and name not in models.known():
                models.build(name)  # says what there is
        if bad := [n for n in (*given.batches, *given.training_batches) if n < 1]:
            raise ValueError(f"a batch has at least one image, not {bad[0]}")
        jobs = jobs_of(given)
        facts = machine.describe()
        results = store.Results(given.json, facts, command=" ".join(sys.argv[1:]))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    build = machine.sentence(facts)
    for reason in filter(None, map(peers.missing, given.vs)):
        print(reason)
    ready = [p for p in given.vs if not peers.missing(p)]
    order = [(j.name, str(j.shape[0]), "x".join(map(str, j.shape[1:])), j.dtype, j.mode, str(j.threads)) for j in jobs]
    have = {key(line) for line in lines if line["build"] == build} if given.resume else set()
    wrong: list[str] = []

    def done(job: models.Job, rows: list[Row]) -> None:
        nonlocal lines
        print("\n".join([job.title, *("  " + line for line in model_tables.lines(rows))]), flush=True)
        wrong.extend(r.reason for r in rows if r.who == "fastcv" and not r.timed)
        lines = merged(lines, model_tables.against_peers(rows)[0] | {"build": build}, order)
        write(table, model_tables.csv_text(lines))
        write(beside, page(lines))

    def failed(job: models.Job, reason: str) -> None:
        wrong.append(reason)
        print(reason, file=sys.stderr, flush=True)

    todo = [job for job, race in zip(jobs, order, strict=True) if race not in have]
    models.run_jobs(todo, ready, given.seconds, models.ROUNDS, results, done, failed)
    print(f"{build}\n{model_tables.summary(lines)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
