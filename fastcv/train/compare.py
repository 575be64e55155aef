"""``fastcv train --compare-backends``: one training on fastcv's layers and on torch's, an epoch of each in turn, and what differs.

Both start from the same parameters and see the same batches; who goes first alternates, so that both see the same machine.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import checkpoint
from .engine import Engine, signals
from .log import Log
from .loop import Epoch
from .options import Options
from .progress import task

__all__ = ["FILES", "compared", "in_turn", "options_of", "table", "write"]

FILES = ("compare.json", "compare.png")


def options_of(options: Options) -> dict[str, Options]:
    """The two runs by their names: --fastcv's (nn where that is off) and torch's, each in a folder of its own name."""
    names = {"fastcv": "nn" if options.fastcv == "off" else options.fastcv, "torch": "off"}
    folder = Path(options.output_dir)
    return {
        name: replace(options, fastcv=backend, compare_backends=False, output_dir=str(folder / name)) for name, backend in names.items()
    }


def in_turn(engines: Mapping[str, Engine]) -> None:
    """Trains all to their ends, an epoch of each in turn; a run that was interrupted while one was ahead lets the other catch up.

    Raises Interrupted and Diverged; every epoch that ended is saved."""
    first = next(iter(engines.values()))
    logs = {name: Log(e.output, e.options, e.epoch) if e.world.first else None for name, e in engines.items()}
    total, done = (sum(count(e) for e in engines.values()) for count in (_steps, _steps_done))
    parameters = sum(p.numel() for p in first.network.parameters())
    title = f"{first.options.model}, {parameters:,} parameters, on {first.data.name}: {', '.join(engines)} in turn"
    with signals() as received, task(first.console, title, total, done) as progress:
        while waiting := {name: e for name, e in engines.items() if not e.finished}:
            epoch = min(e.epoch for e in waiting.values())
            for name in list(waiting)[:: 1 if epoch % 2 == 0 else -1]:
                if waiting[name].epoch == epoch:
                    waiting[name].run_epoch(received, _Named(progress, name), logs[name])
    for log in logs.values():
        if log is not None:
            log.close()


def _steps(engine: Engine) -> int:
    return engine.options.epochs * engine.steps


def _steps_done(engine: Engine) -> int:
    return engine.epoch * engine.steps + engine.step


class _Named:
    """A progress whose lines begin with a name."""

    def __init__(self, progress: Any, name: str) -> None:
        self._progress, self._name = progress, name
        self.advance = progress.advance

    def show(self, text: str) -> None:
        self._progress.show(f"{self._name}  {text}")

    def line(self, text: str) -> None:
        self._progress.line(f"{self._name:<6}  {text}")


def compared(histories: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The differences fastcv - torch of each epoch's numbers, and the ratio of their speeds, fastcv / torch, above 1 faster."""
    ours, theirs = histories["fastcv"], histories["torch"]
    measures = [name for name in ours[0] if name.startswith(("train_", "val_"))]
    epochs = [
        {
            "epoch": a["epoch"],
            **{name: {"fastcv": a[name], "torch": b[name], "difference": a[name] - b[name]} for name in (*measures, "images_per_second")},
            "speed": a["images_per_second"] / b["images_per_second"],
        }
        for a, b in zip(ours, theirs, strict=False)
    ]
    return {
        "epochs": epochs,
        "images_per_second": {name: statistics.median(row["images_per_second"] for row in rows) for name, rows in histories.items()},
        "speed": statistics.median(row["speed"] for row in epochs),
        "largest_difference_of_train_loss": max((abs(row["train_loss"]["difference"]) for row in epochs), default=math.nan),
    }


def table(found: dict[str, Any], title: str) -> Any:
    """The comparison for the eye."""
    from rich.table import Table
    from rich.text import Text

    made = Table(title=Text(title, style="bold"), title_justify="left", min_width=len(title))
    for name in ("", "fastcv", "torch", "difference"):
        made.add_column(name, justify="right" if name else "left", no_wrap=bool(name))

    def losses(label: str, fastcv: float, torch: float) -> None:
        made.add_row(label, f"{fastcv:.6f}", f"{torch:.6f}", f"{fastcv - torch:+.1e}")

    if "first_step_loss" in found:
        losses("loss of step 1", **found["first_step_loss"])
    chosen = found["epochs"] if len(found["epochs"]) <= 6 else [*found["epochs"][:3], *found["epochs"][-3:]]
    for row in chosen:
        losses(f"train loss of epoch {row['epoch']}", row["train_loss"]["fastcv"], row["train_loss"]["torch"])
    made.add_section()
    rates, tests = found["images_per_second"], found["test"]
    shares = [100 * tests[name] for name in ("fastcv", "torch")]
    made.add_row("test part, %", *(f"{share:.2f}" for share in shares), f"{shares[0] - shares[1]:+.2f}")
    made.add_row("images per second (median)", f"{rates['fastcv']:.0f}", f"{rates['torch']:.0f}", f"x {found['speed']:.2f}")
    return made


def write(folder: Path, found: dict[str, Any], histories: Mapping[str, list[dict[str, Any]]], title: str, draw: bool) -> None:
    """FILES into ``folder``; the picture, which needs matplotlib, only where ``draw`` says so."""
    checkpoint.write(folder / FILES[0], (json.dumps(found, indent=2) + "\n").encode())
    if not draw:
        return
    from . import plots

    numbers = ("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds")
    with tempfile.TemporaryDirectory() as made:
        picture = Path(made) / FILES[1]
        plots.curves(picture, {name: [Epoch(*(row[n] for n in numbers)) for row in rows] for name, rows in histories.items()}, title)
        checkpoint.write(folder / FILES[1], picture.read_bytes())
