"""Two runs row by row: FAST, SLOW, SAME or UNSURE, by the interval of the ratio and a rank test together.

FAST and SLOW need both: the 95 % interval of new/old lies wholly beyond the gate, and the rank test says, after Holm's correction
for all rows together, that the times differ. SAME: the interval lies wholly within the gate. Everything else is UNSURE, as is
every row that one of the runs calls UNRELIABLE or IMPOSSIBLE. A row that is wrong or fails now and did not is WRONG.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .rows import FAILED, WRONG, Row
from .statistics import geometric_mean, holm, rank_test, ratio_interval
from .store import Run

FAST, SLOW, SAME, UNSURE = "FAST", "SLOW", "SAME", "UNSURE"
LEVEL = 0.05
GATE = 0.03


@dataclass(frozen=True)
class Change:
    """ratio: new time over old, above 1 is slower; with its 95 % interval. p: of the rank test, corrected for all rows."""

    key: tuple[Any, ...]
    verdict: str
    reason: str
    old_ms: float = 0.0
    new_ms: float = 0.0
    ratio: float = 1.0
    low: float = 1.0
    high: float = 1.0
    p: float = 1.0


@dataclass(frozen=True)
class Comparison:
    """changes: the largest loss first; rows in one run alone are not among them. warnings: how the two machines differ."""

    changes: list[Change]
    only_old: list[tuple[Any, ...]]
    only_new: list[tuple[Any, ...]]
    warnings: list[str]
    gate: float

    def count(self, verdict: str) -> int:
        return sum(c.verdict == verdict for c in self.changes)

    @property
    def geometric_mean(self) -> float:
        """Of new / old over the rows that have a ratio; NaN without any."""
        return geometric_mean(c.ratio for c in self.changes if c.old_ms)

    def exit_code(self, strict: bool = False) -> int:
        """1 if a row became slower, wrong or failed; 2 with ``strict`` if a row is unsure or missing; else 0."""
        if self.count(SLOW) or self.count(WRONG):
            return 1
        return 2 if strict and (self.count(UNSURE) or self.only_old) else 0


def compare(old: Run, new: Run, gate: float = GATE) -> Comparison:
    """The verdict of every row that both runs have.

    gate: changes up to this share do not matter. Raises ValueError for a gate that is not in [0, 1) and where no row is in both.
    """
    if not 0 <= gate < 1:
        raise ValueError(f"the gate is a share from 0 to below 1, such as 3%, got {gate:g}")
    keys = [key for key in old.rows if key in new.rows]
    if not keys:
        raise ValueError("the two runs have no row in common: case, dtype, mode, contender, cache, threads and device must be the same")
    pairs = [(old.rows[key], new.rows[key]) for key in keys]
    asked = [i for i, (a, b) in enumerate(pairs) if a.sound and b.sound]
    ps = dict(zip(asked, holm([rank_test(pairs[i][1].times, pairs[i][0].times) for i in asked]), strict=True))
    changes = [_change(a, b, ps.get(i), gate) for i, (a, b) in enumerate(pairs)]
    order = {WRONG: 0, SLOW: 1, UNSURE: 2, SAME: 2, FAST: 2}
    changes.sort(key=lambda c: (order[c.verdict], -c.ratio))
    facts = [run.head["machine"] for run in (old, new)]
    watched = ("processor", "isa", "threads", "torch", "wait_policy", "compiler", "device", "gpu")
    warnings = [f"{k}: {facts[0].get(k)!r} then, {facts[1].get(k)!r} now" for k in watched if facts[0].get(k) != facts[1].get(k)]
    only = [[key for key in run.rows if key not in other.rows] for run, other in ((old, new), (new, old))]
    return Comparison(changes, only[0], only[1], warnings, gate)


def _change(old: Row, new: Row, p: float | None, gate: float) -> Change:
    if new.status in (WRONG, FAILED):
        was = old.status in (WRONG, FAILED)
        return Change(new.key, UNSURE if was else WRONG, f"{new.status}{' as before' if was else ''}: {new.reason}")
    if p is None:
        side = old if not old.sound else new
        reason = f"{side.status} {'then' if side is old else 'now'}: {side.reason}"
        if not (old.timed and new.timed):
            return Change(new.key, UNSURE, reason)
        return _measured(old, new, UNSURE, reason, 1.0)
    low, _, high = ratio_interval(new.times, old.times)
    up, down = 1 + gate, 1 / (1 + gate)
    if p < LEVEL and low > up:
        return _measured(old, new, SLOW, "", p)
    if p < LEVEL and high < down:
        return _measured(old, new, FAST, "", p)
    if down <= low and high <= up:
        return _measured(old, new, SAME, "", p)
    # A wide interval needs more rounds; a gate that it straddles needs a decision.
    return _measured(old, new, UNSURE, f"between {low - 1:+.1%} and {high - 1:+.1%} (p {p:.2g}): more rounds would tell", p)


def _measured(old: Row, new: Row, verdict: str, reason: str, p: float) -> Change:
    low, ratio, high = ratio_interval(new.times, old.times)
    return Change(new.key, verdict, reason, old.median * 1e3, new.median * 1e3, ratio, low, high, p)


def label(key: tuple[Any, ...]) -> str:
    """A row's key in words."""
    case, dtype, mode, contender, cache, threads, device = key
    where = "" if device == "cpu" else f", {device}"
    return f"{case} {dtype} {mode}, {contender}, {cache}, {threads} thread{'s' if threads != 1 else ''}{where}"


def markdown(result: Comparison, old: Run, new: Run) -> str:
    """For a pull request: the verdict first, then every row that is not SAME."""
    counts = ", ".join(f"{result.count(v)} {v}" for v in (WRONG, SLOW, FAST, UNSURE, SAME) if result.count(v))
    lines = [
        f"**{counts}** of {len(result.changes)} rows; geometric mean of new/old {result.geometric_mean:.3f}; gate {result.gate:.1%}.",
        f"Old: {old.title}. New: {new.title}.",
        *(f"Not the same machine or software: {w}." for w in result.warnings),
        "",
        "| row | verdict | old ms | new ms | new/old | 95% interval | p |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for c in result.changes:
        if c.verdict == SAME:
            continue
        numbers = f"{c.old_ms:.4g} | {c.new_ms:.4g} | {c.ratio:.3f} | {c.low:.3f} to {c.high:.3f} | {c.p:.2g}" if c.old_ms else " | | | |"
        lines.append(f"| {label(c.key)} | {c.verdict}{f': {c.reason}' if c.reason else ''} | {numbers} |")
    for title, keys in (("Only in the old run", result.only_old), ("Only in the new run", result.only_new)):
        if keys:
            lines += ["", f"{title}: {len(keys)} rows, such as {label(keys[0])}."]
    return "\n".join(lines) + "\n"
