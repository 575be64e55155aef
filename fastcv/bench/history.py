"""Many runs as a history: for every row its times over the runs, as one HTML page with pictures inline."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from . import pictures, tables
from .machine import sentence
from .page import _write, figure, fill, totals
from .rows import OK, Row
from .statistics import geometric_mean
from .store import Run, read_runs
from .verdicts import label

PER_PICTURE = 6


def gather(paths: Sequence[str | Path]) -> list[Run]:
    """All runs of these files, and of the .jsonl files of these folders, oldest first. Raises ValueError as ``read_runs``."""
    files: list[Path] = []
    for path in map(Path, paths):
        found = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not found:
            raise ValueError(f"{path} holds no .jsonl file of results")
        files += found
    return sorted((run for file in files for run in read_runs(file)), key=lambda run: run.head["began"])


def series(runs: Sequence[Run], who: str = "fastcv") -> dict[tuple[Any, ...], list[tuple[int, Row]]]:
    """Of every row of ``who``: (number of the run, row), for the runs that have it with times. ``who`` "" takes everyone's."""
    found: dict[tuple[Any, ...], list[tuple[int, Row]]] = {}
    for number, run in enumerate(runs):
        for key, row in run.rows.items():
            if row.timed and (not who or row.who == who):
                found.setdefault(key, []).append((number, row))
    return found


def picture(runs: Sequence[Run], members: Sequence[tuple[tuple[Any, ...], list[tuple[int, Row]]]]) -> Any:
    """Median with its interval over the runs, relative to the first run that has the row."""
    drawn, ((axes,),) = pictures._figure(max(11.0, 6.0 + 0.5 * len(runs)), 4)
    for i, (key, points) in enumerate(members):
        base = points[0][1].median
        xs = [n for n, _ in points]
        ys = [r.median / base for _, r in points]
        bounds = [[(r.median - r.interval[0]) / base for _, r in points], [(r.interval[1] - r.median) / base for _, r in points]]
        colour, marker = pictures.COLOURS[i % 8], pictures.MARKERS[i % 8]
        axes.errorbar(
            xs, ys, yerr=bounds, color=colour, marker=marker, ms=4, lw=1.3, capsize=2, label=f"{key[0]} {key[2]}, {key[3]}, {key[4]}"
        )
        doubtful = [(x, y) for x, y, (_, r) in zip(xs, ys, points, strict=True) if r.status != OK]
        if doubtful:
            axes.scatter(*zip(*doubtful, strict=True), s=90, facecolors="none", edgecolors="#b3261e", linewidths=1)
    axes.axhline(1, color="#222222", lw=0.8)
    axes.set(ylabel="time / first run's")
    axes.set_xticks(range(len(runs)), [run.head["machine"]["commit"] or "?" for run in runs], rotation=45, ha="right", fontsize=8)
    pictures._legend(axes, loc="upper left", bbox_to_anchor=(1, 1))
    return drawn


def page(runs: Sequence[Run]) -> str:
    """The history of fastcv's rows; an op has pictures of its own, the rows that moved most come first."""
    found = {k: v for k, v in series(runs).items() if len(v) > 1}
    if not found:
        raise ValueError(f"a history needs a row that two runs have; there are {len(runs)} runs")
    change = {k: v[-1][1].median / v[0][1].median for k, v in found.items()}
    parts = [
        totals(
            [
                (str(len(runs)), "runs"),
                (str(len(found)), "rows in two runs or more"),
                (f"{geometric_mean(change.values()):.3f}", "time, last run / first, geometric mean"),
                (f"{max(change.values()):.2f}", "slowest against its first"),
            ]
        )
    ]
    machines = {tuple(run.head["machine"].get(k) for k in ("processor", "threads", "torch", "isa")) for run in runs}
    if len(machines) > 1:
        parts.append('<p class="doubt">These runs are of different machines, threads or versions of torch; their times do not compare.</p>')
    heads = "".join(f"<th class=left>{head}</th>" for head in ("began", "commit", "rows", "machine"))
    parts.append(f"<h2>Runs</h2><div class=wide><table><thead><tr>{heads}</tr></thead>")
    for run in runs:
        facts = run.head["machine"]
        changed = " changed" if facts["changed"] else ""
        cells = (run.head["began"], f"{facts['commit']}{changed}", len(run.rows), sentence(facts) if "processor" in facts else "")
        parts.append("<tr>" + "".join(f'<td class="left">{escape(str(c))}</td>' for c in cells) + "</tr>")
    parts.append("</table></div>")
    ops = dict.fromkeys(v[0][1].op for v in found.values())
    for op in ops:
        members = sorted(((k, v) for k, v in found.items() if v[0][1].op == op), key=lambda m: -abs(change[m[0]] - 1))
        parts.append(f"<h2>{escape(op)}</h2>")
        parts.append(figure(picture(runs, members[:PER_PICTURE]), f"{op} over the runs"))
        parts.append("<div class=wide><table><thead><tr><th>row</th><th>first</th><th>last</th><th>last / first</th></tr></thead>")
        for key, points in members:
            first, last = points[0][1], points[-1][1]
            cells = [tables.time_text(first.median), tables.time_text(last.median), f"{change[key]:.3f}"]
            parts.append(f"<tr><td>{escape(label(key))}</td>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>")
        parts.append("</table></div>")
    parts.append('<p class="soft">Bars are 95% intervals of the median; a red ring marks a row without a verdict.</p>')
    return fill("fastcv bench: history", f"{runs[0].head['began']} to {runs[-1].head['began']}", "\n".join(parts))


def write(path: Path, runs: Sequence[Run]) -> None:
    _write(path, page(runs))
