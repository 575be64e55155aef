"""Choosing among an op's implementations, for research and tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from . import _ext


def variants(op: str | None = None) -> dict[str, list[tuple[str, str]]] | list[tuple[str, str]]:
    """The implementations of an op, in order of preference, as (name, instruction set it needs).

    Without an argument: a dict of all ops. Raises ValueError for an unknown op, NotBuiltError without the compiled module.
    """
    module = _ext.module()
    if op is None:
        return {name: module.variants(name) for name in module.variant_ops()}
    return module.variants(op)


@contextmanager
def use(**choice: str) -> Iterator[None]:
    """Within the block, ``use(op="variant")`` makes every call of the op take that variant, in all threads.

    Raises ValueError if the op or the variant does not exist or this CPU cannot run it; a call that the variant
    cannot serve raises RuntimeError with the reason.
    """
    module = _ext.module()
    before = {op: module.forced_variant(op) for op in choice}
    try:
        for op, name in choice.items():
            module.force_variant(op, name)
        _ext.choices_changed()
        yield
    finally:
        for op, name in before.items():
            module.force_variant(op, name)
        _ext.choices_changed()


def why_not(function: str | Callable[..., Any], *args: Any, **kwargs: Any) -> list[tuple[str, str, str]]:
    """Makes the call and says, for each variant of each op it ran, why that variant was not taken.

    function: a name in fastcv.functional ("conv2d") or any callable; args, kwargs: its arguments.
    Returns (op, variant, reason) in the tables' order; the reason is "" for the variant that ran.
    Raises ValueError for an unknown name, and whatever the call itself raises.
    """
    if isinstance(function, str):
        from . import functional

        if function not in functional.__all__:
            raise ValueError(f"no function '{function}' in fastcv.functional; it has {', '.join(sorted(functional.__all__))}")
        function = getattr(functional, function)
    module = _ext.module()
    module.take_recorded_choices()
    module.record_choices(True)
    try:
        function(*args, **kwargs)
    finally:
        module.record_choices(False)
    return module.take_recorded_choices()
