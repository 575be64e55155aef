"""``fastcv summary`` and ``fastcv models``: what the zoo holds, and what a model is made of."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import torch
import typer
from rich.console import Console
from rich.table import Table

from ..cli import build_model, parse_size
from ..train.checkpoint import write
from . import get_model, list_models, model_info
from .summary import Layer, Summary, summarise

__all__ = ["add_commands"]

_COLUMNS = ("layer", "kind", "output", "sees", "memory", "parameters", "multiply-adds")


def _bytes(count: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B" if count else ""


def _sees(field: tuple[float, float] | None) -> str:
    """The receptive field, rows x columns: "all" of the image, "-" where it is not known."""
    if field is None:
        return "-"
    rows, columns = ("all" if math.isinf(size) else f"{size:g}" for size in field)
    return rows if rows == columns else f"{rows}x{columns}"


def _cells(layer: Layer) -> tuple[str, ...]:
    return (
        layer.name or "(model)",
        layer.kind,
        "x".join(map(str, layer.shape)),
        _sees(layer.sees),
        _bytes(layer.memory),
        f"{layer.parameters:,}" if layer.parameters else "",
        f"{layer.multiply_adds:,}" if layer.multiply_adds else "",
    )


def _totals(name: str, summary: Summary) -> list[str]:
    fixed = summary.parameters - summary.trainable
    adds = summary.multiply_adds
    lines = [
        f"{name}, input {'x'.join(map(str, summary.input_size))}",
        f"parameters {summary.parameters:,}" + (f", of which {fixed:,} are not trained" if fixed else ""),
        f"multiply-adds {adds:,} ({adds / 1e9:.3f} G, the number that papers call FLOPs; {2 * adds / 1e9:.3f} GFLOP)",
        f"outputs of all layers {_bytes(summary.memory) or '0 B'}",
    ]
    return lines + ([f"parameters of parts that did not run {summary.unused:,}"] if summary.unused else [])


def _table(summary: Summary) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in _COLUMNS:
        table.add_column(title, justify="left" if title in _COLUMNS[:3] else "right", no_wrap=True)
    for layer in summary.layers:
        table.add_row(*_cells(layer))
    return table


def _save(summary: Summary, path: Path) -> None:
    """The rows as CSV, sizes as numbers; the file appears whole or not at all."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("layer", "kind", "output", "sees_rows", "sees_columns", "memory_bytes", "parameters", "multiply_adds"))
    for layer in summary.layers:
        seen = ("", "") if layer.sees is None else tuple("all" if math.isinf(size) else f"{size:g}" for size in layer.sees)
        shape = "x".join(map(str, layer.shape))
        writer.writerow((layer.name, layer.kind, shape, *seen, layer.memory, layer.parameters, layer.multiply_adds))
    write(path, text.getvalue().encode())


def _summary_of(model: str, size: str) -> Summary:
    if ":" in model:
        return summarise(build_model(model), parse_size(size or "1x3x224x224"))
    info = model_info(model)
    sizes = parse_size(size) if size else [1, *info.input_size]
    if len(sizes) != 4:
        raise ValueError(f"--size {size}: {model} takes images, such as {'x'.join(map(str, (1, *info.input_size)))}")
    with torch.device("meta"):
        network = get_model(model, layers=torch.nn, **info.config_for(*sizes[1:]))
    return summarise(network, sizes)


def add_commands(app: typer.Typer, console: Console) -> None:
    @app.command()
    def models(
        pattern: str = typer.Argument("*", help="Only names that match, such as 'resnet*'."),
        task: str = typer.Option("", help="Only models of this task: classification, segmentation or reconstruction."),
    ) -> None:
        """The names of the model zoo."""
        try:
            names = list_models(pattern, task=task or None)
        except ValueError as error:
            console.print(f"fastcv models: {error}", markup=False, soft_wrap=True)
            raise typer.Exit(2) from None
        for name in names:
            console.print(name)

    @app.command()
    def summary(
        model: str = typer.Argument(help="A name of `fastcv models`, or package.module:function that returns the model."),
        size: str = typer.Option("", help="The input's size, such as 1x3x224x224; by default the model's own."),
        save: str = typer.Option("", help="Write the rows here too (.csv)."),
    ) -> None:
        """A model layer by layer: output shape, receptive field, memory, parameters, multiply-adds. Nothing is computed."""
        try:
            path = Path(save)
            if save and path.suffix != ".csv":
                raise ValueError(f"--save {save}: the path must end in .csv")
            if save and not path.parent.is_dir():
                raise ValueError(f"--save {save}: there is no folder {path.parent}")
            result = _summary_of(model, size)
            if save:
                _save(result, path)
        except (ValueError, TypeError, RuntimeError, NotImplementedError, OSError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            console.print(f"fastcv summary: {model}: {reason}", markup=False, soft_wrap=True)
            raise typer.Exit(2) from None
        wide = console if console.is_terminal else Console(width=200)
        wide.print(_table(result))
        for line in _totals(model, result):
            wide.print(line, markup=False, highlight=False, soft_wrap=True)
