"""k-nearest-neighbour classification and the choice of k by cross-validation, on ``fastcv.functional.knn``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .. import functional

__all__ = ["classify", "cross_validate", "folds_of", "majority"]


def majority(neighbours: Tensor, num_classes: int) -> Tensor:
    """The most frequent label in each row of ``neighbours`` [Q, k], nearest first; a tie goes to the class met first."""
    queries, k = neighbours.shape
    counts = neighbours.new_zeros(queries, num_classes).scatter_add_(1, neighbours, torch.ones_like(neighbours))
    places = torch.arange(k, device=neighbours.device).expand(queries, k)
    first = neighbours.new_full((queries, num_classes), k).scatter_reduce_(1, neighbours, places, "amin")
    return (counts * (k + 1) - first).argmax(1)


def classify(points: Tensor, labels: Tensor, queries: Tensor, k: int, p: float = 2, num_classes: int | None = None) -> Tensor:
    """Labels [Q] of ``queries`` [Q, D] by majority vote of their k nearest of ``points`` [N, D] in the Lp distance."""
    _, indices = functional.knn(queries, points, k, p)
    return majority(labels[indices], num_classes or int(labels.max()) + 1)


def folds_of(labels: Tensor, folds: int, seed: int) -> list[Tensor]:
    """Splits range(len(labels)) into disjoint folds with the same mix of classes (to one), shuffled by the seed."""
    if not 2 <= folds <= len(labels):
        raise ValueError(f"folds_of: {len(labels)} points cannot be split into {folds} folds")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = order[labels[order].argsort(stable=True)]
    return [order[i::folds].sort().values for i in range(folds)]


def cross_validate(
    points: Tensor,
    labels: Tensor,
    ks: Sequence[int],
    p: float = 2,
    folds: int = 5,
    seed: int = 0,
    on_fold: Callable[[], None] = lambda: None,
) -> Tensor:
    """Accuracies [len(ks), folds]: each fold is classified by the points of the others, one neighbour search per fold.

    points [N, D] float, labels [N] int64, ks: the candidates, none larger than the smallest set of other points.
    on_fold is called after each fold.
    """
    classes = int(labels.max()) + 1
    accuracies = torch.zeros(len(ks), folds)
    for i, held_out in enumerate(folds_of(labels, folds, seed)):
        rest = torch.ones(len(labels), dtype=torch.bool)
        rest[held_out] = False
        _, indices = functional.knn(points[held_out], points[rest], max(ks), p)
        neighbours = labels[rest][indices]
        for j, k in enumerate(ks):
            accuracies[j, i] = (majority(neighbours[:, :k], classes) == labels[held_out]).float().mean()
        on_fold()
    return accuracies
