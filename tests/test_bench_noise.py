"""Noise gives no verdict: what a race sees of the machine, of a GPU, and of work that is left running."""

from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bench_common import Clock, Quiet, known_roofs, only, race  # noqa: F401 - known_roofs is for every test

from fastcv.bench import guard
from fastcv.bench.guard import Guard, Noise, unreliable
from fastcv.bench.timers import CudaTimer


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


def test_more_cpus_than_allowed_are_no_verdict() -> None:
    class Busy(Quiet):
        def after(self) -> tuple[int, float]:
            return 0, 10.0

    clock = Clock()
    row = race({"it": clock.taking(F.softmax, 0.02)}, clock=clock, guard=Busy())["it", "hot"]
    assert row.status == "UNRELIABLE" and "CPUs" in row.reason


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
