"""The picture of a run, from its tables alone: gpu.png can be drawn anew on any machine.

Above, each layer's speed-up of the fastest fastcv kernel over torch's fastest call, by pass; in the middle the roofline of the layers and
the ceilings; below, the speed-ups of the timed cases.
"""

from __future__ import annotations

from pathlib import Path
from statistics import geometric_mean
from typing import Any

from . import layers
from .results import Row, read

COLOURS = {"forward": "#0072b2", "input gradient": "#d55e00", "weight gradient": "#009e73"}


def _number(row: Row, column: str) -> float:
    try:
        return float(row.get(column, ""))
    except ValueError:
        return 0.0


def best(rows: list[Row]) -> dict[tuple[str, str, str], dict[str, Row]]:
    """(layer, dtype, pass) -> the fastest right row of torch and of fastcv."""
    found: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in rows:
        us, who = _number(row, "us"), row.get("contender", "").split(" ")[0].split(".")[0]
        if not us or row.get("wrong") or row.get("failed"):
            continue
        fastest = found.setdefault((row["layer"], row["dtype"], row["pass"]), {})
        if who not in fastest or us < _number(fastest[who], "us"):
            fastest[who] = row
    return {key: both for key, both in found.items() if {"torch", "fastcv"} <= both.keys()}


def draw(folder: Path) -> Path | None:
    """Writes gpu.png beside the tables; None where they hold nothing to draw. Raises ImportError without matplotlib."""
    from matplotlib.figure import Figure

    pairs = best(read(folder / "gpu_layers.csv"))
    timed = [row for row in read(folder / "gpu_timings.csv") if _number(row, "ratio")]
    ceilings = {row["ceiling"]: _number(row, "value") for row in read(folder / "gpu_ceilings.csv")}
    if not pairs and not timed:
        return None
    figure = Figure(figsize=(15, 19), layout="constrained", dpi=100)
    rows = figure.subfigures(3, 1, height_ratios=(6, 6, 5))
    for axes, dtype in zip(rows[0].subplots(1, 2, sharex=True), layers.DTYPES, strict=True):
        _speedups(axes, {key: both for key, both in pairs.items() if key[1] == dtype}, dtype)
    for axes, dtype in zip(rows[1].subplots(1, 2, sharey=True), layers.DTYPES, strict=True):
        _roofline(axes, {key: both for key, both in pairs.items() if key[1] == dtype}, dtype, ceilings)
    for axes, which in zip(rows[2].subplots(1, 2), ("fwd", "fwd+bwd"), strict=True):
        _cases(axes, [row for row in timed if row["pass"] == which], which)
    path, fresh = folder / "gpu.png", folder / ".gpu.png"
    figure.savefig(fresh, format="png")
    fresh.replace(path)
    return path


def _plain(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)


def _bars(axes: Any, at: list[float], ratios: list[float], height: float, colour: str, label: str) -> None:
    """From 1 to each ratio: to the right where fastcv is faster."""
    axes.barh(at, [ratio - 1 for ratio in ratios], height, left=1, color=colour, label=label)


def _times(axes: Any) -> None:
    """A logarithmic axis of ratios, with plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.5), max(high, 2))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)


def _speedups(axes: Any, pairs: dict[tuple[str, str, str], dict[str, Row]], dtype: str) -> None:
    names = list(layers.LAYERS)
    for i, (which, colour) in enumerate(COLOURS.items()):
        mine = {key[0]: both for key, both in pairs.items() if key[2] == which}
        at = [names.index(name) + (i - 1) * 0.27 for name in mine]
        _bars(axes, at, [_number(b["torch"], "us") / _number(b["fastcv"], "us") for b in mine.values()], 0.25, colour, which)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel("speed-up over torch's fastest call")
    _times(axes)
    _plain(axes, f"Layers in {dtype}")


def _roofline(axes: Any, pairs: dict[tuple[str, str, str], dict[str, Row]], dtype: str, ceilings: dict[str, float]) -> None:
    for who, marker in (("torch", "o"), ("fastcv", "^")):
        for which, colour in COLOURS.items():
            mine = [(layers.LAYERS[key[0]], both[who]) for key, both in pairs.items() if key[2] == which and key[0] in layers.LAYERS]
            per_byte = [layer.flops / _bytes(layer, dtype) for layer, _ in mine]
            axes.plot(per_byte, [_number(row, "tflops") for _, row in mine], marker, color=colour, alpha=0.75, label=f"{who}, {which}")
    copy, peak = ceilings.get("copy", 0.0) / 1e3, ceilings.get(f"matmul {dtype}", 0.0)
    if copy and peak:
        corner = peak / copy
        axes.plot(
            [1, corner, max(5000, 2 * corner)],
            [copy, peak, peak],
            color="black",
            linewidth=1,
            label="copy, then torch's product of matrices",
        )
    for name, value in ceilings.items():
        if name.endswith(dtype) and not name.startswith("matmul"):
            axes.axhline(value, color="grey", linewidth=0.8, linestyle=":")
            axes.text(1.1, value, f" {name}", fontsize=7, va="bottom")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations per byte")
    axes.set_ylabel("TFLOP/s")
    axes.legend(frameon=False, fontsize=7, loc="lower right")
    _plain(axes, f"Roofline in {dtype}: fastest calls")


def _bytes(layer: layers.Layer, dtype: str) -> int:
    total = 0
    for shape in layer.shapes():
        size = layers.DTYPES[dtype].itemsize
        for n in shape:
            size *= n
        total += size
    return total


def _cases(axes: Any, rows: list[Row], which: str) -> None:
    """One bar per op and dtype: the geometric mean of its cases, and each case as a dot."""
    ratios: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        ratios.setdefault((row["case"].split("-")[0], row["dtype"]), []).append(_number(row, "ratio"))
    names = sorted({op for op, _ in ratios})
    for i, dtype in enumerate(("bf16", "f32")):
        mine = {op: values for (op, d), values in ratios.items() if d == dtype}
        at = [names.index(op) + (i - 0.5) * 0.4 for op in mine]
        _bars(axes, at, [geometric_mean(v) for v in mine.values()], 0.36, ("#56b4e9", "#e69f00")[i], f"{dtype}, mean")
        for y, values in zip(at, mine.values(), strict=True):
            axes.plot(values, [y] * len(values), ".", color="black", markersize=3)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel("speed-up over torch")
    _times(axes)
    _plain(axes, f"Timed cases, {which}")
