"""Cases of the conv family."""

from ._case import Case

CASES: list[Case] = []
