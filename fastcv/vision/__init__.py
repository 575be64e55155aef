"""Classical vision on fastcv's kernels: clusters, linear classifiers, features, edges, gradient checks, segmentation.

The estimators follow scikit-learn's conventions and need it (``pip install fastcv[data]``); ``search_architecture`` needs
Optuna (``pip install fastcv[search]``). docs/vision.md lists what there is.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "kmeans": ("KMeans", "MiniBatchKMeans", "kmeans_sharded"),
    "mean_shift": ("MeanShift", "estimate_bandwidth"),
    "graph_cut": ("cut_cost", "image_graph", "normalized_cut"),
    "linear": ("LinearSVM", "SoftmaxClassifier"),
    "knn_classifier": ("KNNImageClassifier",),
    "features": ("BagOfVisualWords", "ColorHistogram", "HOG", "color_histogram", "hog"),
    "edges": ("canny",),
    "losses": ("hinge_loss", "kl_divergence", "label_smoothing_loss", "soft_iou_loss", "softmax"),
    "gradient_check": ("GradientReport", "check_gradients"),
    "segmentation": ("mean_colors", "pixel_features", "segment", "superpixels"),
    "search": ("search_architecture",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}
_EXTRAS = {"sklearn": ("scikit-learn", "data"), "scipy": ("scipy", "data"), "optuna": ("Optuna", "search")}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:  # scikit-learn takes a second to import: only who asks for an estimator waits for it
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    except ModuleNotFoundError as error:
        package, extra = _EXTRAS.get((error.name or "").partition(".")[0], (None, None))
        if package is None:
            raise
        raise ModuleNotFoundError(f"fastcv.vision.{name} needs {package}: pip install 'fastcv[{extra}]'", name=error.name) from None
