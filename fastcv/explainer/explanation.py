"""The result of fastcv.explain: a table to print, JSON to keep, one HTML page to send."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from .watch import Conversion


class Choice(NamedTuple):
    """The variant that an op took, and (variant, reason) of each that stands before it in the table."""

    op: str
    variant: str
    not_taken: tuple[tuple[str, str], ...]


@dataclass
class Backward:
    """What a layer does in the backward pass, for the gradients of its inputs and parameters; fields as those of Layer."""

    ops: dict[str, int] = field(default_factory=dict)
    choices: list[Choice] = field(default_factory=list)
    flops: int = 0
    bytes: int = 0
    seconds: float = 0.0
    torch_seconds: float = 0.0
    bound: str = ""
    least_seconds: float = 0.0

    @property
    def kernel(self) -> str:
        """The variants that ran, with their ops, or torch's ops."""
        if self.choices:
            return ", ".join(dict.fromkeys(f"{choice.op.removeprefix('conv_')} {choice.variant}" for choice in self.choices))
        return ", ".join(self.ops)

    @property
    def roof_percent(self) -> float:
        """As Layer.roof_percent."""
        return 100 * self.least_seconds / self.seconds if self.seconds > 0 else 0.0


@dataclass
class Layer:
    """One module, or the code of a module's own forward; of all its calls in one call of the model.

    ops: what ran, name -> number of calls; fastcv's with the prefix "fastcv.", the others are torch's. fused: the steps that
    ran within the layer; members: the modules that are part of it. flops: operations of convolutions, products and distances; 0
    for what is bound by memory. bytes: of all tensors that the ops name. seconds: median, without the modules within.
    torch_seconds: the same modules on torch.
    bound, least_seconds: which roof is the nearer one and the time it allows ("" and 0 where there is none).
    conversions: copies into another layout. reason: why it runs on torch or was not fused. backward: if it was asked for.
    """

    name: str
    type: str
    fused: list[str]
    ops: dict[str, int]
    choices: list[Choice]
    input: list[int]
    output: list[int]
    dtype: str
    layout: str
    calls: int
    flops: int
    bytes: int
    seconds: float
    torch_seconds: float
    conversions: list[Conversion]
    reason: str
    bound: str = ""
    least_seconds: float = 0.0
    members: list[str] = field(default_factory=list)
    backward: Backward | None = None

    @property
    def all_seconds(self) -> float:
        """Forward and, where it was measured, backward."""
        return self.seconds + (self.backward.seconds if self.backward else 0.0)

    @property
    def all_torch_seconds(self) -> float:
        """The same of the same modules on torch."""
        return self.torch_seconds + (self.backward.torch_seconds if self.backward else 0.0)

    @property
    def runs_on(self) -> str:
        """ "fastcv", "torch" or "both"."""
        ours = [op.startswith("fastcv.") for op in self.ops]
        return "fastcv" if all(ours) else "both" if any(ours) else "torch"

    @property
    def roof_percent(self) -> float:
        """100 * least_seconds / seconds: above 100 where an algorithm needs fewer operations (Winograd) or bytes than counted."""
        return 100 * self.least_seconds / self.seconds if self.seconds > 0 else 0.0

    @property
    def title(self) -> str:
        """The type with the steps that are fused into it."""
        parent = self.name.rpartition(".")[0]
        return " + ".join([self.type, *(step.removeprefix(f"{parent}.") for step in self.fused)])

    @property
    def kernel(self) -> str:
        """The variants that ran, or torch's ops."""
        if self.choices:
            return ", ".join(dict.fromkeys(choice.variant for choice in self.choices))
        return ", ".join(self.ops)


@dataclass
class Explanation:
    """layers: in the order they ran. totals: median seconds of one call, of "model", "torch" (the same model on torch alone) and,
    for 4-dimensional inputs, "channels_last" (the model with its parameters and inputs in channels_last). between_layers: median
    seconds outside the layers, in the Python code of the model. spread: 10th and 90th percentile of the model's total. The two are
    of the forward pass; backward_totals: the same of the backward pass, where it was asked for, with what lies between the layers
    under "between".
    """

    model: str
    layers: list[Layer]
    totals: dict[str, float]
    between_layers: float
    spread: tuple[float, float]
    rounds: int
    inputs: str
    machine: dict[str, Any] = field(default_factory=dict)
    backward_totals: dict[str, float] = field(default_factory=dict)

    def by_time(self) -> list[Layer]:
        """The layers, slowest first."""
        return sorted(self.layers, key=lambda layer: -layer.all_seconds)

    @property
    def all_seconds(self) -> float:
        """Of one call of the model, forward and, where it was measured, backward."""
        return self.totals["model"] + self.backward_totals.get("model", 0.0)

    def findings(self) -> list[str]:
        """What the measurement says about the model as a whole, one sentence each."""
        total, torchs = self.totals["model"], self.totals["torch"]
        lines = [f"{_time(total)} per call; the same model on torch {_time(torchs)} ({torchs / total:.2f}x)"]
        if self.backward_totals:
            total, torchs = self.backward_totals["model"], self.backward_totals["torch"]
            lines.append(f"backward {_time(total)}; on torch {_time(torchs)} ({torchs / total:.2f}x)")
            total = self.totals["model"]
        other = self.totals.get("channels_last")
        if other is not None:
            lines.append(f"with parameters and inputs in channels_last: {_time(other)} ({total / other:.2f}x)")
        for where in ("torch", "both"):
            left = [layer for layer in self.layers if layer.runs_on == where]
            if left:
                what = "on torch" if where == "torch" else "partly on torch"
                share = 100 * sum(layer.all_seconds for layer in left) / self.all_seconds
                lines.append(f"{len(left)} of {len(self.layers)} layers {what}, {share:.0f}% of the time")
        copies = [c for layer in self.layers for c in layer.conversions]
        if copies:
            lines.append(f"{len(copies)} layout conversions, {_bytes(sum(c.bytes for c in copies))} moved")
        lines.append(f"{100 * self.between_layers / total:.0f}% of the time is between the layers")
        if self.spread[1] > 1.25 * self.spread[0]:
            lines.append(f"unsteady: one call in ten took less than {_time(self.spread[0])}, one in ten more than {_time(self.spread[1])}")
        return lines

    def to_json(self, indent: int | None = 2) -> str:
        """Everything as JSON text; seconds, bytes and FLOPs as numbers."""
        data = asdict(self)
        for row, layer in zip(data["layers"], self.layers, strict=True):
            row |= {"runs_on": layer.runs_on, "roof_percent": layer.roof_percent}
            row["choices"] = [choice._asdict() for choice in layer.choices]
            if layer.backward is not None:
                row["backward"] |= {"roof_percent": layer.backward.roof_percent}
                row["backward"]["choices"] = [choice._asdict() for choice in layer.backward.choices]
        return json.dumps(data | {"findings": self.findings()}, indent=indent)

    def to_html(self) -> str:
        """One page without anything from elsewhere."""
        from .page import page

        return page(self)

    def save(self, path: str | Path) -> Path:
        """Writes the page (.html) or the JSON text (.json). Raises ValueError for other endings."""
        path = Path(path)
        if path.suffix not in (".html", ".json"):
            raise ValueError(f"Explanation.save: the path must end in .html or .json, got {path.name!r}")
        path.write_text(self.to_html() if path.suffix == ".html" else self.to_json(), encoding="utf-8")
        return path

    def _columns(self) -> list[_Column]:
        total = self.all_seconds
        columns = [
            _Column("layer", lambda layer: layer.name or "(model)"),
            _Column("type", lambda layer: layer.title, shown_from=120),
            _Column("ms", lambda layer: f"{1e3 * layer.seconds:.3f}", number=True),
            _Column("%", lambda layer: f"{100 * layer.all_seconds / total:.1f}", number=True),
            _Column("x torch", lambda layer: _ratio(layer.all_torch_seconds, layer.all_seconds), number=True),
            _Column("runs on", lambda layer: layer.runs_on, shown_from=100),
            _Column("kernel", lambda layer: layer.kernel),
            _Column("GFLOP/s", lambda layer: _rate(layer.flops, layer.seconds, 0) if layer.flops else "", number=True, shown_from=100),
            _Column("GB/s", lambda layer: _rate(layer.bytes, layer.seconds, 1), number=True, shown_from=100),
            _Column("% of roof", lambda layer: f"{layer.roof_percent:.0f} {layer.bound}" if layer.bound else ""),
            _Column("why not faster", lambda layer: "; ".join(self.remarks(layer)), shown_from=150),
        ]
        if self.backward_totals:
            columns.insert(3, _Column("back ms", lambda layer: f"{1e3 * layer.backward.seconds:.3f}", number=True))
            columns.insert(8, _Column("gradients' kernels", lambda layer: layer.backward.kernel, shown_from=140))
        return columns

    def remarks(self, layer: Layer) -> list[str]:
        """Why the layer is not faster: why torch runs it, conversions, and the variant that comes next before the chosen one."""
        lines = [layer.reason] if layer.reason else []
        if layer.conversions:
            lines.append(f"{len(layer.conversions)} copies to {layer.conversions[0].to}, {_bytes(sum(c.bytes for c in layer.conversions))}")
        lines += [f"not {c.not_taken[-1][0]}: {c.not_taken[-1][1]}" for c in layer.choices if c.not_taken]
        return list(dict.fromkeys(lines))

    def _heading(self) -> str:
        machine = self.machine
        return (
            f"{self.model} on {self.inputs}; {machine['processor']}, {machine['isa']}, {machine['threads']} threads, "
            f"{machine['fma_roof'] / 1e9:.0f} GFLOP/s, copy {machine['copy_roof'] / 1e9:.1f} GB/s; median of {self.rounds} calls"
        )

    def __str__(self) -> str:
        columns = self._columns()
        table = [[c.title for c in columns], *([c.cell(layer) for c in columns] for layer in self.by_time())]
        widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
        lines = ["  ".join(_aligned(c, cell, width) for c, cell, width in zip(columns, line, widths, strict=True)) for line in table]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join([self._heading(), *(line.rstrip() for line in lines), *self.findings()])

    def __rich_console__(self, console: Any, options: Any) -> Any:
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        shown = [c for c in self._columns() if options.max_width >= c.shown_from]
        for c in shown:
            table.add_column(c.title, justify="right" if c.number else "left", overflow="fold", no_wrap=c.number)
        for layer in self.by_time():
            table.add_row(*(c.cell(layer) for c in shown), style="" if layer.runs_on == "fastcv" else "yellow")
        yield self._heading()
        yield table
        yield "\n".join(self.findings())


@dataclass(frozen=True)
class _Column:
    """Of the printed table. shown_from: the terminal's width from which it is shown."""

    title: str
    cell: Callable[[Layer], str]
    number: bool = False
    shown_from: int = 0


def _aligned(column: _Column, cell: str, width: int) -> str:
    return cell.rjust(width) if column.number else cell.ljust(width)


def _ratio(torchs: float, ours: float) -> str:
    return f"{torchs / ours:.2f}" if ours > 0 else ""


def _rate(amount: int, seconds: float, digits: int) -> str:
    return f"{amount / seconds / 1e9:.{digits}f}" if seconds > 0 else ""


def _time(seconds: float) -> str:
    return f"{1e3 * seconds:.2f} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.0f} µs"


def _bytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
