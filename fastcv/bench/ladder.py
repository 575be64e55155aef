"""Every variant of an op from the plain-loop reference to the best, raced on one case: a ladder, rung by rung towards the roof."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import torch

from .. import _ext, functional
from .._variants import use, variants
from ..testing import Case
from . import pictures, tables
from .contenders import Contender
from .lessons import ALGORITHMS, ISAS
from .machine import sentence
from .page import READING, _write, figure, fill, rows_table, totals
from .race import measure
from .rows import OK, Row
from .timers import CpuTimer

PAPER = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}  # under a label that a line may cross


@dataclass(frozen=True)
class Rung:
    """One variant: its name, the instruction set it needs, and its row; or why it cannot run here."""

    variant: str
    isa: str
    row: Row | None
    why_not: str = ""


def main_op(case: Case, dtype: torch.dtype, mode: str = "fwd") -> str:
    """The raw op with a variant table that carries the case's call: the first that it runs."""
    module = _ext.module()
    args, kwargs = case.arguments(dtype)
    module.take_recorded_choices()
    module.record_choices(True)
    try:
        getattr(functional, case.op)(*args, **kwargs)
    finally:
        module.record_choices(False)
    ran = [op for op, _, reason in module.take_recorded_choices() if reason == ""]
    if not ran:
        raise ValueError(f"{case.id}: no kernel of fastcv ran")
    return ran[0]


def climb(case: Case, dtype: torch.dtype, layout: str, seconds: float = 1.0, rounds: tuple[int, int] = (5, 200)) -> list[Rung]:
    """Races all variants that can serve the case, and torch; the rungs come from the reference upwards, slowest first.

    Raises ValueError if the op has no variants.
    """
    op = main_op(case, dtype)
    function = getattr(functional, case.op)
    entered, refused = [], []
    for name, isa in variants(op):
        if software := _software(name, isa):
            refused.append(Rung(name, isa, None, f"{software}: it tests the kernel and is no measure of its speed"))
            continue
        args, kwargs = case.arguments(dtype, layout)
        try:
            with use(**{op: name}):
                function(*args, **kwargs)
        except (RuntimeError, ValueError) as error:
            refused.append(Rung(name, isa, None, _short(str(error))))
            continue
        entered.append((Contender(name, function, layout, around=partial(use, **{op: name}), who="fastcv"), isa))
    entered_all = [c for c, _ in entered] + [Contender("torch", case.torch_function(), layout)]
    rows = {
        r.contender: r for r in measure(case, entered_all, dtype=dtype, cache=("hot",), seconds=seconds, rounds=rounds, timer=CpuTimer())
    }
    rungs = [Rung(c.name, isa, rows[c.name]) for c, isa in entered] + [Rung("torch", "", rows["torch"])]
    rungs.sort(key=lambda r: (r.variant != "ref", -(r.row.median if r.row and r.row.timed else 0.0)))
    return [*rungs, *refused]


def _software(name: str, isa: str) -> str:
    """What a variant is that a CPU runs as a program of the hardware it was written for; "" for all others."""
    if "amxmodel" in name:
        return "AMX's tiles as a program in software"
    return "a CUDA kernel, which a CPU runs on an emulator at most" if isa.startswith("sm") else ""


def _short(text: str) -> str:
    """The reason alone of "conv: variant ... cannot run this call: needs ..."."""
    line = re.sub(r"\s+", " ", text.partition("\n")[0]).strip()
    return (line.partition("cannot run this call: ")[2] or line)[:160]


def explanation(variant: str, isa: str) -> list[str]:
    """Paragraphs about a variant: its algorithm, its instruction set."""
    words = variant.split("_")
    heads = ("_".join(words[:2]), words[0])
    text = [next((ALGORITHMS[h] for h in heads if h in ALGORITHMS), "")]
    if variant != "ref":
        text.append(ISAS.get(isa, ""))
    if any(w in ("bf16x3", "bf16x6") for w in words):
        text.append("Float32 numbers as sums of bfloat16 numbers: three or six 16-bit products stand for one product of float32.")
    if "nchw" in words or "nhwc" in words:
        text.append("For row-major tensors." if "nchw" in words else "For channels-last tensors.")
    return [t for t in text if t]


def _percent(row: Row) -> str:
    return f"{row.percent:.0f}%" if row.percent >= 10 else f"{row.percent:.2g}%"


def picture(rungs: Sequence[Rung]) -> Any:
    """Percent of the roof of every rung; torch's is a line."""
    shown = [r for r in rungs if r.row is not None and r.row.timed and r.variant != "torch"]
    if not shown:
        return None
    drawn, ((axes,),) = pictures._figure(9, 1.4 + 0.34 * len(shown))
    values = [r.row.percent for r in shown if r.row is not None]
    isas = list(dict.fromkeys(r.isa for r in shown))
    colours = [pictures.COLOURS[isas.index(r.isa) % 8] for r in shown]
    axes.barh(range(len(shown)), values, color=colours, height=0.62, alpha=0.9)
    for isa in reversed(isas):  # best first, as the rungs stand
        axes.barh(0, 0, color=pictures.COLOURS[isas.index(isa) % 8], alpha=0.9, label=isa)
    for i, rung in enumerate(shown):
        if rung.row is not None:
            label = f"{_percent(rung.row)}  {tables.time_text(rung.row.median)}"
            axes.annotate(label, (values[i], i), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8, bbox=PAPER)
    axes.axvline(100, color="#222222", lw=1)
    torchs = next((r.row for r in rungs if r.variant == "torch" and r.row is not None and r.row.timed), None)
    if torchs is not None:
        axes.axvline(torchs.percent, color="#d55e00", lw=1.2, ls="--", label=f"torch: {tables.time_text(torchs.median)}")
    pictures._legend(axes, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_yticks(range(len(shown)), [r.variant for r in shown], fontsize=9)
    axes.set(
        xscale="log",
        xlabel="% of the attainable roof (the line at 100)",
        title="From the reference to the roof",
        xlim=(min(values) * 0.6, max(*values, 100) * 3),
    )
    axes.set_xlim(min(values) * 0.6, max(*values, 100) * 3)
    pictures._logarithmic(axes.xaxis)
    return drawn


def page(case: Case, rungs: Sequence[Rung], facts: dict[str, Any]) -> str:
    """The ladder as a page: the picture, then every rung with what it does, what it gained and how far the roof is."""
    timed = [r for r in rungs if r.row is not None and r.row.timed and r.variant != "torch"]
    parts = []
    if timed and timed[0].row is not None and timed[-1].row is not None:
        first, best = timed[0].row, min((r.row for r in timed if r.row is not None), key=lambda r: r.median)
        parts.append(
            totals(
                [
                    (tables.time_text(first.median), f"{timed[0].variant}, the lowest rung"),
                    (tables.time_text(best.median), f"{best.contender}, the highest"),
                    (f"{first.median / best.median:.0f}x", "between them"),
                    (f"{best.percent:.0f}%", "of the roof"),
                ]
            )
        )
    parts += [figure(picture(rungs), "Percent of the roof, by variant"), "<h2>Rung by rung</h2>"]
    below: Row | None = None
    for rung in rungs:
        if rung.variant == "torch" or rung.row is None:
            continue
        parts.append(f"<h3>{escape(rung.variant)}</h3>")
        parts += [f"<p>{escape(text)}</p>" for text in explanation(rung.variant, rung.isa)]
        row = rung.row
        if not row.timed:
            parts.append(f'<p class="bad">{escape(row.status)}: {escape(row.reason)}</p>')
            continue
        speed = f"{row.gflops:.1f} GFLOP/s" if row.flops else f"{row.gbytes:.1f} GB/s"
        step = f", {below.median / row.median:.2f} times the speed of the rung below" if below is not None else ""
        doubt = f' <span class="doubt">{escape(row.status)}: {escape(row.reason)}</span>' if row.status != OK else ""
        parts.append(
            f"<p><strong>{tables.time_text(row.median)}</strong>, {speed}, {_percent(row)} of the roof{step}. "
            f"Largest error {row.error:.1e} (torch's {row.peer_error:.1e}); workspace {tables.size_text(row.workspace)}.{doubt}</p>"
        )
        below = row
    refused = [r for r in rungs if r.row is None]
    if refused:
        parts.append(
            "<h2>Not on this ladder</h2><dl>"
            + "".join(f"<dt>{escape(r.variant)}</dt><dd>{escape(r.why_not)}</dd>" for r in refused)
            + "</dl>"
        )
    parts += ["<h2>All numbers</h2>", rows_table([r.row for r in rungs if r.row is not None]), READING]
    return fill(f"{case.id}: from the reference to the roof", sentence(facts), "\n".join(parts))


def write(folder: Path, case: Case, rungs: Sequence[Rung], facts: dict[str, Any]) -> list[Path]:
    """The picture and the page, in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    html = folder / f"ladder-{case.op}.html"
    _write(html, page(case, rungs, facts))
    drawn = picture(rungs)
    if drawn is None:
        return [html]
    drawn.savefig(folder / f"ladder-{case.op}.png")
    return [folder / f"ladder-{case.op}.png", html]
