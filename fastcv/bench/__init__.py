"""Measuring kernels honestly: random turns, fresh values, verified results, intervals, and no verdict where the machine is noisy."""

from ..testing import Case
from .contender import Contender, contender
from .measure import Sample, interleave, measure
from .rows import Row
from .statistics import geometric_mean

__all__ = ["Case", "Contender", "Row", "Sample", "contender", "geometric_mean", "interleave", "measure"]
