"""What a GPU's instructions and its second-level cache do at most, and a CPU's products of 16-bit numbers, by the probes of csrc/roof.

A chain adds one to numbers in registers, again and again, each by one instruction: its operands never change, so what it reaches is above
what a product of random numbers may draw power for. The ops have one row per instruction; a CPU runs the plain loops, or with a build of
the emulator any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from .. import _ext
from .._variants import use

CHAIN_TILE, READ_STEP = 256 * 64, 256 * 4  # csrc/roof/probes.h
# Instruction -> its row of step_chain, operations per element and step.
CHAINS = {
    "FADD": ("add_sm80", 1),
    "FFMA": ("multiply_add_sm80", 2),
    "mma.sync tf32": ("mma_tf32_sm80", 16),
    "mma.sync bf16": ("mma_bf16_sm80", 32),
    "wgmma bf16": ("wgmma_bf16_sm90a", 32),
}
# A CPU's for bfloat16, which also carry float16 and float32 in parts.
CPU_CHAINS = {"AMX tiles": ("tiles_bf16_amx", 64), "AVX-512 dot products": ("dots_bf16_avx512bf16", 4)}


@_ext.fake("step_chain")
def _(input: torch.Tensor, steps: int) -> torch.Tensor:
    return torch.empty(input.shape, dtype=input.dtype, device=input.device)


@_ext.fake("cache_read")
def _(input: torch.Tensor, readers: int, steps: int) -> torch.Tensor:
    return input.new_empty(readers)


@_ext.fake("tile_product")
def _(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a.new_empty((64, 128), dtype=torch.float32)


@_ext.fake("tma_tile")
def _(
    input: torch.Tensor,
    at: Sequence[int],
    offset: Sequence[int],
    lower: Sequence[int],
    upper: Sequence[int],
    step: Sequence[int],
    pixels: int,
    im2col: bool,
    corrected: bool,
) -> torch.Tensor:
    return input.new_empty((pixels, 64))


def chain(name: str, device: str, multiprocessors: int, small: bool = False) -> tuple[Callable[[], torch.Tensor], int]:
    """(a call of a chain of CHAINS, the operations of one call). small: for the emulator."""
    return _steps(*CHAINS[name], torch.ones(CHAIN_TILE * (1 if small else 12 * multiprocessors), device=device), 4 if small else 1024)


def cpu_chain(name: str, threads: int) -> tuple[Callable[[], torch.Tensor], int]:
    """(a call of a chain of CPU_CHAINS on that many threads, the operations of one call)."""
    return _steps(*CPU_CHAINS[name], torch.ones(CHAIN_TILE * threads), 4096)


def lacks(name: str) -> str:
    """Why this CPU, or this build, has no chain of CPU_CHAINS; "" if it has."""
    needs = dict(_ext.module().variants("step_chain")).get(CPU_CHAINS[name][0])
    if needs is None:
        return "not in this build"
    try:
        with use(step_chain=CPU_CHAINS[name][0]):
            return ""
    except ValueError:
        return f"not on this CPU (it has {_ext.cpu_isa()})"


def _steps(row: str, each: int, x: torch.Tensor, steps: int) -> tuple[Callable[[], torch.Tensor], int]:
    op = _ext.op("step_chain")

    def call() -> torch.Tensor:
        with use(step_chain=row):
            return op(x, steps)

    return call, each * x.numel() * steps


def cache_read(device: str, multiprocessors: int, small: bool = False) -> tuple[Callable[[], torch.Tensor], int]:
    """(a call in which eight blocks per multiprocessor read 16 MiB, the bytes of one call). small: for the emulator."""
    x = torch.ones(READ_STEP * (4 if small else 4096), device=device)
    op, readers = _ext.op("cache_read"), 8 * multiprocessors

    def call() -> torch.Tensor:
        with use(cache_read="block_sm80"):
            return op(x, readers, 1)

    return call, x.nbytes * readers
