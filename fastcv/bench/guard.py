"""What else the machine did while it was measured, and whether that is too much for a verdict.

Everything here is read from the kernel's own counters (Linux; elsewhere what does not exist is left out) and, for GPUs, through
NVML where nvidia-ml-py is installed. Nothing is set, nothing is reset.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import active_count
from time import perf_counter, process_time, sleep  # by value: a contender may replace the module's own
from typing import Any

import torch

from .statistics import quantile

try:
    import resource
except ImportError:  # not a Unix
    resource = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Limits:
    """Shares from which there is no verdict. switched: calls that were ``interrupted``. pressure: time in which some
    runnable task waited for a CPU. stolen: CPU time that the hypervisor gave to others. spread: (p90 - p10) / median.
    slowed: drop of the slowest core's clock below the fastest seen. foreign: GPU processes of others.

    Where they come from: docs/bench.md, the noise guard.
    """

    switched: float = 0.25
    pressure: float = 0.15
    stolen: float = 0.05
    spread: float = 0.6
    slowed: float = 0.15
    foreign: int = 0


LIMITS = Limits()
# Involuntary context switches per second: the system's own work on a quiet machine causes a few, another process, at a turn every
# few milliseconds, hundreds.
TOLERATED = 20.0


@dataclass
class Noise:
    """Of one race: what the counters say. Missing counters stay None."""

    load: float | None = None
    cpus: int = 1
    pressure: float | None = None
    stolen: float | None = None
    clock_mhz: tuple[float, float] | None = None
    throttled: int | None = None
    gpu: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if v not in (None, {})}


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _pressure() -> float | None:
    """Seconds in which some task waited for a CPU, since boot."""
    for word in _read("/proc/pressure/cpu").partition("\n")[0].split():
        if word.startswith("total="):
            return int(word[6:]) / 1e6
    return None


def _stolen() -> tuple[int, int] | None:
    """(stolen, all) CPU time in ticks, since boot."""
    fields = _read("/proc/stat").partition("\n")[0].split()[1:]
    return (int(fields[7]), sum(map(int, fields[:8]))) if len(fields) >= 8 else None


def _clocks() -> list[float]:
    """Current MHz of every core; empty where the kernel does not say."""
    paths = sorted(Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
    return [int(text) / 1e3 for text in (_read(str(p)).strip() for p in paths) if text.isdigit()]


def _throttles() -> int | None:
    """Times that any core was slowed down for heat, since boot."""
    paths = list(Path("/sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/core_throttle_count"))
    counts = [int(text) for text in (_read(str(p)).strip() for p in paths) if text.isdigit()]
    return sum(counts) if counts else None


def gpu_state(nvml: Any = None) -> dict[str, Any]:
    """Clocks, temperature, power, throttle reasons and the processes of others on each GPU; {} without NVML.

    nvml: the module pynvml, by default the installed one.
    """
    if nvml is None:
        try:
            import pynvml as nvml
        except ImportError:
            return {}
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return {}
    state: dict[str, Any] = {}
    try:
        for i in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(i)
            reasons = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
            idle = nvml.nvmlClocksThrottleReasonGpuIdle | nvml.nvmlClocksThrottleReasonApplicationsClocksSetting
            others = [p.pid for p in nvml.nvmlDeviceGetComputeRunningProcesses(handle) if p.pid != os.getpid()]
            state[str(i)] = {
                "sm_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
                "memory_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
                "celsius": nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
                "watts": nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
                "throttle": int(reasons & ~idle),
                "others": len(others),
            }
    except nvml.NVMLError:
        return state
    finally:
        nvml.nvmlShutdown()
    return state


def driver(nvml: Any = None) -> str:
    """The version of NVIDIA's driver; "" without NVML."""
    try:
        if nvml is None:
            import pynvml as nvml
        nvml.nvmlInit()
    except (ImportError, getattr(nvml, "NVMLError", OSError)):
        return ""
    try:
        version = nvml.nvmlSystemGetDriverVersion()
    finally:
        nvml.nvmlShutdown()
    return version.decode() if isinstance(version, bytes) else version


def _preempted() -> int:
    """Of the calling thread: that workers are woken on its core, and wait for it, is the machine's own way of working."""
    return resource.getrusage(getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)).ru_nivcsw


def interrupted(switched: int, seconds: float) -> bool:
    """True if a call of ``seconds`` had more involuntary context switches than the system itself causes."""
    return switched > TOLERATED * seconds


class Guard:
    """Watches one race: ``start`` before it, ``noise`` after it, ``before`` and ``after`` around every timed call."""

    def __init__(self, gpu: bool = False) -> None:
        self._gpu = gpu

    def start(self) -> None:
        self._since = (perf_counter(), _pressure(), _stolen(), _throttles())
        self._mhz = _clocks()

    def before(self) -> None:
        if resource is not None:
            usage = resource.getrusage(resource.RUSAGE_SELF)
            self._switches, self._cpu = _preempted(), usage.ru_utime + usage.ru_stime

    def after(self) -> tuple[int, float]:
        """Involuntary context switches of this thread and CPU seconds of all threads of this process, since ``before``."""
        if resource is None:
            return 0, 0.0
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return _preempted() - self._switches, usage.ru_utime + usage.ru_stime - self._cpu

    def noise(self) -> Noise:
        start, pressure, stolen, throttles = self._since
        elapsed = max(1e-9, perf_counter() - start)
        noise = Noise(cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        if hasattr(os, "getloadavg"):
            noise.load = os.getloadavg()[0]
        now, ticks, heat = _pressure(), _stolen(), _throttles()
        if pressure is not None and now is not None:
            noise.pressure = min(1.0, (now - pressure) / elapsed)
        if stolen is not None and ticks is not None:
            noise.stolen = (ticks[0] - stolen[0]) / max(1, ticks[1] - stolen[1])
        if throttles is not None and heat is not None:
            noise.throttled = heat - throttles
        mhz = [*self._mhz, *_clocks()]
        if mhz:
            noise.clock_mhz = (min(mhz), max(mhz))
        if self._gpu:
            noise.gpu = gpu_state()
        return noise


def disturbed(noise: Noise, limits: Limits = LIMITS) -> str:
    """What of the machine's own counters is above the limits, in one clause; "" if nothing is."""
    where = _where(noise)
    if noise.pressure is not None and noise.pressure > limits.pressure:
        return f"tasks waited for a CPU {noise.pressure:.0%} of the time{where}"
    if noise.stolen is not None and noise.stolen > limits.stolen:
        return f"the hypervisor gave {noise.stolen:.0%} of the CPU time to others"
    if noise.throttled:
        return f"the CPU was slowed down for heat {noise.throttled} times"
    if noise.clock_mhz is not None and noise.clock_mhz[0] < (1 - limits.slowed) * noise.clock_mhz[1]:
        return f"clocks between {noise.clock_mhz[0]:.0f} and {noise.clock_mhz[1]:.0f} MHz"
    for name, state in noise.gpu.items():
        if state["throttle"]:
            return f"GPU {name} was held back (throttle reasons {state['throttle']:#x}, {state['celsius']} °C, {state['watts']:.0f} W)"
        if state["others"] > limits.foreign:
            return f"{state['others']} other processes on GPU {name}"
    return ""


def _where(noise: Noise) -> str:
    return f" (load {noise.load:.1f} on {noise.cpus} CPUs)" if noise.load is not None else ""


def unreliable(noise: Noise, samples: Sequence[float], switched: int, limits: Limits = LIMITS) -> str:
    """Why these samples allow no verdict, in one clause; "" if they do."""
    if switched / len(samples) > limits.switched:
        return f"{switched / len(samples):.0%} of the calls had involuntary context switches{_where(noise)}"
    if reason := disturbed(noise, limits):
        return reason
    middle = quantile(samples, 0.5)
    spread = (quantile(samples, 0.9) - quantile(samples, 0.1)) / middle if middle > 0 else 0.0
    if spread > limits.spread:
        return f"unsteady: the middle 80% of the times spread over {spread:.0%} of the median{_where(noise)}"
    return ""


def busy(patience: float = 0.25) -> bool:
    """True if this process uses a fifth of a CPU or more while nobody calls anything; it gets so long to come to rest, as pools of
    threads do.
    """
    end = perf_counter() + patience
    while True:
        start, cpu = perf_counter(), process_time()
        sleep(2e-3 if active_count() == 1 else 2e-2)  # on a shared machine a thread may have to wait for its turn
        if process_time() - cpu < 0.2 * (perf_counter() - start):
            return False
        if perf_counter() > end:
            return True


def crowded(wall: float, cpu: float) -> str:
    """Of calls that took ``wall`` seconds and this process ``cpu`` seconds meanwhile: more than torch's threads have, or ""."""
    threads = torch.get_num_threads()
    if wall > 0.01 and cpu > (threads + 0.3) * wall * 1.1:
        return f"used {cpu / wall:.1f} CPUs, torch's number of threads is {threads}"
    return ""
