"""Estimators in scikit-learn's conventions on exact brute-force search; results as scikit-learn's classes of the same names."""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from .. import functional
from ..functional.neighbors import unit_rows
from .search import chunks_of

__all__ = ["KNeighborsClassifier", "KNeighborsRegressor", "NearestNeighbors"]

_DTYPES = [np.float64, np.float32, np.uint8]
_METRICS = {"euclidean": 2.0, "l2": 2.0, "manhattan": 1.0, "cityblock": 1.0, "l1": 1.0, "chebyshev": math.inf, "infinity": math.inf}
_VOTES = 1 << 26  # votes (queries x classes) held at a time


def _tensor(array: np.ndarray) -> torch.Tensor:
    """The same memory as a tensor, read-only memory maps too (nothing here writes)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(np.ascontiguousarray(array))


class _Neighbors(BaseEstimator):
    """References, the search, and what all three estimators share."""

    def _exponent(self) -> float:
        if self.metric == "cosine":
            return 2.0  # of rows of length one
        if self.metric == "minkowski":
            if not isinstance(self.p, numbers.Real) or isinstance(self.p, bool) or not self.p > 0:
                raise ValueError(f"p must be a positive number, got {self.p!r}")
            return float(self.p)
        if self.metric not in _METRICS:
            raise ValueError(f"metric must be minkowski, cosine, {', '.join(_METRICS)}, got {self.metric!r}")
        return _METRICS[self.metric]

    def _count(self, n_neighbors: Any = None) -> int:
        k = self.n_neighbors if n_neighbors is None else n_neighbors
        if not isinstance(k, numbers.Integral) or isinstance(k, bool):
            raise TypeError(f"n_neighbors does not take {type(k)} value, enter integer value")
        if k <= 0:
            raise ValueError(f"Expected n_neighbors > 0. Got {k}")
        return int(k)

    def _fit_references(self, X: np.ndarray) -> None:
        self._exponent()
        self._count()
        self._fit_X = X
        self.n_samples_fit_ = X.shape[0]

    def _answers(self, X: Any, n_neighbors: int | None, most: int = 1 << 16) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """(slice of the queries, distances, indices) chunk by chunk; X None: the references, each without itself."""
        check_is_fitted(self, "n_samples_fit_")
        p, references, itself = self._exponent(), self._fit_X, X is None
        k, most_k = self._count(n_neighbors), self.n_samples_fit_ - itself
        if k > most_k:
            raise ValueError(f"Expected n_neighbors <= n_samples_fit, but n_neighbors = {k}, n_samples_fit = {most_k}")
        queries = references if itself else validate_data(self, X, dtype=_DTYPES, order="C", reset=False)
        if queries.dtype != references.dtype:
            wide = np.result_type(queries.dtype, references.dtype, np.float32)
            queries, references = queries.astype(wide, copy=False), references.astype(wide, copy=False)
        x, y, cosine = _tensor(queries), _tensor(references), self.metric == "cosine"
        if cosine:
            y = unit_rows(y, 1)
        for part in chunks_of(x.shape[0], *y.shape, progress=self.progress, most=most):
            chunk = unit_rows(x[part], 0) if cosine else x[part]
            distances, indices = (t.numpy() for t in functional.knn(chunk, y, k + itself, p, squared=cosine))
            if cosine:
                distances = distances / 2
            if itself:
                others = indices != np.arange(part.start, part.stop)[:, None]
                others[others.all(1), -1] = False  # more duplicates than neighbours: the last goes
                distances, indices = (a[others].reshape(-1, k) for a in (distances, indices))
            yield part, distances, indices

    def kneighbors(self, X: Any = None, n_neighbors: int | None = None, return_distance: bool = True) -> Any:
        """The nearest fitted samples of each row of X: (distances, indices), or indices alone.

        X: (n_queries, n_features), or None for the fitted samples, none of which counts as its own neighbour.
        n_neighbors: by default the estimator's. Distances are in the dtype of the data (float32 for uint8), ascending, equal ones
        by the lowest index. Raises NotFittedError before fit, ValueError for n_neighbors outside [1, n_samples_fit].
        """
        parts = list(self._answers(X, n_neighbors))
        distances, indices = (np.concatenate([part[i] for part in parts]) for i in (1, 2))
        return (distances, indices) if return_distance else indices


class NearestNeighbors(_Neighbors):
    """Unsupervised nearest neighbours, as ``sklearn.neighbors.NearestNeighbors`` with ``algorithm="brute"``.

    n_neighbors: how many ``kneighbors`` returns by default. metric: "minkowski" (with p), "euclidean", "manhattan", "chebyshev" or
    one of scikit-learn's other names for them, or "cosine" (which takes a copy of the data). p: any number > 0. progress: True,
    False or "auto" (a bar on a terminal for searches longer than two seconds).
    Data: arrays of shape (n_samples, n_features); float32, float64 and uint8 (exact integer arithmetic) are searched as they
    are, without a copy if they are C-contiguous, other numbers as float64. Beyond data and answer a search takes a few
    megabytes a thread, whatever the number of samples. Raises scikit-learn's errors for data it would refuse.
    """

    def __init__(self, n_neighbors: int = 5, *, metric: str = "minkowski", p: float = 2, progress: bool | str = "auto") -> None:
        self.n_neighbors = n_neighbors
        self.metric = metric
        self.p = p
        self.progress = progress

    def fit(self, X: Any, y: Any = None) -> NearestNeighbors:
        """Keeps X (n_samples, n_features)."""
        self._fit_references(validate_data(self, X, dtype=_DTYPES, order="C"))
        return self


class _Supervised(_Neighbors):
    """What both estimators that predict share: their arguments, and how much each neighbour counts."""

    def __init__(
        self,
        n_neighbors: int = 5,
        *,
        weights: str | Callable[[np.ndarray], np.ndarray] | None = "uniform",
        metric: str = "minkowski",
        p: float = 2,
        progress: bool | str = "auto",
    ) -> None:
        self.n_neighbors = n_neighbors
        self.weights = weights
        self.metric = metric
        self.p = p
        self.progress = progress

    def _weights(self, distances: np.ndarray) -> np.ndarray | None:
        """One weight per neighbour, or None where all count the same."""
        if self.weights in ("uniform", None):
            return None
        if callable(self.weights):
            return np.asarray(self.weights(distances))
        with np.errstate(divide="ignore"):
            weights = 1.0 / distances.astype(np.float64)
        infinite = np.isinf(weights)
        exact = infinite.any(1)
        weights[exact] = infinite[exact]  # a query that is a reference listens to nobody else
        return weights

    def _check_weights(self) -> None:
        if self.weights not in ("uniform", "distance", None) and not callable(self.weights):
            raise ValueError(f'weights must be "uniform", "distance", None or a function of distances, got {self.weights!r}')


class KNeighborsClassifier(ClassifierMixin, _Supervised):
    """Classification by a vote of the nearest neighbours, as ``sklearn.neighbors.KNeighborsClassifier``.

    weights: "uniform", "distance" (each vote counts the inverse of its distance; a query that is a fitted sample listens to
    that alone) or a function from distances to weights. The rest as in `NearestNeighbors`. A tied vote goes to the class that
    sorts first. One label per sample.
    """

    def fit(self, X: Any, y: Any) -> KNeighborsClassifier:
        """Keeps X (n_samples, n_features) and the labels y (n_samples,)."""
        self._check_weights()
        X, y = validate_data(self, X, y, dtype=_DTYPES, order="C")
        check_classification_targets(y)
        self.classes_, self._y = np.unique(y, return_inverse=True)
        self._fit_references(X)
        return self

    def _votes(self, X: Any) -> Iterator[np.ndarray]:
        check_is_fitted(self, "n_samples_fit_")
        classes = len(self.classes_)
        for _, distances, indices in self._answers(X, None, max(_VOTES // classes, 1)):
            queries, k = indices.shape
            weights = self._weights(distances)
            cells = (self._y[indices] + classes * np.arange(queries)[:, None]).ravel()
            flat = None if weights is None else np.broadcast_to(weights, (queries, k)).ravel()
            yield np.bincount(cells, flat, queries * classes).reshape(queries, classes)

    def predict(self, X: Any) -> np.ndarray:
        """The class with the most votes, for each row of X; X None: for the fitted samples, each without its own vote."""
        winners = np.concatenate([votes.argmax(1) for votes in self._votes(X)])
        return self.classes_[winners]

    def predict_proba(self, X: Any) -> np.ndarray:
        """The share of the votes of each class (n_queries, n_classes), in the order of ``classes_``."""
        shares = []
        for votes in self._votes(X):
            total = votes.sum(1, keepdims=True)
            shares.append(votes / np.where(total == 0, 1, total))
        return np.concatenate(shares)


class KNeighborsRegressor(RegressorMixin, _Supervised):
    """Regression by the mean of the nearest neighbours, as ``sklearn.neighbors.KNeighborsRegressor``.

    Arguments as in `KNeighborsClassifier`; one or several targets per sample.
    """

    def fit(self, X: Any, y: Any) -> KNeighborsRegressor:
        """Keeps X (n_samples, n_features) and the targets y, (n_samples,) or (n_samples, n_outputs)."""
        self._check_weights()
        X, y = validate_data(self, X, y, dtype=_DTYPES, order="C", multi_output=True, y_numeric=True)
        self._y = y
        self._fit_references(X)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The (weighted) mean of the targets of each row's neighbours; X None: of the fitted samples, each without itself."""
        check_is_fitted(self, "n_samples_fit_")
        means = []
        for _, distances, indices in self._answers(X, None):
            targets, weights = self._y[indices], self._weights(distances)  # (queries, k[, outputs])
            if weights is None:
                means.append(targets.mean(1))
                continue
            weights = np.broadcast_to(weights, indices.shape).reshape(indices.shape + (1,) * (targets.ndim - 2))
            means.append((targets * weights).sum(1) / weights.sum(1))
        return np.concatenate(means)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
