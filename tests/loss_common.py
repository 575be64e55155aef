"""What the tests of the loss family share."""

import math
from typing import Any

import torch

INF, NAN = math.inf, math.nan


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def outcome(function: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return function(*args, **kwargs)
    except Exception as error:
        return error


def same(ours: Any, torchs: Any, what: str) -> None:
    """Both raise the same type of error, or both give close answers."""
    if isinstance(torchs, Exception) or isinstance(ours, Exception):
        assert type(ours) is type(torchs), f"{what}: {ours!r}, torch: {torchs!r}"
    else:
        torch.testing.assert_close(ours, torchs, equal_nan=True, msg=lambda m: f"{what}: {m}")


def double(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)
