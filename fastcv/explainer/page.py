"""The HTML page of an Explanation: page.html filled in. Nothing in it is loaded from elsewhere, and nothing in it is a script."""

from __future__ import annotations

import math
from html import escape
from importlib import resources
from string import Template
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .explanation import Backward, Explanation, Layer

_KINDS = {"fastcv": "on fastcv", "both": "partly on torch", "torch": "on torch"}
_BACKWARD_NOTE = (
    "<p>“Backward” is the time for the gradients of the layer's inputs and parameters: of the nodes of autograd's graph that were made "
    "while it ran, and of adding to its parameters' gradients. The other columns are of the forward pass; percentages are of both passes "
    "together.</p>"
)
_TOTALS = {"model": "this model", "torch": "on torch alone", "channels_last": "in channels_last"}


def page(explanation: Explanation) -> str:
    """The page's text."""
    from .explanation import _time

    machine = explanation.machine
    parts = _shares(explanation)
    template = Template(resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    return template.substitute(
        model=escape(explanation.model),
        inputs=escape(explanation.inputs),
        machine=escape(
            f"{machine['processor']}, {machine['isa']}, {machine['threads']} threads; "
            f"float32 roof {machine['fma_roof'] / 1e9:.0f} GFLOP/s, "
            f"copy {machine['copy_roof'] / 1e9:.1f} GB/s; fastcv {machine['fastcv']}, torch {machine['torch']}"
        ),
        totals="\n".join(
            f"<li><strong>{_time(times[k])}</strong>{text}{passed}</li>"
            for passed, times in _passes(explanation)
            for k, text in _TOTALS.items()
            if k in times
        ),
        findings="".join(f'<p class="soft">{escape(line)}</p>\n' for line in explanation.findings()[1:] if "channels_last" not in line),
        share="".join(f'<span class="{kind}" style="width:{share:.2f}%"></span>' for kind, _, share in parts),
        share_label=escape("Share of the time: " + ", ".join(f"{text} {share:.0f}%" for _, text, share in parts)),
        legend="\n".join(f'<li><i class="{kind}"></i>{text}: {share:.1f}%</li>' for kind, text, share in parts),
        rows="\n".join(_row(explanation, layer) for layer in explanation.by_time()),
        backward_column='<th scope="col">Backward</th>' if explanation.backward_totals else "",
        backward_note=_BACKWARD_NOTE if explanation.backward_totals else "",
        roofline=_roofline(explanation),
        rounds=explanation.rounds,
    )


def _passes(explanation: Explanation) -> list[tuple[str, dict[str, float]]]:
    """What stands behind the names of the totals, and the totals, of each pass that was measured."""
    if not explanation.backward_totals:
        return [("", explanation.totals)]
    return [(", forward", explanation.totals), (", backward", explanation.backward_totals)]


def _shares(explanation: Explanation) -> list[tuple[str, str, float]]:
    # Medians do not add up to the median of the whole where the machine is disturbed: what they leave is its own part.
    between = explanation.between_layers + explanation.backward_totals.get("between", 0.0)
    counted = sum(layer.all_seconds for layer in explanation.layers) + between
    total = max(explanation.all_seconds, counted)
    parts = [
        (kind, text, 100 * sum(layer.all_seconds for layer in explanation.layers if layer.runs_on == kind) / total)
        for kind, text in _KINDS.items()
    ]
    parts.append(("between", "between the layers (Python, autograd's engine)", 100 * between / total))
    parts.append(("rest", "in no median (a disturbed machine)", 100 * (total - counted) / total))
    return [p for p in parts if p[2] > 0]


def _row(explanation: Explanation, layer: Layer) -> str:
    total = explanation.all_seconds
    slowest = max(max(one.seconds, one.backward.seconds if one.backward else 0.0) for one in explanation.layers)
    kind = layer.runs_on
    name = escape(layer.name or "(model)")
    cells = [
        f'<th scope="row">{name}<br><span class="soft">{escape(layer.title)}</span></th>',
        _time_cell(layer.seconds, total, slowest, kind, ""),
        f'<td class="n">{_ratio(layer)}</td>',
        f'<td><span class="tag {kind}">{_KINDS[kind]}</span><br><code>{escape(layer.kernel)}</code></td>',
        f"<td>{_sizes(layer.input)} → {_sizes(layer.output)}<br>"
        f'<span class="soft">{escape(layer.dtype)} {escape(layer.layout)}{f", {layer.calls} calls" if layer.calls > 1 else ""}</span></td>',
        f'<td class="n">{f"{layer.flops / layer.seconds / 1e9:.0f}" if layer.flops else "-"}</td>',
        f'<td class="n">{layer.bytes / layer.seconds / 1e9:.1f}</td>',
        f'<td class="n">{f"{layer.roof_percent:.0f}%<br><span class=soft>{layer.bound}</span>" if layer.bound else "-"}</td>',
        f"<td>{_why(explanation, layer)}</td>",
    ]
    if layer.backward is not None:
        cells.insert(3, _backward_cell(layer.backward, total, slowest))
    return f"<tr>{''.join(cells)}</tr>"


def _time_cell(seconds: float, total: float, slowest: float, kind: str, more: str) -> str:
    return (
        f'<td class="time">{1e3 * seconds:.3f} ms <span class="soft">{100 * seconds / total:.1f}%</span>'
        f'<span class="bar {kind}" style="width:{100 * seconds / slowest:.1f}%"></span>{more}</td>'
    )


def _backward_cell(part: Backward, total: float, slowest: float) -> str:
    ours = [op.startswith("fastcv.") for op in part.ops]
    kind = "fastcv" if all(ours) else "both" if any(ours) else "torch"
    against = f"on torch {1e3 * part.torch_seconds:.3f} ms, {part.torch_seconds / part.seconds:.2f}x" if part.seconds > 0 else ""
    roof = f"; {part.roof_percent:.0f}% of the roof ({part.bound})" if part.bound and part.seconds > 0 else ""
    return _time_cell(
        part.seconds, total, slowest, kind, f'<span class="soft">{against}{roof}</span><br><code>{escape(part.kernel)}</code>'
    )


def _ratio(layer: Layer) -> str:
    if not layer.torch_seconds:
        return "-"
    return f"{1e3 * layer.torch_seconds:.3f} ms<br><span class=soft>{layer.torch_seconds / layer.seconds:.2f}x</span>"


def _sizes(sizes: list[int]) -> str:
    return "\u00d7".join(map(str, sizes)) if sizes else "scalar"


def _why(explanation: Explanation, layer: Layer) -> str:
    remarks = explanation.remarks(layer)
    text = "<br>".join(map(escape, remarks)) or '<span class="soft">first choice of its table</span>'
    refused = [(c.op, *pair) for c in layer.choices for pair in c.not_taken]
    if len(refused) < 2:
        return text
    items = "".join(f"<li><code>{escape(op)}: {escape(variant)}</code> {escape(reason)}</li>" for op, variant, reason in refused)
    return f"{text}<details><summary>the {len(refused)} variants before it</summary><ul>{items}</ul></details>"


# ---- the roofline: attained against allowed, both axes logarithmic -------------------------------------------------------------

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 1000, 380, 70, 46, 14, 16


def _roofline(explanation: Explanation) -> str:
    layers = [layer for layer in explanation.layers if layer.flops and layer.bytes and layer.seconds > 0 and layer.dtype == "float32"]
    if not layers:
        return ""
    peak, copy = explanation.machine["fma_roof"] / 1e9, explanation.machine["copy_roof"] / 1e9
    points = [(layer.flops / layer.bytes, layer.flops / layer.seconds / 1e9, layer) for layer in layers]
    xs = [p[0] for p in points] + [peak / copy]
    ys = [p[1] for p in points] + [peak]
    x0, x1 = math.floor(math.log10(min(xs))), math.ceil(math.log10(max(xs) * 1.01))
    y0, y1 = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys) * 1.01))

    def x(value: float) -> float:
        return _LEFT + (math.log10(value) - x0) / (x1 - x0) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _TOP + (y1 - math.log10(value)) / (y1 - y0) * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    for power in range(x0, x1 + 1):
        at = x(10.0**power)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
        parts.append(f'<text x="{at:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{10.0**power:g}</text>')
    for power in range(y0, y1 + 1):
        at = y(10.0**power)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{10.0**power:g}</text>')
    corner = peak / copy
    low = max(10.0**x0, 10.0**y0 / copy)
    parts.append(f'<path class="roof" d="M{x(low):.1f} {y(low * copy):.1f} L{x(corner):.1f} {y(peak):.1f} H{_WIDTH - _RIGHT}"/>')
    for intensity, rate, layer in points:
        radius = 4 + 10 * math.sqrt(layer.seconds / explanation.totals["model"])
        label = f"{layer.name}: {rate:.0f} GFLOP/s, {intensity:.1f} FLOP per byte, {1e3 * layer.seconds:.3f} ms"
        place = f'cx="{x(intensity):.1f}" cy="{y(rate):.1f}" r="{radius:.1f}"'
        parts.append(f'<circle class="{layer.runs_on}" {place}><title>{escape(label)}</title></circle>')
    parts.append(f'<text x="{(_LEFT + _WIDTH) / 2:.0f}" y="{_HEIGHT - 8}" text-anchor="middle">FLOP per byte</text>')
    parts.append(f'<text transform="translate(16 {_HEIGHT / 2:.0f}) rotate(-90)" text-anchor="middle">GFLOP/s</text>')
    label = f"Roofline: {len(points)} float32 layers under {peak:.0f} GFLOP/s and {copy:.1f} GB/s; the numbers stand in the table."
    return (
        "<h2>Roofline</h2>\n<figure>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
        f'<figcaption class="soft">float32 layers with arithmetic, their area by time. The line: {peak:.0f} GFLOP/s, and {copy:.1f} GB/s '
        "of a copy of 256 MB; layers whose tensors fit a cache stand above its slope.</figcaption></figure>"
    )
