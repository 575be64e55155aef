"""The drop-in door for existing models: optimize, restore and the report of what was done."""

from .optimize import optimize, restore
from .report import Report, Row

__all__ = ["Report", "Row", "optimize", "restore"]
