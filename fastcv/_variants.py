"""Choosing among an op's implementations, for research and tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
        yield
    finally:
        for op, name in before.items():
            module.force_variant(op, name)
