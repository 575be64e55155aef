"""How much memory a call takes: what it asks of torch's allocators. Buffers that a library gets from elsewhere are not seen."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

# Reports of the profiler's library about its own starts and stops; read when the profiler is first used.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import torch

from .values import tensors


def peak(call: Callable[[], Any], device: str = "cpu") -> tuple[int, int]:
    """(peak, workspace) in bytes: the most that was allocated at once during the call, and what of it is not in its result."""
    if device != "cpu":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = call()
        torch.cuda.synchronize(device)
        most = torch.cuda.max_memory_allocated(device) - before
    else:
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            result = call()
        events = profiler.profiler.kineto_results.events()
        changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
        now = most = 0
        for _, size in changes:
            now += size
            most = max(most, now)
    kept = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors(result)}
    return most, max(0, most - sum(kept.values()))
