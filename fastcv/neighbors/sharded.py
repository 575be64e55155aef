"""Nearest neighbours among references that are spread over the processes of ``torch.distributed``."""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from .. import functional
from .search import chunks_of

__all__ = ["knn_sharded", "merge"]


def merge(distances: Tensor, indices: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest of several answers side by side [M, R * k]: by distance, equal ones as they stand, NaN last, padding after it.

    Padding is index -1. The answers must stand in the order of their indices for equal distances to go to the lowest.
    """
    order = distances.argsort(dim=1, stable=True)
    order = order.gather(1, (indices.gather(1, order) < 0).byte().argsort(dim=1, stable=True))[:, :k]
    return distances.gather(1, order), indices.gather(1, order)


def knn_sharded(
    x: Tensor, y: Tensor, k: int, p: float = 2.0, *, squared: bool = False, group: dist.ProcessGroup | None = None
) -> tuple[Tensor, Tensor]:
    """The k nearest rows, for each row of x, of all processes' y together: every process gets the same answer.

    x: [M, D], the same queries on every process; y: [N_r, D], this process's references (any number, also none). Indices count
    through the processes' rows in the order of their ranks in ``group`` (by default the world). Each process searches its own
    rows and the k best of each are exchanged: M * k * 16 bytes per process, a chunk of queries at a time, whatever N is.
    Equal distances go to the lowest index. The answer is that of ``knn`` on all rows in one place; only where a distance is
    rounded after the sum (16-bit dtypes, p other than 0, 1, 2 and inf, uint8 at p = 2) neighbours of equal distances may be
    swapped.
    No gradients. Every process must call with the same x, k, p and squared. Raises RuntimeError where torch.distributed is not
    initialised, ValueError for k above the number of all rows, and what ``knn`` raises. Source: csrc/neighbors/knn.h.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError("knn_sharded needs an initialised process group: call torch.distributed.init_process_group first")
    if x.dim() != 2 or y.dim() != 2:
        raise RuntimeError(f"knn_sharded takes matrices, got x {tuple(x.shape)} and y {tuple(y.shape)}")
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    with torch.no_grad():
        rows = torch.tensor([y.shape[0]], device=y.device)
        counts = [torch.zeros_like(rows) for _ in range(ranks)]
        dist.all_gather(counts, rows, group=group)
        sizes = [int(count) for count in counts]
        if k > sum(sizes):
            raise ValueError(f"k={k} but there are {sum(sizes)} points on {ranks} processes")
        # Squared distances order as the sums do; their roots, rounded, may tie where the sums did not.
        root = p == 2 and not squared and x.dtype in (torch.float32, torch.float64)
        first = functional.knn(x[:0], y, k, p, squared=squared or root, pad=True)
        distances, indices = (t.new_empty((x.shape[0], k)) for t in first)
        offset, longest = sum(sizes[:rank]), max(sizes)
        for part in chunks_of(x.shape[0], longest, x.shape[1], progress=False):
            mine, index = functional.knn(x[part], y, k, p, squared=squared or root, pad=True)
            index = torch.where(index < 0, index, index + offset)
            everyones, their_index = ([torch.empty_like(t) for _ in range(ranks)] for t in (mine, index))
            dist.all_gather(everyones, mine, group=group)
            dist.all_gather(their_index, index, group=group)
            distances[part], indices[part] = merge(torch.cat(everyones, 1), torch.cat(their_index, 1), k)
        if root:
            np.sqrt(distances.numpy(), out=distances.numpy())  # rounded correctly, as the kernel's; torch's is not
        return distances, indices
