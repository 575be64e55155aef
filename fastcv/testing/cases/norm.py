"""Cases of the norm family."""

from ._case import Case

CASES: list[Case] = []
