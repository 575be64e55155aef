"""Linear classifiers trained by minibatch SGD: the multiclass SVM and softmax regression, with their templates.

Both minimise mean loss + alpha / 2 * |W|^2. The data are centred and scaled by one number inside, so that learning rates mean
the same for bytes and for shares; ``coef_`` and ``intercept_`` are those of the data as given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from .. import functional
from ._common import DTYPES, at_least, tensor
from .losses import hinge_loss

__all__ = ["LinearSVM", "SoftmaxClassifier"]


class _Linear(ClassifierMixin, BaseEstimator):
    """scores = X @ coef_.T + intercept_; one row of ``coef_`` per class, a template of the class's images."""

    def __init__(
        self,
        *,
        alpha: float = 1e-3,
        learning_rate: float = 2.0,
        momentum: float = 0.9,
        batch_size: int = 64,
        epochs: int = 30,
        random_state: Any = None,
        on_epoch: Callable[[int, float], None] | None = None,
    ) -> None:
        self.alpha = alpha
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.batch_size = batch_size
        self.epochs = epochs
        self.random_state = random_state
        self.on_epoch = on_epoch

    def fit(self, X: Any, y: Any) -> Any:
        """Trains on X (n_samples, n_features) and the labels y of any kind; two classes at least."""
        X, y = validate_data(self, X, y, dtype=DTYPES, order="C")
        check_classification_targets(y)
        self.classes_, targets = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"{type(self).__name__} needs samples of at least 2 classes, but the data contains only one class: {self.classes_[0]!r}"
            )
        for name, least in (("alpha", 0), ("learning_rate", 0), ("momentum", 0)):
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} must be a number of at least {least}, got {getattr(self, name)!r}")
        x, t = tensor(X), tensor(targets.astype(np.int64))
        mean = x.double().mean(0)
        scale = float((x.double() - mean).square().sum(1).mean().sqrt().clamp_min(1e-300))  # rows of length about one, so that
        x = ((x.double() - mean) / scale).to(x.dtype)  # the loss's curvature, and with it the largest stable rate, is known
        weight, bias = (torch.zeros(len(self.classes_), d, dtype=x.dtype) for d in (x.shape[1], 1))
        weight.requires_grad_(), bias.requires_grad_()
        optimiser = torch.optim.SGD([weight, bias], self.learning_rate, momentum=self.momentum)
        generator = torch.Generator().manual_seed(int(check_random_state(self.random_state).randint(2**31 - 1)))
        size = min(at_least("batch_size", self.batch_size, 1), len(x))
        # alpha is of the weights for the data as given: theirs times 1 / scale.
        decay, epochs = self.alpha / scale**2, at_least("epochs", self.epochs, 1)
        steps, taken = epochs * -(-len(x) // size), 0
        for epoch in range(epochs):
            total = 0.0
            for rows in torch.randperm(len(x), generator=generator).split(size):
                for group in optimiser.param_groups:  # half a cosine to zero, as in the training loops
                    group["lr"] = 0.5 * self.learning_rate * (1 + np.cos(np.pi * taken / steps))
                loss = self._loss(x[rows] @ weight.T + bias[:, 0], t[rows])
                (loss + 0.5 * decay * weight.square().sum()).backward()
                optimiser.step()
                optimiser.zero_grad()
                total, taken = total + loss.item() * len(rows), taken + 1
            if self.on_epoch is not None:
                self.on_epoch(epoch + 1, total / len(x))
        final = weight.detach().double() / scale
        self.coef_ = final.to(x.dtype).numpy()
        self.intercept_ = (bias.detach().double()[:, 0] - final @ mean).to(x.dtype).numpy()
        self.n_iter_ = epochs
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores (n_samples, n_classes); for two classes the second's minus the first's (n_samples,)."""
        check_is_fitted(self, "coef_")
        X = validate_data(self, X, dtype=DTYPES, reset=False)
        scores = X @ self.coef_.T + self.intercept_
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: Any) -> np.ndarray:
        """The class of the highest score for each row of X."""
        scores = self.decision_function(X)
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(1)]

    def templates(self, shape: tuple[int, ...]) -> np.ndarray:
        """``coef_`` as images (n_classes, *shape): what each class looks for, grey (0.5) where it does not care."""
        check_is_fitted(self, "coef_")
        if np.prod(shape) != self.coef_.shape[1]:
            raise ValueError(f"{self.coef_.shape[1]} weights a class do not fold into images of shape {tuple(shape)}")
        largest = np.abs(self.coef_).max(1, keepdims=True)
        return (0.5 + self.coef_ / (2 * np.where(largest > 0, largest, 1))).reshape(-1, *shape)


class LinearSVM(_Linear):
    """The multiclass SVM of Weston and Watkins: mean over the samples of sum over wrong classes max(0, s_wrong - s_right + 1).

    alpha: L2 penalty (alpha / 2 * |W|^2, not on the intercepts). learning_rate: of SGD with ``momentum``, in units of the data's
    scale, falling by half a cosine to zero over ``epochs``. batch_size: samples per step. on_epoch(epoch, mean loss) is
    called after each epoch. After fit: ``coef_`` (n_classes, n_features), ``intercept_`` (n_classes,), ``classes_``.
    """

    def _loss(self, scores: Tensor, target: Tensor) -> Tensor:
        return hinge_loss(scores, target)


class SoftmaxClassifier(_Linear):
    """Softmax regression: mean cross-entropy. Arguments and what fit leaves as in `LinearSVM`; and probabilities."""

    def _loss(self, scores: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(scores, target)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities (n_samples, n_classes) in the order of ``classes_``."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            scores = np.stack([np.zeros_like(scores), scores], 1)
        return functional.softmax(tensor(scores), dim=1).numpy()
