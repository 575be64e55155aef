"""The result of fastcv.explain: a table to print, JSON to keep, one HTML page to send."""

from __future__ import annotations

import json
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
class Layer:
    """One module, or the code of a module's own forward; of all its calls in one call of the model.

    ops: what ran, name -> number of calls; fastcv's with the prefix "fastcv.", the others are torch's. fused: the steps that
    ran within the layer. flops: operations of convolutions, products and distances; 0 for what is bound by memory. bytes: of
    all tensors that the ops name. seconds: median, without the modules within. torch_seconds: the same modules on torch.
    bound, least_seconds: which roof is the nearer one and the time it allows ("" and 0 where there is none).
    conversions: copies into another layout. reason: why it runs on torch or was not fused.
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
    seconds outside the layers, in the Python code of the model. spread: 10th and 90th percentile of the model's total.
    """

    model: str
    layers: list[Layer]
    totals: dict[str, float]
    between_layers: float
    spread: tuple[float, float]
    rounds: int
    inputs: str
    machine: dict[str, Any] = field(default_factory=dict)

    def by_time(self) -> list[Layer]:
        """The layers, slowest first."""
        return sorted(self.layers, key=lambda layer: -layer.seconds)

    def findings(self) -> list[str]:
        """What the measurement says about the model as a whole, one sentence each."""
        total, torchs = self.totals["model"], self.totals["torch"]
        lines = [f"{_time(total)} per call; the same model on torch {_time(torchs)} ({torchs / total:.2f}x)"]
        other = self.totals.get("channels_last")
        if other is not None:
            lines.append(f"with parameters and inputs in channels_last: {_time(other)} ({total / other:.2f}x)")
        for where in ("torch", "both"):
            left = [layer for layer in self.layers if layer.runs_on == where]
            if left:
                what = "on torch" if where == "torch" else "partly on torch"
                share = 100 * sum(layer.seconds for layer in left) / total
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

    def _rows(self) -> list[tuple[str, ...]]:
        total = self.totals["model"]
        return [
            (
                layer.name or "(model)",
                layer.title,
                f"{1e3 * layer.seconds:.3f}",
                f"{100 * layer.seconds / total:.1f}",
                f"{layer.torch_seconds / layer.seconds:.2f}" if layer.seconds > 0 else "",
                layer.runs_on,
                layer.kernel,
                f"{layer.flops / layer.seconds / 1e9:.0f}" if layer.flops and layer.seconds > 0 else "",
                f"{layer.bytes / layer.seconds / 1e9:.1f}" if layer.seconds > 0 else "",
                f"{layer.roof_percent:.0f} {layer.bound}" if layer.bound else "",
                "; ".join(self.remarks(layer)),
            )
            for layer in self.by_time()
        ]

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
        table = [_HEADER, *self._rows()]
        widths = [max(len(line[i]) for line in table) for i in range(len(_HEADER))]
        lines = ["  ".join(_aligned(i, cell, width) for i, (cell, width) in enumerate(zip(line, widths, strict=True))) for line in table]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join([self._heading(), *(line.rstrip() for line in lines), *self.findings()])

    def __rich_console__(self, console: Any, options: Any) -> Any:
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        shown = [i for i, least in enumerate(_SHOWN_FROM) if options.max_width >= least]
        for i in shown:
            table.add_column(_HEADER[i], justify="right" if i in _NUMBERS else "left", overflow="fold", no_wrap=i in _NUMBERS)
        for layer, row in zip(self.by_time(), self._rows(), strict=True):
            table.add_row(*(row[i] for i in shown), style="" if layer.runs_on == "fastcv" else "yellow")
        yield self._heading()
        yield table
        yield "\n".join(self.findings())


_HEADER = ("layer", "type", "ms", "%", "x torch", "runs on", "kernel", "GFLOP/s", "GB/s", "% of roof", "why not faster")
_NUMBERS = frozenset((2, 3, 4, 7, 8))
_SHOWN_FROM = (0, 120, 0, 0, 0, 100, 0, 100, 100, 0, 150)  # the terminal's width from which a column is shown


def _aligned(i: int, cell: str, width: int) -> str:
    return cell.rjust(width) if i in _NUMBERS else cell.ljust(width)


def _time(seconds: float) -> str:
    return f"{1e3 * seconds:.2f} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.0f} µs"


def _bytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
