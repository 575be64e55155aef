"""The race: what it measures with a clock of known behaviour, and that every way to cheat it is caught."""

import itertools
import random
import re
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import fastcv
from fastcv.bench import Case, Contender, contender, guard, interleave, measure, roofs
from fastcv.bench.contenders import _registered, load_file, registered
from fastcv.bench.guard import Guard, Limits, Noise, unreliable
from fastcv.bench.plan import Job, Options, run_job
from fastcv.bench.timers import CpuTimer, CudaTimer
from fastcv.testing import cases_of
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


# ---- what is measured


def test_times_are_those_of_the_clock() -> None:
    clock = Clock()
    rows = race({"one": clock.taking(F.softmax, 1e-3), "three": clock.taking(F.softmax, 3e-3)}, clock=clock)
    assert set(rows) == {(name, cache) for name in ("one", "three") for cache in ("hot", "cold")}
    for (name, _), row in rows.items():
        assert row.status == "OK" and row.checked >= 3
        assert row.median == pytest.approx({"one": 1e-3, "three": 3e-3}[name]) and row.interval == pytest.approx((row.median,) * 2)


@pytest.mark.parametrize(
    "draw", [lambda n: n.gauss(1e-3, 5e-5), lambda n: 1e-3 * n.lognormvariate(0, 0.2), lambda n: n.uniform(5e-4, 1.5e-3)]
)
def test_intervals_hold_the_median_of_known_distributions(draw: Any) -> None:
    held = 0
    for seed in range(8):
        clock, number = Clock(), random.Random(seed)
        row = race({"it": clock.taking(F.softmax, lambda n=number: draw(n))}, clock=clock, rounds=(25, 25), cache=("hot",), seed=seed)[
            "it", "hot"
        ]
        assert len(row.times) == 25
        held += row.interval[0] <= 1e-3 <= row.interval[1]
    assert held >= 6  # at 95 % each, fewer than 6 of 8 have a chance of 1 %; the seeds are fixed


def test_outliers_do_not_move_the_median() -> None:
    clock, number = Clock(), random.Random(0)
    noisy = clock.taking(F.softmax, lambda: 1e-3 if number.random() < 0.8 else 50e-3)
    row = race({"it": noisy}, clock=clock, rounds=(50, 50), cache=("hot",))["it", "hot"]
    assert row.median == pytest.approx(1e-3) and max(row.times) == pytest.approx(50e-3)


def test_turns_are_shuffled_and_drift_hits_all() -> None:
    """A machine that slows down while it is measured must not decide who wins."""
    clock, turns = Clock(), []

    def slower(name: str, base: float) -> Any:
        def seconds() -> float:
            turns.append(name)
            return base * (1 + len(turns) / 200)

        return clock.taking(F.softmax, seconds)

    rows = race({"a": slower("a", 1e-3), "b": slower("b", 1.2e-3)}, clock=clock, rounds=(40, 40), cache=("hot",))
    assert rows["b", "hot"].median / rows["a", "hot"].median == pytest.approx(1.2, rel=0.05)
    pairs = list(itertools.pairwise(turns))
    assert ("a", "b") in pairs and ("b", "a") in pairs and turns != sorted(turns)


def test_a_real_race_with_gradients() -> None:
    rows = race({"fastcv": fastcv.functional.conv2d, "torch": F.conv2d}, CONV, mode="fwd+bwd")
    for row in rows.values():
        assert row.status == "OK" and row.repeatable and row.median > 0 and row.error < 1e-5
        assert row.flops == 3 * CONV.flops and row.peak >= row.workspace >= 0
    assert rows["fastcv", "hot"].kernel and not rows["torch", "hot"].kernel


@pytest.mark.parametrize("mode", ["fwd", "bwd", "fwd+bwd"])
@pytest.mark.parametrize("op", ["batch_norm", "knn", "nearest", "max_pool2d", "cross_entropy", "layer_norm", "max_unpool2d"])
def test_every_kind_of_case_is_judged_right(op: str, mode: str) -> None:
    """Running statistics, choices, labels, indices: fastcv's own functions are neither wrong nor accused of changing arguments."""
    case = next(c for c in cases_of(op) if not c.bench and c.grad and torch.float32 in c.dtypes and "empty" not in c.name)
    if op == "batch_norm":
        assert case.name == "odd-3x5x7x3"
    entered = [Contender("fastcv", getattr(fastcv.functional, op)), Contender("torch", case.torch_function())]
    for row in race(entered, case, mode=mode, rounds=(3, 3)).values():
        assert row.status == "OK", (row.contender, row.reason)


def test_half_precision_and_layouts() -> None:
    entered = [Contender(f"fastcv {layout}", fastcv.functional.conv2d, layout) for layout in ("contiguous", "channels_last")]
    for row in race(entered, CONV, dtype=torch.bfloat16).values():
        assert row.status == "OK" and 1e-5 < row.error < 0.02 and row.dtype == "bf16"


def test_double_precision_is_judged_by_its_own_rounding() -> None:
    assert only(fastcv.functional.conv2d, CONV, dtype=torch.float64).status == "OK"
    assert only(lambda *a, **k: F.conv2d(*(t.float() for t in a), **k).double(), CONV, dtype=torch.float64).status == "WRONG"


# ---- cheating


def caught(function: Any, text: str, case: Case = CASE, **options: Any) -> None:
    rows = race({"honest": case.torch_function(), "cheat": function}, case, **options)
    for cache in ("hot", "cold"):
        row = rows["cheat", cache]
        assert row.status == "WRONG" and not row.timed, (cache, row.status, row.reason)
        assert text in row.reason, row.reason
        assert rows["honest", cache].status == "OK"  # the others go on


def remember(key: Any) -> Any:
    kept: dict[Any, Any] = {}

    def cheat(x: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        k = key(x)
        if k not in kept:
            kept[k] = F.softmax(x, *rest, **options)
        return kept[k]

    return cheat


@pytest.mark.parametrize("key", [lambda x: x.shape, lambda x: x.data_ptr(), lambda x: id(x), lambda x: x[0, 0].item() > 0])
@pytest.mark.parametrize("copied", [False, True])
def test_remembered_outputs_are_caught(key: Any, copied: bool) -> None:
    """By shape, by address, by object, by a glance at the content; whether it hands out its own memory or a copy."""
    cheat = remember(key)
    caught((lambda *a, **k: cheat(*a, **k).clone()) if copied else cheat, "off float64")


@pytest.mark.parametrize("cache", ["hot", "cold"])
@pytest.mark.parametrize("cheat", ["remembers", "nothing", "changes", "rounds"])
def test_cheating_in_the_race_alone_is_caught(cheat: str, cache: str) -> None:
    """Honest while it is audited, and from then on not."""
    calls, kept = [0], []

    def function(x: torch.Tensor, dim: int) -> torch.Tensor:
        calls[0] += 1
        if calls[0] <= 5:
            kept[:] = [F.softmax(x, dim).clone()]
            return F.softmax(x, dim)
        if cheat == "remembers":
            return kept[0].clone()
        if cheat == "nothing":
            return torch.empty_like(x)
        if cheat == "rounds":
            return F.softmax(x.bfloat16(), dim).float()
        y = F.softmax(x, dim)
        x.mul_(1.001)
        return y

    assert race({"it": function}, cache=(cache,))["it", cache].status == "WRONG" and calls[0] > 5


def test_doing_nothing_is_caught() -> None:
    caught(lambda x, dim: torch.empty_like(x), "off float64")
    caught(lambda x, dim: x, "off float64")
    caught(lambda x, dim: None, "without a tensor")
    caught(lambda x, dim: torch.zeros_like(x), "off float64")


def test_reused_memory_that_holds_the_last_answer_is_poisoned() -> None:
    """What the allocator hands out again holds NaN, not the honest contender's result."""
    row = only(lambda x, dim: torch.empty_like(x), rounds=(8, 8))
    assert row.status == "WRONG" and row.error > 0.1


def test_changed_arguments_are_caught() -> None:
    caught(lambda x, dim: F.softmax(x, dim) + 0 * x.zero_(), "changed argument 0")
    caught(lambda x, w, *rest, **k: (F.conv2d(x, w, *rest, **k), w.mul_(1.0001))[0], "changed argument 1", CONV)


def test_wrong_results_are_caught() -> None:
    caught(lambda x, dim: F.softmax(x, dim) * 1.001, "off float64")
    caught(lambda x, dim: F.softmax(x.bfloat16(), dim).float(), "off float64")
    caught(lambda x, dim: F.softmax(x, dim)[:-1], "has shape")
    caught(lambda x, dim: (F.softmax(x, dim), x), "returned 2 tensors")

    def last_column(x: torch.Tensor, dim: int) -> torch.Tensor:
        y = F.softmax(x, dim)
        y[-1, -1] = 0.0
        return y

    caught(last_column, "off float64")
    labels = case_of({"op": "max_pool2d", "name": "i", "input": [1, 2, 8, 8], "kernel": 2})
    labels = replace(labels, peer=lambda x, *a: F.max_pool2d(x, *a, return_indices=True), grad=())
    caught(lambda x, *a: (F.max_pool2d(x, *a), F.max_pool2d(x, *a, return_indices=True)[1] + 1), "differs from the reference", labels)


def test_wrong_gradients_are_caught() -> None:
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, dim: int) -> torch.Tensor:
            return F.softmax(x, dim)

        @staticmethod
        def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor, None]:
            return g, None

    assert only(Wrong.apply).status == "OK"
    caught(Wrong.apply, "the gradient of argument 0", mode="fwd+bwd")


def test_gradients_made_in_the_forward_pass_are_caught() -> None:
    """Where only the backward pass is timed, the forward pass could do its work, if it knew the gradient that will come."""
    came: list[torch.Tensor] = []

    class Early(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, dim: int) -> torch.Tensor:
            y = F.softmax(x, dim)
            ctx.save_for_backward(y)
            ctx.made = y * (came[0] - (came[0] * y).sum(dim, True)) if came else None
            return y

        @staticmethod
        def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor, None]:
            (y,) = ctx.saved_tensors
            came[:] = came or [g.clone()]
            return ctx.made if ctx.made is not None else y * (g - (g * y).sum(1, True)), None

    caught(Early.apply, "the gradient of argument 0", mode="bwd")


def test_preparing_oneself_is_no_way_to_win() -> None:
    class Ready:
        def prepare(self, x: torch.Tensor, dim: int) -> Any:
            y = F.softmax(x, dim)
            return lambda: y

        def __call__(self, x: torch.Tensor, dim: int) -> torch.Tensor:
            raise RuntimeError("asked after all")

    row = only(Ready())
    assert row.status == "FAILED" and row.reason == "RuntimeError: asked after all"


def test_neighbours_that_are_not_the_nearest_are_caught() -> None:
    case = case_of({"op": "knn", "name": "n", "x": [20, 5], "y": [40, 5], "k": 3})
    far = lambda x, y, k, p=2.0: torch.cdist(x, y, p).topk(k, largest=True)  # noqa: E731
    assert only(fastcv.functional.knn, case).status == "OK"
    assert only(far, case).status == "WRONG"
    assert only(lambda x, y, k, p=2.0: (torch.cdist(x, y, p).topk(k, largest=False)[0], torch.full((20, 3), 99)), case).status == "WRONG"


@pytest.mark.parametrize("after", [0.0, 0.002])
def test_work_left_to_another_thread_is_caught(after: float) -> None:
    """It returns memory at once and lets a thread fill it: the copy taken when the clock stopped knows."""
    audits = [0]

    def late(x: torch.Tensor, dim: int) -> torch.Tensor:
        audits[0] += 1
        if audits[0] <= 5:
            return F.softmax(x, dim)
        y = torch.empty_like(x)

        def fill() -> None:
            time.sleep(after + 0.001)
            y.copy_(F.softmax(x, dim))

        threading.Thread(target=fill).start()
        return y

    row = only(late)
    time.sleep(0.02)
    assert row.status == "WRONG"


def test_tensors_that_compute_when_they_are_looked_at_are_caught() -> None:
    class Lazy(torch.Tensor):
        pass

    caught(lambda x, dim: F.softmax(x, dim).as_subclass(Lazy), "may still have to be computed")
    caught(lambda x, dim: torch._neg_view(-F.softmax(x, dim)), "still to be negated")


def test_changed_settings_are_caught_and_restored() -> None:
    threads = torch.get_num_threads()

    def greedy(x: torch.Tensor, dim: int) -> torch.Tensor:
        torch.set_num_threads(threads + 3)
        return F.softmax(x, dim)

    caught(greedy, "number of threads")
    assert torch.get_num_threads() == threads


def test_a_changed_precision_switch_is_caught_and_restored() -> None:
    switch = torch.backends.mkldnn.conv
    if not hasattr(switch, "fp32_precision"):
        pytest.skip("this torch has no such switch")
    before = switch.fp32_precision

    def fast(*args: Any, **options: Any) -> torch.Tensor:
        switch.fp32_precision = "bf16"
        return F.conv2d(*args, **options)

    caught(fast, "fp32 precision of oneDNN's convolutions", CONV)
    assert switch.fp32_precision == before


def test_results_in_memory_that_was_returned_before_are_caught() -> None:
    """Right when it is timed, and overwritten by the next call: nobody could use it."""
    mine: list[torch.Tensor] = []

    def reuse(x: torch.Tensor, dim: int) -> torch.Tensor:
        mine[:] = mine or [torch.empty_like(x)]
        torch.softmax(x, dim, out=mine[0])
        return mine[0].view_as(x)

    caught(reuse, "returned before")
    assert only(reuse).status == "WRONG"


def test_an_answer_that_is_an_argument_is_nobodys_reuse() -> None:
    view = Case("softmax", "view", lambda g: ((torch.randn(4, 6, generator=g),), {}), peer=lambda x: x.view(6, 4))
    assert only(lambda x: x.reshape(6, 4), view).status in ("OK", "IMPOSSIBLE")


def test_earlier_answers_cannot_be_mended() -> None:
    """Linear functions could be brought up to date for the few elements that differ from arguments seen before, if few did."""
    kept: list[Any] = []
    mended = [0]

    def incremental(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        for x0, w0, b0, y0 in kept:
            if int((x != x0).sum()) <= 40 and int((w != w0).sum()) <= 40:
                mended[0] += 1
                changed = [F.conv2d(*pair, None, *rest, **options) for pair in ((x - x0, w), (x0, w - w0))]
                return y0 + sum(changed) + (b - b0).view(1, -1, 1, 1)
        kept.append((x.clone(), w.clone(), b.clone(), F.conv2d(x, w, b, *rest, **options)))
        return kept[-1][3].clone()

    conv = case_of({"op": "conv2d", "name": "c", "input": [1, 16, 14, 14], "out_channels": 16, "kernel": 3, "padding": 1})
    row = only(incremental, conv, rounds=(20, 20))
    assert row.status == "OK", row.reason
    assert mended[0] <= len(kept) / 4, (mended, len(kept))


@pytest.mark.parametrize("first", [1, 6])
def test_work_left_running_is_caught(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It slows down whoever is timed next. Left in the audit it is known whose it is, in the race nobody gets a verdict."""
    calls, left = [0], [False]
    monkeypatch.setattr("fastcv.bench.race.busy", lambda: left[0])

    def leaves(x: torch.Tensor, dim: int) -> torch.Tensor:
        calls[0] += 1
        left[0] = left[0] or calls[0] == first
        return F.softmax(x, dim)

    rows = race({"cheat": leaves, "honest": F.softmax}, cache=("hot",))
    if first == 1:
        assert rows["cheat", "hot"].status == "WRONG" and "left something running" in rows["cheat", "hot"].reason
        assert rows["honest", "hot"].status == "OK"
    else:
        assert rows["honest", "hot"].status == "UNRELIABLE" and "left something running" in rows["honest", "hot"].reason


@pytest.mark.parametrize(("share", "until", "busy"), [(1.0, 9.0, True), (0.3, 9.0, True), (0.1, 9.0, False), (1.0, 0.1, False)])
def test_a_process_that_does_not_come_to_rest(share: float, until: float, busy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that use this share of a CPU until so many seconds have passed: pools get a moment, work does not."""
    now = [0.0, 0.0]

    def sleep(seconds: float) -> None:
        now[1] += share * seconds if now[0] < until else 0.0
        now[0] += seconds

    for name, clock in {"sleep": sleep, "perf_counter": lambda: now[0], "process_time": lambda: now[1]}.items():
        monkeypatch.setattr(guard, name, clock)
    assert guard.busy() is busy and now[0] < 0.5


def test_clocks_that_a_contender_replaces_are_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "perf_counter", time.perf_counter)  # put back after the test

    def stops(x: torch.Tensor, dim: int) -> torch.Tensor:
        time.perf_counter = lambda: 0.0  # type: ignore[assignment]
        return F.softmax(x, dim)

    big = case_of({"op": "softmax", "name": "big", "input": [256, 512]})
    row = only(stops, big)
    assert row.status == "OK" and row.median > 1e-6
    assert roofs._best(lambda: None, 0.01) < 1.0  # ends


def test_more_cpus_than_allowed_are_no_verdict() -> None:
    class Busy(Quiet):
        def after(self) -> tuple[int, float]:
            return 0, 10.0

    clock = Clock()
    row = race({"it": clock.taking(F.softmax, 0.02)}, clock=clock, guard=Busy())["it", "hot"]
    assert row.status == "UNRELIABLE" and "CPUs" in row.reason


def test_faster_than_the_machine_is_impossible(monkeypatch: pytest.MonkeyPatch) -> None:
    big = case_of({"op": "softmax", "name": "big", "input": [256, 512]})
    clock = Clock()
    rows = race({"fast": clock.taking(F.softmax, 1e-7), "slow": clock.taking(F.softmax, 1e-3)}, big, clock)
    assert {k[0]: r.status for k, r in rows.items()} == {"fast": "IMPOSSIBLE", "slow": "OK"}
    assert "no known algorithm" in rows["fast", "hot"].reason
    assert only(clock.taking(F.softmax, 0.0), clock=clock).status == "IMPOSSIBLE"  # 0.000
    conv = case_of({"op": "conv2d", "name": "c", "input": [1, 64, 28, 28], "out_channels": 64, "kernel": 3, "padding": 1})
    seconds = conv.flops / 1e12
    for factor, status in ((3.0, "OK"), (4.0, "OK"), (9.0, "IMPOSSIBLE")):  # Winograd may, nobody may
        assert only(clock.taking(F.conv2d, seconds / factor), conv, clock=clock).status == status


def test_who_raises_loses_only_his_rows() -> None:
    def broken(x: torch.Tensor, dim: int) -> torch.Tensor:
        raise RuntimeError("no kernel\nfor you")

    later = [0]

    def breaks_later(x: torch.Tensor, dim: int) -> torch.Tensor:
        later[0] += 1
        if later[0] > 9:
            raise MemoryError("full")
        return F.softmax(x, dim)

    def leaves(x: torch.Tensor, dim: int) -> torch.Tensor:
        raise SystemExit(3)

    rows = race({"broken": broken, "later": breaks_later, "fine": F.softmax, "leaves": leaves})
    assert rows["leaves", "hot"].status == "FAILED" and rows["leaves", "hot"].reason == "SystemExit: 3"
    assert rows["broken", "hot"].status == "FAILED" and rows["broken", "hot"].reason == "RuntimeError: no kernel"
    assert rows["later", "cold"].reason == "MemoryError: full"
    assert rows["fine", "hot"].status == rows["fine", "cold"].status == "OK"


# ---- noise


def test_noise_gives_no_verdict() -> None:
    steady = [1.0] * 20
    assert unreliable(Noise(), steady, 0) == ""
    assert "40% of the calls had involuntary context switches (load 3.1 on 2 CPUs)" in unreliable(Noise(load=3.1, cpus=2), steady, 8)
    assert "waited for a CPU 50%" in unreliable(Noise(pressure=0.5), steady, 0)
    assert "hypervisor gave 20%" in unreliable(Noise(stolen=0.2), steady, 0)
    assert "heat 3 times" in unreliable(Noise(throttled=3), steady, 0)
    assert "between 1200 and 3000 MHz" in unreliable(Noise(clock_mhz=(1200.0, 3000.0)), steady, 0)
    assert "unsteady" in unreliable(Noise(), [1.0] * 10 + [3.0] * 10, 0)
    gpu = {"0": {"throttle": 8, "celsius": 90, "watts": 700.0, "others": 0}}
    assert "GPU 0 was held back" in unreliable(Noise(gpu=gpu), steady, 0)
    gpu["0"] |= {"throttle": 0, "others": 2}
    assert "2 other processes on GPU 0" in unreliable(Noise(gpu=gpu), steady, 0)


def test_noise_reaches_the_row() -> None:
    class Loud(Quiet):
        def after(self) -> tuple[int, float]:
            return 1, 0.0

    row = only(F.softmax, guard=Loud(), limits=guard.LIMITS)
    assert row.status == "UNRELIABLE" and "100% of the calls" in row.reason and row.timed and not row.sound


def test_guard_reads_this_machine() -> None:
    watch = Guard()
    watch.start()
    watch.before()
    switches, cpu = watch.after()
    noise = watch.noise()
    assert switches >= 0 and 0 <= cpu < 5 and noise.cpus >= 1 and noise.as_dict()["cpus"] == noise.cpus
    assert noise.pressure is None or 0 <= noise.pressure <= 1


def test_gpu_state_by_a_stand_in() -> None:
    class Nvml:
        NVMLError = RuntimeError
        NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
        nvmlClocksThrottleReasonGpuIdle, nvmlClocksThrottleReasonApplicationsClocksSetting = 1, 2
        shut = False

        def nvmlInit(self) -> None: ...
        def nvmlShutdown(self) -> None:
            self.shut = True

        def nvmlSystemGetDriverVersion(self) -> str:
            return "580.1"

        def nvmlDeviceGetCount(self) -> int:
            return 1

        def nvmlDeviceGetHandleByIndex(self, i: int) -> int:
            return i

        def nvmlDeviceGetCurrentClocksThrottleReasons(self, _: int) -> int:
            return 0x9

        def nvmlDeviceGetComputeRunningProcesses(self, _: int) -> list[Any]:
            import os
            from types import SimpleNamespace

            return [SimpleNamespace(pid=os.getpid()), SimpleNamespace(pid=1)]

        def nvmlDeviceGetClockInfo(self, _: int, kind: int) -> int:
            return 1000 * kind

        def nvmlDeviceGetTemperature(self, *_: int) -> int:
            return 60

        def nvmlDeviceGetPowerUsage(self, _: int) -> int:
            return 350_000

    nvml = Nvml()
    assert guard.gpu_state(nvml) == {"0": {"sm_mhz": 1000, "memory_mhz": 2000, "celsius": 60, "watts": 350.0, "throttle": 8, "others": 1}}
    assert nvml.shut and guard.driver(nvml) == "580.1"


class FakeCuda:
    """torch.cuda with a clock: work on the current stream and on others takes time when it is waited for."""

    def __init__(self) -> None:
        self.now, self.stream, self.others, self.captured = 0.0, 0.0, 0.0, None
        cuda = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = cuda.stream

            def synchronize(self) -> None:
                cuda.now = max(cuda.now, self.at)

            def elapsed_time(self, other: Any) -> float:
                return 1e3 * (other.at - self.at)

        class CUDAGraph:
            calls = 0

            def replay(self) -> None:
                self.calls += 1
                cuda.stream += self.work

        self.Event, self.CUDAGraph = Event, CUDAGraph

    def get_device_properties(self, device: str) -> Any:
        from types import SimpleNamespace

        return SimpleNamespace(L2_cache_size=1 << 20)

    def _sleep(self, cycles: int) -> None:
        self.stream += cycles / 2e9

    def synchronize(self) -> None:
        self.now = self.stream = max(self.now, self.stream, self.others)

    @contextmanager
    def graph(self, captured: Any) -> Any:
        before = self.stream
        yield
        captured.work, self.stream = self.stream - before, before


def test_gpu_times_are_those_of_the_events_and_other_streams_are_seen() -> None:
    cuda = FakeCuda()
    timer = CudaTimer("cuda", cuda=cuda, clock=lambda: cuda.now)

    def kernel() -> str:
        cuda.stream += 2e-3
        return "result"

    def elsewhere() -> str:
        cuda.stream += 1e-5
        cuda.others = cuda.stream + 2e-3
        return "result"

    seconds, result = timer.time(kernel)
    assert seconds == pytest.approx(2e-3) and result == "result" and timer.late(seconds) == ""
    seconds, result = timer.time(elsewhere)
    assert seconds == pytest.approx(1e-5) and "other streams worked for" in timer.late(seconds)
    graph = CudaTimer("cuda", graph=True, cuda=cuda, clock=lambda: cuda.now)
    seconds, result = graph.time(kernel)
    assert seconds == pytest.approx(2e-3) and result == "result"


# ---- the library


def test_interleave_takes_turns_and_divides_repeats() -> None:
    calls = []
    samples = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 0.0, (5, 5), floor=0.0)
    assert all(len(s.times) == 5 for s in samples.values()) and calls.count("a") == calls.count("b") == 7


def test_bad_calls_are_told() -> None:
    with pytest.raises(ValueError, match="different names"):
        measure(CASE, {})
    with pytest.raises(ValueError, match="is none of hot, cold"):
        measure(CASE, {"it": F.softmax}, cache=("warm",))
    with pytest.raises(ValueError, match="mode 'train' is none of"):
        measure(CASE, {"it": F.softmax}, mode="train")
    with pytest.raises(ValueError, match=r"not defined for torch\.float64"):
        measure(CASE, {"it": F.softmax}, dtype=torch.float64)
    with pytest.raises(ValueError, match="layout 'nhcw'"):
        Contender("it", F.softmax, "nhcw")
    with pytest.raises(ValueError, match="has no gradients"):
        measure(replace(CASE, grad=()), {"it": F.softmax}, mode="bwd")


def test_registered_contenders_take_part(tmp_path: Any) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\nfrom fastcv.bench import contender\n"
        "@contender('softmax', name='exp')\ndef exp(x, dim, _stacklevel=3, dtype=None):\n"
        "    e = (x - x.amax(dim, True)).exp()\n    return e / e.sum(dim, True)\n"
    )
    try:
        load_file(file)
        assert [c.who for c in registered("softmax")] == ["exp"]
        with pytest.raises(ValueError, match="a contender named exp already"):
            contender("softmax", name="exp")(F.softmax)
        rows = run_job(Job(CASE, "f32", "fwd", 1), Options(vs=(), cache=("hot",), seconds=0.0, rounds=(2, 2)))
        assert {r.contender: r.status in ("OK", "UNRELIABLE") for r in rows} == {"fastcv contiguous": True, "exp": True}
        assert all(r.threads == 1 for r in rows)
        modes = run_job(Job(CASE, "f32", "fwd+bwd", 1), Options(vs=(), cache=("hot",), seconds=0.0, rounds=(2, 2)))
        assert [r.contender for r in modes] == ["fastcv contiguous"]  # it has no backward
    finally:
        _registered.clear()
    for text, message in (
        ("1 +", "does not run: SyntaxError"),
        ("raise SystemExit(3)", "does not run: SystemExit: 3"),
        ("x = 1", "registers no contender"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_file(file)
    with pytest.raises(ValueError, match="is no Python file"):
        load_file(tmp_path / "none.py")


@pytest.mark.parametrize("peer", ["compile", "onnxruntime", "openvino", "faiss", "sklearn"])
def test_peers_give_right_answers(peer: str) -> None:
    from fastcv.bench import peers

    if peers.missing(peer):
        pytest.skip(peers.missing(peer))
    tables: dict[str, list[dict[str, Any]]] = {
        "compile": [{"op": "softmax", "input": [8, 33]}],
        "onnxruntime": [
            {"op": "conv2d", "input": [1, 4, 9, 8], "out_channels": 6, "kernel": 3, "padding": 1, "stride": 2},
            {"op": "conv_transpose2d", "input": [1, 4, 5, 6], "out_channels": 3, "kernel": 2, "stride": 2},
            {"op": "max_pool2d", "input": [1, 4, 8, 8], "kernel": 3, "stride": 2, "padding": 1},
            {"op": "avg_pool2d", "input": [1, 4, 8, 8], "kernel": 2},
            {"op": "softmax", "input": [8, 33]},
            {"op": "layer_norm", "input": [8, 33]},
            {"op": "batch_norm", "input": [2, 5, 4, 4], "training": False},
        ],
        "faiss": [
            {"op": op, "x": [12, 6], "y": [30, 6], **({"k": 3} if op == "knn" else {}), "p": p} for op in ("knn", "nearest") for p in (1, 2)
        ],
    }
    tables["openvino"], tables["sklearn"] = (
        tables["onnxruntime"][:4],
        [*tables["faiss"], {"op": "cdist", "x": [12, 6], "y": [30, 6], "p": 1}],
    )
    for fields in tables[peer]:
        case = case_of(fields)
        rows = run_job(Job(case, "f32", "fwd", 1), Options(vs=(peer,), layouts=("contiguous",), cache=("hot",), seconds=0.0, rounds=(2, 2)))
        theirs = [r for r in rows if r.who == peer]
        assert theirs and all(r.status in ("OK", "UNRELIABLE") for r in theirs), [(r.contender, r.status, r.reason) for r in rows]


def test_the_examples_of_the_docs_run(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).resolve().parent.parent / "docs" / "bench.md").read_text()
    mine, own = re.findall(r"```python\n(.*?)```", text, re.S)
    (tmp_path / "mine.py").write_text(mine)
    try:
        load_file(tmp_path / "mine.py")
        assert only(registered("softmax")[0].function).status == "OK"
    finally:
        _registered.clear()
    exec(compile(own.replace("seconds=0.5", "seconds=0.0"), "bench.md", "exec"), {})
    printed = capsys.readouterr().out
    assert re.search(r"^plain (OK|UNRELIABLE|IMPOSSIBLE) ", printed, re.M) and re.search(r"^fused WRONG output 0 is ", printed, re.M), (
        printed
    )
