"""What a race leaves: one row per contender and state of the caches, as Python object and as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from statistics import median
from typing import Any

from .statistics import median_interval, quantile

# A unit in the last place of numbers from 1 up.
EPS = {"f32": 2.0**-23, "f64": 2.0**-52, "bf16": 2.0**-7, "f16": 2.0**-10}

OK, UNRELIABLE, IMPOSSIBLE, WRONG, FAILED = "OK", "UNRELIABLE", "IMPOSSIBLE", "WRONG", "FAILED"


class _Times:
    """Statistics of ``times``, seconds per call."""

    times: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.times)

    @property
    def best(self) -> float:
        return min(self.times)

    @property
    def p10_p90(self) -> tuple[float, float]:
        return quantile(self.times, 0.1), quantile(self.times, 0.9)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the median."""
        return median_interval(self.times)


@dataclass(frozen=True)
class Sample(_Times):
    """Times of one contender in seconds per call, one per round."""

    times: tuple[float, ...]


@dataclass
class Row(_Times):
    """times: seconds per call, in the order they were taken. roof: seconds that the machine's roof allows. error, mean_error:
    against float64, relative to the largest output; peer_*: of the case's plain torch function in the same dtype.
    workspace, peak: bytes asked of the allocator. repeatable: the same bits from two calls on the same values. checked: how many
    timed calls were verified. kernel: the variants that ran. status: OK, or why there is no verdict (reason says more).
    """

    case: str
    op: str
    dtype: str
    mode: str
    layout: str
    contender: str
    who: str
    cache: str
    threads: int
    device: str = "cpu"
    status: str = OK
    reason: str = ""
    times: tuple[float, ...] = ()
    flops: int = 0
    bytes: int = 0
    roof: float = 0.0
    error: float | None = None
    mean_error: float | None = None
    peer_error: float | None = None
    peer_mean_error: float | None = None
    workspace: int | None = None
    peak: int | None = None
    repeatable: bool | None = None
    checked: int = 0
    kernel: str = ""
    noise: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes two rows of different runs the same question."""
        return (self.case, self.dtype, self.mode, self.contender, self.cache, self.threads, self.device)

    @property
    def timed(self) -> bool:
        """False for rows without times: wrong or failed before the race."""
        return bool(self.times)

    @property
    def sound(self) -> bool:
        """May be compared."""
        return self.status == OK

    @property
    def gflops(self) -> float:
        return self.flops / self.median / 1e9

    @property
    def gbytes(self) -> float:
        return self.bytes / self.median / 1e9

    @property
    def percent(self) -> float:
        """Of the attainable roof; above 100 where an algorithm needs fewer operations than are counted."""
        return 100 * self.roof / self.median

    @property
    def ulps(self) -> float | None:
        """The largest error in units in the last place of the largest output."""
        return None if self.error is None else self.error / EPS[self.dtype]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the fields, the times in nanoseconds, and the statistics that a reader may want without this module."""
        values = asdict(self) | {"times": [round(t * 1e9, 1) for t in self.times]}
        for name in ("error", "mean_error", "peer_error", "peer_mean_error"):
            values[name] = None if values[name] is None or values[name] != values[name] else min(values[name], 1e300)
        if self.timed:
            low, high = self.interval
            values["statistics"] = {"median_ms": self.median * 1e3, "min_ms": self.best * 1e3, "low_ms": low * 1e3, "high_ms": high * 1e3}
        return values

    @classmethod
    def of_dict(cls, values: dict[str, Any]) -> Row:
        """Raises ValueError if a field is missing or has another type than a row's."""
        known = {f.name for f in fields(cls)}
        try:
            row = cls(**{k: v for k, v in values.items() if k in known})
            row.times = tuple(float(t) * 1e-9 for t in row.times)
            hash(row.key)
        except (TypeError, ValueError) as error:
            raise ValueError(f"no row of a benchmark: {error}") from None
        return row


def best_peer(rows: Iterable[Row], row: Row, who: str = "torch") -> Row | None:
    """The fastest timed row of ``who``, in any layout, of the same case, dtype, mode and cache."""
    same = [
        r
        for r in rows
        if r.who == who
        and r.timed
        and r.status not in (WRONG, IMPOSSIBLE)
        and (r.case, r.dtype, r.mode, r.cache, r.threads, r.device) == (row.case, row.dtype, row.mode, row.cache, row.threads, row.device)
    ]
    return min(same, key=lambda r: r.median, default=None)
