"""Races of whole models as tables: a line per row for the terminal, a line per race with the fastest peer for CSV and markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from .rows import FAILED, OK, Row
from .statistics import geometric_mean, ratio_interval
from .tables import size_text, speedup, time_text

TITLES = {"fastcv": "fastcv", "torch": "torch", "compile": "torch.compile", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
COMPILED = "fastcv-compile"  # torch.compile(model, backend="fastcv"): the other door to fastcv's kernels


def parts_of(row: Row) -> tuple[str, int, str]:
    """(model, images, "CxHxW") of a row of a model."""
    name, _, size = row.case.removeprefix("model-").rpartition("-")
    count, _, rest = size.partition("x")
    return name, int(count), rest


def images_per_second(row: Row) -> float:
    return parts_of(row)[1] / row.median


def plain(number: float) -> str:
    """Three significant digits, more before the point, no exponent."""
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def races(rows: Iterable[Row]) -> list[list[Row]]:
    """The rows of each race, in the order in which races came."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row.op == "model":
            found.setdefault((row.case, row.dtype, row.mode, row.threads), []).append(row)
    return list(found.values())


def title(row: Row) -> str:
    """What the race of this row is about."""
    name, count, size = parts_of(row)
    images = f"{count} image{'s' if count != 1 else ''} {size}"
    what = "training" if row.mode != "fwd" else "inference"
    return f"{name}, {images}, {row.dtype}, {what}, {row.threads} thread{'s' if row.threads != 1 else ''}"


def fastest(race: Iterable[Row], who: str = "") -> Row | None:
    """The fastest timed row of ``who``, or of anybody but fastcv."""
    rows = [r for r in race if r.timed and (r.who == who if who else r.who != "fastcv")]
    return min(rows, key=lambda r: r.median, default=None)


def lines(race: Sequence[Row]) -> list[str]:
    """A line per row: the numbers that a reader wants while it runs."""
    width = max(len(r.contender) for r in race)
    made = []
    for row in race:
        if not row.timed:
            made.append(f"{row.contender:{width}}  {row.status}: {row.reason}")
            continue
        low, high = row.interval
        ratio = speedup(race, row)
        parts = [
            f"{row.contender:{width}}  {plain(images_per_second(row)):>6} images/s",
            f"{time_text(row.median)} [{time_text(low)}, {time_text(high)}]",
            *([f"{row.percent:.0f}% of roof"] if row.roof else []),
            *([f"peak {size_text(row.peak)}"] if row.peak else []),
            *([f"error {row.error:.1e}"] if row.error is not None else []),
            *([f"{ratio:.2f}x torch"] if ratio is not None and row.who != "torch" else []),
            *([f"{row.status}: {row.reason}"] if row.status != OK else []),
        ]
        made.append("  ".join(parts))
    return made


# ---- a line per race


def against_peers(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Of each race: fastcv's better layout beside each peer's best, and the time of the fastest peer over fastcv's. Milliseconds.

    status: of the two rows that the ratio is of. remarks: why there is no verdict, and who was wrong or failed.
    """
    table = []
    for race in races(rows):
        ours, peer = fastest(race, "fastcv"), fastest(race)
        name, count, size = parts_of(race[0])
        line: dict[str, Any] = {"model": name, "batch": count, "size": size, "dtype": race[0].dtype, "mode": race[0].mode}
        line["threads"] = race[0].threads
        for who in TITLES:
            best = fastest(race, who)
            line[f"{who}_ms"] = round(best.median * 1e3, 3) if best is not None else ""
        line["fastcv_layout"] = ours.layout if ours is not None else ""
        line["fastcv_door"] = "" if ours is None else "compile" if ours.contender.startswith(COMPILED) else "optimize"
        line |= dict.fromkeys(("fastest_peer", "ratio", "low", "high", "percent_of_roof", "error", "torch_error"), "")
        if ours is not None:
            line["percent_of_roof"] = round(ours.percent, 1) if ours.roof else ""
            line["error"] = f"{ours.error:.3g}" if ours.error is not None else ""
            line["torch_error"] = f"{ours.peer_error:.3g}" if ours.peer_error is not None else ""
            if peer is not None:
                low, ratio, high = ratio_interval(peer.times, ours.times)
                line |= {"fastest_peer": peer.who, "ratio": round(ratio, 3), "low": round(low, 3), "high": round(high, 3)}
        doubt = next((r for r in (ours, peer) if r is not None and r.status != OK), None)
        line["status"] = doubt.status if doubt is not None else OK if ours is not None else FAILED
        remarks = [f"{r.contender} {r.status}: {r.reason}" for r in race if not r.timed]
        line["remarks"] = "; ".join([*([f"{doubt.status}: {doubt.reason}"] if doubt is not None else []), *remarks])
        table.append(line)
    return table


def summary(table: Sequence[dict[str, Any]]) -> str:
    """One line: how many races have a verdict, their geometric mean of fastest peer / fastcv, the slowest; "" without races."""
    compared = [line for line in table if line["ratio"] not in ("", None)]
    sound = [line for line in compared if line["status"] == OK]
    noisy = f"{len(compared) - len(sound)} of {len(compared)} races without a verdict" if len(sound) < len(compared) else ""
    if not sound:
        return noisy
    worst = min(sound, key=lambda line: float(line["ratio"]))
    mean = geometric_mean(float(line["ratio"]) for line in sound)
    where = f"{worst['model']}, batch {worst['batch']}, {worst['dtype']}, {worst['mode']}; {TITLES[worst['fastest_peer']]}"
    text = f"{len(sound)} race{'s' if len(sound) != 1 else ''}, fastest peer / fastcv: "
    text += f"geometric mean {mean:.2f}, slowest {float(worst['ratio']):.2f} ({where})"
    return f"{text}; {noisy}" if noisy else text


HEAD = (
    *("model", "batch", "size", "dtype", "pass", "threads"),
    *(f"{text} ms" for text in TITLES.values()),
    *("fastest peer / fastcv", "95% interval", "of the roof", "error (torch's)", "remarks"),
)


def cells(line: dict[str, Any]) -> list[str]:
    """What HEAD names, of a line of ``against_peers`` or of the CSV file."""

    def number(key: str, form: str = "") -> str:
        if line[key] in ("", None):
            return "-"
        return f"{float(line[key]):{form}}" if form else plain(float(line[key]))

    layout = {"contiguous": "NCHW", "channels_last": "NHWC"}.get(line["fastcv_layout"], "")
    return [
        *(str(line[key]) for key in ("model", "batch", "size", "dtype")),
        "training" if line["mode"] != "fwd" else "inference",
        str(line["threads"]),
        f"{number('fastcv_ms')} {layout}{' compiled' if line.get('fastcv_door') == 'compile' else ''}".strip(),
        *(number(f"{who}_ms") for who in TITLES if who != "fastcv"),
        f"{number('ratio', '.2f')} ({TITLES[line['fastest_peer']]})" if line["fastest_peer"] else "-",
        f"{number('low', '.2f')} - {number('high', '.2f')}" if line["fastest_peer"] else "-",
        f"{number('percent_of_roof', '.0f')}%" if line["percent_of_roof"] not in ("", None) else "-",
        f"{line['error']} ({line['torch_error']})" if line["error"] else "-",
        line["remarks"].replace("|", "/"),
    ]


def markdown(head: str, table: Sequence[dict[str, Any]]) -> str:
    """The page of a table: the machine, one line of summary, a line per race."""
    rule = "|---|---:|---|---|---|---:|" + "---:|" * (len(HEAD) - 7) + "---|"
    said = summary(table)
    text = [head, "", *([f"{said}.", ""] if said else []), f"| {' | '.join(HEAD)} |", rule]
    return "\n".join([*text, *(f"| {' | '.join(cells(line))} |" for line in table)]) + "\n"


def csv_text(table: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for line in table for key in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()
