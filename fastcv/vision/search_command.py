"""``fastcv search``: an architecture search from a command line, with progress, that goes on where it was stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

__all__ = ["search"]


def search(
    data: str = typer.Option("digits", help="digits (scikit-learn's), or a folder: CIFAR-10, or one folder of images per class."),
    trials: int = typer.Option(20, help="Candidates in all, those of earlier calls counted."),
    epochs: int = typer.Option(5, help="Of each candidate's training."),
    seed: int = typer.Option(0, help="For the split, the draws and the training."),
    threads: int = typer.Option(0, help="CPU threads; 0: torch's own number."),
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder of the search; the same one goes on with it.")] = Path(
        "search-output"
    ),
) -> None:
    """Searches small ResNets (blocks, widths, learning rate) with Optuna; the same command again goes on with an interrupted search."""
    from .commands import one_sentence

    with one_sentence("search"):
        from ..train import data as data_room
        from ..train.output import check_output
        from ..train.progress import task
        from .search import FILES, search_architecture

        if threads < 0:
            raise ValueError(f"--threads must not be negative, got {threads}")
        if threads:
            torch.set_num_threads(threads)
        check_output(output, (*FILES, f"{FILES[0]}.lock", *(f".{name}.part" for name in FILES)))
        images = data_room.load_digits() if data == "digits" else data_room.load(data)
        if images.task != "classification":
            raise ValueError(f"--data {data} is for {images.task}, the search is for classification")
        listed = output / FILES[1]
        done = len(json.loads(listed.read_text())) if listed.exists() else 0
        console, title = Console(), f"{trials} candidates of {epochs} epochs on {images.name}" + (f", {done} done" if done else "")
        try:
            with task(console, title, trials * epochs, min(done, trials) * epochs) as progress:

                def tell(row: dict[str, Any]) -> None:
                    progress.line(_sentence(row))
                    progress.advance(epochs - row["epochs"])

                best = search_architecture(images, output, trials, epochs, seed, progress.advance, tell)
        except KeyboardInterrupt:
            typer.echo("fastcv search: interrupted; the same command goes on", err=True)
            raise typer.Exit(130) from None
        print(f"best: {_sentence(best)}; {output}/{FILES[2]}")


def _sentence(row: dict[str, Any]) -> str:
    blocks = "-".join(str(row[f"blocks{stage}"]) for stage in (1, 2, 3))
    stopped = f", stopped after {row['epochs']} epoch{'s' * (row['epochs'] != 1)}" if row["stopped"] else ""
    return (
        f"candidate {row['number'] + 1}: blocks {blocks}, {row['width']} channels growing by {row['growth']:g}, rate "
        f"{row['learning_rate']:.3g}, {row['parameters']:,} parameters: {100 * row['validation_accuracy']:.2f} %{stopped}"
    )
