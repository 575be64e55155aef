"""Who takes part in a race: a function, the layout it wants its arguments in, and what must hold around its calls."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])
LAYOUTS = ("contiguous", "channels_last")


@dataclass(frozen=True)
class Contender:
    """function: called as function(*args, **kwargs) with the case's arguments, returns its outputs. layout: of tensors of 4 and 5
    dimensions. around: a context entered before the clock starts (a forced variant, a changed switch). backward: its outputs
    carry gradients. Contenders that share ``who`` differ in their layout alone: the better one counts as that peer.
    """

    name: str
    function: Callable[..., Any]
    layout: str = "contiguous"
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    backward: bool = True
    who: str = ""

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise ValueError(f"contender {self.name}: layout {self.layout!r} is none of {', '.join(LAYOUTS)}")
        if not self.who:
            object.__setattr__(self, "who", self.name)


_registered: dict[str, list[Contender]] = {}


def contender(
    op: str, *, name: str = "", layouts: tuple[str, ...] = ("contiguous",), backward: bool = False
) -> Callable[[Function], Function]:
    """Decorator: the function races in every benchmark of ``op``, once per layout. It takes the arguments of the op.

    backward: autograd can differentiate it, so that it also takes part in the modes with a backward pass.
    Raises ValueError for an unknown layout or a name that another contender of the op has.
    """

    def register(function: Function) -> Function:
        who = name or function.__name__
        if any(c.who == who for c in _registered.get(op, ())):
            raise ValueError(f"{op} has a contender named {who} already")
        for layout in layouts:
            label = who if len(layouts) == 1 else f"{who} {layout}"
            _registered.setdefault(op, []).append(Contender(label, function, layout, backward=backward, who=who))
        return function

    return register


def registered(op: str) -> list[Contender]:
    """What ``contender`` registered for this op."""
    return list(_registered.get(op, ()))


def registered_ops() -> list[str]:
    return list(_registered)


def load_file(path: str | Path) -> None:
    """Runs a Python file for its ``@contender`` functions. Raises ValueError, one sentence, if it cannot be run or has none."""
    path = Path(path)
    before = sum(map(len, _registered.values()))
    spec = importlib.util.spec_from_file_location(f"fastcv_contenders_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{path} does not run: {type(error).__name__}: {error}") from error
    if sum(map(len, _registered.values())) == before:
        raise ValueError(f"{path} registers no contender: decorate a function with @fastcv.bench.contender('conv2d')")
