"""The command line: ``fastcv info``, ``fastcv doctor`` (also ``python -m fastcv``)."""

from __future__ import annotations

import platform
import sys

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


def check_variants() -> list[tuple[str, str, str, str]]:
    """Runs every case on every variant this CPU can run: (op, variant, cases passed, first failure or '')."""
    from . import functional
    from ._variants import use
    from .testing import CASES, check_case

    order = {"portable": 0, "avx2": 1, "avx512": 2, "avx512bf16": 3, "amx": 4}
    have = order[_ext.cpu_isa()]
    rows = []
    for op, table in variants().items():
        for name, isa in table:
            if order[isa] > have:
                rows.append((op, name, "-", f"needs {isa}"))
                continue
            passed, failure = 0, ""
            for case in CASES:
                if case.bench or torch.float32 not in case.dtypes:
                    continue
                with use(**{op: name}):
                    try:
                        check_case(case, getattr(functional, case.op), torch.float32)
                        passed += 1
                    except RuntimeError as error:
                        if "cannot run this call" not in str(error):
                            failure = failure or f"{case.id}: {error}"
                    except AssertionError as error:
                        failure = failure or str(error)
            rows.append((op, name, str(passed), failure))
    return rows


def _application() -> typer.Typer:
    app = typer.Typer(help="Hand-written C++ and CUDA kernels for computer vision networks inside PyTorch.", no_args_is_help=True)
    console = Console()

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
        rows = check_variants()
        table = Table("op", "variant", "cases passed", "failure")
        for row in rows:
            table.add_row(*row)
        console.print(table)
        if any(failure and passed != "-" for _, _, passed, failure in rows):
            raise typer.Exit(1)

    return app


def main() -> None:
    if _missing is not None:
        print(_missing, file=sys.stderr)
        raise SystemExit(2)
    _application()()
