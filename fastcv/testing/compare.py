"""The accuracy rule: against float64, fastcv's error is at most twice torch's own in the same dtype, plus one eps.

In float64 torch's answer is the reference itself; its own error is taken to be its float32 error times the ratio of the eps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .cases import Case


def max_error(result: Tensor, reference: Tensor) -> float:
    """max |result - reference| / max |reference|, over the finite part of a float64 reference.

    Infinite where the two disagree about which elements are NaN or infinite, and where the infinities' signs differ.
    """
    result, reference = result.detach().double(), reference.detach().double()
    if reference.numel() == 0:
        return 0.0
    finite = reference.isfinite()
    if not torch.equal(finite, result.isfinite()) or not torch.equal(reference.isnan(), result.isnan()):
        return float("inf")
    infinite = reference.isinf()
    if not torch.equal(reference[infinite], result[infinite]):
        return float("inf")
    if not finite.any():
        return 0.0
    scale = reference[finite].abs().max().item()
    error = (result[finite] - reference[finite]).abs().max().item()
    return error / scale if scale > 0 else error


def assert_close(
    ours: Tensor,
    reference: Tensor,
    torchs: Tensor,
    what: str = "result",
    single: Tensor | None = None,
    torchs_reference: Tensor | None = None,
    single_reference: Tensor | None = None,
) -> None:
    """Asserts the accuracy rule, and that dtype and shape are torch's.

    single: for float64, torch's result in float32; without it torch counts as exact. torchs_reference, single_reference:
    what torch's results are measured against where that is not what ours are.
    """
    assert ours.dtype == torchs.dtype, f"{what}: dtype {ours.dtype}, torch gives {torchs.dtype}"
    assert ours.shape == torchs.shape, f"{what}: shape {tuple(ours.shape)}, torch gives {tuple(torchs.shape)}"
    if not ours.is_floating_point():
        assert torch.equal(ours, torchs), f"{what}: differs from torch"
        return
    eps, own = torch.finfo(ours.dtype).eps, max_error(torchs, reference if torchs_reference is None else torchs_reference)
    if single is not None:
        rounding = max_error(single, reference if single_reference is None else single_reference)
        if math.isfinite(rounding):
            own = max(own, rounding * eps / torch.finfo(single.dtype).eps)
    error, allowed = max_error(ours, reference), 2 * own + eps
    assert error <= allowed, f"{what}: error {error:.3g} against float64, allowed {allowed:.3g} (2x torch's own + eps)"


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for t in value if isinstance(t, Tensor)] if isinstance(value, (tuple, list)) else []


def _leaves(args: Sequence[Any], indices: Sequence[int]) -> list[Any]:
    return [a.detach().requires_grad_() if i in indices else a for i, a in enumerate(args)]


class _Judged:
    """What one contender gave, and what it should have given: the float64 reference, with the contender's own choice."""

    def __init__(self, case: Case, function: Any, dtype: torch.dtype, layout: str, device: str):
        def there(value: Any) -> Any:
            return value.to(device) if isinstance(value, Tensor) else value

        args, kwargs = case.arguments(dtype, layout)
        self.args, self.exact_args = (_leaves(a, case.grad) for a in ([there(a) for a in args], [_cast(a, torch.float64) for a in args]))
        self.outputs = _tensors(function(*self.args, **{k: there(v) for k, v in kwargs.items()}))
        reference = case.reference([t.detach().cpu() for t in self.outputs])
        self.exact = _tensors(reference(*self.exact_args, **{k: _cast(v, torch.float64) for k, v in kwargs.items()}))

    def backward(self) -> None:
        """From the first output, with a fixed random gradient that every dtype holds exactly."""
        shape = self.exact[0].shape
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).half().double()
        for output in (self.outputs[0], self.exact[0]):
            output.backward(weight.to(output))


def check_case(case: Case, function: Any, dtype: torch.dtype, layout: str = "contiguous", device: str = "cpu") -> None:
    """Runs one case forward and, where it has gradients, backward, and asserts the accuracy rule and torch's layout.

    function: the fastcv function under test. The reference is the case's torch function in float64 on the CPU; where the op
    chooses, what it chose is measured like a result (it is as good as torch's choice), and gradients against the reference's
    for that choice.
    """
    peer = case.torch_function()
    ours, torchs = _Judged(case, function, dtype, layout, device), _Judged(case, peer, dtype, layout, device)
    single = _Judged(case, peer, torch.float32, layout, "cpu") if dtype == torch.float64 else None
    best = ours.exact
    if case.choice is not None:
        args, kwargs = case.arguments(dtype, layout)
        best = _tensors(peer(*(_cast(a, torch.float64) for a in args), **{k: _cast(v, torch.float64) for k, v in kwargs.items()}))
    for i, (a, t, r) in enumerate(zip(ours.outputs, torchs.outputs, best, strict=True)):
        what, s = f"{case.id} output {i}", single.outputs[i] if single else None
        if case.choice is None or a.is_floating_point():
            assert_close(a.cpu(), r, t.cpu(), what, s)
        if case.choice is not None and a.is_floating_point():
            assert_close(ours.exact[i].to(a.dtype), r, t.cpu(), f"{what}, chosen", s)
        if a.dim() in (4, 5) and a.numel():
            assert a.stride() == t.stride(), f"{what}: strides {a.stride()}, torch gives {t.stride()}"
    if not case.grad:
        return
    judged = [j for j in (ours, torchs, single) if j is not None]
    for j in judged:
        j.backward()
    for i in case.grad:
        a, t = ours.args[i].grad, torchs.args[i].grad
        assert a is not None, f"{case.id}: argument {i} got no gradient"
        s, s_reference = (single.args[i].grad, single.exact_args[i].grad) if single else (None, None)
        what = f"{case.id} gradient of argument {i}"
        assert_close(a.cpu(), ours.exact_args[i].grad, t.cpu(), what, s, torchs.exact_args[i].grad, s_reference)
