"""``fastcv tune``, also ``fastcv bench tune``: the command. What it does is in tune.py."""

from __future__ import annotations

from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from .. import _ext
from .._tuned import tuned
from . import layers, machine, plan, roofs
from .commands import _share, app, console, counts, one_sentence, progress, writable

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# What runs ops whose variants can be measured choices.
TUNABLE = ("conv1d", "conv2d", "conv2d_fused", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")


def _chosen_ops(ops: list[str]) -> list[str]:
    for op in ops:
        if plan.known_op(op) not in TUNABLE:
            raise ValueError(f"{op} takes no measured choices; there are {', '.join(TUNABLE)}")
    return ops or list(TUNABLE)


def _layers(
    ops: list[str],
    model: str,
    size: str,
    sweep: str,
    dtypes: tuple[str, ...],
    kinds: tuple[str, ...],
    modes: tuple[str, ...],
    batch: int,
    packed: bool,
    quick: bool,
) -> list[layers.Layer]:
    """The distinct layers of the model, the sweep or the timed cases."""
    found: list[layers.Layer] = []
    if model:
        from ..cli import parse_size
        from . import models

        if ops or sweep:
            raise ValueError("--model takes neither ops nor --sweep")
        shape = parse_size(size)
        for dtype in dtypes:
            for layout in kinds:
                memory_format = FORMATS[layout]
                network = models.build(model, shape).to(roofs.DTYPES[dtype]).to(memory_format=memory_format)
                image = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(roofs.DTYPES[dtype])
                if image.dim() == 4:
                    image = image.to(memory_format=memory_format)
                found += layers.of_model(model, network, image, modes)
    else:
        for job in plan.plan(_chosen_ops(ops), sweep, dtypes, modes, batch=batch, quick=quick):
            for layout in kinds:
                if layout in job.case.layouts:
                    found += layers.of_case(job.case, roofs.DTYPES[job.dtype], layout, job.mode, packed)
    unique = layers.distinct(found)
    if not unique:
        raise ValueError(f"{model or sweep or 'the timed cases'}: no layer whose variant is a choice")
    return unique


@app.command("tune")
def tune_command(
    ops: Annotated[
        list[str] | None, typer.Argument(help="Functions such as conv2d; all that have several algorithms if none is named.")
    ] = None,
    model: str = typer.Option("", help="The layers of a model after fastcv.optimize: its name, or package.module:function."),
    size: str = typer.Option("1x3x224x224", help="The input's size, with --model."),
    sweep: str = typer.Option("", help="Layers of resnet50, vgg16, mobilenet, unet, deeplab, zoo, or of a JSON file."),
    dtype: str = typer.Option("f32", help="f32, f64, bf16, f16; several separated by commas."),
    layout: str = typer.Option("nchw,nhwc", help="nchw, nhwc."),
    mode: str = typer.Option("fwd", help="fwd, bwd: layers of the forward pass, of the backward pass."),
    cache: str = typer.Option("cold,hot", help="cold, hot: where the arguments are when the clock starts."),
    threads: str = typer.Option("", help="Numbers of threads; torch's own if not given."),
    batch: int = typer.Option(1, min=1, help="Images in a sweep's batch."),
    packed: bool = typer.Option(
        False, help="Weights arranged beforehand, as in the forward pass of an optimised model; --model does so by itself."
    ),
    seconds: float = typer.Option(1.0, min=0.0, help="About this long per layer and state of the caches."),
    rounds: int = typer.Option(7, min=2, help="At least this many calls of each variant."),
    gate: str = typer.Option("3%", help="A gain up to this share is none."),
    noisy: bool = typer.Option(False, help="The machine is shared: leave out interrupted calls, and decide by the rest."),
    quick: bool = typer.Option(False, help="At most three cases of each op, a fifth of the time."),
    seed: int = typer.Option(0, help="Of values and turns."),
    output: str = typer.Option("", help="Write the choices here, layer by layer; fastcv.tuned(FILE) obeys them."),
    resume: bool = typer.Option(False, help="Go on with the --output file."),
    report: str = typer.Option("", help="Measure nothing: show the table of this file, and what the default choices lose."),
) -> None:
    """Races the variants of every layer and stores those that are faster than fastcv's own choice."""
    with one_sentence("tune"):
        from . import tune

        _ext.module()
        if report:
            content, found = tune.entries(report)
            console.print(machine.sentence(content["machine"]), markup=False, highlight=False, soft_wrap=True)
            _show(found)
            return
        options = tune.Options(
            cache=plan.choice(cache, plan.CACHES, "cache"),
            threads=counts(threads) or (torch.get_num_threads(),),
            seconds=seconds / 5 if quick else seconds,
            rounds=(rounds, max(200, rounds)),
            gate=_share(gate, "gate"),
            noisy=noisy,
            seed=seed,
        )
        if not 0 <= options.gate < 1:
            raise ValueError(f"--gate {gate}: expected a share from 0 to less than 1")
        kinds = tuple(dict.fromkeys(plan.LAYOUT_NAMES[p] for p in plan.choice(layout, list(plan.LAYOUT_NAMES), "layout")))
        dtypes, modes = plan.choice(dtype, list(roofs.DTYPES), "dtype"), plan.choice(mode, plan.MODES[:2], "mode")
        if output:
            writable(output)
        facts = machine.describe()
        file = tune.File(output or None, facts, options, resume)
        with tuned(None):
            wanted = _layers(
                [o for part in ops or [] for o in part.split(",")], model, size, sweep, dtypes, kinds, modes, batch, packed, quick
            )
        console.print(f"{machine.sentence(facts)}; {len(wanted)} layers", markup=False, highlight=False, soft_wrap=True)
        with progress(len(wanted), "tuning") as (begin, end):
            found = tune.run(wanted, options, file, lambda entry: end(tune.line(entry)), lambda layer: begin(layer.title))
        _show(found)
        if output:
            stored = sum(e.decision.verdict == "faster" for e in found)
            console.print(
                f"{output}: {len(file.entries)} layers, {stored} of them with another variant than fastcv's own choice",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )


def _show(found: list[Any]) -> None:
    """The table, what was less exact than allowed, and the report."""
    from . import tune
    from .tables import time_text

    table = Table("layer", "chosen", "best", "chosen/best", "stored", show_edge=False)
    for e in found:
        d = e.decision
        times = next(iter(e.milliseconds.values()), {})
        best = f"{d.best} {time_text(times[d.best][0] / 1e3)}" if d.best in times else d.best
        chosen = f"{e.layer.chosen} {time_text(times[e.layer.chosen][0] / 1e3)}" if e.layer.chosen in times else e.layer.chosen
        table.add_row(e.layer.title, chosen, best, f"{1 + d.loss:.3f}", d.variant if d.verdict == "faster" else d.verdict)
    if console.is_terminal:
        console.print(table)
    inexact: dict[str, list[str]] = {}
    for e in found:
        for note in e.decision.notes:
            if "is less exact" in note:
                inexact.setdefault(note, []).append(e.layer.title)
    for note, titles in inexact.items():
        console.print(f"{note} ({len(titles)} layers, such as {titles[0]})", markup=False, highlight=False, soft_wrap=True)
    console.print(tune.report(found), markup=False, highlight=False, soft_wrap=True)
