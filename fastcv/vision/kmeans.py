"""k-means by Lloyd's iterations: assignment by the ``nearest`` kernel, the update by its gradient kernel.

``KMeans`` and ``MiniBatchKMeans`` are scikit-learn estimators; ``kmeans_sharded`` runs the same loop over rows that are
spread over the processes of ``torch.distributed``. The draws of k-means++, the treatment of empty clusters and the rule for
stopping are scikit-learn's, so that one ``random_state`` gives both the same clusters up to rounding.
"""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from torch import Tensor

from .. import functional
from ._common import DTYPES, at_least, centre_sums, masses, nearest_centres, tensor

__all__ = ["KMeans", "MiniBatchKMeans", "kmeans_sharded"]

_FEW = 4096  # coordinates of all centres: below, a search of a row takes less time than looking after its bounds
_PART = 1 << 14  # rows at a time: copies of them stay in the caches, and their memory is used again


class _Alone:
    """The processes that hold the rows: here, one."""

    rank = 0

    def gather(self, t: Tensor) -> Tensor:
        """Every process's tensor of this shape, stacked in the order of their ranks."""
        return t[None]

    def sum(self, t: Tensor) -> Tensor:
        return self.gather(t).sum(0)


class _Ranks(_Alone):
    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group, self.rank, self.size = group, dist.get_rank(group), dist.get_world_size(group)

    def gather(self, t: Tensor) -> Tensor:
        parts = [torch.empty_like(t) for _ in range(self.size)]
        dist.all_gather(parts, t.contiguous(), group=self.group)
        return torch.stack(parts)


@dataclass
class _Result:
    centres: Tensor
    labels: Tensor
    inertia: float
    iterations: int


def _drawn(x: Tensor, mass: Tensor, uniform: float, processes: _Alone) -> Tensor:
    """The row [D] at which the running sum of ``mass``, over all processes, passes the share ``uniform`` of its total."""
    running = np.append(0.0, mass.double().cumsum(0).numpy())
    ends = processes.gather(torch.tensor(running[-1])).cumsum(0).numpy()
    if not ends[-1] > 0:  # every row is as good as another
        return _drawn(x, torch.ones(len(x)), uniform, processes)
    value = uniform * ends[-1]
    owner = min(int(np.searchsorted(ends, value, side="right")), int(np.flatnonzero(np.diff(ends, prepend=0.0) > 0).max()))
    row = torch.zeros(x.shape[1], dtype=x.dtype)
    if owner == processes.rank:
        before = ends[owner - 1] if owner else 0.0
        row = x[min(int(np.searchsorted(running[1:], value - before, side="right")), len(x) - 1)]
    return processes.gather(row)[owner]


def plus_plus(x: Tensor, k: int, random: np.random.RandomState, weights: Tensor | None, processes: _Alone) -> Tensor:
    """k rows of x, each drawn with probability proportional to its squared distance from those before it (Arthur and
    Vassilvitskii 2007), the best of 2 + ln k draws each time."""
    mass = torch.ones(len(x), dtype=torch.float64) if weights is None else weights.double()
    trials = 2 + int(math.log(k))
    centres = x.new_empty(k, x.shape[1])
    centres[0] = _drawn(x, mass, random.random_sample(), processes)
    closest = functional.cdist(centres[:1], x)[0].double().square()
    for c in range(1, k):
        draws = random.uniform(size=trials)
        candidates = torch.stack([_drawn(x, mass * closest, draw, processes) for draw in draws])
        nearer = torch.minimum(functional.cdist(candidates, x).double().square(), closest)
        best = int(processes.sum((nearer * mass).sum(1)).argmin())
        centres[c], closest = candidates[best], nearer[best]
    return centres


def random_rows(x: Tensor, k: int, random: np.random.RandomState, weights: Tensor | None) -> Tensor:
    """k different rows of x, drawn in proportion to their weights."""
    mass = torch.ones(len(x), dtype=torch.float64) if weights is None else weights.double()
    p = (mass / mass.sum()).numpy()
    return x[torch.from_numpy(random.choice(len(x), k, replace=False, p=p))]


def _refill(
    x: Tensor, centres: Tensor, distances: Tensor, labels: Tensor, weights: Tensor | None, sums: Tensor, mass: Tensor, processes: _Alone
) -> None:
    """Gives each cluster without points the point that is farthest from its centre, and takes it from its old cluster."""
    empty = (mass == 0).nonzero().flatten()
    if not len(empty):
        return
    n, depth = len(empty), x.shape[1]
    order = distances.argsort(descending=True, stable=True)[:n]
    offers = torch.full((n, depth + 3), -math.inf, dtype=torch.float64)
    weight = torch.ones(len(order)) if weights is None else weights[order]
    columns = (distances[order, None], labels[order, None], weight[:, None], x[order])
    offers[: len(order)] = torch.cat([column.double() for column in columns], 1)
    offers = processes.gather(offers).flatten(0, 1)
    for cluster, offer in zip(empty.tolist(), offers[offers[:, 0].argsort(descending=True, stable=True)[:n]], strict=True):
        if not offer[0] > 0:
            continue  # every point lies on a centre already
        old, w, row = int(offer[1]), offer[2], offer[3:]
        sums[old] -= w * (row - centres[old].double())
        mass[old] -= w
        sums[cluster], mass[cluster] = w * (row - centres[cluster].double()), w


class _Search:
    """The labels by a search of all rows: for so few centres and coordinates that bounds would cost more than they save."""

    def __init__(self, x: Tensor, centres: Tensor) -> None:
        self.x, self.labels = x, nearest_centres(x, centres)[1]

    def update(self, _: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        """Moves the centres. Returns the rows whose labels changed, and their labels before."""
        labels = nearest_centres(self.x, new)[1]
        rows = (labels != self.labels).nonzero().flatten()
        before, self.labels = self.labels.index_select(0, rows), labels
        return rows, before


class _Bounds(_Search):
    """Which rows can have another nearest centre after the centres have moved (Hamerly 2010).

    Per row an upper bound of the distance to its centre and a lower bound of that to all others; a row also stays where the upper
    bound is below half the way from its centre to the next one. Bounds are widened by the most that rounding can change a sum of
    D squares, so the labels are those of a search of all rows.
    """

    def __init__(self, x: Tensor, centres: Tensor) -> None:
        self.x, self.slack = x, x.shape[1] * torch.finfo(x.dtype).eps
        self.labels, self.upper, self.lower = (x.new_empty(len(x), dtype=d) for d in (torch.int64, torch.float64, torch.float64))
        self._search(None, centres)

    def _search(self, rows: Tensor | None, centres: Tensor) -> None:
        """The two nearest centres of some rows (None: all)."""
        for start in range(0, len(self.x) if rows is None else len(rows), _PART):
            part = slice(start, start + _PART) if rows is None else rows[start : start + _PART]
            x = self.x[part] if rows is None else self.x.index_select(0, part)
            distances, indices = functional.knn(x, centres, min(2, len(centres)))
            self.labels[part] = indices[:, 0]
            self.upper[part] = distances[:, 0].double() * (1 + self.slack)
            self.lower[part] = distances[:, 1].double() * (1 - self.slack) if len(centres) > 1 else math.inf

    def update(self, old: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        moves = (new.double() - old.double()).square().sum(1).sqrt()
        farthest = moves.topk(min(2, len(moves))).values
        others = torch.where(moves == farthest[0], farthest[-1], farthest[0])  # the farthest move of any other centre
        self.upper += moves.index_select(0, self.labels)  # several times as fast as moves[self.labels]
        self.lower -= others.index_select(0, self.labels)
        half = functional.knn(new, new, min(2, len(new)))[0][:, -1].double() * (0.5 - self.slack)
        rows = (self.upper >= torch.maximum(self.lower, half.index_select(0, self.labels))).nonzero().flatten()
        everywhere = 4 * len(rows) > 3 * len(self.x)  # then gathering costs more than it saves
        before = self.labels.clone() if everywhere else self.labels.index_select(0, rows)
        self._search(None if everywhere else rows, new)
        changed = (before != (self.labels if everywhere else self.labels.index_select(0, rows))).nonzero().flatten()
        return changed if everywhere else rows[changed], before.index_select(0, changed)


def _own_distances(x: Tensor, centres: Tensor, labels: Tensor) -> Tensor:
    """Squared distance [N] of each row to the centre of its label."""
    parts = zip(x.split(_PART), labels.split(_PART), strict=True)
    return torch.cat([(rows - centres.index_select(0, label)).square().sum(1) for rows, label in parts])


def lloyd(x: Tensor, centres: Tensor, weights: Tensor | None, max_iter: int, tol: float, processes: _Alone) -> _Result:
    """Assigns and moves until no label changes, the centres' squared moves sum to ``tol`` at most, or ``max_iter`` rounds."""
    origin, k = centres, len(centres)  # sums are of differences from the first centres: data far from 0 lose no digits
    bounds = (_Search if centres.numel() <= _FEW else _Bounds)(x, centres)
    mine, held = centre_sums(x, origin, bounds.labels, weights), masses(bounds.labels, k, weights)
    for iteration in range(1, max_iter + 1):
        sums, mass = processes.sum(mine), processes.sum(held)
        if bool((mass == 0).any()):
            _refill(x, origin, _own_distances(x, centres, bounds.labels), bounds.labels, weights, sums, mass, processes)
        means = origin.double() + sums / torch.where(mass > 0, mass, 1)[:, None]
        moved = torch.where(mass[:, None] > 0, means, centres.double()).to(x.dtype)
        rows, before = bounds.update(centres, moved)
        shift, centres = float((moved.double() - centres.double()).square().sum()), moved
        if shift <= tol:
            break
        if int(processes.sum(torch.tensor(len(rows)))) == 0:
            iteration = min(iteration + 1, max_iter)  # as those count who look for changes in a round of their own
            break
        after, part = bounds.labels.index_select(0, rows), None if weights is None else weights[rows]
        if 4 * len(rows) > len(x):
            mine = centre_sums(x, origin, bounds.labels, weights)
        else:
            own = x.index_select(0, rows)
            gained, lost = (centre_sums(own, origin, labels, part) for labels in (after, before))
            mine = mine + gained - lost
        # Weighted ones are summed anew: an empty cluster's is 0, not what rounding leaves.
        held = held + masses(after, k, None) - masses(before, k, None) if weights is None else masses(bounds.labels, k, weights)
    distances = _own_distances(x, centres, bounds.labels).double()
    total = (distances if weights is None else distances * weights).sum()
    return _Result(centres, bounds.labels, float(processes.sum(total)), iteration)


def _same_clusters(a: Tensor, b: Tensor) -> bool:
    """Whether rows of one label in ``a`` have one label in ``b``: the same clusters by other names, whose inertias differ by rounding."""
    pairs = torch.stack([a, b])
    return pairs.unique(dim=1).shape[1] == a.unique().numel()


class _Centres(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
    """What both estimators share once they have centres."""

    def _checked(self, X: Any) -> Tensor:
        check_is_fitted(self, "cluster_centers_")
        X = validate_data(self, X, dtype=DTYPES, order="C", reset=False)
        return tensor(X.astype(self.cluster_centers_.dtype, copy=False))

    def predict(self, X: Any) -> np.ndarray:
        """The index of the nearest centre for each row of X (n_samples, n_features); ties to the lowest."""
        return nearest_centres(self._checked(X), tensor(self.cluster_centers_))[1].numpy()

    def transform(self, X: Any) -> np.ndarray:
        """Distances (n_samples, n_clusters) to the centres."""
        return functional.cdist(self._checked(X), tensor(self.cluster_centers_)).numpy()

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Minus the (weighted) sum of squared distances to the nearest centres."""
        distances = nearest_centres(self._checked(X), tensor(self.cluster_centers_))[0].double()
        if sample_weight is not None:
            distances = distances * tensor(_check_sample_weight(sample_weight, X, dtype=np.float64))
        return -float(distances.sum())

    @property
    def _n_features_out(self) -> int:
        return len(self.cluster_centers_)

    def _start(self, X: Any, y: Any, sample_weight: Any) -> tuple[Tensor, Tensor | None]:
        k, X = at_least("n_clusters", self.n_clusters, 1), validate_data(self, X, dtype=DTYPES, order="C")
        if len(X) < k:
            raise ValueError(f"n_samples={len(X)} should be >= n_clusters={k}.")
        if sample_weight is None:
            return tensor(X), None
        return tensor(X), tensor(_check_sample_weight(sample_weight, X, dtype=X.dtype, ensure_non_negative=True))

    def _first_centres(self, x: Tensor, weights: Tensor | None, random: np.random.RandomState) -> Tensor:
        if isinstance(self.init, str):
            if self.init == "k-means++":
                return plus_plus(x, self.n_clusters, random, weights, _Alone())
            if self.init == "random":
                return random_rows(x, self.n_clusters, random, weights)
            raise ValueError(f"init must be 'k-means++', 'random', an array or a function, got {self.init!r}")
        init = self.init(x.numpy(), self.n_clusters, random_state=random) if callable(self.init) else self.init
        centres = np.array(init, dtype=x.numpy().dtype)
        if centres.shape != (self.n_clusters, x.shape[1]):
            raise ValueError(f"init has shape {centres.shape}, expected ({self.n_clusters}, {x.shape[1]})")
        if not np.isfinite(centres).all():
            raise ValueError("init has centres that are not finite")
        return torch.from_numpy(centres)

    def _restarts(self, default: int) -> int:
        if isinstance(self.n_init, str):
            if self.n_init != "auto":
                raise ValueError(f"n_init must be 'auto' or an integer of at least 1, got {self.n_init!r}")
            return default if callable(self.init) or (isinstance(self.init, str) and self.init == "random") else 1
        return at_least("n_init", self.n_init, 1) if callable(self.init) or isinstance(self.init, str) else 1

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


class KMeans(_Centres):
    """k-means as ``sklearn.cluster.KMeans`` with ``algorithm="lloyd"``.

    n_clusters: k. init: "k-means++", "random", an array of centres (k, n_features) or a function (X, k, random_state) that gives
    one. n_init: restarts, of which the one of least inertia is kept; "auto" is 10 for "random" and a function, else 1. max_iter,
    tol: the centres' squared moves, relative to the mean variance of the features, below which it stops. random_state: as
    scikit-learn's; the same one gives its clusters.
    Data (n_samples, n_features): float32 and float64 are clustered as they are, other numbers as float64. A cluster that
    loses all its points takes the one farthest from its centre.
    After fit: ``cluster_centers_`` (k, n_features), ``labels_`` (n_samples,), ``inertia_``, ``n_iter_``.
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: Any = "k-means++",
        n_init: int | str = "auto",
        max_iter: int = 300,
        tol: float = 1e-4,
        random_state: Any = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> KMeans:
        """Clusters the rows of X; sample_weight: how much each counts."""
        x, weights = self._start(X, y, sample_weight)
        random, most = check_random_state(self.random_state), at_least("max_iter", self.max_iter, 1)
        if not isinstance(self.tol, numbers.Real) or not self.tol >= 0:
            raise ValueError(f"tol must be a number of at least 0, got {self.tol!r}")
        tol = self.tol * float(x.double().var(0, correction=0).mean()) if self.tol else 0.0
        best: _Result | None = None
        for _ in range(self._restarts(10)):
            result = lloyd(x, self._first_centres(x, weights, random), weights, most, tol, _Alone())
            if best is None or (result.inertia < best.inertia and not _same_clusters(result.labels, best.labels)):
                best = result
        self.cluster_centers_, self.labels_ = best.centres.numpy(), best.labels.to(torch.int32).numpy()
        self.inertia_, self.n_iter_ = best.inertia, best.iterations
        return self

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> np.ndarray:
        """``fit(X).labels_``."""
        return self.fit(X, sample_weight=sample_weight).labels_


class MiniBatchKMeans(_Centres):
    """k-means on small batches (Sculley 2010): each centre moves towards its points of the batch by their share of all points
    that it has had, so that the steps shrink.

    batch_size: rows per step, drawn at random. max_iter: passes over the data at most; max_no_improvement: stops after this
    many batches without a new least smoothed inertia (None: never). n_init: starts, compared on three batches' worth of rows. The
    other arguments, and what fit leaves, are those of `KMeans`; ``n_steps_`` counts the batches. ``partial_fit`` takes
    data as it comes.
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: Any = "k-means++",
        n_init: int | str = "auto",
        batch_size: int = 1024,
        max_iter: int = 100,
        max_no_improvement: int | None = 10,
        random_state: Any = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.n_init = n_init
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.max_no_improvement = max_no_improvement
        self.random_state = random_state

    def _step(self, batch: Tensor, centres: Tensor, weights: Tensor | None) -> tuple[Tensor, float]:
        """The centres after one batch, and the batch's mean squared distance to the old ones."""
        distances, labels = nearest_centres(batch, centres)
        sums = centre_sums(batch, centres, labels, weights)
        self._mass += masses(labels, len(centres), weights)
        centres = (centres.double() + sums / torch.where(self._mass > 0, self._mass, 1)[:, None]).to(centres.dtype)
        each = distances.double() if weights is None else distances.double() * weights
        return centres, float(each.sum() / (len(batch) if weights is None else weights.double().sum().clamp_min(1e-300)))

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> MiniBatchKMeans:
        """Clusters the rows of X; sample_weight: how much each counts."""
        x, weights = self._start(X, y, sample_weight)
        size, random = min(at_least("batch_size", self.batch_size, 1), len(x)), check_random_state(self.random_state)
        sample = max(3 * size, 3 * self.n_clusters)
        probe = torch.from_numpy(random.randint(0, len(x), sample)) if sample < len(x) else torch.arange(len(x))
        part = None if weights is None else weights[probe]
        starts = [self._first_centres(x[probe], part, random) for _ in range(self._restarts(3))]
        centres = min(starts, key=lambda c: float((nearest_centres(x[probe], c)[0].double() * (1 if part is None else part)).sum()))
        self._mass = torch.zeros(self.n_clusters, dtype=torch.float64)
        batches, smooth, least, stale, self.n_steps_ = math.ceil(len(x) / size), None, math.inf, 0, 0
        for _ in range(at_least("max_iter", self.max_iter, 1) * batches):
            rows = torch.from_numpy(random.randint(0, len(x), size))
            centres, inertia = self._step(x[rows], centres, None if weights is None else weights[rows])
            self.n_steps_ += 1
            share = min(2 * size / (len(x) + 1), 1.0)
            smooth = inertia if smooth is None else smooth * (1 - share) + inertia * share
            stale = 0 if smooth < least else stale + 1
            least = min(least, smooth)
            if self.max_no_improvement is not None and stale >= self.max_no_improvement:
                break
        self.n_iter_ = math.ceil(self.n_steps_ / batches)
        distances, labels = nearest_centres(x, centres)
        self.cluster_centers_, self.labels_ = centres.numpy(), labels.to(torch.int32).numpy()
        self.inertia_ = float((distances.double() if weights is None else distances.double() * weights).sum())
        return self

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> MiniBatchKMeans:
        """One step on the rows of X, which begin the centres where there are none yet (then at least k rows)."""
        if not hasattr(self, "cluster_centers_"):
            x, weights = self._start(X, y, sample_weight)
            centres = self._first_centres(x, weights, check_random_state(self.random_state))
            self._mass, self.n_steps_ = torch.zeros(self.n_clusters, dtype=torch.float64), 0
        else:
            x, centres = self._checked(X), torch.from_numpy(self.cluster_centers_)
            weights = None if sample_weight is None else tensor(_check_sample_weight(sample_weight, X, dtype=self.cluster_centers_.dtype))
        centres, _ = self._step(x, centres, weights)
        self.n_steps_ += 1
        distances, labels = nearest_centres(x, centres)
        self.cluster_centers_, self.labels_, self.inertia_ = (
            centres.numpy(),
            labels.to(torch.int32).numpy(),
            float(distances.double().sum()),
        )
        return self

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> np.ndarray:
        """``fit(X).labels_``."""
        return self.fit(X, sample_weight=sample_weight).labels_


def kmeans_sharded(
    x: Tensor, n_clusters: int, *, max_iter: int = 300, tol: float = 1e-4, seed: int = 0, group: dist.ProcessGroup | None = None
) -> tuple[Tensor, Tensor, float, int]:
    """k-means of all processes' rows together: (centres [k, D], labels [N_r] of this process's rows, inertia, iterations).

    x: [N_r, D] float32 or float64, this process's rows (any number, also none). Every process must call with the same other
    arguments and gets the same centres. Per iteration the processes exchange k * D float64 sums, whatever N is. The start
    (k-means++) and the answer are those of ``KMeans(n_clusters, random_state=seed)`` on all rows in one place, in the order
    of the ranks, up to the rounding of sums. Raises RuntimeError where torch.distributed is not initialised, ValueError for
    too few rows or another dtype.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError("kmeans_sharded needs an initialised process group: call torch.distributed.init_process_group first")
    if x.dim() != 2 or x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"kmeans_sharded takes a float32 or float64 matrix, got {x.dtype} of shape {tuple(x.shape)}")
    k, processes = at_least("n_clusters", n_clusters, 1), _Ranks(group)
    rows = int(processes.sum(torch.tensor(len(x))))
    if rows < k:
        raise ValueError(f"{rows} rows on {processes.size} processes should be at least n_clusters={k}")
    with torch.no_grad():
        mean = processes.sum(x.double().sum(0)) / rows
        variance = float((processes.sum((x.double() - mean).square().sum(0)) / rows).mean())
        centres = plus_plus(x, k, np.random.RandomState(seed), None, processes)
        result = lloyd(x, centres, None, at_least("max_iter", max_iter, 1), tol * variance, processes)
    return result.centres, result.labels, result.inertia, result.iterations
