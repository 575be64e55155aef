"""What a GPU's instructions and its second-level cache do at most, by the probes of csrc/roof.

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
    row, each = CHAINS[name]
    x = torch.ones(CHAIN_TILE * (1 if small else 12 * multiprocessors), device=device)
    op, steps = _ext.op("step_chain"), 4 if small else 1024

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
