"""``fastcv bench model``: whole models against torch, torch.compile and the deployment engines, from a command line."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from .. import _ext
from . import engines, machine, model_tables, peers, plan, roofs, store, tables
from .rows import UNRELIABLE, Row


def model(
    names: Annotated[list[str], typer.Argument(help="Models' names, or package.module:function.")],
    size: str = typer.Option("", help="The images' size, such as 1x3x224x224; what each model was published for if not given."),
    batch: str = typer.Option("", help="Images in a batch, in place of the size's; several separated by commas."),
    dtype: str = typer.Option("f32", help="f32, f64, bf16, f16; several separated by commas."),
    precision: str = typer.Option("", help="highest, high or medium: torch.set_float32_matmul_precision, for everybody."),
    vs: str = typer.Option("torch", help="torch, compile, fastcv-compile, onnxruntime, openvino; or none."),
    compiled: bool = typer.Option(False, "--compile", help="Race torch.compile too: --vs with compile."),
    threads: str = typer.Option("", help="Numbers of threads; torch's own if not given."),
    train: bool = typer.Option(False, help="Forward and backward, in training mode."),
    seconds: float = typer.Option(10.0, min=0.0, help="About this long per race, beside the preparations."),
    rounds: int = typer.Option(5, min=2, help="At least this many calls of each contender."),
    seed: int = typer.Option(0, help="Of images and turns."),
    json_file: str = typer.Option("", "--json", help="Append results here, race by race."),
    resume: bool = typer.Option(False, help="Go on with the last run in the --json file."),
    html: str = typer.Option("", help="Write one self-contained page."),
    plot: str = typer.Option("", help="Write the picture into this file (.png, .svg, .pdf)."),
    markdown: str = typer.Option("", help="Write a line per race as markdown."),
) -> None:
    """Images per second and memory of whole models: fastcv.optimize, torch, torch.compile, ONNX Runtime and OpenVINO."""
    from .commands import console, one_sentence, progress

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    before = torch.get_float32_matmul_precision()
    failures: list[str] = []
    try:
        with one_sentence("model"):
            from . import models

            _ext.module()
            if precision and precision not in models.PRECISIONS:
                raise ValueError(f"--precision {precision}: expected one of {', '.join(models.PRECISIONS)}")
            wanted = _peers(vs, compiled)
            jobs = _jobs(names, size, batch, dtype, threads, train)
            _check_outputs(html, plot, markdown)
            torch.set_float32_matmul_precision(precision or before)
            facts = machine.describe()
            results = store.Results(json_file or None, facts, resume, " ".join(sys.argv[1:]))
            for reason in _absent(wanted, jobs):
                say(reason)
            measured: list[Row] = []
            with progress(len(jobs), "measuring") as (begin, end):

                def done(job: Any, rows: list[Row]) -> None:
                    head = [] if measured else [machine.sentence(facts)]
                    measured.extend(rows)
                    end("\n".join([*head, job.title, *("  " + line for line in model_tables.lines(rows))]))

                def failed(job: Any, reason: str) -> None:
                    failures.append(reason)
                    end(f"fastcv bench model: {reason}")

                ready = tuple(p for p in wanted if not peers.missing(p))
                span = (rounds, max(models.ROUNDS[1], rounds))
                models.run_jobs(jobs, ready, seconds, span, results, done, failed, lambda job: begin(job.title), seed)
            if measured:
                _finish(facts, measured, html, plot, markdown, say)
        wrong = tables.broken(measured)
        if wrong:
            say("\n  ".join([f"{len(wrong)} of fastcv's rows are wrong or failed:", *wrong]))
        if wrong or failures:
            raise typer.Exit(2 if failures else 1)
    finally:
        torch.set_float32_matmul_precision(before)


def _peers(vs: str, compiled: bool) -> tuple[str, ...]:
    from .models import PEERS

    chosen = () if vs == "none" else plan.choice(vs, PEERS, "vs")
    return tuple(dict.fromkeys([*chosen, *(["compile"] if compiled else [])]))


def _jobs(names: list[str], size: str, batch: str, dtype: str, threads: str, train: bool) -> list[Any]:
    """The races. Raises ValueError for what is wrong with a name or an option, before anything is measured."""
    from ..cli import build_model, parse_size
    from . import models
    from .commands import counts

    for name in names:
        if ":" in name:
            build_model(name)
        elif name not in models.known():
            models.build(name)  # says what there is
    shape = parse_size(size) if size else []
    if size and len(shape) < 2:
        raise ValueError(f"--size {size}: expected images and their sizes, such as 1x3x224x224")
    dtypes = plan.choice(dtype, list(roofs.DTYPES), "dtype")
    return models.plan_jobs(list(dict.fromkeys(names)), shape, counts(batch, "batch"), dtypes, train, counts(threads))


def _check_outputs(html: str, plot: str, markdown: str) -> None:
    """Raises ValueError or OSError now, not after hours."""
    from .commands import writable

    if html or plot:
        importlib.import_module(".pictures", __package__)  # matplotlib is there
    if plot and Path(plot).suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"--plot {plot}: expected a file that ends in .png, .svg or .pdf")
    for path in filter(None, (html, plot, markdown)):
        writable(path)


def _absent(wanted: tuple[str, ...], jobs: list[Any]) -> list[str]:
    """A sentence for everybody who takes no part in some of the races."""
    reasons = [peers.missing(p) for p in wanted]
    reasons += [engines.no_part(p, job.dtype, job.train) for p in wanted if p in engines.ENGINES and not peers.missing(p) for job in jobs]
    return list(dict.fromkeys(filter(None, reasons)))


def _finish(facts: dict[str, Any], rows: list[Row], html: str, plot: str, markdown: str, say: Any) -> None:
    table = model_tables.against_peers(rows)
    if text := model_tables.summary(table):
        say(text)
    noisy = sum(r.status == UNRELIABLE for r in rows)
    if noisy:
        say(f"{noisy} of {len(rows)} rows are UNRELIABLE: no verdict on them; repeat on a quiet machine")
    if markdown:
        Path(markdown).write_text(model_tables.markdown(machine.sentence(facts), table))
    if plot:
        from . import pictures

        drawn = pictures.models(rows)
        if drawn is not None:
            pictures.write(Path(plot), drawn)
    if html:
        from .page import write_page

        write_page(Path(html), facts, rows)
