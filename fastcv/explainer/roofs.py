"""What this machine can do at most, measured once per process: multiply-adds per second and bytes copied per second.

Both are the best of many short runs: a roof is what the machine does when nobody disturbs it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch

from .. import _ext

_SECONDS = 0.15  # for each roof
_SIZES = tuple(1 << shift for shift in range(18, 29, 2))  # bytes read and written: 256 KiB to 256 MiB


@_ext.fake("fma_chain")
def _(input: torch.Tensor, steps: int) -> torch.Tensor:
    return torch.empty(input.shape, dtype=input.dtype, device=input.device)


def _best(call: Callable[[], object]) -> float:
    """The shortest time of one call, in seconds."""
    call()
    best, end = float("inf"), time.perf_counter() + _SECONDS
    while (start := time.perf_counter()) < end:
        call()
        best = min(best, time.perf_counter() - start)
    return best


@cache
def _arithmetic(dtype: torch.dtype, threads: int) -> float:
    if dtype in (torch.float32, torch.float64):
        x = torch.rand(3072 * threads, dtype=dtype)
        chain, steps = _ext.op("fma_chain"), 20_000
        return 2 * x.numel() * steps / _best(lambda: chain(x, steps))
    a, b = (torch.rand(1024, 1024).to(dtype) for _ in range(2))
    matrices = 2 * 1024**3 / _best(lambda: torch.mm(a, b))
    return max(matrices, _arithmetic(torch.float32, threads))


@cache
def _copy(size: int, threads: int) -> float:
    source = torch.rand(size // 8)
    target = torch.empty_like(source)
    return size / _best(lambda: target.copy_(source))


def arithmetic(dtype: torch.dtype) -> float:
    """FLOP/s with torch's current number of threads: float32 and float64 by multiply-adds in registers (csrc/roof); 16-bit
    types, whose matrix units register code does not reach, by torch's product of 1024 x 1024 matrices if that is faster.
    """
    return _arithmetic(dtype, torch.get_num_threads())


def copy(size: int) -> float:
    """Bytes/s, read and written, of a copy that moves about ``size`` bytes: caches hold small ones.

    At least that of a copy through memory: on a busy machine a short copy may never have run undisturbed.
    """
    threads = torch.get_num_threads()
    nearest = min(_SIZES, key=lambda s: abs(s.bit_length() - size.bit_length()))
    return max(_copy(nearest, threads), _copy(_SIZES[-1], threads))
