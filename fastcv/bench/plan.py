"""What is to be measured: ops, sweeps, dtypes, passes and threads become jobs; jobs become rows in a file of results."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch

from ..testing import CASES, Case
from ..testing.cases.networks import NETWORKS, case_of, model_cases, network_cases
from . import peers
from .contenders import Contender
from .race import CACHES, measure
from .roofs import DTYPES
from .rows import Row
from .store import Results
from .timers import CpuTimer, CudaTimer
from .values import MODES

SWEEPS = (*NETWORKS, "zoo")
LAYOUT_NAMES = {"nchw": "contiguous", "nhwc": "channels_last", "contiguous": "contiguous", "channels_last": "channels_last"}


@dataclass(frozen=True)
class Job:
    """One race: a case in a dtype, a pass and a number of threads."""

    case: Case
    dtype: str
    mode: str
    threads: int

    @property
    def title(self) -> str:
        return f"{self.case.id} {self.dtype} {self.mode}, {self.threads} thread{'s' if self.threads != 1 else ''}"


@dataclass(frozen=True)
class Options:
    """How the jobs are run. vs: names of peers. graph: of CudaTimer."""

    vs: tuple[str, ...] = ("torch",)
    layouts: tuple[str, ...] = ("contiguous", "channels_last")
    cache: tuple[str, ...] = CACHES
    seconds: float = 1.0
    rounds: tuple[int, int] = (7, 200)
    seed: int = 0
    device: str = "cpu"
    graph: bool = False


def benchable() -> list[str]:
    """The functions that can be measured."""
    return sorted({case.op for case in CASES})


def known_op(op: str) -> str:
    """``op``. Raises ValueError, which names the near ones, for what is no function of fastcv."""
    if op in benchable():
        return op
    import difflib

    near = difflib.get_close_matches(op, benchable(), 3)
    raise ValueError(
        f"no op {op!r} to measure" + (f"; did you mean {' or '.join(near)}?" if near else f"; there are {', '.join(benchable())}")
    )


def choice(values: str, known: Sequence[str], what: str) -> tuple[str, ...]:
    """A comma-separated option as a tuple. Raises ValueError for a value that is not known."""
    parts = tuple(dict.fromkeys(part.strip() for part in values.split(",") if part.strip()))
    unknown = [part for part in parts if part not in known]
    if unknown or not parts:
        raise ValueError(f"--{what} {unknown[0] if unknown else repr(values)}: expected some of {', '.join(known)}, separated by commas")
    return parts


def sweep_cases(sweep: str, batch: int) -> list[Case]:
    """The cases of a sweep: a network's name, "zoo", or a JSON file with a list of shapes. Raises ValueError."""
    if sweep in NETWORKS:
        return network_cases(sweep, batch)
    if sweep == "zoo":
        return _zoo_cases(batch)
    path = Path(sweep)
    if not path.is_file():
        raise ValueError(f"no sweep {sweep!r}: expected one of {', '.join(SWEEPS)}, or a JSON file with shapes")
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} holds no JSON: {error}") from None
    if not isinstance(table, list) or not table:
        raise ValueError(f"{path} holds no list of shapes")
    cases = []
    for number, fields in enumerate(table, 1):
        try:
            cases.append(case_of(fields))
        except ValueError as error:
            raise ValueError(f"{path}, shape {number}: {error}") from None
    return _distinct(cases)


def _distinct(cases: Sequence[Case]) -> list[Case]:
    return list({case.id: case for case in cases}.values())


def _zoo_cases(batch: int) -> list[Case]:
    from ..testing.zoo import ZOO

    cases: list[Case] = []
    for entry in ZOO:
        try:
            with torch.device("meta"):  # shapes alone: no weight is drawn, nothing is computed
                model = entry.build(False)
                image = torch.empty(batch, 3, entry.size[1], entry.size[1])
            cases += model_cases(entry.name, model, image)
        except ImportError:
            raise ValueError("the sweep zoo needs transformers: pip install transformers") from None
        except (RuntimeError, TypeError) as error:  # a model that decides by values cannot be followed by shapes
            print(f"zoo: {entry.name} takes no part: {str(error).partition(chr(10))[0]}", file=sys.stderr)
    return _distinct(cases)


def plan(
    ops: Sequence[str],
    sweep: str = "",
    dtypes: Sequence[str] = ("f32",),
    modes: Sequence[str] = ("fwd",),
    threads: Sequence[int] = (),
    batch: int = 1,
    quick: bool = False,
) -> list[Job]:
    """The jobs: without a sweep the timed cases of fastcv.testing; without ops all that the sweep has; quick: the first three cases
    of each op. Raises ValueError if nothing is left to measure.
    """
    for op in ops:
        known_op(op)
    if bad := [m for m in modes if m not in MODES]:
        raise ValueError(f"mode {bad[0]!r} is none of {', '.join(MODES)}")
    if bad_threads := [t for t in threads if t < 1]:
        raise ValueError(f"--threads {bad_threads[0]}: a number of threads is at least 1")
    cases = sweep_cases(sweep, batch) if sweep else [case for case in CASES if case.bench]
    cases = [case for case in cases if not ops or case.op in ops]
    if quick:
        seen: dict[str, int] = {}
        kept = []
        for case in cases:
            seen[case.op] = seen.get(case.op, 0) + 1
            if seen[case.op] <= 3:
                kept.append(case)
        cases = kept
    jobs = [
        Job(case, dtype, mode, count)
        for case, dtype, mode, count in product(cases, dtypes, modes, threads or (torch.get_num_threads(),))
        if DTYPES[dtype] in case.dtypes and (mode == "fwd" or case.grad)
    ]
    if not jobs:
        what = f"{' '.join(ops) or 'any op'} in {sweep or 'the timed cases'}"
        raise ValueError(f"nothing to measure: {what} with dtype {', '.join(dtypes)} and mode {', '.join(modes)}")
    return jobs


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """torch's number of threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_job(job: Job, options: Options, timer: CpuTimer | CudaTimer | None = None, extra: Sequence[Contender] = ()) -> list[Row]:
    """Races fastcv, the peers and ``extra`` on one job. A peer that cannot be set up is a row that failed."""
    with threads(job.threads):
        dtype = DTYPES[job.dtype]
        timer = timer or (CpuTimer() if options.device == "cpu" else CudaTimer(options.device, options.graph))
        entered = [*peers.contenders(job.case, dtype, job.mode, options.layouts, options.vs), *extra]
        if not entered:
            raise ValueError(f"{job.title}: no contender; its layouts are {', '.join(job.case.layouts)}")
        how = {"dtype": dtype, "mode": job.mode, "cache": options.cache, "seconds": options.seconds, "rounds": options.rounds}
        return measure(job.case, entered, seed=options.seed, timer=timer, **how)


def run(
    jobs: Sequence[Job],
    options: Options,
    results: Results,
    done: Callable[[Job, list[Row]], None] = lambda job, rows: None,
    started: Callable[[Job], None] = lambda job: None,
) -> None:
    """Measures the jobs that ``results`` does not hold yet; every row is kept before the next race begins."""
    for job in jobs:
        kept = [
            r
            for r in results.rows
            if (r.case, r.dtype, r.mode, r.threads, r.device) == (job.case.id, job.dtype, job.mode, job.threads, options.device)
        ]
        with threads(job.threads):
            names = [c.name for c in peers.contenders(job.case, DTYPES[job.dtype], job.mode, options.layouts, options.vs)] if kept else []
        if kept and {(n, c) for n in names for c in options.cache} <= {(r.contender, r.cache) for r in kept}:
            done(job, kept)
            continue
        started(job)
        rows = run_job(job, options)
        for row in rows:
            results.add(row)
        done(job, rows)


def profile(jobs: Sequence[Job], options: Options) -> Iterator[tuple[Job, str]]:
    """Runs every contender twice on each job, the second time within a range named for it (NVTX on a GPU, ITT for VTune, and
    torch's own record_function), and nothing else: for ncu, nsys, vtune or torch.profiler around this process.
    """
    from .values import Pass, Values

    for job in jobs:
        with threads(job.threads):
            values = Values(job.case, DTYPES[job.dtype], options.seed, options.device)
            for contender in peers.contenders(job.case, DTYPES[job.dtype], job.mode, options.layouts, options.vs):
                arguments = values.new(contender.layout)
                values.fill(arguments, 0)
                work = Pass(job.case, contender.function, job.mode)
                with contender.around():
                    work.start(arguments)
                    call = work.on(arguments)()
                    with _range(f"{job.title} {contender.name}", options.device):
                        call()
                yield job, contender.name


@contextlib.contextmanager
def _range(name: str, device: str) -> Iterator[None]:
    itt = torch.profiler.itt if device == "cpu" and torch.profiler.itt.is_available() else None
    with torch.profiler.record_function(name):
        if device != "cpu":
            torch.cuda.nvtx.range_push(name)
        if itt is not None:
            itt.range_push(name)
        try:
            yield
        finally:
            if itt is not None:
                itt.range_pop()
            if device != "cpu":
                torch.cuda.synchronize()
                torch.cuda.nvtx.range_pop()
