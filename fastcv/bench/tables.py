"""Rows as tables: for the terminal (rich), for markdown, and the summary per op that the project's tables are made of."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .rows import FAILED, OK, WRONG, Row, best_peer
from .statistics import geometric_mean


def time_text(seconds: float) -> str:
    """Three significant digits with a unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}" if seconds < 1000 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def size_text(count: int | None) -> str:
    if count is None:
        return ""
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >= 1 << shift:
            value = count / (1 << shift)
            return f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"
    return f"{count} B"


def speedup(rows: Sequence[Row], row: Row, who: str = "torch") -> float | None:
    """Time of the best row of ``who`` over this row's: above 1 this row is faster. None without a verdict on either."""
    peer = best_peer(rows, row, who)
    if peer is None or not row.timed or row.status not in (OK,) or peer.status != OK:
        return None
    return peer.median / row.median


COLUMNS = (
    *("contender", "cache", "median", "95% interval", "min", "p10-p90", "n", "GFLOP/s", "GB/s", "of roof"),
    *("max error", "ulp", "torch's", "mean error", "torch's", "workspace", "peak", "same bits", "torch/this", "kernel"),
)


def cells(rows: Sequence[Row], row: Row) -> list[str]:
    """What COLUMNS names; a row without times says why instead."""
    if not row.timed:
        return [row.contender, row.cache, f"{row.status}: {row.reason}", *[""] * (len(COLUMNS) - 3)]
    low, high = row.interval
    p10, p90 = row.p10_p90
    ratio = speedup(rows, row)
    return [
        row.contender,
        row.cache,
        time_text(row.median),
        f"{time_text(low)} - {time_text(high)}",
        time_text(row.best),
        f"{time_text(p10)} - {time_text(p90)}",
        str(len(row.times)),
        f"{row.gflops:.1f}" if row.flops else "",
        f"{row.gbytes:.1f}" if row.bytes else "",
        f"{row.percent:.0f}%" if row.roof else "",
        f"{row.error:.1e}" if row.error is not None else "",
        f"{row.ulps:.1f}" if row.ulps is not None else "",
        *(f"{e:.1e}" if e is not None else "" for e in (row.peer_error, row.mean_error, row.peer_mean_error)),
        size_text(row.workspace),
        size_text(row.peak),
        {True: "yes", False: "no", None: ""}[row.repeatable],
        f"{ratio:.2f}" if ratio is not None else row.status if row.status != OK else "",
        row.kernel,
    ]


def race_lines(rows: Sequence[Row]) -> list[str]:
    """A line per row for a terminal or a log: the numbers that a reader wants while it runs."""
    width = max(len(r.contender) for r in rows)
    lines = []
    for row in rows:
        start = f"{row.contender:{width}} {row.cache:4}"
        if not row.timed:
            lines.append(f"{start} {row.status}: {row.reason}")
            continue
        low, high = row.interval
        ratio = speedup(rows, row)
        parts = [
            f"{time_text(row.median):>8} [{time_text(low)}, {time_text(high)}]",
            f"{row.gflops:.0f} GFLOP/s" if row.flops else f"{row.gbytes:.1f} GB/s",
            *([f"{row.percent:.0f}% of roof"] if row.roof else []),
            f"error {row.error:.1e}" if row.error is not None else "",
            *([f"{ratio:.2f}x torch"] if ratio is not None and row.who != "torch" else []),
            *([f"{row.status}: {row.reason}"] if row.status != OK else []),
        ]
        lines.append(f"{start} {'  '.join(p for p in parts if p)}")
    return lines


def overview(rows: Sequence[Row]) -> list[list[str]]:
    """A line per race and state of the caches, after a line of titles: everybody's best layout, and torch's time over fastcv's."""
    whos = list(dict.fromkeys(r.who for r in rows))
    lines = [["case", "dtype", "pass", "threads", "cache", *whos, "torch/fastcv", "of roof"]]
    for case, dtype, mode, threads, cache in dict.fromkeys((r.case, r.dtype, r.mode, r.threads, r.cache) for r in rows):
        here = [r for r in rows if (r.case, r.dtype, r.mode, r.threads, r.cache) == (case, dtype, mode, threads, cache)]
        best = {who: best_peer(here, here[0], who) for who in whos}
        ours = best.get("fastcv")
        ratio = speedup(here, ours) if ours is not None and ours.status == OK else None
        lost = {who: next((r.status for r in here if r.who == who), "") for who in whos}
        lines.append(
            [
                *(case, dtype, mode, str(threads), cache),
                *(time_text(row.median) if row is not None else lost[who] for who, row in best.items()),
                f"{ratio:.2f}" if ratio is not None else ours.status if ours is not None and ours.status != OK else "",
                f"{ours.percent:.0f}%" if ours is not None and ours.roof else "",
            ]
        )
    return lines


def markdown(head: str, rows: Sequence[Row]) -> str:
    """Every row with every column."""
    lines = [head, "", "| case | dtype | pass | " + " | ".join(COLUMNS) + " |", "|---|---|---|" + "---|" * len(COLUMNS)]
    for row in rows:
        lines.append(f"| {row.case} | {row.dtype} | {row.mode} | " + " | ".join(cells(rows, row)) + " |")
    return "\n".join(lines) + "\n"


# ---- the tables of benchmarks/results: fastcv against torch, one line per case and layout


def against_torch(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Of each of fastcv's rows: its times beside torch's in the same layout and in torch's best one. Milliseconds."""
    table = []
    for row in rows:
        best = best_peer(rows, row)
        if row.who != "fastcv" or not row.timed or best is None:
            continue
        same = next(
            (
                r
                for r in rows
                if r.who == "torch" and r.layout == row.layout and r.timed and r.key[:3] == row.key[:3] and r.cache == row.cache
            ),
            best,
        )
        low, high = row.p10_p90
        table.append(
            {
                "case": row.case,
                "dtype": row.dtype,
                "mode": row.mode,
                "layout": row.layout,
                "cache": row.cache,
                "fastcv_ms": round(row.median * 1e3, 4),
                "p10_ms": round(low * 1e3, 4),
                "p90_ms": round(high * 1e3, 4),
                "torch_ms": round(same.median * 1e3, 4),
                "torch_best_ms": round(best.median * 1e3, 4),
                "ratio": round(best.median / row.median, 3),
                "gflops": round(row.gflops, 1) if row.flops and row.mode == "fwd" else "",
                "percent_of_roof": round(row.percent, 1) if row.roof else "",
                "error": f"{row.error:.3g}" if row.error is not None else "",
                "torch_error": f"{row.peer_error:.3g}" if row.peer_error is not None else "",
                "status": row.status if row.status != OK or best.status == OK else best.status,
            }
        )
    return table


def write_csv(path: Path, table: Sequence[dict[str, Any]]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, table[0])
        writer.writeheader()
        writer.writerows(table)


def by_op(table: Iterable[dict[str, Any]]) -> str:
    """The rows of each op, dtype and pass in one line: how many, geometric mean and slowest ratio in either layout."""
    groups: dict[tuple[str, str, str, str], list[float]] = {}
    for r in table:
        groups.setdefault((r["case"].split("-")[0], r["dtype"], r["mode"], r["cache"]), []).append(float(r["ratio"]))
    lines = [
        "| op | dtype | pass | cache | rows | torch best / fastcv, geometric mean | slowest row |",
        "|---|---|---|---|---:|---:|---:|",
    ]
    for (op, dtype, mode, cache), ratios in groups.items():
        lines.append(f"| {op} | {dtype} | {mode} | {cache} | {len(ratios)} | {geometric_mean(ratios):.2f} | {min(ratios):.2f} |")
    return "\n".join(lines) + "\n"


def summary(table: Sequence[dict[str, Any]]) -> str:
    """One line: rows, geometric mean, the slowest, and how many rows the noise guard gives no verdict on."""
    worst = min(table, key=lambda r: float(r["ratio"]))
    where = ", ".join(str(worst[key]) for key in ("case", "dtype", "mode", "layout"))
    noisy = sum(r.get("status", OK) != OK for r in table)
    mean = geometric_mean(float(r["ratio"]) for r in table)
    text = f"{len(table)} rows, geometric mean {mean:.2f}, slowest {float(worst['ratio']):.2f} ({where})"
    return text + (f"; {noisy} rows without a verdict: the machine was not quiet" if noisy else "")


def against_torch_markdown(head: str, table: Sequence[dict[str, Any]]) -> str:
    """The page that stands beside the CSV."""
    lines = [
        f"{head}\n\n{summary(table)}\n\n{by_op(table)}",
        "",
        "| case | dtype | mode | layout | cache | fastcv ms | torch ms | torch best / fastcv | of the roof | error (torch's) | |",
        "|---|---|---|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for r in table:
        roof = f"{float(r['percent_of_roof']):.0f}%" if r["percent_of_roof"] != "" else ""
        numbers = [f"{r['fastcv_ms']:.3f}", f"{r['torch_ms']:.3f}", f"{r['ratio']:.2f}", roof, f"{r['error']} ({r['torch_error']})"]
        names = [r[key] for key in ("case", "dtype", "mode", "layout", "cache")]
        lines.append("| " + " | ".join([*names, *numbers, r["status"] if r["status"] != OK else ""]) + " |")
    return "\n".join(lines) + "\n"


def broken(rows: Iterable[Row], who: str = "fastcv") -> list[str]:
    """The rows of ``who`` that were wrong or failed, a line each."""
    seen = {}
    for row in rows:
        if row.who == who and row.status in (WRONG, FAILED):
            seen[(row.case, row.dtype, row.mode, row.contender)] = (
                f"{row.status} {row.case} {row.dtype} {row.mode} {row.contender}: {row.reason}"
            )
    return list(seen.values())
