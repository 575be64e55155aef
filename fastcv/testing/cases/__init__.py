"""One table of cases for tests and benchmarks: models' real layers, odd sizes, empty, non-contiguous."""

from . import conv, loss, neighbors, norm, pool
from ._case import Case

CASES: list[Case] = [*conv.CASES, *loss.CASES, *neighbors.CASES, *norm.CASES, *pool.CASES]


def cases_of(*ops: str, bench: bool = False) -> list[Case]:
    """The cases of these ops (all ops if none is named); with ``bench`` only those that are timed."""
    return [case for case in CASES if (not ops or case.op in ops) and (case.bench or not bench)]


__all__ = ["CASES", "Case", "cases_of"]
