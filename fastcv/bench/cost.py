"""What a case costs at least: operations and bytes of its algorithm, and the time that the machine's roofs allow for them.

Two bounds. The attainable time counts the multiplications of the direct algorithm and a copy's bandwidth; a faster algorithm
may beat it (Winograd does). The possible time is below what any known algorithm needs: whoever beats that did not do the work.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from ..testing import Case
from . import roofs
from .values import tensors

_PRODUCTS = ("conv", "linear_cross_entropy")  # ops whose gradients are products of the same size, for each operand
_DISTANCES = ("cdist", "knn", "nearest")
# A copy counts a read and a write, but the write fetches its line first: up to 1.5 times what it counts goes over the bus.
_BUS = 1.5
# One instruction sums the differences of 64 bytes where a multiply-add, two operations, takes 16 float32, and three operations are
# counted for a coordinate: 64 * 3 / (16 * 2).
_BYTES = 6.0
# So many products of bfloat16 parts stand for one of these (csrc/conv/conv_amx.h).
_PARTS = {torch.float32: 6, torch.float16: 3}
_CLOCK = 1.15  # how far above its measured roof a machine may run for a moment


@dataclass(frozen=True)
class Cost:
    """flops: 0 for what is bound by memory. read, written: bytes of all tensors, each once. shortcut: by what factor the best
    known algorithm needs fewer multiplications. exotic: done in other arithmetic than the dtype's (bytes): no arithmetic bound.
    wide: by what factor the instructions for it outdo the dtype's multiply-adds, where they are others (sums of bytes).
    """

    flops: int
    read: int
    written: int
    dtype: torch.dtype
    shortcut: float = 1.0
    exotic: bool = False
    wide: float = 1.0

    @property
    def bytes(self) -> int:
        return self.read + self.written

    def attainable(self, cache: str) -> float:
        """Seconds at the nearer roof: arithmetic, or memory (from DRAM if cold)."""
        arithmetic = self.flops / self.wide / roofs.arithmetic(self.dtype) if self.flops and self.dtype.is_floating_point else 0.0
        memory = self.bytes / roofs.copy(self.bytes if cache == "hot" else roofs.SIZES[-1])
        return max(arithmetic, memory)

    def possible(self, cache: str) -> float:
        """Seconds below which nobody can have done the work; 0 where nothing is known."""
        arithmetic = 0.0
        if self.flops and not self.exotic and self.dtype.is_floating_point:
            peak = max(roofs.arithmetic(self.dtype), roofs.arithmetic(torch.bfloat16) / _PARTS.get(self.dtype, math.inf))
            arithmetic = self.flops / self.shortcut / peak
        if cache == "cold":  # results may stay in a cache
            memory = self.read / (_BUS * roofs.copy(roofs.SIZES[-1]))
        else:
            # Below the smallest copy that was measured, the first-level cache has no known roof.
            fastest = max(roofs.copy(size) for size in roofs.SIZES if size <= max(self.bytes, roofs.SIZES[0]))
            memory = self.bytes / (_BUS * fastest) if self.bytes >= roofs.SIZES[0] else 0.0
        return max(arithmetic, memory) / _CLOCK


def _size(values: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors(values))


def _shortcut(case: Case, args: tuple[Any, ...]) -> float:
    """Convolutions: F(6, r) of Winograd along every axis of the kernel. Distances: the product form, two operations of three."""
    if case.op.startswith("conv"):
        factor = 1.0
        for taps in args[1].shape[2:]:
            factor *= 6 * taps / (taps + 5)
        return factor
    return 1.5 if case.op in _DISTANCES else 1.0


def _by_bytes(case: Case, args: tuple[Any, ...]) -> bool:
    """Distances by p = 1 of integers in 0..255, in whatever dtype: they may be compared as bytes."""
    if case.op not in _DISTANCES or not isinstance(args[-1], float) or args[-1] != 1.0:
        return False
    return all(t.dtype == torch.uint8 or bool(((t >= 0) & (t <= 255) & (t == t.round())).all()) for t in tensors(args))


def cost(case: Case, dtype: torch.dtype, mode: str = "fwd") -> Cost:
    """The cost of one pass of a case."""
    args, kwargs = case.arguments(dtype)
    read = _size((args, kwargs))
    meta = [t.detach() for t in tensors(case.torch_function()(*args, **kwargs))]
    written = _size(meta)
    flops, grads = case.flops, _size([args[i] for i in case.grad])
    passes = len([i for i in case.grad if args[i].dim() > 1]) if case.op.startswith(_PRODUCTS) else 0
    if mode != "fwd":
        upstream = meta[0].numel() * meta[0].element_size()
        flops = flops * (passes + (mode == "fwd+bwd")) if passes else 0
        read, written = (read * 2 + upstream, written + grads) if mode == "fwd+bwd" else (read + upstream, grads)
    if _by_bytes(case, args) and dtype == torch.float32:
        return Cost(flops, read, written, dtype, _BYTES, wide=_BYTES)
    wide = case.op in _DISTANCES or torch.get_float32_matmul_precision() != "highest"
    if wide and dtype == torch.float32:  # exact answers by way of 16-bit products, or what the user allowed
        dtype_roof = max((torch.float32, torch.bfloat16), key=roofs.arithmetic)
        shortcut = _shortcut(case, args) * roofs.arithmetic(dtype_roof) / roofs.arithmetic(dtype)
    else:
        shortcut = _shortcut(case, args)
    return Cost(flops, read, written, dtype, shortcut, exotic=any(t.dtype == torch.uint8 for t in tensors(args)))
