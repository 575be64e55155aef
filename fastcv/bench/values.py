"""Arguments that a contender has never seen: fresh values for every timed call, known to the judge, cheap to make.

A pair of master sets of a case differ in every value. A key chooses one of them, turns each floating tensor along one of its
dimensions, and overwrites a few elements with others of the same tensor: what a function remembers by shape, by address or by
content is wrong for the next call, no earlier answer can be mended by what little has changed, and labels, probabilities and
variances stay what they were.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..testing import Case

STAMPS = 16  # elements overwritten in each tensor
MODES = ("fwd", "bwd", "fwd+bwd")


def first(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else value[0]


def tensors(value: Any) -> list[Tensor]:
    """All tensors of nested tuples, lists and dicts, in order."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _stamped(t: Tensor, number: random.Random) -> tuple[Tensor, Tensor] | None:
    """Positions to write and to read, in logical (row-major) order; None for what keeps its values."""
    if not t.numel() or not (t.is_floating_point() or t.dtype == torch.uint8):
        return None
    count = min(STAMPS, t.numel())
    return tuple(torch.tensor([number.randrange(t.numel()) for _ in range(count)]) for _ in range(2))  # type: ignore[return-value]


def _turned(t: Tensor, number: random.Random) -> tuple[int, int]:
    """(dimension, places) to turn by. Sums along any dimension stay sums of the same numbers."""
    dims = [d for d in range(t.dim()) if t.shape[d] > 1]
    if not dims or not t.numel() or not (t.is_floating_point() or t.dtype == torch.uint8):
        return 0, 0
    dim = number.choice(dims)
    return dim, number.randrange(t.shape[dim])


def _copy(target: Tensor, source: Tensor, dim: int, places: int) -> None:
    """torch.roll(source, places, dim), written into target."""
    if not places:
        target.copy_(source)
        return
    rest = source.shape[dim] - places
    target.narrow(dim, 0, places).copy_(source.narrow(dim, rest, places))
    target.narrow(dim, places, rest).copy_(source.narrow(dim, 0, rest))


def _at(t: Tensor, flat: Tensor) -> tuple[Tensor, ...]:
    """Row-major positions as an index into a tensor of any strides."""
    return tuple(torch.unravel_index(flat, t.shape)) if t.dim() else (torch.tensor(0),)


class Values:
    """The values of a case in one dtype, on one device."""

    def __init__(self, case: Case, dtype: torch.dtype, seed: int = 0, device: str = "cpu") -> None:
        self.case, self.dtype, self.device = case, dtype, device
        self._masters = [tensors(case.arguments(dtype, "contiguous", seed + i)) for i in range(2)]
        self._templates: dict[str, Any] = {}

    def key(self, number: random.Random) -> int:
        return number.randrange(1 << 30)

    def new(self, layout: str) -> Any:
        """(args, kwargs) in memory of their own, not written yet: ``fill`` comes before any call."""
        return pytree.tree_map_only(Tensor, lambda t: torch.empty_like(t, device=self.device), self._template(layout))

    def fill(self, arguments: Any, key: int) -> None:
        """Writes the values of ``key``, whatever a call left there."""
        with torch.no_grad():
            for target, source, stamp, turn in self._plan(arguments, key):
                _copy(target, source, *turn)
                if stamp is not None and target.dim():
                    write, read = stamp
                    target[_at(target, write.to(target.device))] = source.reshape(-1)[read].to(target)

    def _plan(self, arguments: Any, key: int) -> list[tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None, tuple[int, int]]]:
        number = random.Random(key)
        master = self._masters[number.randrange(2)]
        return [(t, m, _stamped(m, number), _turned(m, number)) for t, m in zip(tensors(arguments), master, strict=True)]

    def exact(self, key: int) -> Any:
        """(args, kwargs) with the values of ``key`` in float64 on the CPU, row-major."""
        return self.plain(key, torch.float64)

    def _template(self, layout: str) -> Any:
        if layout not in self._templates:
            self._templates[layout] = self.case.arguments(self.dtype, layout)
        return self._templates[layout]

    def plain(self, key: int, dtype: torch.dtype, layout: str = "contiguous") -> Any:
        """(args, kwargs) on the CPU with the values of ``key`` as the timed dtype holds them, cast to ``dtype``."""
        arguments = pytree.tree_map_only(Tensor, torch.empty_like, self._template(layout))
        self.fill(arguments, key)
        return pytree.tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, arguments)

    def bytes(self) -> int:
        """Of one set of arguments."""
        return sum(t.numel() * t.element_size() for t in self._masters[0])


def _turned_by(values: Tensor, upstream: Tensor) -> Tensor:
    """A copy of upstream, turned by as many places as the first value says, which is the same number in every dtype."""
    dims = [d for d in range(upstream.dim()) if upstream.shape[d] > 1]
    if not dims or not values.numel() or not upstream.numel():
        return upstream
    bits = int(values.detach()[(0,) * values.dim()].float().view(torch.int32))
    mixed = (bits * 0x9E3779B1 & 0xFFFFFFFF) >> 16  # the low half is zeros where the number came from 16 bits
    turned = torch.empty_like(upstream)
    _copy(turned, upstream, dims[0], mixed % upstream.shape[dims[0]])
    return turned


class Prepared:
    """A function with a part that is not timed: prepare(*args, **kwargs) returns the call. Only a class that says so, by this one as its
    base, is believed: a contender's own attribute of that name is not looked for.
    """

    def prepare(self, *args: Any, **kwargs: Any) -> Callable[[], Any]:
        raise TypeError(f"{type(self).__name__} says nothing of what to prepare")


class Pass:
    """One pass (a mode) of a function through a case; ``on`` binds it to arguments.

    fwd: the call, or what Prepared leaves of it. fwd+bwd: the call and the gradients of the case's leaves, from a fixed random
    gradient of the first output in that output's layout, as from a network's next layer. bwd: the call is not timed, the gradients
    are; their gradient is turned by what the arguments are, so that no forward pass can know it from the one before.
    """

    def __init__(self, case: Case, function: Callable[..., Any], mode: str) -> None:
        if mode not in MODES:
            raise ValueError(f"mode {mode!r} is none of {', '.join(MODES)}")
        if mode != "fwd" and not case.grad:
            raise ValueError(f"{case.id} has no gradients: mode {mode} does not apply")
        self.case, self.function, self.mode = case, function, mode
        self._upstream: Tensor | None = None

    def on(self, arguments: Any) -> Callable[[], Callable[[], Any]]:
        """Two steps: the first does what is not timed and returns the second, which is."""
        args, kwargs = arguments
        if self.mode == "fwd":
            if isinstance(self.function, Prepared):
                return lambda: self.function.prepare(*args, **kwargs)
            return lambda: lambda: self.function(*args, **kwargs)
        inputs = list(args)
        leaves = []
        for i in self.case.grad:
            inputs[i] = args[i].detach().requires_grad_()
            leaves.append(inputs[i])

        def forward() -> Tensor:
            return first(self.function(*inputs, **kwargs))

        def prepare() -> Callable[[], Any]:
            if self.mode == "bwd":
                output = forward()
                upstream = _turned_by(leaves[0], self._gradient(output))
                return lambda: torch.autograd.grad(output, leaves, upstream)
            upstream = self._gradient(None)
            return lambda: torch.autograd.grad(forward(), leaves, upstream)

        return prepare

    def start(self, arguments: Any) -> Any:
        """The first call on copies, which settles the layout of the output's gradient; returns what the timed part returns."""
        if self.mode != "fwd":
            args, kwargs = pytree.tree_map_only(Tensor, Tensor.clone, arguments)
            leaves = [a.detach().requires_grad_() if i in self.case.grad else a for i, a in enumerate(args)]
            self._gradient(first(self.function(*leaves, **kwargs)))
        return self.on(arguments)()()

    def _gradient(self, output: Tensor | None) -> Tensor:
        if self._upstream is None:
            if output is None:
                raise RuntimeError("Pass.start comes first")
            # Not ones: the gradient of a sum of probabilities is nothing but rounding. Halves are exact in every dtype.
            values = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).half()
            self._upstream = torch.empty_like(output.detach()).copy_(values)
        return self._upstream
