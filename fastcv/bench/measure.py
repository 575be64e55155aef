"""Times several contenders against each other in one process, so that a slow phase of the machine hits all of them."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median, quantiles


@dataclass(frozen=True)
class Sample:
    """Times of one contender in seconds per call, one per round."""

    times: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.times)

    @property
    def best(self) -> float:
        return min(self.times)

    @property
    def p10_p90(self) -> tuple[float, float]:
        if len(self.times) < 2:
            return self.times[0], self.times[0]
        tenths = quantiles(self.times, n=10, method="inclusive")
        return tenths[0], tenths[-1]


def interleave(
    contenders: dict[str, Callable[[], object]],
    seconds: float = 1.0,
    rounds: tuple[int, int] = (7, 200),
    floor: float = 2e-4,
    seed: int = 0,
) -> dict[str, Sample]:
    """Runs every contender once per round, in an order shuffled anew each round, for about ``seconds`` in all.

    rounds: at least and at most this many. floor: a call shorter than this is repeated within a round until the
    round is that long, and the round's time divided. Two warm-up calls of each are not counted.
    """
    repeat = {}
    for name, call in contenders.items():
        call()
        start = time.perf_counter()
        call()
        repeat[name] = max(1, math.ceil(floor / max(time.perf_counter() - start, 1e-9)))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    shuffle = random.Random(seed).shuffle
    end = time.perf_counter() + seconds
    while len(times[order[0]]) < rounds[0] or (time.perf_counter() < end and len(times[order[0]]) < rounds[1]):
        shuffle(order)
        for name in order:
            call, n = contenders[name], repeat[name]
            start = time.perf_counter()
            for _ in range(n):
                call()
            times[name].append((time.perf_counter() - start) / n)
    return {name: Sample(tuple(values)) for name, values in times.items()}


def geometric_mean(values: Iterable[float]) -> float:
    """exp(mean(log(values))); NaN for no values."""
    logs = [math.log(v) for v in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan
