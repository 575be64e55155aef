"""What optimize did and did not do, and why: a table to print and JSON to keep."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

RUNS_ON_TORCH = "runs on torch: "  # begins the reason of a layer that fastcv could serve, and leaves to torch because that is better


@dataclass
class Row:
    """One module. op: the fastcv op it runs on ("" if none). fused: what the op computes besides, by name. reason: why it was
    left alone or not fused ("" if neither), or why torch's kernel was taken. packed_bytes: what a linear layer's weight takes
    once more, packed, from its first call on. max_error, allowed: against float64 on the example, and what torch's own allows.
    saved_bytes: with an example, of the map that it puts out: what the convolutions after it need not keep for the backward pass (in
    training mode), and what was never written because its pooling is fused.
    """

    name: str
    type: str
    op: str = ""
    fused: list[str] = field(default_factory=list)
    reason: str = ""
    max_error: float | None = None
    allowed: float | None = None
    saved_bytes: int = 0
    packed_bytes: int = 0


@dataclass
class Report:
    """rows: every module that fastcv serves or that resembles one. left_to_torch: the other leaf modules, counted by type.

    errors: with an example, name -> (error, allowed) of the whole model: "output" and, in training mode, "gradient".
    both_layouts: whether what is allowed comes from the worse of torch's answers in two layouts (yardstick.py).
    layout_kept: in inference with an example, why row-major images stay row-major inside the model; "" if they do not.
    """

    mode: str
    rows: list[Row] = field(default_factory=list)
    left_to_torch: dict[str, int] = field(default_factory=dict)
    errors: dict[str, tuple[float, float]] = field(default_factory=dict)
    both_layouts: bool = False
    layout_kept: str | None = None

    def skipped(self) -> list[Row]:
        """The rows with a reason other than that torch's kernel is better: what strict=True raises about."""
        return [row for row in self.rows if row.reason and not row.reason.startswith(RUNS_ON_TORCH)]

    @property
    def saved_bytes(self) -> int:
        """Of all rows, for one batch like the example; 0 without an example."""
        return sum(row.saved_bytes for row in self.rows)

    def to_json(self, indent: int | None = 2) -> str:
        """The report as JSON text."""
        return json.dumps(asdict(self) | {"saved_bytes": self.saved_bytes}, indent=indent)

    def __str__(self) -> str:
        header = ("module", "type", "op", "fused with", "max error", "saved", "not done, because")
        table = [header]
        for row in self.rows:
            error = "" if row.max_error is None else f"{row.max_error:.1e}"
            saved = f"{row.saved_bytes / 1e6:.2f} MB" if row.saved_bytes else ""
            table.append((row.name or "(model)", row.type, row.op or "-", " + ".join(row.fused), error, saved, row.reason))
        widths = [max(len(line[i]) for line in table) for i in range(len(header))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
        lines.insert(1, "  ".join("-" * width for width in widths))
        served = sum(bool(row.op) for row in self.rows)
        chains = sum(bool(row.fused) for row in self.rows)
        lines.append(
            f"{self.mode}: {served} of {len(self.rows)} modules on fastcv, {chains} fused chains, {len(self.skipped())} with a reason"
        )
        if self.left_to_torch:
            lines.append("left to torch: " + ", ".join(f"{name} x{count}" for name, count in sorted(self.left_to_torch.items())))
        if self.layout_kept is not None:
            lines.append(
                f"images keep their layout: {self.layout_kept}" if self.layout_kept else "row-major images: channels_last inside the model"
            )
        if packed := sum(row.packed_bytes for row in self.rows):
            lines.append(f"packed weights of linear layers, from the first call on: up to {packed / 1e6:.1f} MB beside the model's own")
        if self.saved_bytes:
            saved = f"{self.saved_bytes / 1e6:.2f} MB"
            lines.append(f"saved for one batch like the example: {saved}, never written or computed again in the backward pass")
        for name, (error, allowed) in self.errors.items():
            own = "torch's own in the worse of its two layouts" if self.both_layouts else "torch's own"
            lines.append(f"{name} error against float64: {error:.1e} (allowed {allowed:.1e}: 2x {own} + eps)")
        return "\n".join(lines)
