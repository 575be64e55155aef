"""Medians, intervals and tests for times that are neither normal nor independent.

Times have a floor and a long tail, so everything here ranks: quantiles, the order-statistic interval of the median (its
coverage holds for any distribution) and the Mann-Whitney test. A slow phase of the machine makes neighbouring rounds
alike: both count only as many independent rounds as the autocorrelation leaves, else intervals come out too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import NormalDist, median

import numpy as np


def quantile(values: Sequence[float], q: float) -> float:
    """Linear between order statistics: 0 gives the least value, 1 the largest."""
    return float(np.quantile(np.asarray(values, dtype=np.float64), q))


def independent(values: Sequence[float]) -> float:
    """How many independent values carry as much as these: n (1 - r) / (1 + r), r the autocorrelation of their ranks at lag 1.

    Ranks, because one outlier must not hide a drift. A negative r counts as 0: the number never exceeds n.
    """
    n = len(values)
    if n < 4:
        return float(n)
    ranks = _ranks(values) - (n + 1) / 2
    variance = float(ranks @ ranks)
    if variance == 0.0:
        return float(n)
    # Of n independent values the estimate has the mean -1/n.
    r = min(max(0.0, float(ranks[1:] @ ranks[:-1]) / variance + 1 / n), 0.95)
    return max(1.0, n * (1 - r) / (1 + r))


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Order statistics between which the true median lies with at least this confidence (few values: all of them).

    Of n independent values the number below the median is binomial(n, 1/2). Dependent values widen the interval as if there
    were ``independent(values)`` of them.
    """
    ordered = sorted(values)
    n = len(ordered)
    effective = max(1, math.floor(independent(values)))
    outside, tail, k = (1 - confidence) / 2, 0.0, 0
    while k < effective // 2:
        tail += math.comb(effective, k) / 2**effective
        if tail > outside:
            break
        k += 1
    # k values of the effective ones may lie outside on each side; the same share of all n, rounded outwards.
    first = max(0, math.floor(k / effective * n) - 1) if k else 0
    return ordered[first], ordered[n - 1 - first]


def ratio_interval(new: Sequence[float], old: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """(low, median(new) / median(old), high). The two intervals are joined on the logarithms by the squares of their
    half-widths (G. Zou, A. Donner, Statistics in Medicine 27, 2008), which keeps their asymmetry.
    """
    a, b = math.log(median(new)), math.log(median(old))
    (a_low, a_high), (b_low, b_high) = (tuple(map(math.log, median_interval(v, confidence))) for v in (new, old))
    low = a - b - math.hypot(a - a_low, b_high - b)
    high = a - b + math.hypot(a_high - a, b - b_low)
    return math.exp(low), math.exp(a - b), math.exp(high)


def _ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks from 1, ties share their mean."""
    _, inverse, counts = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def rank_test(a: Sequence[float], b: Sequence[float]) -> float:
    """Two-sided p of the Mann-Whitney test (normal approximation with ties and continuity, as scipy's "asymptotic"), its
    variance widened where the values of a sample depend on each other.
    """
    m, n = len(a), len(b)
    ranks = _ranks([*a, *b])
    u = float(ranks[:m].sum()) - m * (m + 1) / 2
    _, counts = np.unique(ranks, return_counts=True)
    total = m + n
    variance = m * n / 12 * (total + 1 - float((counts.astype(float) ** 3 - counts).sum()) / (total * (total - 1)))
    if variance <= 0.0:
        return 1.0
    widened = variance * max(m / independent(a), n / independent(b))
    z = max(0.0, abs(u - m * n / 2) - 0.5) / math.sqrt(widened)
    return 2 * (1 - NormalDist().cdf(z))


def holm(ps: Sequence[float]) -> list[float]:
    """p-values adjusted for being asked together: the chance of even one false alarm among all rows stays below the level."""
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    adjusted, worst = [0.0] * len(ps), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = worst
    return adjusted


def geometric_mean(values: Iterable[float]) -> float:
    """exp(mean(log(values))); NaN for no values."""
    logs = [math.log(v) for v in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan
