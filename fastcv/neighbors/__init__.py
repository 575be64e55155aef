"""Exact nearest neighbours in scikit-learn's conventions, on the kernels of ``fastcv.functional.knn``.

``KNeighborsClassifier``, ``KNeighborsRegressor`` and ``NearestNeighbors`` are scikit-learn estimators (they go into pipelines,
grid searches and ``clone``) with the answers of scikit-learn's classes of the same names and equal distances going to the
lowest index. ``knn_chunked`` and ``knn_sharded`` are the same search for tensors: the one for queries that take long, the
other for references that are spread over the processes of ``torch.distributed``.
The estimators need scikit-learn (``pip install fastcv[data]``); a progress bar needs rich (``pip install fastcv[cli]``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .search import knn_chunked
from .sharded import knn_sharded

if TYPE_CHECKING:
    from .estimators import KNeighborsClassifier, KNeighborsRegressor, NearestNeighbors

__all__ = ["KNeighborsClassifier", "KNeighborsRegressor", "NearestNeighbors", "knn_chunked", "knn_sharded"]


def __getattr__(name: str) -> Any:  # scikit-learn takes a second to import: only who asks for an estimator waits for it
    if name not in ("KNeighborsClassifier", "KNeighborsRegressor", "NearestNeighbors"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from . import estimators
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "sklearn":
            raise
        raise ModuleNotFoundError(f"fastcv.neighbors.{name} needs scikit-learn: pip install 'fastcv[data]'", name="sklearn") from None
    return getattr(estimators, name)
