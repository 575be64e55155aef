"""What the tests of distances and neighbours share: exact answers, and points of which every distance is exact."""

import math

import numpy as np
import torch
from torch import Tensor

INF = math.inf
PS = [0.0, 0.5, 1.0, 1.5, 2.0, 2.7, 3.0, INF]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def exact(x: Tensor, y: Tensor, p: float) -> Tensor:
    """Distances in long double, rounded to float64."""
    a, b = (t.double().numpy().astype(np.longdouble) for t in (x, y))
    difference = np.abs(a[..., :, None, :] - b[..., None, :, :])
    if p == INF:
        result = difference.max(-1, initial=0)
    elif p == 0:
        result = (difference != 0).sum(-1)
    else:
        result = (difference**p).sum(-1) ** (np.longdouble(1) / p)
    return torch.from_numpy(result.astype(np.float64))


def integers(*shape: int, high: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    """Points on a small grid: every distance is exact, and many are equal."""
    return torch.randint(0, high, shape).to(dtype)


def first_k(distances: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k smallest of each row; equal ones by the lowest index, NaN last."""
    values, indices = distances.sort(dim=-1, stable=True)
    return values[..., :k], indices[..., :k]
