"""What a case is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """One call of one op.

    op:       name in fastcv.functional.
    name:     unique within the op; appears in test ids and result files.
    build:    build(generator) -> (args, kwargs): CPU tensors in float64 (integers and bools as they are), row-major.
    peer:     the torch function with the same arguments; by default the function of that name in torch.nn.functional or torch.
    flops:    floating-point operations of the forward call, for benchmarks (0: memory-bound).
    bytes:    algorithmic bytes in float32: every input read once, every output written once (0: count the tensors).
    bench:    a layer of a real model, timed by ``make bench``.
    grad:     which of the tensors in args get gradients (indices); empty: none.
    choice:   of an op that chooses (knn its neighbours): choice(outputs, *args, **kwargs) are its outputs on these arguments
              for the choice made in ``outputs``. Of two neighbours that tie within rounding either is right.
    layouts:  the memory formats the case makes sense in.
    dtypes:   the dtypes it is checked in.
    """

    op: str
    name: str
    build: Callable[[torch.Generator], Arguments]
    peer: Callable[..., Any] | None = None
    flops: int = 0
    bytes: int = 0
    bench: bool = False
    grad: tuple[int, ...] = ()
    choice: Callable[..., Any] | None = None
    layouts: tuple[str, ...] = ("contiguous", "channels_last")
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

    @property
    def id(self) -> str:
        return f"{self.op}-{self.name}"

    def torch_function(self) -> Callable[..., Any]:
        return self.peer or getattr(F, self.op, None) or getattr(torch, self.op)

    def reference(self, outputs: Any) -> Callable[..., Any]:
        """The torch function that judges these outputs: where the op chooses, with the choice that they made."""
        choice = self.choice
        return self.torch_function() if choice is None else lambda *args, **kwargs: choice(outputs, *args, **kwargs)

    def arguments(self, dtype: torch.dtype, layout: str = "contiguous", seed: int = 0) -> Arguments:
        """The arguments, floating tensors in ``dtype``, tensors of 4 and 5 dimensions in ``layout``."""
        args, kwargs = self.build(torch.Generator().manual_seed(seed))

        def convert(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                if value.is_floating_point():
                    value = value.to(dtype)
                if layout == "channels_last" and value.dim() in (4, 5):
                    value = value.to(memory_format=torch.channels_last if value.dim() == 4 else torch.channels_last_3d)
            return value

        return tuple(convert(a) for a in args), {k: convert(v) for k, v in kwargs.items()}


def randn(generator: torch.Generator, *sizes: int) -> torch.Tensor:
    """Standard normal float64 numbers that float16 holds exactly, so that every dtype sees the same values where it can."""
    return torch.randn(*sizes, generator=generator, dtype=torch.float64).half().double()
