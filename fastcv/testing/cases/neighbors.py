"""Cases of the neighbors family."""

from ._case import Case

CASES: list[Case] = []
