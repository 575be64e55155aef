"""A value that a fused chain has promised but not computed: what a convolution or batch norm hands to the user's code.

The user's forward stays and runs at each call, so whatever it decides is decided by it. In place of a tensor the head of
a chain returns a Pending, which remembers the head's input; the batch norm, the addition and the activation that the
proof (patterns.py) expects next add themselves to it, and the last of them computes all of it in one kernel. Anything
else that touches a Pending - an operator, a method, a torch function, a module outside the chain - gets the tensor that
torch would have given at that point, computed then. So a path through the forward that the proof has not seen costs
speed, not the answer.

A Pending is no Tensor, as torch.fx's Proxy is none: the code between head and end has run with a Proxy when it was traced,
and no C++ code takes a Pending for a tensor. A Pending does not outlive the forward of the chain's owner (region.py).
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from .chain import Chain
    from .prepared import Prepared
    from .region import Frame

_ADDITIONS = frozenset((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__))
# function -> (activation, whether it changes its argument); an inplace keyword is looked at besides.
_ACTIVATIONS: dict[Callable[..., Any], tuple[str, bool]] = {
    F.relu: ("relu", False),
    torch.relu: ("relu", False),
    Tensor.relu: ("relu", False),
    torch.relu_: ("relu", True),
    Tensor.relu_: ("relu", True),
    F.relu6: ("relu6", False),
    F.silu: ("silu", False),
    F.hardswish: ("hardswish", False),
}


def _activation(function: Callable[..., Any], args: Any, kwargs: Any) -> tuple[str, bool, float] | None:
    """(activation, in place, slope) if the call is one that chains know. nn.ReLU6 calls hardtanh from 0 to 6."""
    if function is F.hardtanh:
        low, high, in_place = _arguments(args, kwargs, min_val=-1.0, max_val=1.0, inplace=False)
        return ("relu6", bool(in_place), 0.0) if (low, high) == (0.0, 6.0) else None
    if function is F.leaky_relu:
        slope, in_place = _arguments(args, kwargs, negative_slope=0.01, inplace=False)
        return ("leaky_relu", bool(in_place), slope) if 0 <= slope < float("inf") else None
    if function is F.gelu:
        return ("gelu", False, 0.0) if kwargs.get("approximate", "none") == "none" else None
    if function not in _ACTIVATIONS:
        return None
    activation, in_place = _ACTIVATIONS[function]
    return activation, in_place or bool(kwargs.get("inplace")) or (len(args) > 1 and bool(args[1])), 0.0


def _arguments(args: Any, kwargs: Any, **defaults: Any) -> list[Any]:
    """The values of the arguments after the first, in the order of ``defaults``."""
    given = dict(zip(defaults, args[1:], strict=False))
    return [given.get(name, kwargs.get(name, default)) for name, default in defaults.items()]


def version_of(t: Tensor) -> int | None:
    """What changes when t is changed in place; None where nothing says so."""
    return None if t.is_inference() else t._version


class Pending:
    """head(x), then bn(.) if ``normalised``, then + residual and the activation if there are any; computed when first looked at.

    frame: the call of the chain's owner that it lives in. prepared: how the chain computed such an x before, if nothing changed.
    """

    __slots__ = (
        *("chain", "frame", "x", "versions", "normalised", "grad_mode", "prepared"),
        *("residual", "activation", "slope", "result", "computed"),
    )

    def __init__(
        self,
        chain: Chain,
        frame: Frame,
        x: Tensor,
        versions: tuple[tuple[Tensor, int | None], ...],
        normalised: bool,
        grad_mode: bool,
        prepared: Prepared | None,
    ) -> None:
        self.chain = chain
        self.frame = frame
        self.x = x
        self.versions = versions
        self.normalised = normalised
        self.grad_mode = grad_mode
        self.prepared = prepared
        self.residual: Tensor | None = None
        self.activation: str | None = None  # held back too, where the chain goes on behind it
        self.slope = 0.0  # of leaky_relu, below zero
        self.result: Tensor | None = None
        self.computed = False

    def after(self, normalised: bool) -> Pending:
        """A step later, in a new object: this one keeps its value, which somebody may still ask for."""
        self.computed = True
        return Pending(self.chain, self.frame, self.x, self.versions, normalised, self.grad_mode, self.prepared)

    def extensible(self) -> bool:
        """True while nothing was computed and the next step would be taken in the same gradient mode."""
        return not self.computed and torch.is_grad_enabled() == self.grad_mode

    def compute(self, activation: str | None = None, windows: dict[str, Any] | None = None) -> Tensor:
        """The value so far, through ``activation`` and max pooling over ``windows``; of the tensors that the user's code passed,
        unchanged since then.
        """
        activation = activation or self.activation
        for t, version in self.versions:
            if version is not None and t._version != version:
                raise RuntimeError(
                    f"fastcv.optimize: an input of the fused chain {self.chain.describe()} was changed in place before the chain's "
                    "end, on a path that tracing did not show; use fastcv.optimize(model, fuse=False) for this model"
                )
        again, self.computed = self.computed, True
        if torch.is_grad_enabled() == self.grad_mode:
            return self.chain.compute(self, activation, again, windows)
        with torch.set_grad_enabled(self.grad_mode):
            return self.chain.compute(self, activation, again, windows)

    def value(self) -> Tensor:
        """The tensor that torch would have given here."""
        if self.result is None:
            self.result = self.compute()
        return self.result

    def batch_norm(self) -> Pending | Tensor:
        """This value, which is extensible and not normalised, through the chain's batch norm."""
        return self.chain.defer(self.after(True), "batch_norm")

    def add(self, other: Any, in_place: bool) -> Any:
        """This value + other; in place it is this object that changes, as a tensor would."""
        if not (self.extensible() and self.residual is self.activation is None and self.chain.takes_residual(self, other)):
            return (operator.iadd if in_place else operator.add)(self.value(), other)
        after = self if in_place else self.after(self.normalised)
        after.residual = other
        after.versions = (*self.versions, (other, version_of(other)))
        return self.chain.defer(after, "add")

    def activate(self, activation: str, in_place: bool, slope: float) -> Pending | Tensor | None:
        """This value through the activation in one pass, or None if that is not possible."""
        if not (self.extensible() and self.activation is None and self.chain.takes_activation(activation)):
            return None
        if self.chain.pools:
            after = self if in_place else self.after(self.normalised)
            after.residual, after.activation, after.slope = self.residual, activation, slope
            return self.chain.defer(after, "activation")
        self.slope = slope
        result = self.compute(activation)
        if in_place:
            self.result = result
        return result

    def max_pool(self, windows: dict[str, Any]) -> Tensor | None:
        """This value through max pooling over ``windows`` (arguments by name) in one pass, or None if that is not possible."""
        if self.activation is None or self.residual is not None or not self.extensible():
            return None
        return self.compute(windows=windows)

    @classmethod
    def __torch_function__(cls, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        known = _activation(function, args, kwargs) if args and type(args[0]) is Pending else None
        if known is not None:
            result = args[0].activate(*known)
            if result is not None:
                return result
        elif function in _ADDITIONS and len(args) == 2 and not kwargs:
            first, second = args
            if type(first) is Pending:
                return first.add(value_of(second), in_place=False)
            return second.add(first, in_place=False)
        return function(*value_of(args), **value_of(kwargs))

    def __add__(self, other: Any) -> Any:
        return self.add(value_of(other), in_place=False)

    __radd__ = __add__

    def __iadd__(self, other: Any) -> Any:
        return self.add(value_of(other), in_place=True)

    def add_(self, other: Any, **kwargs: Any) -> Any:
        if kwargs:
            return self.value().add_(value_of(other), **kwargs)
        return self.add(value_of(other), in_place=True)

    def relu(self) -> Tensor:
        return torch.relu(self)

    def relu_(self) -> Tensor:
        return torch.relu_(self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.value(), name)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.value().__reduce_ex__(protocol)


# Python looks special methods up on the class: those of a tensor, but for additions and what Pending has itself.
_ARITHMETIC = ("sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift")
_COMPARISONS = ("lt", "le", "eq", "ne", "gt", "ge")
_CONVERSIONS = ("neg", "pos", "abs", "invert", "bool", "int", "float", "complex", "index", "repr", "str", "format", "array")
_CONTAINER = ("len", "iter", "reversed", "getitem", "setitem", "contains", "deepcopy", "dlpack", "dlpack_device")
_SPECIAL = [
    *(prefix + name for name in _ARITHMETIC for prefix in ("", "r", "i")),
    *_COMPARISONS,
    *_CONVERSIONS,
    *_CONTAINER,
]


def _special(name: str) -> Callable[..., Any]:
    def method(self: Pending, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.value(), name)(*value_of(args), **value_of(kwargs))

    method.__name__ = name
    return method


for _name in (f"__{name}__" for name in _SPECIAL):
    if hasattr(Tensor, _name):
        setattr(Pending, _name, _special(_name))
Pending.__hash__ = object.__hash__


def value_of(value: Any) -> Any:
    """``value`` with every Pending in it computed; tuples, lists and dicts are looked through."""
    if type(value) is Pending:
        return value.value()
    if type(value) in (tuple, list):
        return type(value)(value_of(v) for v in value)
    if type(value) is dict:
        return {k: value_of(v) for k, v in value.items()}
    return value


def holds_pending(value: Any) -> bool:
    """True if ``value`` is a Pending or a tuple, list or dict with one in it."""
    if type(value) in (tuple, list):
        return any(holds_pending(v) for v in value)
    return any(holds_pending(v) for v in value.values()) if type(value) is dict else type(value) is Pending
