"""Numeric against analytic gradients, with the report that a student needs: which entry is wrong, how, and what it looks like."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Entry", "GradientReport", "check_gradients"]


@dataclass(frozen=True)
class Entry:
    """One checked coordinate. error: |analytic - numeric| / max(|analytic|, |numeric|, floor). kink: the slopes on both sides differ."""

    name: str
    index: tuple[int, ...]
    analytic: float
    numeric: float
    error: float
    kink: bool


@dataclass(frozen=True)
class GradientReport:
    """All entries checked; ``print(report)`` says which are wrong. ok: no error above ``tolerance`` but at kinks. steps: h by input."""

    entries: tuple[Entry, ...]
    tolerance: float
    steps: dict[str, float]
    advice: tuple[str, ...]

    @property
    def wrong(self) -> tuple[Entry, ...]:
        return tuple(sorted((e for e in self.entries if not e.error <= self.tolerance and not e.kink), key=lambda e: -e.error))

    @property
    def ok(self) -> bool:
        return not self.wrong

    def __str__(self) -> str:
        lines = [f"Gradient check by central differences, largest relative error allowed {self.tolerance:g}"]
        for name, step in self.steps.items():
            mine = [e for e in self.entries if e.name == name]
            bad = sum(not e.error <= self.tolerance and not e.kink for e in mine)
            kinks = sum(e.kink for e in mine)
            largest = max((e.error for e in mine if not e.kink), default=0.0)
            verdict = f"{bad} of {len(mine)} WRONG" if bad else "ok"
            lines.append(
                f"  {name}: {verdict}; {len(mine)} entries, h = {step:.2g}, largest error {largest:.1e}"
                + (f", {kinks} at kinks" if kinks else "")
            )
        if self.wrong:
            lines.append(f"  {'entry':<18}{'analytic':>14}{'numeric':>14}{'error':>10}")
            for e in self.wrong[:5]:
                place = f"{e.name}[{', '.join(map(str, e.index))}]"
                lines.append(f"  {place:<18}{e.analytic:>14.6g}{e.numeric:>14.6g}{e.error:>10.1e}")
        lines += [f"  {sentence}" for sentence in self.advice]
        return "\n".join(lines)


def _advice(name: str, entries: list[Entry], shape: torch.Size, whole: bool, tolerance: float) -> list[str]:
    """What a wrong gradient looks like, in sentences."""
    wrong = [e for e in entries if not e.error <= tolerance and not e.kink]
    if not wrong:
        return []
    analytic, numeric = (torch.tensor([getattr(e, side) for e in entries], dtype=torch.float64) for side in ("analytic", "numeric"))

    def near(a: Tensor, b: Tensor) -> bool:
        return bool((a - b).norm() <= 10 * tolerance * b.norm())

    if not analytic.any():
        return [
            f"{name}: the analytic gradient is zero everywhere: the loss does not reach it (a detach, or a backward that returns None?)."
        ]
    if not torch.isfinite(analytic).all():
        return [f"{name}: the analytic gradient is not finite (a division by zero, or log and sqrt at 0?)."]
    if near(-analytic, numeric):
        return [f"{name}: the sign is reversed."]
    if whole and len(shape) == 2 and shape[0] == shape[1] and near(analytic.reshape(shape).T.reshape(-1), numeric):
        return [f"{name}: it is the transpose of the right gradient."]
    ratio = float((analytic @ numeric) / numeric.square().sum()) if numeric.any() else math.nan
    if math.isfinite(ratio) and ratio and near(analytic / ratio, numeric):
        return [f"{name}: it is the right gradient times {ratio:.6g} (a mean taken for a sum, a factor left out?)."]
    if len(wrong) * 4 <= len(entries):
        return [f"{name}: only {len(wrong)} of {len(entries)} entries are wrong: look at the border, a mask or an index."]
    return [f"{name}: the directions differ: the formula itself is wrong, or one of its terms is missing."]


def check_gradients(
    loss: Callable[..., Tensor],
    *inputs: Tensor,
    gradients: Callable[..., tuple[Tensor, ...]] | None = None,
    names: tuple[str, ...] | None = None,
    step: float | None = None,
    tolerance: float = 1e-6,
    entries: int = 200,
    seed: int = 0,
) -> GradientReport:
    """Compares the gradients of a scalar ``loss(*inputs)`` with central differences (f(x + h) - f(x - h)) / 2h.

    inputs: floating-point tensors; they are copied to float64, where differences keep about ten digits. gradients: a function of
    the inputs that returns one gradient per input (or the one of a single input), by hand; None: those of autograd. names: for
    the report. step: h, by default
    1e-6 times the largest entry (1e-6 at least). tolerance: on |a - n| / max(|a|, |n|), where entries a million times smaller
    than the gradient's largest count as that. entries: of each input at most so many, drawn by the seed. Where the slopes on
    the two sides of x differ (relu, max and hinge at their corner), the entry is a kink and proves nothing.
    Returns a report whose ``ok`` says whether all is well. Raises ValueError for a loss that is no scalar, not finite or random, no
    inputs, names that repeat, gradients of another number or shape, and a step, tolerance or number of entries that is not positive.
    """
    if not inputs or not all(isinstance(t, Tensor) and t.is_floating_point() for t in inputs):
        raise ValueError("check_gradients takes one or more floating-point tensors")
    names = names or tuple(f"input {i}" for i in range(len(inputs)))
    if len(names) != len(inputs):
        raise ValueError(f"{len(names)} names for {len(inputs)} inputs")
    if len(set(names)) != len(names):
        raise ValueError(f"names must differ, got {', '.join(names)}")
    for name, number in (("step", step), ("tolerance", tolerance), ("entries", entries)):
        if number is not None and not number > 0:
            raise ValueError(f"{name} must be positive, got {number}")
    points = [t.detach().double().clone(memory_format=torch.contiguous_format) for t in inputs]
    leaves = [t.clone().requires_grad_() for t in points]
    with torch.enable_grad():
        value = loss(*leaves)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise ValueError(
                f"the loss must be one number, got {tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__}"
            )
        if gradients is not None:
            found = gradients(*points)
            found = (found,) if isinstance(found, Tensor) else tuple(found)
        elif value.requires_grad:
            found = torch.autograd.grad(value.reshape(()), leaves, allow_unused=True)
        else:
            found = (None,) * len(leaves)
    if len(found) != len(points):
        raise ValueError(f"{len(found)} gradients for {len(points)} inputs")
    rows, advice, steps = [], [], {}
    generator = torch.Generator().manual_seed(seed)
    middle = float(value.detach())
    if not math.isfinite(middle):
        raise ValueError(f"the loss at these inputs is {middle}; choose others")
    with torch.no_grad():
        again = float(loss(*points))
    if not math.isclose(middle, again, rel_tol=1e-9, abs_tol=1e-12):  # its differences would say nothing, or that all is a kink
        raise ValueError(f"the loss draws at random: it is {middle:g}, then {again:g}; seed it, or call eval() on what has dropout")
    for name, x, g in zip(names, points, found, strict=True):
        g = torch.zeros_like(x) if g is None else g.detach().double()
        if g.shape != x.shape:
            raise ValueError(f"the gradient of {name} has shape {tuple(g.shape)}, expected {tuple(x.shape)}")
        h = step or 1e-6 * max(1.0, float(x.abs().max()) if x.numel() else 1.0)
        chosen = torch.randperm(x.numel(), generator=generator)[:entries].sort().values.tolist()
        steps[name], slopes = h, []
        for i in chosen:
            values = []
            for side in (h, -h):
                moved = x.clone()
                moved.view(-1)[i] += side
                with torch.no_grad():
                    values.append(float(loss(*(moved if t is x else t for t in points))))
            slopes.append(((values[0] - values[1]) / (2 * h), (values[0] - middle) / h, (middle - values[1]) / h))
        largest = max([abs(s[0]) for s in slopes] + [float(g.abs().nan_to_num(0).max()) if g.numel() else 0.0, 1e-300])
        # Rounding of the loss alone moves a difference by eps * |f| / h; below that two gradients cannot be told apart.
        floor = max(1e-6 * largest, torch.finfo(torch.float64).eps * abs(middle) / (h * tolerance))
        mine = []
        for i, (central, right, left) in zip(chosen, slopes, strict=True):
            a = float(g.reshape(-1)[i])
            error = abs(a - central) / max(abs(a), abs(central), floor)
            kink = abs(right - left) > max(
                1e-3 * max(abs(right), abs(left)), 100 * torch.finfo(torch.float64).eps * max(abs(middle), 1e-300) / h, 1e-9
            )
            mine.append(Entry(name, tuple(int(j) for j in torch.unravel_index(torch.tensor(i), x.shape)), a, central, error, kink))
        rows += mine
        advice += _advice(name, mine, x.shape, len(chosen) == x.numel(), tolerance)
    return GradientReport(tuple(rows), tolerance, steps, tuple(advice))
