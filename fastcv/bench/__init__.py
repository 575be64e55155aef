"""Measuring kernels honestly: contenders take turns in random order, medians with intervals, verified before timed."""

from .measure import Sample, geometric_mean, interleave

__all__ = ["Sample", "geometric_mean", "interleave"]
