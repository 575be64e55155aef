"""Clocks: one call on the CPU by perf_counter, one call on a GPU by events, with caches emptied on demand."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from .machine import last_level_cache

_clock = time.perf_counter  # taken now: a contender that replaces time.perf_counter later does not reach it
BUSY = 1_000_000  # GPU cycles in which the CPU gets ahead, about half a millisecond
MULTIPLE = 3  # how many times the last-level cache is rotated through or overwritten


class CpuTimer:
    """Times one call on the calling thread. clock: seconds; replaced in tests by one that only contenders move."""

    device = "cpu"

    def __init__(self, clock: Callable[[], float] = _clock) -> None:
        self.clock = clock
        self.cache = last_level_cache()
        self._scratch: torch.Tensor | None = None
        self.nothing = min(self.time(lambda: None)[0] for _ in range(50))

    def time(self, call: Callable[[], Any]) -> tuple[float, Any]:
        """(seconds, what the call returned)."""
        start = self.clock()
        result = call()
        return self.clock() - start, result

    def flush(self) -> None:
        """Writes more memory than the caches hold."""
        if self._scratch is None:
            self._scratch = torch.empty(MULTIPLE * self.cache, dtype=torch.uint8)
        self._scratch.fill_(1)

    def late(self, seconds: float) -> str:
        """Why the last call may have left work undone that ``seconds`` do not hold; "" here: the judge's copies tell."""
        return ""


class CudaTimer:
    """Times one call by two events on the current stream; a kernel that waits keeps the GPU busy while the CPU gets ahead, so that
    launch costs are hidden as they are in a network. Work on other streams is not between the events: a second, device-wide clock
    sees it.

    graph: the call is captured once and replayed, so that only kernels are timed. cuda: the module torch.cuda, or a
    stand-in with the same names in tests.
    """

    def __init__(self, device: str = "cuda", graph: bool = False, cuda: Any = None, clock: Callable[[], float] = _clock) -> None:
        self.device, self.graph, self.clock = device, graph, clock
        self._cuda = torch.cuda if cuda is None else cuda
        self.cache = int(self._cuda.get_device_properties(device).L2_cache_size)
        self._scratch: Any = None
        self.nothing = 0.0
        self._wall = 0.0
        self._captured: Any = None  # owns the memory of its result
        self.nothing = min(self.time(lambda: None)[0] for _ in range(20))

    def time(self, call: Callable[[], Any]) -> tuple[float, Any]:
        """(seconds between the events, what the call returned)."""
        cuda = self._cuda
        if self.graph:
            self._captured = cuda.CUDAGraph()
            with cuda.graph(self._captured):
                result = call()
            call = self._captured.replay
        start, stop = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
        cuda.synchronize()
        if not self.graph:
            cuda._sleep(BUSY)
        start.record()
        returned = call()
        stop.record()
        stop.synchronize()
        seen = self.clock()
        cuda.synchronize()
        self._wall = self.clock() - seen  # work that other streams still had when this stream was done
        return start.elapsed_time(stop) / 1e3, result if self.graph else returned

    def flush(self) -> None:
        """Overwrites the level-two cache."""
        if self._scratch is None:
            self._scratch = torch.empty(MULTIPLE * self.cache, dtype=torch.uint8, device=self.device)
        self._scratch.fill_(1)

    def late(self, seconds: float) -> str:
        """Work that outlived the events by more than a tenth of what they saw, and more than an empty synchronise costs."""
        if self._wall > max(0.1 * seconds, 1e-4):
            return f"other streams worked for {self._wall * 1e6:.0f} us after the timed one was done"
        return ""
