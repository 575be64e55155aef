"""``fastcv train``, ``fastcv evaluate``, ``fastcv predict``: from the command line to the engine, and errors to one sentence."""

from __future__ import annotations

import inspect
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import torch
import typer
from rich.console import Console

import fastcv

from ..models import WeightsError
from .checkpoint import CheckpointError
from .data import DataError
from .loop import Diverged
from .options import OptionError, Options, check, flag, normalized
from .output import OutputError

__all__ = ["add_commands"]

BAD_INPUT = (DataError, OptionError, CheckpointError, WeightsError, OutputError, fastcv.NotBuiltError)


def add_commands(app: typer.Typer) -> None:
    """Adds ``fastcv train``, ``fastcv evaluate`` and ``fastcv predict``."""
    app.command("train")(_with_options(train))
    app.command("evaluate")(evaluate)
    app.command("predict")(predict)


def _with_options(function: Callable[[Options], None]) -> Callable[..., None]:
    """``function`` with every field of Options as an option of the command line."""
    hints = get_type_hints(Options)

    def command(**values: Any) -> None:
        function(normalized(values))

    parameters = []
    for option in fields(Options):
        flags = [flag(option.name), *option.metadata["flags"]]
        annotation = Annotated[hints[option.name], typer.Option(*flags, help=option.metadata["help"])]
        parameters.append(inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=option.default, annotation=annotation))
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = function.__doc__
    return command


@contextmanager
def _one_sentence(name: str) -> Iterator[None]:
    """Exit status 2 with one sentence for bad input, 1 where training diverged, 128 + the signal's number after one."""
    from .engine import Interrupted

    try:
        yield
    except BAD_INPUT as error:
        status, text = 2, str(error)
    except Diverged as error:
        status, text = 1, str(error)
    except Interrupted as error:
        status, text = 128 + error.signal, f"{error}; the run is saved and goes on with --resume auto"
    except KeyboardInterrupt:
        status, text = 128 + signal.SIGINT, "interrupted"
    except OSError as error:
        what = "a file" if error.filename is None else error.filename
        status, text = 2, f"{what} cannot be written or read: {error.strerror or error}"
    else:
        return
    print(f"fastcv {name}: {' '.join(text.split())}", file=sys.stderr)
    raise typer.Exit(status)


def train(options: Options) -> None:
    """Trains a classifier or a segmentation network, with checkpoints, logs, pictures and one report.

    Under torchrun it trains over several processes: torchrun --nproc-per-node 2 -m fastcv train ...
    """
    from .run import test_only, train_and_report

    with _one_sentence("train"):
        check(options)
        if options.threads:
            torch.set_num_threads(options.threads)
        if options.use_deterministic_algorithms:
            torch.use_deterministic_algorithms(True)
        (test_only if options.test_only else train_and_report)(options, Console())


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of fastcv train, such as train-output/best.pt.")],
    data_path: Annotated[str, typer.Option(help="Other data than it was trained on; its classes must be the same.")] = "",
    part: Annotated[str, typer.Option(help="test, validation or train.")] = "test",
    knn: Annotated[int, typer.Option(help="Classify by so many nearest neighbours of the features too; 0: no.")] = 0,
    output: Annotated[str, typer.Option("--output", "-o", help="Write the numbers into this JSON file.")] = "",
    fastcv: Annotated[str, typer.Option(help="off, nn or optimize; as trained by default.")] = "",
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", help="Images per step; as trained by default.")] = 0,
    skip_corrupt: Annotated[bool, typer.Option("--skip-corrupt", help="Leave out images that cannot be read.")] = False,
) -> None:
    """Scores of a checkpoint: top-k accuracy, or pixel accuracy and IoU of each class."""
    from .run import evaluate_checkpoint

    with _one_sentence("evaluate"):
        changes = {"fastcv": fastcv, "batch_size": batch_size, "data_path": data_path, "skip_corrupt": skip_corrupt}
        evaluate_checkpoint(checkpoint, {name: value for name, value in changes.items() if value}, part, knn, output, Console())


def predict(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of fastcv train, such as train-output/best.pt.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    output_dir: Annotated[Path, typer.Option("--output-dir", "-o", help="Where the answers go.")] = Path("predictions"),
    fastcv: Annotated[str, typer.Option(help="off, nn or optimize; as trained by default.")] = "",
    top: Annotated[int, typer.Option(help="How many classes to list for each image.")] = 3,
    skip_corrupt: Annotated[bool, typer.Option("--skip-corrupt", help="Leave out images that cannot be read.")] = False,
) -> None:
    """Labels or masks for image files, as a table, as files and as pictures."""
    from .predict import predict_files

    with _one_sentence("predict"):
        predict_files(checkpoint, images, output_dir, {"fastcv": fastcv} if fastcv else {}, top, skip_corrupt, Console())
