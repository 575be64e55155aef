"""Cases of the loss family."""

from ._case import Case

CASES: list[Case] = []
