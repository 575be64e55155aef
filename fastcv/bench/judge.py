"""Says whether what was timed was right: outputs and gradients against float64 for the very values of the timed call.

The rule is fastcv.testing's: at most twice the error of the case's plain function in the same dtype, plus rounding. Arguments
must hold what they held, or what the plain function leaves in them (running statistics).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..testing import Case, max_error
from .contenders import Contender
from .values import Pass, Values, first, tensors

ROUNDING = 20  # eps added to the allowance: sums of outputs that the plain function happens to get exactly


@dataclass(frozen=True)
class Verdict:
    """reason: "" if right. error, mean_error: the largest and the mean over all outputs, relative to their largest value."""

    reason: str
    error: float
    mean_error: float


def plain_tensors(result: Any) -> str:
    """Why these outputs may hide unfinished work; "" if all are tensors with memory of their own class."""
    leaves = tensors(result)
    if not leaves:
        return f"returned {type(result).__name__} without a tensor"
    for t in leaves:
        if type(t) not in (Tensor, torch.nn.Parameter):
            return f"returned a {type(t).__name__}, which may still have to be computed, not a torch.Tensor"
        if t.is_neg() or t.is_conj():
            return "returned a tensor that is still to be negated or conjugated where it is read"
        if t.device.type == "meta":
            return "returned a tensor without values"
    return ""


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal shape, dtype and bytes: NaNs are equal to themselves, zeros of different sign are not."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.contiguous().view(kind), b.contiguous().view(kind))


def mean_error(result: Tensor, reference: Tensor) -> float:
    """mean |result - reference| / max |reference|, over the finite part."""
    result, reference = result.detach().double(), reference.detach().double()
    finite = reference.isfinite() & result.isfinite()
    if not finite.any():
        return 0.0
    scale = reference[finite].abs().max().item() or 1.0
    return (result[finite] - reference[finite]).abs().mean().item() / scale


class Judge:
    """Holds the allowance of a case in a dtype and mode, and the float64 answers of the last key."""

    def __init__(self, case: Case, values: Values, mode: str, layouts: tuple[str, ...]) -> None:
        self.case, self.values, self.mode, self._layouts = case, values, mode, layouts
        self._peer = case.torch_function()
        self._key: int | None = None
        self._own: list[tuple[float, float]] | None = None

    def _run(self, function: Any, arguments: Any) -> tuple[list[Tensor], list[Tensor]]:
        """Outputs of the pass, and the arguments after it."""
        outputs = tensors(Pass(self.case, function, self.mode).start(arguments))
        return [t.detach() for t in outputs], tensors(arguments)

    def _turn(self, key: int) -> None:
        if key == self._key:
            return
        self._key = key
        before = tensors(self.values.exact(key))
        self._best, self._after = self._run(self._peer, self.values.exact(key))
        self._kept = [torch.equal(a, b) for a, b in zip(before, self._after, strict=True)]
        if self._own is not None:
            return
        # Once per case: a few stamped elements hardly change the size of an error.
        single = self.values.dtype == torch.float64
        dtype = torch.float32 if single else self.values.dtype
        scale = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps if single else 1.0
        worst: list[tuple[float, float]] = []
        for layout in self._layouts:
            outputs, state = self._run(self._peer, self.values.plain(key, dtype, layout))
            best = self._best if self.case.choice is None else self._chosen(self._peer, self.values.plain(key, dtype, layout), outputs, key)
            errors = [(max_error(t, e) * scale, mean_error(t, e) * scale) for t, e in zip(outputs, best, strict=True)]
            self._state_own = max((max_error(t, e) for t, e in zip(state, self._after, strict=True) if t.is_floating_point()), default=0.0)
            worst = [(max(a[0], b[0]), max(a[1], b[1])) for a, b in zip(worst, errors, strict=True)] if worst else errors
        self._own = worst

    def _chosen(self, function: Any, arguments: Any, outputs: list[Tensor], key: int) -> list[Tensor]:
        """The float64 outputs for the choice that ``function`` makes on these arguments."""
        if self.mode != "fwd":
            args, kwargs = arguments
            outputs = [t.detach().cpu() for t in tensors(function(*args, **kwargs))]
        return self._run(self.case.reference(outputs), self.values.exact(key))[0]

    def own_error(self, key: int) -> tuple[float, float]:
        """Largest and mean error of the plain function in this dtype."""
        self._turn(key)
        assert self._own is not None
        finite = [e for e in self._own if math.isfinite(e[0])]
        return max((e[0] for e in finite), default=0.0), max((e[1] for e in finite), default=0.0)

    def verdict(self, contender: Contender, key: int, outputs: list[Tensor], state: list[Tensor], fresh: Any) -> Verdict:
        """outputs: copies taken when the clock stopped; state: the arguments after the call; fresh: arguments of these values in
        memory that the contender has not seen, for asking it once more which choice it makes.
        """
        self._turn(key)
        assert self._own is not None
        outputs, state = [t.detach().cpu() for t in outputs], [t.detach().cpu() for t in state]
        if len(outputs) != len(self._best):
            return Verdict(f"returned {len(outputs)} tensors, expected {len(self._best)}", math.inf, math.inf)
        exact, choice_error = self._best, 0.0
        if self.case.choice is not None:
            try:
                with contender.around():
                    exact = self._chosen(contender.function, fresh, outputs, key)
                    forward = tensors(contender.function(*fresh[0], **fresh[1])) if self.mode != "fwd" else outputs
                chosen = first(
                    self.case.reference([t.detach().cpu() for t in forward])(*self.values.exact(key)[0], **self.values.exact(key)[1])
                )
                best = self._best[0] if self.mode == "fwd" else first(self._peer(*self.values.exact(key)[0], **self.values.exact(key)[1]))
                choice_error = max_error(chosen, best)
            except (RuntimeError, IndexError) as error:
                return Verdict(f"its choice does not exist: {error}", math.inf, math.inf)
        worst, mean, reason = 0.0, 0.0, ""
        eps = torch.finfo(self.values.dtype).eps
        for i, (t, e) in enumerate(zip(outputs, exact, strict=True)):
            what = f"output {i}" if self.mode == "fwd" else f"the gradient of argument {self.case.grad[i]}"
            if t.shape != e.shape:
                return Verdict(f"{what} has shape {tuple(t.shape)}, expected {tuple(e.shape)}", math.inf, math.inf)
            if not t.is_floating_point():
                if self.case.choice is None and not torch.equal(t.to(e.dtype), e):
                    reason = reason or f"{what} differs from the reference in {int((t.to(e.dtype) != e).sum())} of {t.numel()} elements"
                continue
            error = max(max_error(t, e), choice_error if i == 0 else 0.0)
            worst, mean = max(worst, error), max(mean, mean_error(t, e))
            allowed = 2 * self._own[i][0] + ROUNDING * eps
            if not error <= allowed:
                reason = reason or f"{what} is {error:.2g} off float64, allowed {allowed:.2g}"
        return Verdict(reason or self._mutation(key, state), worst, mean)

    def _mutation(self, key: int, state: list[Tensor]) -> str:
        given = tensors(self.values.plain(key, self.values.dtype))
        for i, (t, before, after, kept) in enumerate(zip(state, given, self._after, self._kept, strict=True)):
            if kept and not same_bits(t, before):
                return f"changed argument {i}, which the reference leaves alone"
            if not kept and not max_error(t, after) <= 2 * self._state_own + ROUNDING * torch.finfo(self.values.dtype).eps:
                return f"left something else in argument {i} than the reference does"
        return ""
