"""The pictures of a race, by matplotlib: roofline, bandwidth, speed-ups, sizes with bands, error against speed, whole models."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import model_tables, roofs
from .rows import OK, Row, best_peer
from .statistics import geometric_mean, ratio_interval

try:
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
except ImportError as error:
    raise ValueError(f"pictures need matplotlib ({error}): pip install 'fastcv[plots]'") from None

# Okabe and Ito's colours, which colour-blind readers tell apart; each with a marker of its own.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#222222")
MARKERS = "osD^vP*X"
MOST_BARS = 40


def _contenders(rows: Sequence[Row]) -> dict[str, tuple[str, str]]:
    """Colour by who, marker by layout order."""
    whos = list(dict.fromkeys(r.who for r in rows))
    names = list(dict.fromkeys(r.contender for r in rows))
    return {n: (COLOURS[whos.index(next(r.who for r in rows if r.contender == n)) % 8], MARKERS[i % 8]) for i, n in enumerate(names)}


def _figure(width: float, height: float, **grid: Any) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained", dpi=110)
    axes = figure.subplots(squeeze=False, **grid)
    for a in axes.flat:
        a.spines[["top", "right"]].set_visible(False)
        a.grid(alpha=0.25, linewidth=0.6)
        a.set_axisbelow(True)
    return figure, axes


def _logarithmic(axis: Any) -> None:
    """Plain numbers on a logarithmic axis."""
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_formatter(NullFormatter())
    low, high = axis.get_view_interval()
    if high / low < 100:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))


def _legend(axes: Any, **options: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8, **options)


def roofline(rows: Sequence[Row]) -> Figure | None:
    """GFLOP/s over operations per byte, one point per shape and contender, under the roofs of each dtype; None without operations."""
    shown = [r for r in rows if r.timed and r.flops and r.bytes and r.status != "IMPOSSIBLE"]
    if not shown:
        return None
    figure, ((axes,),) = _figure(9, 5.5)
    intensity = [r.flops / r.bytes for r in shown]
    left, right = min(intensity) / 2, max(intensity) * 2
    if all(r.device == "cpu" for r in shown):
        # Where the roofs bend is always in the picture.
        bends = [roofs.arithmetic(roofs.DTYPES[r.dtype]) / roofs.copy(size) for r in shown for size in (roofs.SIZES[1], roofs.SIZES[-1])]
        left, right = min(left, min(bends) / 2), max(right, max(bends) * 2)
        for style, dtype in zip(("-", "--", ":", "-."), dict.fromkeys(r.dtype for r in shown), strict=False):
            top = roofs.arithmetic(roofs.DTYPES[dtype]) / 1e9
            for name, size in (("memory", roofs.SIZES[-1]), ("cache", roofs.SIZES[1])):
                slope = roofs.copy(size) / 1e9
                xs = [left, max(left, min(right, top / slope)), right]
                label = f"{dtype}: {top:.0f} GFLOP/s, {name} {slope:.0f} GB/s"
                axes.plot(
                    xs, [min(top, slope * x) for x in xs], style, color="#222222" if name == "memory" else "#999999", lw=1.4, label=label
                )
    looks = _contenders(shown)
    for name, (colour, marker) in looks.items():
        points = [r for r in shown if r.contender == name]
        for cache, fill in (("hot", colour), ("cold", "none")):
            these = [r for r in points if r.cache == cache]
            if these:
                xs, ys = [r.flops / r.bytes for r in these], [r.gflops for r in these]
                axes.scatter(
                    xs, ys, s=28, marker=marker, facecolors=fill, edgecolors=colour, linewidths=1, alpha=0.85, label=f"{name}, {cache}"
                )
    axes.set(xscale="log", yscale="log", xlabel="operations per byte (algorithm)", ylabel="GFLOP/s", title="Roofline", xlim=(left, right))
    _logarithmic(axes.xaxis)
    _logarithmic(axes.yaxis)
    _legend(axes, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def bandwidth(rows: Sequence[Row]) -> Figure | None:
    """GB/s of algorithmic bytes over the size of the call, for what is bound by memory."""
    shown = [r for r in rows if r.timed and not r.flops and r.bytes and r.status != "IMPOSSIBLE"]
    if not shown:
        return None
    figure, ((axes,),) = _figure(9, 5)
    if all(r.device == "cpu" for r in shown):
        sizes = [s for s in roofs.SIZES if s >= min(r.bytes for r in shown) / 8]
        axes.plot([s / 2**20 for s in sizes], [roofs.copy(s) / 1e9 for s in sizes], color="#222222", lw=1.4, label="copy on this machine")
    for name, (colour, marker) in _contenders(shown).items():
        for cache, fill in (("hot", colour), ("cold", "none")):
            these = [r for r in shown if r.contender == name and r.cache == cache]
            if these:
                xs, ys = [r.bytes / 2**20 for r in these], [r.gbytes for r in these]
                axes.scatter(
                    xs, ys, s=28, marker=marker, facecolors=fill, edgecolors=colour, linewidths=1, alpha=0.85, label=f"{name}, {cache}"
                )
    axes.set(xscale="log", yscale="log", xlabel="MiB that the algorithm moves", ylabel="GB/s", title="Bandwidth")
    _logarithmic(axes.xaxis)
    _logarithmic(axes.yaxis)
    _legend(axes, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def speedups(rows: Sequence[Row]) -> Figure | None:
    """Time of torch's best layout over each row of fastcv, with its 95 % interval; many rows are drawn as means of their ops."""
    bars: list[tuple[str, float, float, float, str]] = []
    for row in rows:
        peer = best_peer(rows, row)
        if row.who == "fastcv" and row.timed and peer is not None:
            low, ratio, high = ratio_interval(peer.times, row.times)
            name = f"{row.case} {row.dtype} {row.mode} {row.layout}, {row.cache}"
            bars.append((name, low, ratio, high, "#999999" if row.status != OK or peer.status != OK else "#0072b2"))
    if not bars:
        return None
    if len(bars) > MOST_BARS:
        groups: dict[str, list[float]] = {}
        for (_, _, ratio, _, _), row in zip(bars, [r for r in rows if r.who == "fastcv" and r.timed and best_peer(rows, r)], strict=True):
            groups.setdefault(f"{row.op} {row.dtype} {row.mode}, {row.cache}", []).append(ratio)
        bars = [(f"{name} ({len(v)})", min(v), geometric_mean(v), max(v), "#0072b2") for name, v in groups.items()]
        title = "torch's best time / fastcv's: geometric means, slowest and fastest row"
    else:
        title = "torch's best time / fastcv's, 95% interval; grey: no verdict"
    bars.reverse()
    figure, ((axes,),) = _figure(10, 1.2 + 0.28 * len(bars))
    values = [b[2] for b in bars]
    errors = [[b[2] - b[1] for b in bars], [b[3] - b[2] for b in bars]]
    axes.barh(range(len(bars)), [v - 1 for v in values], left=1, color=[b[4] for b in bars], height=0.6, alpha=0.85)
    axes.errorbar(values, range(len(bars)), xerr=errors, fmt="none", ecolor="#222222", elinewidth=1, capsize=2)
    for i, v in enumerate(values):
        axes.annotate(f"{v:.2f}", (max(bars[i][3], 1.0), i), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8)
    axes.axvline(1, color="#222222", lw=1)
    axes.set(xscale="log", title=title, xlabel="above 1 fastcv is faster", ylim=(-0.7, len(bars) - 0.3))
    axes.set_yticks(range(len(bars)), [b[0] for b in bars], fontsize=8)
    axes.set_xlim(min(0.7, *(b[1] for b in bars)) * 0.9, max(1.5, *(b[3] for b in bars)) * 1.25)
    _logarithmic(axes.xaxis)
    return figure


def _extent(row: Row) -> float:
    """How large a call is: millions of operations, or MiB where it has none to speak of."""
    return row.flops / 1e6 if row.flops else row.bytes / 2**20


def sizes(rows: Sequence[Row]) -> Figure | None:
    """Time over the size of the call (its operations, else its bytes), with bands of the 95 % intervals; a panel for each op,
    dtype, pass and state of the caches.
    """
    panels: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row.timed and row.bytes:
            panels.setdefault((row.op, row.dtype, row.mode, row.cache), []).append(row)
    panels = {k: v for k, v in panels.items() if len({_extent(r) for r in v}) > 2}
    if not panels:
        return None
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = _figure(5.6 * columns, 3.8 * lines, nrows=lines, ncols=columns)
    looks = _contenders([r for v in panels.values() for r in v])
    for panel, (key, members) in zip(axes.flat, panels.items(), strict=False):
        for name, (colour, marker) in looks.items():
            points = sorted((r for r in members if r.contender == name), key=_extent)
            if points:
                xs = [_extent(r) for r in points]
                style = "-" if points[0].layout == "contiguous" else "--"
                panel.plot(xs, [r.median * 1e3 for r in points], style, marker=marker, ms=4, color=colour, lw=1.2, label=name)
                panel.fill_between(
                    xs, *zip(*[(r.interval[0] * 1e3, r.interval[1] * 1e3) for r in points], strict=True), color=colour, alpha=0.18
                )
        what = "million operations" if members[0].flops else "MiB that the algorithm moves"
        panel.set(xscale="log", yscale="log", xlabel=what, ylabel="ms", title=" ".join(key))
        _logarithmic(panel.xaxis)
        _logarithmic(panel.yaxis)
        _legend(panel)
    for empty in axes.flat[len(panels) :]:
        empty.set_visible(False)
    return figure


def errors(rows: Sequence[Row]) -> Figure | None:
    """The largest error against float64, in units of torch's, over the speed in units of torch's best: right and low is better."""
    shown = [(r, p) for r in rows if r.timed and r.error and r.peer_error and r.who != "torch" and (p := best_peer(rows, r)) is not None]
    if not shown:
        return None
    figure, ((axes,),) = _figure(8, 5)
    for name, (colour, marker) in _contenders([r for r, _ in shown]).items():
        these = [(p.median / r.median, r.error / r.peer_error) for r, p in shown if r.contender == name and r.error and r.peer_error]
        axes.scatter(*zip(*these, strict=True), s=28, marker=marker, color=colour, alpha=0.8, label=name)
    axes.axhline(1, color="#222222", lw=1)
    axes.axvline(1, color="#222222", lw=1)
    axes.axhline(2, color="#b3261e", lw=1, ls="--", label="twice torch's error: the rule")
    axes.set(xscale="log", yscale="log", title="Error against speed: to the right is faster, below is more exact")
    axes.set(xlabel="torch's best time / this time", ylabel="error / torch's error")
    _logarithmic(axes.xaxis)
    _logarithmic(axes.yaxis)
    _legend(axes)
    return figure


def models(rows: Sequence[Row]) -> Figure | None:
    """Images per second of whole models, a panel for each race, its contenders from the fastest down, with 95 % intervals."""
    panels = [[r for r in race if r.timed] for race in model_tables.races(rows)]
    panels = [sorted(race, key=lambda r: -r.median) for race in panels if race]
    if not panels:
        return None
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = _figure(6.2 * columns, 0.9 + lines * (0.7 + 0.27 * max(map(len, panels))), nrows=lines, ncols=columns)
    colours = dict(zip(model_tables.TITLES, COLOURS, strict=False))
    for panel, race in zip(axes.flat, panels, strict=False):
        rates = [model_tables.images_per_second(r) for r in race]
        # The interval of a rate is that of the time, upside down.
        spans = [
            (rate - rate * r.median / r.interval[1], rate * r.median / r.interval[0] - rate) for r, rate in zip(race, rates, strict=True)
        ]
        faded = [1.0 if r.status == OK else 0.4 for r in race]
        bars = panel.barh(range(len(race)), rates, color=[colours.get(r.who, COLOURS[-1]) for r in race], height=0.66)
        for bar, alpha in zip(bars, faded, strict=True):
            bar.set_alpha(alpha)
        panel.errorbar(rates, range(len(race)), xerr=list(zip(*spans, strict=True)), fmt="none", ecolor="#222222", elinewidth=1, capsize=2)
        for i, (rate, (_, above)) in enumerate(zip(rates, spans, strict=True)):
            panel.annotate(model_tables.plain(rate), (rate + above, i), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8)
        panel.set_yticks(range(len(race)), [_contender(r) for r in race], fontsize=8)
        panel.set_xlim(0, 1.12 * max(rate + above for rate, (_, above) in zip(rates, spans, strict=True)))
        panel.set_title(model_tables.title(race[0]), fontsize=9)
        panel.set_xlabel("images per second" + ("; faded: no verdict" if min(faded) < 1 else ""), fontsize=8)
        panel.grid(visible=False, axis="y")
    for empty in axes.flat[len(panels) :]:
        empty.set_visible(False)
    return figure


def _contender(row: Row) -> str:
    layout = {"contiguous": "NCHW", "channels_last": "NHWC"}[row.layout]
    return model_tables.TITLES.get(row.who, row.who) + (f", {layout}" if row.contender != row.who else "")


PICTURES: dict[str, Callable[[Sequence[Row]], Figure | None]] = {
    "speedups": speedups,
    "roofline": roofline,
    "bandwidth": bandwidth,
    "sizes": sizes,
    "errors": errors,
    "models": models,
}


def svg(figure: Figure) -> str:
    """The figure as one <svg> element, the same bytes for the same numbers, its text as text."""
    text = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "fastcv"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    whole = text.getvalue()
    return whole[whole.index("<svg") :]


def write(path: Path, figure: Figure) -> None:
    """The figure in the format that the file's name ends in, written whole. Raises OSError, and ValueError for an unknown format."""
    fresh = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        figure.savefig(fresh)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def write_all(folder: Path, rows: Sequence[Row]) -> list[Path]:
    """The pictures that these rows allow, as PNG files. Raises OSError where the folder cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, draw in PICTURES.items():
        figure = draw(rows)
        if figure is not None:
            written.append(folder / f"{name}.png")
            write(written[-1], figure)
    return written
