"""The command line: ``fastcv --help`` lists the commands (also ``python -m fastcv``)."""

from __future__ import annotations

import importlib
import platform
import sys
from typing import Any

import torch

from . import _ext
from ._variants import variants
from ._version import __version__

try:
    import typer
    from rich.console import Console
    from rich.table import Table
except ImportError as error:
    _missing: str | None = f"the fastcv command needs rich and typer ({error}): pip install 'fastcv[cli]'"
else:
    _missing = None


def facts() -> list[tuple[str, str]]:
    """What ``fastcv info`` prints above the variants: (name, value)."""
    rows = [
        ("fastcv", __version__),
        ("Python", platform.python_version()),
        ("torch", f"{torch.__version__}, {torch.get_num_threads()} threads"),
    ]
    if not _ext.is_built():
        return [*rows, ("compiled module", _ext.why_missing())]
    info = _ext.build_info()
    if info["cuda"]:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU visible"
        cuda = f"kernels for {info['cuda_archs']}; {device}"
    else:
        cuda = f"not in this build (torch at build time: {info['torch']})"
    return [
        *rows,
        ("compiled module", f"{info['compiler']}, torch {info['torch']}, commit {info['git'] or 'unknown'}"),
        ("instruction set", _ext.cpu_isa()),
        ("CUDA", cuda),
    ]


def build_model(spec: str) -> Any:
    """The module that "package.module:function" returns. Raises ValueError with what is wrong with ``spec``."""
    package, _, function = spec.partition(":")
    if not package or not function:
        raise ValueError(f"{spec!r} is not of the form package.module:function, such as torchvision.models:resnet18")
    sys.path.insert(0, "")
    try:
        build = getattr(importlib.import_module(package), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{spec}: {error}") from error
    finally:
        sys.path.remove("")
    model = build() if callable(build) else build
    if not isinstance(model, torch.nn.Module):
        raise ValueError(f"{spec} gives a {type(model).__name__}, not a torch.nn.Module")
    return model


def parse_size(text: str) -> list[int]:
    """ "1x3x224x224" as a list of sizes. Raises ValueError for anything else."""
    sizes = [int(part) if part.isdecimal() else 0 for part in text.split("x")]
    if min(sizes) < 1:
        raise ValueError(f"{text!r} is no size such as 1x3x224x224")
    return sizes


def _application() -> typer.Typer:
    app = typer.Typer(help="Hand-written C++ and CUDA kernels for computer vision networks inside PyTorch.", no_args_is_help=True)
    console = Console()
    from .bench.commands import app as bench
    from .bench.tune_command import tune_command
    from .models.commands import add_commands as add_models
    from .train.commands import add_commands as add_training
    from .vision.commands import register as add_vision

    @app.command()
    def info() -> None:
        """Version, torch, compiler, instruction set in use, variants of every op, CUDA state."""
        grid = Table.grid(padding=(0, 2))
        for name, value in facts():
            grid.add_row(f"[bold]{name}[/bold]", value)
        console.print(grid)
        if _ext.is_built():
            table = Table("op", "variants, best first", title="Variants", title_justify="left")
            for op, rows in variants().items():
                table.add_row(op, ", ".join(name for name, _ in rows))
            console.print(table)

    @app.command()
    def doctor() -> None:
        """Checks every variant on this machine against torch in float64; exit code 1 if one is wrong."""
        if not _ext.is_built():
            console.print(_ext.why_missing())
            raise typer.Exit(1)
        from .testing import check_variants

        table = Table("op", "variant", "cases passed", "failures")
        wrong = False
        for (op, name), outcomes in check_variants().items():
            failures = [outcome for outcome in outcomes if outcome]
            wrong |= bool(failures)
            passed = str(len(outcomes) - len(failures)) if outcomes else "cannot run here"
            table.add_row(op, name, passed, "\n".join(failures[:3]))
        console.print(table)
        if wrong:
            raise typer.Exit(1)

    @app.command()
    def explain(
        model: str = typer.Argument(help="package.module:function that returns the model, such as torchvision.models:resnet18"),
        size: str = typer.Option("1x3x224x224", help="The input's size."),
        train: bool = typer.Option(False, help="Explain the model in training mode, optimised for training."),
        optimise: bool = typer.Option(True, help="Run fastcv.optimize on the model first."),
        channels_last: bool = typer.Option(False, help="Parameters and input in channels_last."),
        save: str = typer.Option("", help="Write the page (.html) or the numbers (.json) here."),
    ) -> None:
        """Where the time of a model goes, layer by layer, and what keeps each layer from being faster."""
        from . import optimize
        from .explainer import explain as explain_model

        try:
            network, image = build_model(model).train(train), torch.randn(parse_size(size))
            if channels_last:
                network, image = network.to(memory_format=torch.channels_last), image.to(memory_format=torch.channels_last)
            if optimise:
                network = optimize(network, mode="training" if train else "inference")
            explanation = explain_model(network, image, backward=train)
            if save:
                explanation.save(save)
        except (ValueError, _ext.NotBuiltError) as error:
            console.print(f"fastcv explain: {error}", markup=False)
            raise typer.Exit(2) from None
        console.print(explanation)

    app.command("tune")(tune_command)
    app.add_typer(bench, name="bench")
    add_models(app, console)
    add_training(app)
    add_vision(app)
    return app


def main() -> None:
    if _missing is not None:
        print(_missing, file=sys.stderr)
        raise SystemExit(2)
    if sys.argv[1:2] in (["bench"], ["tune"]):
        from .bench.machine import wait_passively

        wait_passively()
    _application()()
