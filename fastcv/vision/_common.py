"""What the estimators share: arrays to tensors without a copy, and centres' update by the gradient kernel."""

from __future__ import annotations

import numbers
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import functional

__all__ = ["CHUNK", "DTYPES", "at_least", "centre_sums", "masses", "nearest_centres", "tensor"]

DTYPES = [np.float64, np.float32]
CHUNK = 1 << 18  # rows assigned at a time: what stands beside data and answer stays at a few megabytes


def tensor(array: np.ndarray) -> Tensor:
    """The same memory as a tensor, read-only memory maps too (nothing here writes)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(np.ascontiguousarray(array))


def at_least(name: str, value: Any, least: int) -> int:
    """``value`` as an int. Raises ValueError that names the argument for anything but an integer >= ``least``."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    return int(value)


def nearest_centres(x: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """(squared distance, index) [N] of the centre nearest to each row of x [N, D]; ties to the lowest index."""
    if len(x) <= CHUNK:
        return functional.nearest(x, centres, squared=True)
    distances, labels = x.new_empty(len(x)), torch.empty(len(x), dtype=torch.int64)
    for start in range(0, len(x), CHUNK):
        part = slice(start, start + CHUNK)
        distances[part], labels[part] = functional.nearest(x[part], centres, squared=True)
    return distances, labels


def masses(labels: Tensor, k: int, weights: Tensor | None) -> Tensor:
    """The (weighted) number of points [k] in each cluster, float64."""
    return torch.bincount(labels, None if weights is None else weights.double(), k).double()


def centre_sums(x: Tensor, centres: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    """For each centre c the weighted sum of x - c over its points [K, D], in float64.

    The sum is half the negative gradient of the squared distances by the centres: the same kernel as ``nearest``'s backward,
    with the same bits for any number of threads. Differences are summed, so data far from the origin lose no digits.
    """
    total = torch.zeros(centres.shape, dtype=torch.float64)
    for start in range(0, len(x), CHUNK):
        rows, index = x[start : start + CHUNK], labels[start : start + CHUNK, None]
        grad = x.new_ones(len(rows), 1) if weights is None else weights[start : start + CHUNK, None].contiguous()
        nothing = grad.new_zeros(grad.shape)  # in the place of the distances, which the gradient of a square does not need
        total += torch.ops.fastcv.knn_backward(grad, rows, centres, nothing, index, 2.0, True, False, True)[1].double()
    return total * -0.5
