"""Cases of the pool family."""

from ._case import Case

CASES: list[Case] = []
