"""``fastcv bench``: the commands. ``fastcv bench conv2d ...`` is ``fastcv bench run conv2d ...``."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from .. import _ext
from . import guard, machine, peers, plan, probes, roofs, store, tables, verdicts
from .contenders import load_file, registered_ops
from .model_command import model
from .rows import OK, UNRELIABLE, Row

console = Console()
MOST_THREADS = 8  # to a CPU: OpenMP does not survive any number


class _Group(TyperGroup):
    """What does not begin with the name of a command is a run."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    help="Times kernels against each other: random turns, fresh values, verified results, no verdict where the machine is noisy.",
    cls=_Group,
    no_args_is_help=True,
)


@contextmanager
def one_sentence(command: str) -> Iterator[None]:
    """What is wrong with the input in one line and exit code 2; what was measured before stays where it was written."""
    try:
        yield
    except (ValueError, OSError, _ext.NotBuiltError) as error:
        console.print(f"fastcv bench {command}: {error}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        console.print("stopped; rows that were written are kept: --resume goes on")
        raise typer.Exit(130) from None


@contextmanager
def progress(total: int, what: str) -> Iterator[tuple[Callable[[str], None], Callable[[str], None]]]:
    """(begin a step, end it with a line of text): a bar on a terminal, plain lines otherwise."""
    if not console.is_terminal:
        yield (lambda title: None), (lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True))
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(24), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(what, total=total)

        def end(text: str) -> None:
            bar.console.print(text, markup=False, highlight=False)
            bar.advance(task)

        yield (lambda title: bar.update(task, description=title)), end


def counts(text: str, what: str = "threads") -> tuple[int, ...]:
    """A comma-separated option as numbers from 1, each once. Raises ValueError for anything else."""
    if not text:
        return ()
    parts = [p.strip() for p in text.split(",")]
    if not all(p.isdecimal() and int(p) > 0 for p in parts):
        raise ValueError(f"--{what} {text!r}: expected numbers from 1, separated by commas")
    numbers = tuple(dict.fromkeys(int(p) for p in parts))
    cpus = os.cpu_count() or 1
    if what == "threads" and max(numbers) > MOST_THREADS * cpus:
        raise ValueError(f"--threads {max(numbers)}: this machine has {cpus} CPUs")
    return numbers


def _single(value: str, known: list[str], what: str) -> str:
    chosen = plan.choice(value, known, what)
    if len(chosen) > 1:
        raise ValueError(f"--{what} {value}: a ladder has one {what}")
    return chosen[0]


def _share(text: str, what: str) -> float:
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise ValueError(f"--{what} {text!r}: expected a share such as 3% or 0.03") from None


def _listing() -> None:
    table = Table("op", "timed cases", "variants, best first", title="Ops", title_justify="left")
    from .._variants import variants
    from ..testing import CASES

    every = variants()
    for op in plan.benchable():
        kernels = every.get(op) or every.get("conv" if op.startswith("conv") else op) or []
        table.add_row(op, str(sum(c.bench and c.op == op for c in CASES)), ", ".join(name for name, _ in kernels))
    console.print(table)
    console.print(f"Sweeps: {', '.join(plan.SWEEPS)}, or a JSON file with a list of shapes", highlight=False)
    for peer in peers.PEERS:
        console.print(f"Peer {peer}: {peers.missing(peer) or 'ready'}", highlight=False, soft_wrap=True)


@app.command()
def run(
    ops: Annotated[list[str] | None, typer.Argument(help="Functions such as conv2d; all if none is named.")] = None,
    sweep: str = typer.Option("", help="Layers of resnet50, vgg16, mobilenet, unet, deeplab, zoo, or of a JSON file."),
    dtype: str = typer.Option("f32", help="f32, f64, bf16, f16; several separated by commas."),
    layout: str = typer.Option("nchw,nhwc", help="nchw, nhwc."),
    vs: str = typer.Option("torch", help="torch, compile, onnxruntime, openvino, faiss, sklearn; or none."),
    mode: str = typer.Option("fwd", help="fwd, bwd, fwd+bwd."),
    cache: str = typer.Option("cold,hot", help="cold, hot: where the arguments are when the clock starts."),
    threads: str = typer.Option("", help="Numbers of threads; torch's own if not given."),
    batch: int = typer.Option(1, min=1, help="Images in a sweep's batch."),
    seconds: float = typer.Option(1.0, min=0.0, help="About this long per case and state of the caches."),
    rounds: int = typer.Option(7, min=2, help="At least this many calls of each contender."),
    seed: int = typer.Option(0, help="Of values and turns."),
    device: str = typer.Option("cpu", help="cpu or cuda."),
    graph: bool = typer.Option(False, help="On a GPU: time replays of a captured graph, so that launches do not count."),
    with_file: str = typer.Option("", "--with", help="A Python file that registers contenders."),
    json_file: str = typer.Option("", "--json", help="Append results here, row by row."),
    resume: bool = typer.Option(False, help="Go on with the last run in the --json file."),
    html: str = typer.Option("", help="Write one self-contained page."),
    plot: str = typer.Option("", help="Write the pictures into this folder."),
    markdown: str = typer.Option("", help="Write the table as markdown."),
    quick: bool = typer.Option(False, help="At most three cases of each op, a fifth of the time."),
    list_: bool = typer.Option(False, "--list", help="Ops, variants, sweeps and peers; measures nothing."),
    profile: bool = typer.Option(False, help="Run every contender once within a named range and time nothing: for ncu, nsys, vtune."),
) -> None:
    """Races fastcv against its peers on the layers of real networks."""
    with one_sentence("run"):
        _ext.module()
        if list_:
            _listing()
            return
        if with_file:
            load_file(with_file)
            for op in registered_ops():
                plan.known_op(op)
        wanted = plan.choice(vs, peers.PEERS, "vs") if vs != "none" else ()
        for reason in filter(None, map(peers.missing, wanted)):
            console.print(reason, highlight=False, soft_wrap=True)
        if device.partition(":")[0] not in ("cpu", "cuda"):
            raise ValueError(f"--device {device}: expected cpu or cuda")
        if device != "cpu" and not torch.cuda.is_available():
            raise ValueError(f"--device {device}: torch sees no GPU")
        if graph and device == "cpu":
            raise ValueError("--graph is of a GPU: --device cuda")
        outputs = {"--json": json_file, "--html": html, "--plot": plot, "--markdown": markdown}
        if profile and any(outputs.values()):
            raise ValueError(f"--profile times nothing: there are no results for {' and '.join(k for k, v in outputs.items() if v)}")
        options = plan.Options(
            vs=tuple(p for p in wanted if not peers.missing(p)),
            layouts=tuple(dict.fromkeys(plan.LAYOUT_NAMES[p] for p in plan.choice(layout, list(plan.LAYOUT_NAMES), "layout"))),
            cache=plan.choice(cache, plan.CACHES, "cache"),
            seconds=seconds / 5 if quick else seconds,
            rounds=(rounds, max(200, rounds)),
            seed=seed,
            device=device,
            graph=graph,
        )
        dtypes, modes = plan.choice(dtype, list(roofs.DTYPES), "dtype"), plan.choice(mode, plan.MODES, "mode")
        jobs = plan.plan([o for part in ops or [] for o in part.split(",")], sweep, dtypes, modes, counts(threads), batch, quick)
        if profile:
            for job, name in plan.profile(jobs, options):
                console.print(f"{job.title}: {name}", highlight=False)
            return
        for path in filter(None, (html, markdown)):
            writable(path)
        if html or plot:
            importlib.import_module(".pictures", __package__)  # without matplotlib it says so now, not after hours
        if plot:
            writable_folder(plot)
        facts = machine.describe(device)
        results = store.Results(json_file or None, facts, resume, " ".join(sys.argv[1:]))
        console.print(machine.sentence(facts), highlight=False, soft_wrap=True)
        measured: list[Row] = []
        with progress(len(jobs), "measuring") as (begin, end):

            def done(job: plan.Job, rows: list[Row]) -> None:
                measured.extend(rows)
                end("\n".join([job.title, *("  " + line for line in tables.race_lines(rows))]))

            plan.run(jobs, options, results, done, lambda job: begin(job.title))
        for name in [p for p in options.vs if p not in {r.who for r in measured}]:
            console.print(
                f"{name} took part in no race: it runs forward passes of float32 in nchw, of ops that it has",
                highlight=False,
                soft_wrap=True,
            )
        _finish(facts, measured, html, plot, markdown)
        wrong = tables.broken(measured)
    if wrong:
        console.print(
            f"{len(wrong)} of fastcv's rows are wrong or failed:", *wrong, sep="\n  ", markup=False, highlight=False, soft_wrap=True
        )
        raise typer.Exit(1)


def writable(name: str) -> None:
    """Raises OSError before hours of measuring, not after."""
    path = Path(name)
    parent = path.resolve().parent
    if not parent.is_dir() or not os.access(parent, os.W_OK) or path.is_dir():
        why = "it is a folder" if path.is_dir() else f"{parent} is no folder that can be written to"
        raise OSError(f"{path} cannot be written: {why}")


def writable_folder(name: str) -> Path:
    """The folder, made where it is missing. Raises OSError in one sentence, ValueError for the name of a picture."""
    folder = Path(name)
    if folder.suffix in (".png", ".svg", ".pdf"):
        raise ValueError(f"{folder}: expected a folder, which several pictures go into")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"the folder {folder} cannot be made: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise OSError(f"nothing can be written into {folder}")
    return folder


def _finish(facts: dict[str, Any], rows: list[Row], html: str, plot: str, markdown: str) -> None:
    if console.is_terminal:
        heads, *lines = tables.overview(rows)
        table = Table(*heads, show_edge=False, title="best layouts", title_justify="left")
        for line in lines:
            table.add_row(*line)
        console.print(table)
    summaries = tables.against_torch(rows)
    sound = [r for r in summaries if r["status"] == OK]
    if sound:
        console.print(f"fastcv against torch's best layout: {tables.summary(sound)}", highlight=False, soft_wrap=True)
    noisy = sum(r.status == UNRELIABLE for r in rows)
    if noisy:
        console.print(f"{noisy} of {len(rows)} rows are UNRELIABLE: no verdict on them; repeat on a quiet machine", highlight=False)
    head = machine.sentence(facts)
    if markdown:
        Path(markdown).write_text(tables.markdown(head, rows))
    if plot:
        from .pictures import write_all

        write_all(Path(plot), rows)
    if html:
        from .page import write_page

        write_page(Path(html), facts, rows)


@app.command("compare")
def compare_command(
    old: str = typer.Argument(help="Results to compare with; the last run in the file."),
    new: str = typer.Argument(help="The newer results."),
    gate: str = typer.Option("3%", help="Changes up to this share do not matter."),
    strict: bool = typer.Option(False, help="Exit code 2 if a row is UNSURE or missing."),
    markdown: str = typer.Option("", help="Write the verdicts as markdown, for a pull request."),
) -> None:
    """FAST, SLOW, SAME or UNSURE for every row; exit code 1 if a row became SLOW or WRONG."""
    with one_sentence("compare"):
        a, b = store.last_run(old), store.last_run(new)
        result = verdicts.compare(a, b, _share(gate, "gate"))
        if markdown:
            writable(markdown)
            Path(markdown).write_text(verdicts.markdown(result, a, b))
    for warning in result.warnings:
        console.print(f"not the same: {warning}", markup=False, highlight=False, soft_wrap=True)
    colours = {"SLOW": "red", "WRONG": "red", "FAST": "green", "UNSURE": "yellow", "SAME": "dim"}
    table = Table("row", "verdict", "old", "new", "new/old", "95% interval", "why", show_edge=False)
    for c in result.changes:
        numbers = [tables.time_text(c.old_ms / 1e3), tables.time_text(c.new_ms / 1e3), f"{c.ratio:.3f}", f"{c.low:.3f} - {c.high:.3f}"]
        row = [*(numbers if c.old_ms else [""] * 4), c.reason]
        table.add_row(verdicts.label(c.key), f"[{colours[c.verdict]}]{c.verdict}", *row)
        if not console.is_terminal:
            text = "  ".join(filter(None, [f"{c.verdict:6}", verdicts.label(c.key), *row]))
            console.print(text, markup=False, highlight=False, soft_wrap=True)
    if console.is_terminal:
        console.print(table)
    counts = ", ".join(f"{result.count(v)} {v}" for v in colours if result.count(v))
    console.print(f"{counts}; geometric mean of new/old {result.geometric_mean:.3f}; gate {result.gate:.1%}", highlight=False)
    for title, keys in (("old", result.only_old), ("new", result.only_new)):
        if keys:
            console.print(f"{len(keys)} rows only in the {title} run, such as {verdicts.label(keys[0])}", highlight=False, soft_wrap=True)
    raise typer.Exit(result.exit_code(strict))


@app.command("roofs")
def roofs_command(
    seconds: float = typer.Option(1.0, min=0.01, help="About this long for each roof."),
    device: str = typer.Option("cpu", help="cpu or cuda."),
) -> None:
    """Measures this machine's ceilings (arithmetic, caches, memory) and keeps them for all later runs."""
    with one_sentence("roofs"):
        _ext.module()
        if device != "cpu":
            if not torch.cuda.is_available():
                raise ValueError(f"--device {device}: torch sees no GPU")
            found = roofs.measure_gpu(device, seconds)
        else:
            roofs.place()
            watch = guard.Guard()
            watch.start()
            with progress(len(probes.CPU_CHAINS) + len(roofs.DTYPES) + len(roofs.SIZES), "roofs") as (_, end):

                def line(name: str, value: float | str) -> None:
                    unit = "B" if "copy" in name else "FLOP"
                    end(f"{name}: {value if isinstance(value, str) else f'{value / 1e9:.1f} G{unit}/s'}")

                found = roofs.measure_all(seconds, line)
            if reason := guard.disturbed(watch.noise()):
                console.print(f"too low, perhaps: {reason}; repeat on a quiet machine", highlight=False, soft_wrap=True)
                found = roofs.higher(found, roofs.stored())
            console.print(f"kept in {roofs.store(found)} for {roofs.machine_key()}", markup=False, highlight=False, soft_wrap=True)
            return
    for kind, values in found.items():
        for name, value in values.items():
            console.print(f"{kind} {name}: {value / 1e9:.1f} G{'B' if kind in ('copy', 'read') else 'FLOP'}/s", highlight=False)


app.command("model")(model)


@app.command("overhead")
def overhead_command(
    functions: Annotated[list[str] | None, typer.Argument(help="Functions; all if none is named.")] = None,
    seconds: float = typer.Option(1.0, min=0.0, help="About this long per function."),
    markdown: str = typer.Option("", help="Write the table as markdown."),
) -> None:
    """What a call costs beside its arithmetic, in microseconds, against the budget of 3 without and 10 with gradients."""
    with one_sentence("overhead"):
        from . import overhead

        _ext.module()
        known = overhead.tiny()
        unknown = [f for f in functions or [] if f not in known]
        if unknown:
            raise ValueError(f"no function {unknown[0]!r}; there are {', '.join(known)}")
        if markdown:
            writable(markdown)
        rows = []
        head = f"Microseconds per call on tensors of a few elements, one thread. {machine.sentence(machine.describe())}."
        with plan.threads(1), progress(len(functions or known), "overhead") as (begin, end):
            for name in functions or known:
                begin(name)
                rows.append(overhead.measure(name, *known[name], seconds))
                row = rows[-1]
                marks = [k for k, budget in overhead.BUDGET.items() if row[k] > budget]
                numbers = "  ".join(f"{t} {row[k]:.1f}" for k, t in zip(overhead.KEYS, overhead.TITLES, strict=True) if k in row)
                end(f"{name:22} {numbers}{'  over budget' if marks else ''}")
        if markdown:
            Path(markdown).write_text(overhead.markdown(rows, head))


@app.command("ladder")
def ladder_command(
    op: str = typer.Argument(help="A function such as conv2d."),
    sweep: str = typer.Option("", help="Take the case from a network's layers or a JSON file, as for a race; else from the timed cases."),
    case_name: str = typer.Option("", "--case", help="The case to climb, by its name; the first of the op if not given."),
    dtype: str = typer.Option("f32", help="f32, f64, bf16, f16."),
    layout: str = typer.Option("nhwc", help="nchw or nhwc."),
    seconds: float = typer.Option(2.0, min=0.0, help="About this long in all."),
    output: str = typer.Option("ladder", help="A folder for the picture and the page."),
) -> None:
    """Every variant of an op from the plain-loop reference to the best: percent of the roof, and a page that explains each rung."""
    with one_sentence("ladder"):
        _ext.module()
        from ..testing import cases_of
        from . import ladder

        plan.known_op(op)
        timed = [c for c in plan.sweep_cases(sweep, 1) if c.op == op] if sweep else cases_of(op, bench=True)
        if not timed:
            raise ValueError(f"{sweep} has no {op}" if sweep else f"{op} has no timed case to climb: name a --sweep, or a file with shapes")
        cases = [c for c in timed if case_name in ("", c.name)]
        if not cases:
            raise ValueError(f"{op} has no case {case_name!r}; there are {', '.join(c.name for c in timed)}")
        kind = roofs.DTYPES[_single(dtype, list(roofs.DTYPES), "dtype")]
        wanted = plan.LAYOUT_NAMES[_single(layout, list(plan.LAYOUT_NAMES), "layout")]
        if kind not in cases[0].dtypes:
            raise ValueError(f"{cases[0].id} is not defined for {dtype}")
        facts = machine.describe()
        folder = writable_folder(output)
        writable(str(folder / f"ladder-{op}.html"))
        importlib.import_module(".pictures", __package__)
        console.print(f"{cases[0].id} {dtype}. {machine.sentence(facts)}", highlight=False, soft_wrap=True)
        rungs = ladder.climb(cases[0], kind, wanted if wanted in cases[0].layouts else "contiguous", seconds)
        for rung in rungs:
            text = rung.why_not if rung.row is None else tables.race_lines([rung.row])[0] if rung.row.timed else rung.row.reason
            console.print(
                text if rung.row is not None and rung.row.timed else f"{rung.variant}: {text}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
        for path in ladder.write(folder, cases[0], rungs, facts):
            console.print(str(path), highlight=False, soft_wrap=True)


@app.command("trend")
def trend_command(
    results: Annotated[list[str], typer.Argument(help="Files of results, or folders of .jsonl files.")],
    html: str = typer.Option("trend.html", help="The page to write."),
) -> None:
    """One page with the history of every row over the runs in these files."""
    with one_sentence("trend"):
        from . import history

        writable(html)
        runs = history.gather(results)
        history.write(Path(html), runs)
        console.print(f"{html}: {len(runs)} runs", highlight=False, soft_wrap=True)
