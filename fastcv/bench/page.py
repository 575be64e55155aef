"""One HTML page of a race, of a ladder or of a history: pictures inline, nothing loaded from elsewhere, no script."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from . import model_tables, pictures, tables
from .machine import sentence
from .rows import FAILED, IMPOSSIBLE, OK, UNRELIABLE, WRONG, Row

_CLASS = {OK: "", UNRELIABLE: "doubt", IMPOSSIBLE: "bad", WRONG: "bad", FAILED: "bad"}

READING = """<h2>How to read this</h2>
<p>Contenders take turns in an order shuffled anew for every round. Every timed call gets values that it has not seen; calls picked in
secret are verified against float64 by copies taken when the clock stopped. The median stands with its 95% interval, which counts
rounds that depend on each other as fewer.</p>
<p><strong>hot</strong>: arguments were just written and code was just run. <strong>cold</strong>: arguments come from memory; code is
warm. GFLOP/s counts two operations per multiply-add of the direct algorithm, GB/s every tensor of the call once. “Of roof” is the
time that the nearer roof of this machine allows (multiply-adds in registers, or a copy of as many bytes; from memory if cold) as a
share of the time it took. More than 100% is possible where an algorithm needs fewer operations than are counted (Winograd). What
beats every known algorithm is IMPOSSIBLE.</p>
<p>Errors are the largest and the mean over all outputs, relative to the largest output, the largest also in units in its last place
(ulp); torch's are those of its plain function in the same dtype. “Same bits”: two calls on the same values give the same bits.
UNRELIABLE rows have times and no verdict: the machine did something else.</p>
"""


def _write(path: Path, text: str) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


def fill(title: str, machine: str, body: str) -> str:
    """The page with this body, which is HTML already."""
    template = Template(resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    return template.substitute(title=escape(title), machine=escape(machine), body=body)


def totals(entries: Sequence[tuple[str, str]]) -> str:
    """Numbers with what they are, as tiles."""
    return '<ul class="totals">' + "".join(f"<li><strong>{escape(n)}</strong>{escape(what)}</li>" for n, what in entries) + "</ul>"


def figure(drawn: Any, label: str) -> str:
    return f'<figure role="img" aria-label="{escape(label)}">{pictures.svg(drawn)}</figure>' if drawn is not None else ""


def rows_table(rows: Sequence[Row]) -> str:
    """Every row with every column that any row has something in, grouped by race."""
    every = [tables.cells(rows, row) for row in rows]
    shown = [i for i in range(len(tables.COLUMNS)) if i < 3 or any(c[i] for c, row in zip(every, rows, strict=True) if row.timed)]
    left = ("contender", "cache", "kernel")
    heads = "".join(f'<th scope="col"{" class=left" if tables.COLUMNS[i] in left else ""}>{escape(tables.COLUMNS[i])}</th>' for i in shown)
    parts = [f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>']
    group = None
    for row, cells in zip(rows, every, strict=True):
        race = (row.case, row.dtype, row.mode, row.threads)
        if race != group:
            group = race
            title = f"{row.case}, {row.dtype}, {row.mode}, {row.threads} thread{'s' if row.threads != 1 else ''}"
            parts.append(f'<tr class="group"><td colspan="{len(shown)}">{escape(title)}</td></tr>')
        if not row.timed:
            why = f'<td class="text bad" colspan="{len(shown) - 2}">{escape(cells[2])}</td>'
            parts.append(f'<tr><td>{escape(cells[0])}</td><td class="left">{escape(cells[1])}</td>{why}</tr>')
            continue
        kinds = {"cache": ' class="left"', "kernel": ' class="left kernel"'}
        tds = {i: f"<td{kinds.get(tables.COLUMNS[i], '')}>{escape(cells[i])}</td>" for i in shown}
        if row.status != OK:
            tds[len(cells) - 2] = f'<td class="{_CLASS[row.status]}" title="{escape(row.reason)}">{row.status}</td>'
        parts.append("<tr>" + "".join(tds.values()) + "</tr>")
    return "\n".join([*parts, "</tbody></table></div>"])


def _facts(facts: dict[str, Any]) -> str:
    return (
        "<h2>Machine and software</h2><dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in facts.items()) + "</dl>"
    )


def _counts(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Tiles of what has no verdict."""
    counts = {status: sum(r.status == status for r in rows) for status in (UNRELIABLE, IMPOSSIBLE, WRONG, FAILED)}
    return [(str(count), f"rows {status}") for status, count in counts.items() if count]


def _doubts(rows: Sequence[Row]) -> str:
    """Why rows have no verdict."""
    doubts = list(dict.fromkeys(f"{r.status}: {r.contender} on {r.case}, {r.cache}: {r.reason}" for r in rows if r.status != OK))
    doubtful = "".join(f"<li>{escape(d)}</li>" for d in doubts[:30])
    more = f"<li>and {len(doubts) - 30} more</li>" if len(doubts) > 30 else ""
    return f"<h2>Without a verdict</h2><ul>{doubtful}{more}</ul>" if doubts else ""


def race_page(facts: dict[str, Any], rows: Sequence[Row]) -> str:
    """The page of a race."""
    table = [r for r in tables.against_torch(rows) if r["status"] == OK]
    entries = [(str(len({(r.case, r.dtype, r.mode, r.threads) for r in rows})), "races"), (str(len(rows)), "rows")]
    if table:
        ratios = [float(r["ratio"]) for r in table]
        entries += [
            (f"{tables.geometric_mean(ratios):.2f}x", "torch's best time / fastcv's, geometric mean"),
            (f"{min(ratios):.2f}x", "slowest row"),
            (f"{max(ratios):.2f}x", "fastest row"),
        ]
    body = [
        totals([*entries, *_counts(rows)]),
        *(figure(draw(rows), name) for name, draw in pictures.PICTURES.items()),
        "<h2>All rows</h2>",
        rows_table(rows),
        _doubts(rows),
        READING,
        _facts(facts),
    ]
    return fill("fastcv bench", sentence(facts), "\n".join(body))


MODEL_READING = """<h2>How to read this</h2>
<p>Whole models, random weights. Contenders take turns in an order shuffled anew for every round; two sets of images alternate, and
the output of every timed call is verified against the model in float64. The median stands with its 95% interval, which counts
rounds that depend on each other as fewer. Inference is without gradients, and every contender may prepare the weights beforehand:
fastcv.optimize folds and arranges them, torch.compile freezes them, ONNX Runtime and OpenVINO get the model as a file with the
weights inside. Training is a forward and a backward pass; the optimiser's update is the same code for everybody and no part of it.</p>
<p>“Of roof” is the time that multiply-adds in registers (16-bit types: or torch's matrix product, whichever is faster) allow for the
operations of the direct algorithm, as a share of the time it took; Winograd's convolutions need fewer. Errors are relative to the
largest output, in training the distance of all gradients to the exact ones relative to their norm; torch's is that of its worse layout
in the same dtype. Peak and workspace are memory asked of torch's allocator, which the engines do not use. UNRELIABLE rows have times
and no verdict: the machine did something else.</p>
"""


def model_page(facts: dict[str, Any], rows: Sequence[Row]) -> str:
    """The page of races of whole models."""
    table = model_tables.against_peers(rows)
    ratios = [float(line["ratio"]) for line in table if line["ratio"] != "" and line["status"] == OK]
    entries = [(str(len(table)), "races"), (str(len(rows)), "rows")]
    if ratios:
        entries += [
            (f"{tables.geometric_mean(ratios):.2f}x", "fastest peer's time / fastcv's, geometric mean"),
            (f"{min(ratios):.2f}x", "slowest race"),
            (f"{max(ratios):.2f}x", "fastest race"),
        ]
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in model_tables.HEAD[:-1])
    tds = ("".join(f"<td>{escape(cell)}</td>" for cell in model_tables.cells(line)[:-1]) for line in table)
    lines = "".join(f"<tr>{line}</tr>" for line in tds)
    body = [
        totals([*entries, *_counts(rows)]),
        figure(pictures.models(rows), "models"),
        "<h2>Races</h2>",
        f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>',
        "<h2>All rows</h2>",
        rows_table(rows),
        _doubts(rows),
        MODEL_READING,
        _facts(facts),
    ]
    return fill("fastcv bench model", sentence(facts), "\n".join(body))


def write_page(path: Path, facts: dict[str, Any], rows: Sequence[Row]) -> None:
    """Writes the page of a race of ops, or of whole models, at once. Raises OSError where it cannot be written."""
    _write(path, (model_page if any(r.op == "model" for r in rows) else race_page)(facts, rows))
