"""Mean-shift with a flat kernel: every seed climbs to the mean of the points within the bandwidth until it stands still.

All seeds climb together, a block of distances at a time (``cdist``), and seeds that meet go on as one. ``MeanShift`` is a
scikit-learn estimator with the clusters of ``sklearn.cluster.MeanShift``.
"""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from .. import functional
from ._common import DTYPES, at_least, nearest_centres, tensor

__all__ = ["MeanShift", "estimate_bandwidth"]

_PAIRS = 1 << 22  # distances held at a time: they stay in a core's share of the caches' last level


def estimate_bandwidth(X: Any, *, quantile: float = 0.3, n_samples: int | None = None, random_state: Any = 0) -> float:
    """The mean distance from a sample to the farthest of its nearest ``quantile`` of all samples, as scikit-learn's.

    n_samples: draw so many of the rows first. Raises ValueError for a quantile outside (0, 1].
    """
    if not isinstance(quantile, numbers.Real) or not 0 < quantile <= 1:
        raise ValueError(f"quantile must be in (0, 1], got {quantile!r}")
    x = np.asarray(X)
    if n_samples is not None:
        x = x[check_random_state(random_state).permutation(len(x))[:n_samples]]
    points = tensor(x if x.dtype in DTYPES else x.astype(np.float64))
    distances, _ = functional.knn(points, points, max(int(len(x) * quantile), 1))
    return float(distances[:, -1].double().mean())


def _means(seeds: Tensor, points: Tensor, moments: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
    """(mean, weight) of the points within the bandwidth of each seed. moments: weight * (point, 1) [D + 1, N]."""
    total = torch.zeros(moments.shape[0], len(seeds), dtype=points.dtype)
    rows = max(_PAIRS // len(seeds), 1)
    for start in range(0, len(points), rows):
        part = slice(start, start + rows)
        inside = (functional.cdist(points[part], seeds) <= bandwidth).to(points.dtype)
        total += functional.conv1d(inside[None], moments[:, part, None])[0]  # a product of matrices whose sums have one order
    weight = total[-1]
    return (total[:-1] / torch.where(weight > 0, weight, 1)).T.contiguous(), weight


def climb(points: Tensor, weights: Tensor | None, seeds: Tensor, bandwidth: float, max_iter: int) -> tuple[Tensor, Tensor, int]:
    """(modes [M, D], weight [M], iterations): where the seeds come to rest, without repetitions or those that met no point.

    A seed rests once it moves by a thousandth of the bandwidth at most.
    """
    centre = points.mean(0)  # sums of differences keep more digits than sums of coordinates far from the origin
    points, seeds = points - centre, (seeds - centre).unique(dim=0)
    ones = points.new_ones(len(points)) if weights is None else weights.to(points.dtype)
    moments = torch.cat([points.T * ones, ones[None]]).contiguous()
    modes, masses, iterations = [], [], 0
    for iterations in range(max_iter + 1):
        block = max(_PAIRS // max(len(points), 1), 256)
        parts = [_means(part, points, moments, bandwidth) for part in seeds.split(block)]
        means, mass = (torch.cat(p) for p in zip(*parts, strict=True))
        met = mass > 0
        rested = met & (((means - seeds).square().sum(1).sqrt() <= 1e-3 * bandwidth) | (iterations == max_iter))
        modes.append(means[rested])
        masses.append(mass[rested])
        seeds = means[met & ~rested].unique(dim=0)
        if not len(seeds):
            break
    found, mass = torch.cat(modes), torch.cat(masses)
    found, back = found.unique(dim=0, return_inverse=True)
    return found + centre, mass.new_zeros(len(found)).index_copy_(0, back, mass), iterations


def heaviest(modes: Tensor, mass: Tensor, bandwidth: float) -> Tensor:
    """The modes in descending order of weight (then of coordinates), without any within the bandwidth of one before it."""
    keys = [modes[:, d].numpy() for d in reversed(range(modes.shape[1]))] + [mass.numpy()]
    modes = modes[torch.from_numpy(np.lexsort(keys)[::-1].copy())]
    kept, left = [], modes
    while len(left):
        kept.append(left[0].clone())  # not a view, which would keep all that is left alive
        left = left[functional.cdist(left[:1], left)[0] > bandwidth]
    return torch.stack(kept)


class MeanShift(ClusterMixin, BaseEstimator):
    """Mean-shift clustering as ``sklearn.cluster.MeanShift``.

    bandwidth: the radius of the flat kernel; None: `estimate_bandwidth`. seeds: points to start from (n_seeds, n_features);
    None: every sample, or with ``bin_seeding`` one per occupied cell of a grid of the bandwidth that holds ``min_bin_freq``
    samples. cluster_all: label samples beyond the bandwidth of every centre too (else -1). max_iter: steps of a seed.
    Data (n_samples, n_features): float32 and float64 are clustered as they are, other numbers as float64.
    After fit: ``cluster_centers_``, ``labels_``, ``n_iter_``. Raises ValueError where no sample is near any seed.
    """

    def __init__(
        self,
        *,
        bandwidth: float | None = None,
        seeds: Any = None,
        bin_seeding: bool = False,
        min_bin_freq: int = 1,
        cluster_all: bool = True,
        max_iter: int = 300,
    ) -> None:
        self.bandwidth = bandwidth
        self.seeds = seeds
        self.bin_seeding = bin_seeding
        self.min_bin_freq = min_bin_freq
        self.cluster_all = cluster_all
        self.max_iter = max_iter

    def _seeds(self, X: np.ndarray, bandwidth: float) -> np.ndarray:
        if self.seeds is not None:
            seeds = np.asarray(self.seeds, dtype=X.dtype)
            if seeds.ndim != 2 or seeds.shape[1] != X.shape[1] or not len(seeds):
                raise ValueError(f"seeds has shape {seeds.shape}, expected (n_seeds, {X.shape[1]})")
            return seeds
        if not self.bin_seeding or bandwidth == 0:
            return X
        cells, counts = np.unique(np.round(X / bandwidth), axis=0, return_counts=True)
        cells = cells[counts >= at_least("min_bin_freq", self.min_bin_freq, 1)]
        return X if len(cells) == len(X) else (cells * bandwidth).astype(X.dtype)

    def fit(self, X: Any, y: Any = None) -> MeanShift:
        """Clusters the rows of X."""
        X = validate_data(self, X, dtype=DTYPES, order="C")
        bandwidth = estimate_bandwidth(X) if self.bandwidth is None else self.bandwidth
        if not isinstance(bandwidth, numbers.Real) or not bandwidth >= 0:
            raise ValueError(f"bandwidth must be a number of at least 0, got {bandwidth!r}")
        x, seeds = tensor(X), self._seeds(X, bandwidth)
        if not len(seeds):
            raise ValueError(f"no cell of the grid holds min_bin_freq={self.min_bin_freq} samples")
        modes, mass, self.n_iter_ = climb(x, None, tensor(seeds), float(bandwidth), at_least("max_iter", self.max_iter, 0))
        if not len(modes):
            raise ValueError(f"No point was within bandwidth={bandwidth:f} of any seed. Try other seeds or a larger bandwidth.")
        centres = heaviest(modes, mass, float(bandwidth))
        distances, labels = nearest_centres(x, centres)
        if not self.cluster_all:
            labels = torch.where(distances.sqrt() <= bandwidth, labels, -1)
        self.cluster_centers_, self.labels_ = centres.numpy(), labels.numpy()
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The index of the nearest centre for each row of X."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=DTYPES, order="C", reset=False)
        return nearest_centres(tensor(X.astype(self.cluster_centers_.dtype, copy=False)), tensor(self.cluster_centers_))[1].numpy()
