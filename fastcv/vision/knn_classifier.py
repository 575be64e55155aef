"""kNN for images: distance and k chosen by cross-validation on the training images, so that a test set is read once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from ..neighbors import KNeighborsClassifier
from ._common import at_least, tensor
from .knn import cross_validate

__all__ = ["KNNImageClassifier"]


class KNNImageClassifier(ClassifierMixin, BaseEstimator):
    """k-nearest-neighbour classification with k and the distance chosen by cross-validation inside ``fit``.

    ks: the candidates for k; those larger than the training part of a fold are left out. ps: the candidates for the exponent
    of the distance, 1 (L1) and 2 (L2). folds: of the cross-validation, each with the mix of classes of the whole. seed: shuffles.
    Rows are images folded flat, (n_samples, n_features); uint8 is compared in exact integers.
    After fit: ``cv_accuracy_`` (len(ps), len(ks_), folds), ``ks_``, ``best_k_``, ``best_p_`` (of the largest mean, the smallest k
    among equals). Every prediction is by all training images; the test images play no part in the choice.
    """

    def __init__(
        self, ks: Sequence[int] = (1, 3, 5, 8, 10, 15, 20, 50), *, ps: Sequence[float] = (1, 2), folds: int = 5, seed: int = 0
    ) -> None:
        self.ks = ks
        self.ps = ps
        self.folds = folds
        self.seed = seed

    def fit(self, X: Any, y: Any) -> KNNImageClassifier:
        """Chooses k and p on X (n_samples, n_features) with labels y, and keeps them."""
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32, np.uint8], order="C")
        check_classification_targets(y)
        self.classes_, targets = np.unique(y, return_inverse=True)
        folds = at_least("folds", self.folds, 2)
        if len(X) < folds:
            raise ValueError(f"n_samples={len(X)} cannot be split into folds={folds}")
        smallest = len(X) - -(-len(X) // folds)  # the points left when the largest fold is held out
        ks = sorted({at_least("k", k, 1) for k in self.ks})
        self.ks_ = np.array([k for k in ks if k <= smallest])
        if not len(self.ks_) or not len(self.ps):
            raise ValueError(f"none of ks={tuple(self.ks)} fits n_samples={smallest} in the folds' training parts, or ps is empty")
        points, labels = tensor(X), torch.from_numpy(targets.astype(np.int64))
        found = [cross_validate(points, labels, self.ks_.tolist(), p, folds, self.seed) for p in self.ps]
        self.cv_accuracy_ = torch.stack(found).double().numpy()
        means = self.cv_accuracy_.mean(2)
        k, p = np.unravel_index(means.T.argmax(), means.T.shape)  # k outermost: the smallest k among equals
        self.best_k_, self.best_p_ = int(self.ks_[k]), float(self.ps[p])
        self._classifier = KNeighborsClassifier(self.best_k_, p=self.best_p_).fit(X, y)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The majority among the ``best_k_`` nearest training images of each row of X."""
        check_is_fitted(self, "best_k_")
        return self._classifier.predict(validate_data(self, X, dtype=[np.float64, np.float32, np.uint8], order="C", reset=False))
