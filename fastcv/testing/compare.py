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


def assert_close(ours: Tensor, reference: Tensor, torchs: Tensor, what: str = "result", single: Tensor | None = None) -> None:
    """Asserts the accuracy rule, and that dtype and shape are torch's.

    single: for float64, torch's result in float32; without it torch counts as exact.
    """
    assert ours.dtype == torchs.dtype, f"{what}: dtype {ours.dtype}, torch gives {torchs.dtype}"
    assert ours.shape == torchs.shape, f"{what}: shape {tuple(ours.shape)}, torch gives {tuple(torchs.shape)}"
    if not ours.is_floating_point():
        assert torch.equal(ours, torchs), f"{what}: differs from torch"
        return
    eps, own = torch.finfo(ours.dtype).eps, max_error(torchs, reference)
    if single is not None and math.isfinite(rounding := max_error(single, reference)):
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


def check_case(case: Case, function: Any, dtype: torch.dtype, layout: str = "contiguous", device: str = "cpu") -> None:
    """Runs one case forward and, where it has gradients, backward, and asserts the accuracy rule and torch's layout.

    function: the fastcv function under test. The reference is the case's torch function in float64 on the CPU.
    """
    args, kwargs = case.arguments(dtype, layout)
    to = lambda value: value.to(device) if isinstance(value, Tensor) else value  # noqa: E731
    mine, theirs = ([to(a) for a in args] for _ in range(2))
    exact, exact_kwargs = [_cast(a, torch.float64) for a in args], {k: _cast(v, torch.float64) for k, v in kwargs.items()}
    single, single_kwargs = [_cast(a, torch.float32) for a in args], {k: _cast(v, torch.float32) for k, v in kwargs.items()}
    kwargs = {k: to(v) for k, v in kwargs.items()}
    mine, theirs, exact, single = (_leaves(a, case.grad) for a in (mine, theirs, exact, single))
    peer = case.torch_function()
    ours, torchs, reference = function(*mine, **kwargs), peer(*theirs, **kwargs), peer(*exact, **exact_kwargs)
    singles = _tensors(peer(*single, **single_kwargs)) if dtype == torch.float64 else [None] * len(_tensors(reference))
    for i, (a, t, r, s) in enumerate(zip(_tensors(ours), _tensors(torchs), _tensors(reference), singles, strict=True)):
        assert_close(a.cpu(), r, t.cpu(), f"{case.id} output {i}", s)
        if a.dim() in (4, 5) and a.numel():
            assert a.stride() == t.stride(), f"{case.id} output {i}: strides {a.stride()}, torch gives {t.stride()}"
    if not case.grad:
        return
    generator = torch.Generator().manual_seed(1)
    first = _tensors(reference)[0]
    weight = torch.randn(first.shape, generator=generator, dtype=torch.float64).half().double()
    for outputs in (_tensors(ours)[0], _tensors(torchs)[0], first, singles[0]):
        if outputs is not None:
            outputs.backward(weight.to(outputs.dtype).to(outputs.device))
    for i in case.grad:
        a, t, r, s = mine[i].grad, theirs[i].grad, exact[i].grad, single[i].grad
        assert a is not None, f"{case.id}: argument {i} got no gradient"
        assert_close(a.cpu(), r, t.cpu(), f"{case.id} gradient of argument {i}", s)
