"""What the tests of the race share: a clock that obeys, a machine without noise, and short races on them."""

from typing import Any

import pytest

from fastcv.bench import Case, measure, roofs
from fastcv.bench.guard import Guard, Limits, Noise
from fastcv.bench.timers import CpuTimer
from fastcv.testing.cases.networks import case_of

CASE = case_of({"op": "softmax", "name": "small", "input": [64, 33]})
CONV = case_of({"op": "conv2d", "name": "small", "input": [1, 4, 9, 8], "out_channels": 5, "kernel": 3})
ANYTHING = Limits(**dict.fromkeys(("switched", "pressure", "stolen", "spread", "slowed", "foreign"), 1e9))


class Clock:
    """Seconds that pass only when a contender says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def taking(self, function: Any, seconds: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.now += seconds() if callable(seconds) else seconds
            return function(*args, **kwargs)

        return call


class Quiet(Guard):
    """A machine on which nothing else happens."""

    def after(self) -> tuple[int, float]:
        return 0, 0.0

    def noise(self) -> Noise:
        return Noise(cpus=2)


@pytest.fixture(autouse=True)
def known_roofs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofs, "arithmetic", lambda dtype: 1e12)
    monkeypatch.setattr(roofs, "copy", lambda size: 1e11)


def race(functions: Any, case: Case = CASE, clock: Clock | None = None, **options: Any) -> dict[tuple[str, str], Any]:
    timer = CpuTimer(clock) if clock else CpuTimer()
    timer.cache = 1 << 16  # the buffers of these small cases are to rotate too, and quickly
    settings: dict[str, Any] = {"seconds": 0.0, "guard": Quiet(), "timer": timer, "rounds": (6, 6), "limits": ANYTHING, **options}
    return {(r.contender, r.cache): r for r in measure(case, functions, **settings)}


def only(function: Any, case: Case = CASE, **options: Any) -> Any:
    """The row of one contender that ran hot."""
    return race({"it": function}, case, cache=("hot",), **options)["it", "hot"]
